"""Several processes as one run; interruption; kill -9. What takes real processes for long is slow."""

import functools
import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from etils import epath
from helpers import small_run as shared
from helpers.scripts import DIGITS, SHRUNK

from vdt_jax.checkpoints.manager import Checkpoints
from vdt_jax.checkpoints.manifest import MANIFEST, finished_steps
from vdt_jax.distributed import processes as module
from vdt_jax.distributed.gather import COORDINATOR, RESUME
from vdt_jax.distributed.mesh import make_mesh, state_shardings, with_shardings
from vdt_jax.distributed.processes import knows_its_place, start_processes
from vdt_jax.distributed.watch import SILENCE
from vdt_jax.errors import CANCELLED, INTERRUPTED, STOPPED, UserError
from vdt_jax.files import LOCK

ROOT = Path(__file__).parents[2]
ENVIRONMENT = os.environ | {
    "JAX_PLATFORMS": "cpu",
    "PYTHONPATH": f"{ROOT}:{ROOT}/tests",
    "JAX_COMPILATION_CACHE_DIR": f"{sys.prefix}/jax-cache",
}
start = functools.partial(subprocess.Popen, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

WATCHED = """
import sys, time, jax
from vdt_jax.distributed.processes import any_process, start_processes
from vdt_jax.distributed.watch import Watch
start_processes(f"localhost:{sys.argv[1]}", 2, int(sys.argv[2]))
jax.devices()
with Watch() as watch:
    any_process(False)
    print("up", flush=True)
    for _ in range(600):
        time.sleep(0.5)
        any_process(False)
"""
TRAIN = [sys.executable, "-u", str(ROOT / "train.py"), DIGITS, *SHRUNK, "--config.model.num_frames=2"]
TRAIN += ["--config.model.input_size=(16,16)", "--config.preview.every=0", "--config.total_steps=100000"]
INTERRUPTIBLE = """
import sys, time
from vdt_jax.distributed.processes import Interruption
with Interruption() as interruption:
    print("up", flush=True)
    if sys.argv[1] == "before":
        time.sleep(60)
    step = 1
    if sys.argv[1] == "hanging":
        interruption.requested(step)
        time.sleep(60)
    while not interruption.requested(step):
        time.sleep(0.01)
        step += 1
    print("asked", interruption.asked, flush=True)
"""
SCRIPT = """
import hashlib, sys, time
from vdt_jax import cli
presses = sys.argv.pop()
def main(_):
    print("up", flush=True)
    if presses == "1":
        time.sleep(60)
    hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9)  # as in a compilation, no handler of Python runs
cli.run(main)
"""


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("localhost", 0))
        return listening.getsockname()[1]


def test_who_finds_the_others_without_being_told():
    assert not knows_its_place({"JAX_PLATFORMS": "cpu", "TPU_WORKER_HOSTNAMES": "a,b"})
    assert knows_its_place({"SLURM_STEP_NUM_TASKS": "4"}) and not knows_its_place({"SLURM_STEP_NUM_TASKS": "1"})
    assert knows_its_place({"TPU_WORKER_HOSTNAMES": "a,b"})


@pytest.mark.parametrize(
    ("files", "found"),
    [
        ({"dev/accel0": ""}, True),  # up to v4
        ({"dev/vfio/1": "", "sys/kernel/iommu_groups/1/devices/0000:00:05.0/vendor": "0x1ae0\n"}, True),
        ({"dev/vfio/1": "", "sys/kernel/iommu_groups/1/devices/0000:01:00.0/vendor": "0x10de\n"}, False),  # a GPU
        # a network card
        ({"dev/vfio/vfio": "", "sys/kernel/iommu_groups/2/devices/0000:00:04.0/vendor": "0x1ae0\n"}, False),
        ({}, False),
    ],
)
def test_machines_with_tpus_find_the_others(files, found, tmp_path):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert knows_its_place({}, tmp_path) == found
    assert not knows_its_place({"JAX_PLATFORMS": "cpu"}, tmp_path)


@pytest.mark.parametrize(("count", "gathered"), [(2, [("node7:63000", 2, 1)]), (1, [])])
def test_a_scheduler_names_the_processes(monkeypatch, count, gathered):
    slurm = {"SLURM_JOB_ID": "1560", "SLURM_STEP_NODELIST": "node[7-8]", "SLURM_NTASKS": str(count)}
    slurm |= {"SLURM_PROCID": str(count - 1), "SLURM_LOCALID": "0", "SLURM_STEP_NUM_TASKS": "2"}
    for name, value in slurm.items():
        monkeypatch.setenv(name, value)
    for name in ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"):
        monkeypatch.delenv(name, raising=False)
    calls = []
    monkeypatch.setattr(module, "gather", lambda *place: calls.append(place))
    monkeypatch.setattr(module, "watch_others", lambda me, sockets: None)
    monkeypatch.setattr(jax.distributed, "initialize", lambda *place: calls.append(place))
    start_processes(None, None, None)
    assert calls == 2 * gathered


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("host:1", None, None), "num_processes and process_id"),
        (("host:1", 2, 2), "process_id must be 0 to 1 with num_processes=2, got 2"),
        (("host", 2, 0), "coordinator must be host:port with a port from 1 to 65535, as in host:8476, got host"),
        ((None, None, 1), "coordinator and num_processes"),
    ],
)
def test_half_told_places_are_refused(arguments, message):
    with pytest.raises(UserError, match=message):
        start_processes(*arguments)


def test_the_environment_can_tell(monkeypatch):
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "host:1")
    monkeypatch.setenv("JAX_NUM_PROCESSES", "two")
    with pytest.raises(UserError, match="JAX_NUM_PROCESSES must be an integer, got two"):
        start_processes(None, None, None)


@pytest.mark.parametrize("when", ["before", "during"])
def test_sigterm(when):
    process = start([sys.executable, "-c", INTERRUPTIBLE, when])
    assert process.stdout.readline() == "up\n"
    time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=30)
    if when == "before":  # nothing to save: at once, also where the main thread does not run Python
        assert process.returncode == INTERRUPTED and "before the first step" in err
    else:
        assert process.returncode == 0 and out == "asked True\n"


@pytest.mark.usefixtures("ctrl_c")
@pytest.mark.parametrize("presses", [1, 2])
def test_ctrl_c_is_like_sigterm_and_twice_ends_at_once(presses):
    process = start([sys.executable, "-c", INTERRUPTIBLE, "during" if presses == 1 else "hanging"])
    assert process.stdout.readline() == "up\n"
    for _ in range(presses):
        time.sleep(0.3)
        process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    if presses == 1:
        assert process.returncode == 0 and out == "asked True\n"
    else:
        assert process.returncode == CANCELLED
        assert err == "stopped: interrupted twice: ended at once\n"


@pytest.mark.usefixtures("ctrl_c")
@pytest.mark.parametrize("presses", [1, 2])
def test_ctrl_c_in_another_script(presses):
    process = start([sys.executable, "-c", SCRIPT, str(presses)])
    assert process.stdout.readline() == "up\n"
    for _ in range(presses):
        time.sleep(0.3)
        process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == CANCELLED
    once, twice = "stopped: interrupted", "stopped: interrupted twice: ended at once"
    assert err.strip() == (once if presses == 1 else twice)


@pytest.mark.slow
@pytest.mark.parametrize("kills", [20])
def test_killed_runs_end_in_the_bits_of_the_uninterrupted_one(kills):
    command = [sys.executable, str(ROOT / "tests" / "torture" / "kills.py"), str(kills), "0"]
    done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, timeout=1500, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert f"{kills} kills:" in done.stdout.splitlines()[-1]


@pytest.mark.slow
def test_two_processes_equal_one_device(tmp_path):
    port = str(free_port())
    command = [sys.executable, str(ROOT / "tests" / "helpers" / "two_processes.py"), port]
    processes = [start([*command, str(number), str(tmp_path)]) for number in (0, 1)]
    printed = [process.communicate(timeout=900) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], printed[0][1][-3000:] + printed[1][1][-3000:]
    first, second = (json.loads(out.splitlines()[-1]) for out, _ in printed)
    assert first == second
    np.testing.assert_allclose(first["metrics"], shared.twenty_steps()[2], rtol=1e-5)

    content = json.loads((tmp_path / "checkpoints" / "20" / MANIFEST).read_text())
    assert content["hosts"] == 2 and any("ocdbt.process_1/" in name for name in content["files"])
    mesh, shapes = make_mesh(1), shared.first_state()
    with Checkpoints(tmp_path) as checkpoints:
        state = checkpoints.restore(with_shardings(shapes, state_shardings(shapes, mesh)))
    ours = hashlib.sha256(b"".join(np.asarray(x).tobytes() for x in jax.tree.leaves(state.params)))
    assert ours.hexdigest() == first["sha256"]


@pytest.mark.slow
@pytest.mark.parametrize(("when", "told"), [("before", 0), ("during", 1)])
def test_sigterm_to_one_of_two_processes(when, told, tmp_path):
    def both(*arguments):
        here = [f"--coordinator=localhost:{free_port()}", "--num_processes=2", f"--workdir={tmp_path}/run", *arguments]
        return [start([*TRAIN, *here, f"--process_id={number}"]) for number in (0, 1)]

    processes = both()
    for line in processes[0].stdout:
        if line.startswith("working directory" if when == "before" else "step 5/"):
            break
    processes[told].send_signal(signal.SIGTERM)
    asked = time.monotonic()
    printed = [process.communicate(timeout=120) for process in processes]
    assert time.monotonic() - asked < 30
    assert [process.returncode for process in processes] == [INTERRUPTED, INTERRUPTED], printed
    steps = finished_steps(epath.Path(tmp_path) / "run" / "checkpoints")
    if when == "before":
        assert steps == [] and all("before the first step" in err for _, err in printed)
        return
    assert len(steps) == 1 and all(f"interrupted; step {steps[0]} is saved" in err for _, err in printed)
    processes = both(f"--stop_after={steps[0] + 2}")
    printed = [process.communicate(timeout=300) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], printed
    assert f"step {steps[0]} to {steps[0] + 2}" in printed[0][0]


@pytest.fixture
def watched():
    """Two processes that wait for each other again and again."""
    port = str(free_port())
    processes = [start([sys.executable, "-c", WATCHED, port, str(number)]) for number in (0, 1)]
    try:
        for process in processes:
            while process.stdout.readline() != "up\n":
                assert process.poll() is None, process.stderr.read()
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.communicate()


@pytest.mark.slow
@pytest.mark.parametrize("lost", [0, 1])
@pytest.mark.parametrize(
    ("sent", "how"), [(signal.SIGKILL, "has ended"), (signal.SIGSTOP, f"has sent nothing for {SILENCE:.0f} s")]
)
def test_a_lost_process_is_named_within_a_minute(watched, lost, sent, how):
    watched[lost].send_signal(sent)
    began = time.monotonic()
    _, err = watched[1 - lost].communicate(timeout=120)
    assert time.monotonic() - began < 60 and watched[1 - lost].returncode == STOPPED
    assert err.strip().splitlines()[-1] == f"error: {COORDINATOR if lost == 0 else 'process 1'} {how}; {RESUME}"


@pytest.mark.slow
def test_an_error_in_one_process_ends_all_with_its_message(tmp_path):
    here = [f"--coordinator=localhost:{free_port()}", "--num_processes=2", f"--workdir={tmp_path}/run"]
    processes = [start([*TRAIN, *here, f"--process_id={n}", f"--config.batch_size={2 + 2 * n}"]) for n in (0, 1)]
    printed = [process.communicate(timeout=200) for process in processes]
    assert [process.returncode for process in processes] == [2, 2], printed
    lines = [err.strip().splitlines()[-1] for _, err in printed]
    assert "the processes were started with different values, batch_size=2 (process 1: 4)" in lines[1]
    assert lines[0] == lines[1].replace("error: ", "error: process 1: ")
    assert [path.name for path in (tmp_path / "run").iterdir()] == [LOCK]  # which a process holds no longer
