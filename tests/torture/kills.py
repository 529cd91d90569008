"""kill -9 at random moments, many inside the save window, and now and then SIGTERM: `make torture`, a few in the tests.

    python tests/torture/kills.py 200 0        # how many kills, and the seed

A tiny model trains by train.py itself, in children of this process: it has imported everything and started nothing, so
that a child costs little. A child is killed, the next one resumes, until the run is finished; then its state must have
the bits of the run that was never stopped.
"""

import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import jax
import numpy as np

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))
sys.path.insert(0, str(ROOT / "tests"))
from helpers import forked  # noqa: E402

import train  # noqa: E402
from vdt_jax.checkpoints.manifest import MANIFEST, all_steps, finished_steps  # noqa: E402
from vdt_jax.errors import INTERRUPTED, end_at_sigterm  # noqa: E402

STEPS, EVERY = 24, 2
TINY = {
    "model.num_frames": 2,
    "model.input_size": "(16,16)",
    "model.hidden_size": 8,
    "model.depth": 1,
    "model.num_heads": 1,
    "model.unroll": 1,
    "batch_size": 2,
    "total_steps": STEPS,
    "checkpoint_every": EVERY,
    "keep_checkpoints": 2,
    "learning_rate.warmup_steps": 1,
    "preview.every": 0,
}


def start(workdir: Path, *arguments: str) -> int:
    """Starts train.py in a child; its process id."""
    command = ["train.py", f"--config={ROOT}/configs/moving_digits.py", f"--workdir={workdir}"]
    command += [f"--config.{key}={value}" for key, value in TINY.items()]
    end_at_sigterm()  # as train.py before its imports; the child keeps it
    output = os.open(workdir.parent / "output.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    try:
        return forked.start(train.main, [*command, *arguments], output, output)
    finally:
        os.close(output)


def ended(child: int, within: float = 0.0) -> int | None:
    """The child's exit code, or None where it still runs after the time limit."""
    end = time.monotonic() + within
    while True:
        number, status = os.waitpid(child, os.WNOHANG)
        if number:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() >= end:
            return None
        time.sleep(0.002)


def finish(workdir: Path, *arguments: str) -> None:
    """Starts or resumes a run, to its end."""
    code = ended(start(workdir, *arguments), 600)
    assert code == 0, (code, (workdir.parent / "output.txt").read_text()[-3000:])


def kill_one(workdir: Path, rng: random.Random) -> str:
    """Starts or resumes a run and kills it; at which moment, or `finished` where it came to its end first."""
    from etils import epath

    checkpoints = epath.Path(workdir / "checkpoints")
    child, moment = start(workdir), rng.choice(("any time", "in a save", "in a save", "in a save", "SIGTERM"))
    if moment == "SIGTERM":
        code = ended(child, rng.uniform(0, start_seconds(workdir.parent)))
        if code is None:
            os.kill(child, signal.SIGTERM)
            code = ended(child, 30)
            assert code in (0, INTERRUPTED), (code, (workdir.parent / "output.txt").read_text()[-3000:])
        return "finished" if code == 0 else "SIGTERM"
    if moment == "any time":
        code = ended(child, rng.uniform(0, start_seconds(workdir.parent)))
    else:
        before, wanted, code = set(finished_steps(checkpoints)), rng.randint(1, 3), None
        while code is None:
            code = ended(child)
            news = len(set(finished_steps(checkpoints)) - before)
            if news >= wanted - 1 and _is_saving(workdir / "checkpoints"):
                code = ended(child, rng.choice((0, 0.01, 0.03, 0.1)) * rng.random())
                break
            time.sleep(0.001)
    if code is None:
        os.kill(child, signal.SIGKILL)
        code = ended(child, 60)
    assert code in (0, -signal.SIGKILL), (code, (workdir.parent / "output.txt").read_text()[-3000:])
    if code == 0:
        return "finished"
    left = set(all_steps(checkpoints)) - set(finished_steps(checkpoints))
    return f"{moment}, {'a half-written step left' if left or _is_saving(workdir / 'checkpoints') else 'nothing half'}"


def start_seconds(folder: Path) -> float:
    """How long the uninterrupted run took, which kills at any time are spread over."""
    return float((folder / "seconds.txt").read_text())


def _is_saving(checkpoints: Path) -> bool:
    try:
        return any(
            not path.name.isdigit() or not (path / MANIFEST).exists()
            for path in checkpoints.iterdir()
            if "DAMAGED" not in path.name
        )
    except OSError:
        return False


def final_state(workdir: Path) -> dict[str, np.ndarray]:
    """All arrays of the last checkpoint, by path."""
    import orbax.checkpoint as ocp

    arrays = {}
    for part in ("training", "ema_params"):
        tree = ocp.PyTreeCheckpointer().restore(workdir / "checkpoints" / str(STEPS) / part)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
            arrays[part + jax.tree_util.keystr(path)] = np.asarray(leaf)
    return arrays


def compare(a: Path, b: Path) -> None:
    """Raises where two runs did not end in the same bits. In a child, since it starts jax."""
    child = os.fork()
    if child:
        code = ended(child, 300)
        assert code == 0, f"{a} and {b} differ, see above ({code})"
        return
    code = 1
    try:
        one, two = final_state(a), final_state(b)
        different = [name for name in one if one[name].tobytes() != two[name].tobytes()]
        print("".join(f"{name} differs\n" for name in different), end="", flush=True)
        code = int(bool(different) or one.keys() != two.keys() or len(one) < 10)
    finally:
        os._exit(code)


def torture(kills: int, seed: int, folder: Path) -> Counter:
    """Kills runs until `kills` are done; raises where a run ends in other bits."""
    rng, outcomes = random.Random(seed), Counter()
    whole = folder / "whole"
    whole.parent.mkdir(parents=True, exist_ok=True)
    finish(whole, "--stop_after=1")  # compiles, so that the next is as quick as all others
    shutil.rmtree(whole)
    began = time.monotonic()
    finish(whole)
    (folder / "seconds.txt").write_text(str(time.monotonic() - began))
    done = 0
    while done < kills:
        workdir = folder / "killed"
        shutil.rmtree(workdir, ignore_errors=True)
        outcome = ""
        while outcome != "finished" and done < kills:
            outcome = kill_one(workdir, rng)
            outcomes[outcome] += 1
            done += outcome not in ("finished", "SIGTERM")
        if outcome != "finished":
            finish(workdir)
            outcomes["finished"] += 1
        compare(whole, workdir)
        shown = ", ".join(f"{name} {number}" for name, number in sorted(outcomes.items()))
        print(f"{done} kills: {shown}; every finished run had the bits of the uninterrupted one", flush=True)
    return outcomes


def run_on_cpu() -> None:
    """Makes this process and its children use the CPU and one compilation cache."""
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", f"{sys.prefix}/jax-cache")
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_compilation_cache_dir", os.environ["JAX_COMPILATION_CACHE_DIR"])


if __name__ == "__main__":
    run_on_cpu()
    with tempfile.TemporaryDirectory() as name:
        torture(int(sys.argv[1]), int(sys.argv[2]), Path(name))
