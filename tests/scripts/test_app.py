"""The page, in a headless browser, from a file that is dropped in to an mp4 that is downloaded."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from helpers.scripts import fail

from vdt_jax.data import make_source
from vdt_jax.diffusion.masks import TASKS
from vdt_jax.video import as_rgb, read_frames, write_video

ROOT = Path(__file__).parents[2]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
LINK = "document.querySelector('#sample a[download]')"
pytestmark = pytest.mark.slow


@contextlib.contextmanager
def served(folder):
    """The address of a page whose temporary files are in this folder; it is ended by SIGTERM."""
    pytest.importorskip("gradio", reason="pip install -e '.[app]'")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = folder.with_name(f"{folder.name}.log")
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": f"{sys.prefix}/jax-cache",
        "TMPDIR": str(folder),
        "PYTHONPATH": str(ROOT),
    }
    command = [sys.executable, str(ROOT / "app.py"), f"--port={port}"]
    with log.open("w") as output:
        server = subprocess.Popen(command, env=environment, stdout=output, stderr=subprocess.STDOUT)
    try:
        for _ in range(600):
            time.sleep(0.5)
            assert server.poll() is None, log.read_text()
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}", timeout=5).close()
                break
            except OSError:
                continue
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        assert server.wait(30) == 128 + signal.SIGTERM


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    with served(tmp_path_factory.mktemp("app")) as address:
        yield address


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="pip install -e '.[browser]'")
    if CHROMIUM is None:
        pytest.skip("no chromium on this machine: the page was not tried in a browser")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


def digits(path):
    """A held-out clip as an mp4, three times as large as the model's frames."""
    clip = make_source({"name": "moving_digits"}, (16, 32, 32, 1), "held_out").clip(0)["video"]
    write_video(path, as_rgb(clip).repeat(3, axis=1).repeat(3, axis=2))
    return clip


def open_page(browser, address):
    page = browser.new_page(viewport={"width": 1250, "height": 1400}, accept_downloads=True)
    page.set_default_timeout(600_000)
    page.goto(address)
    page.get_by_role("button", name="Generate").wait_for()
    return page


def drop_in(page, path):
    page.locator("#file input[type=file]").set_input_files(path)
    page.locator("#file .file-name, #file .file-preview").first.wait_for()


def choose(page, task):
    page.locator("#task input").click()
    page.get_by_role("option", name=task, exact=True).click()


def generate(page, path):
    """Presses the button, waits for another sample than the one shown, and gives its frames (16, 32, 32, 1)."""
    page.locator("#steps input[type=number]").fill("3")
    before = page.evaluate(f"({LINK})?.href")
    page.get_by_role("button", name="Generate").click()
    page.wait_for_function(f"before => {LINK} && {LINK}.href !== before", arg=before)
    return downloaded(page, "#sample", path)[:, 2::4, 2::4, :1].astype(int)


def downloaded(page, place, path):
    """The frames of the file behind the link."""
    with page.expect_download() as download:
        page.locator(f"{place} a[download]").first.click()
    download.value.save_as(path)
    return np.stack(list(read_frames(path)))


@pytest.fixture(scope="module")
def page(browser, address, tmp_path_factory):
    """A page into which a video was dropped, with all that a URL needs escaped in its name; and the video's frames."""
    path = tmp_path_factory.mktemp("in") / "50% of #1?.mp4"
    clip = digits(path)
    page = open_page(browser, address)
    drop_in(page, path)
    yield page, clip
    page.close()


def test_every_task_from_a_video_to_an_mp4(page, tmp_path):
    page, clip = page
    for task in TASKS:
        choose(page, task)
        frames = generate(page, tmp_path / f"{task}.mp4")
        assert frames.shape == clip.shape, task
        error = np.abs(frames - clip).mean(axis=(1, 2, 3))  # mp4 twice
        if task == "predict":
            assert error[:8].max() < 12 < error[8:].mean()
        else:
            assert error.max() > 6, task
    page.locator("#comparison img").first.wait_for()
    for name, width in (("desktop", 1250), ("phone", 390)):
        page.set_viewport_size({"width": width, "height": 900})
        assert page.evaluate("document.documentElement.scrollWidth") <= width, f"{name}: wider than the screen"
        page.screenshot(path=Path(os.environ.get("APP_SCREENSHOTS", tmp_path)) / f"{name}.png", full_page=True)


def test_the_link_of_a_file_with_an_odd_name(page, tmp_path):
    page, clip = page
    assert "50% of #1?" in page.locator("#file").inner_text().replace("\n", "")
    frames = downloaded(page, "#file", tmp_path / "back.mp4")
    assert np.abs(frames[:, 1::3, 1::3, :1].astype(int) - clip).mean() < 12


def test_a_value_that_is_not_allowed_is_one_line_on_the_page(page):
    page, _ = page
    page.locator("#seed input").fill(str(2**63))
    page.get_by_role("button", name="Generate").click()
    page.get_by_text(f"seed must be <= {2**63 - 1}, got 92233720368547").first.wait_for()  # browsers round it
    page.locator("#seed input").fill("0")


def test_a_painted_mask(page, tmp_path):
    page, clip = page
    page.set_viewport_size({"width": 1250, "height": 1400})
    choose(page, "what I paint")
    box = page.locator("#painted canvas").first.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    for step in range(10):
        page.mouse.move(x + 4 * step, y + 2 * step)
    page.mouse.up()
    frames = generate(page, tmp_path / "sample.mp4")
    changed = np.abs(frames - clip).max(axis=(0, 3)) > 60
    assert changed.any()
    rows, columns = np.nonzero(changed)
    assert rows.min() > 8 and rows.max() < 28 and columns.min() > 8 and columns.max() < 31


def test_a_file_that_is_no_video_is_one_line_on_the_page(browser, address, tmp_path):
    (tmp_path / "words.mp4").write_bytes(b"no video" * 100)
    page = open_page(browser, address)
    page.locator("#file input[type=file]").set_input_files(tmp_path / "words.mp4")
    page.get_by_text("cannot be decoded").first.wait_for()
    page.close()


@pytest.mark.parametrize("host", ["/dev/null", "..", "203.0.113.1", "", "127.0.0.1"])
def test_an_address_that_cannot_be_used(host):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert f"cannot listen on --host={host} --port={port} (" in fail("app.py", f"--host={host}", f"--port={port}")


def test_only_this_machine_is_let_in(address):
    host = socket.gethostbyname(socket.gethostname())
    if host.startswith("127."):
        pytest.skip("this machine has no address but its own")
    with pytest.raises(OSError):
        socket.create_connection((host, int(address.rsplit(":", 1)[1])), timeout=5).close()


def test_a_client_is_checked_as_the_page_is_and_sigterm_deletes_the_files(tmp_path):
    client = pytest.importorskip("gradio_client", reason="pip install -e '.[app]'")
    (tmp_path / "files").mkdir()
    digits(tmp_path / "digits.mp4")
    with served(tmp_path / "files") as address:
        connection = client.Client(address, verbose=False, download_files=False)
        api = connection.view_api(print_info=False, return_format="dict")
        assert list(api["named_endpoints"]) == ["/generate"] and not api["unnamed_endpoints"]
        editor = {"background": None, "layers": [], "composite": None}

        def generate(seed=0, sampler="unipc", steps=2):
            video = client.handle_file(tmp_path / "digits.mp4")
            return connection.predict(video, editor, "predict", 8, sampler, steps, seed, api_name="/generate")

        generate()
        assert list((tmp_path / "files").rglob("*.mp4"))
        for values, message in (
            ({"seed": 2**63}, "seed must be <= 9223372036854775807"),
            ({"seed": None}, "seed must be a whole number, got None"),
            ({"seed": "1"}, "1|has raised an exception"),  # by gradio itself, in the words of its version
            ({"sampler": "euler"}, "euler"),
            ({"steps": 2.5}, "steps must be a whole number"),
        ):
            with pytest.raises(client.exceptions.AppError, match=message):
                generate(**values)
    assert not list((tmp_path / "files").iterdir())
