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

from vdt_jax.data import make_source
from vdt_jax.video import as_rgb, read_frames, write_video

ROOT = Path(__file__).parents[2]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
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
    page.set_default_timeout(240_000)
    page.goto(address)
    page.get_by_role("button", name="Generate").wait_for()
    return page


def drop_in(page, path):
    page.locator("#file input[type=file]").set_input_files(path)
    page.locator("#file .file-name, #file .file-preview").first.wait_for()


def generate(page, path):
    """Presses the button, waits for the sample, and gives its frames (16, 32, 32, 1)."""
    page.locator("#steps input[type=number]").fill("3")
    page.get_by_role("button", name="Generate").click()
    with page.expect_download() as download:
        page.locator("#sample a[download]").first.click()
    download.value.save_as(path)
    return np.stack(list(read_frames(path)))[:, 2::4, 2::4, :1].astype(int)


def test_from_a_video_to_an_mp4(browser, address, tmp_path):
    clip = digits(tmp_path / "digits.mp4")
    page = open_page(browser, address)
    drop_in(page, tmp_path / "digits.mp4")
    frames = generate(page, tmp_path / "sample.mp4")
    page.locator("#comparison img").first.wait_for()
    page.screenshot(path=os.environ.get("APP_SCREENSHOT", tmp_path / "page.png"))
    page.close()
    assert frames.shape == clip.shape
    assert np.abs(frames[:8] - clip[:8]).mean() < 12  # mp4 twice
    assert np.abs(frames[8:] - clip[8:]).mean() > 12


def test_a_painted_mask(browser, address, tmp_path):
    clip = digits(tmp_path / "digits.mp4")
    page = open_page(browser, address)
    drop_in(page, tmp_path / "digits.mp4")
    page.locator("#task input").click()
    page.get_by_role("option", name="what I paint").click()
    box = page.locator("#painted canvas").first.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    for step in range(10):
        page.mouse.move(x + 4 * step, y + 2 * step)
    page.mouse.up()
    frames = generate(page, tmp_path / "sample.mp4")
    page.close()
    changed = np.abs(frames - clip).max(axis=(0, 3)) > 60
    assert changed.any()
    rows, columns = np.nonzero(changed)
    assert rows.min() > 8 and rows.max() < 28 and columns.min() > 8 and columns.max() < 31


def test_a_mistake_is_one_line_on_the_page(browser, address, tmp_path):
    (tmp_path / "words.mp4").write_bytes(b"no video" * 100)
    page = open_page(browser, address)
    page.locator("#file input[type=file]").set_input_files(tmp_path / "words.mp4")
    page.get_by_text("cannot be decoded").first.wait_for()
    page.close()


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

        def generate(seed=0, sampler="unipc"):
            video = client.handle_file(tmp_path / "digits.mp4")
            return connection.predict(video, editor, "predict", 8, sampler, 2, seed, api_name="/generate")

        generate()
        assert list((tmp_path / "files").rglob("*.mp4"))
        with pytest.raises(client.exceptions.AppError, match="seed must be <= 9223372036854775807"):
            generate(seed=2**63)
        with pytest.raises(client.exceptions.AppError, match="euler"):
            generate(sampler="euler")
    assert not list((tmp_path / "files").iterdir())
