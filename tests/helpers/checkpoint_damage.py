"""Checkpoints damaged on purpose, and disks that are full: `make torture`, and a few of each in the tests.

python tests/helpers/checkpoint_damage.py damage 2000 0     # how many, and the seed
python tests/helpers/checkpoint_damage.py full 100 0        # needs the right to mount a small file system
"""

import contextlib
import logging
import random
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging as absl_logging
from etils import epath

from vdt_jax.checkpoints.manager import Checkpoints
from vdt_jax.checkpoints.manifest import MANIFEST, damage, finished_steps
from vdt_jax.training.step import TrainState

KINDS = ("bit flip", "truncation", "missing file", "swapped files", "swapped steps")


def small_state(step: int) -> TrainState:
    """A state without a network: the numbers in it follow from the step, and cannot be compressed."""
    draw = np.random.default_rng(step).standard_normal((150, 150), np.float32)
    params = {"w": jnp.asarray(draw), "b": jnp.full(7, 1.0 * step)}
    moments = jax.tree.map(lambda x: x / 2, params)
    return TrainState(jnp.int32(step), params, jax.tree.map(lambda x: -x, params), moments, jnp.zeros(2, jnp.int32))


def assert_same(a: TrainState, b: TrainState) -> None:
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(a), jax.device_get(b))


@contextlib.contextmanager
def logged() -> Iterator[list[str]]:
    """The messages that vdt_jax.checkpoints logs meanwhile."""
    said, logger, handler = [], logging.getLogger("vdt_jax.checkpoints"), logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())
    logger.addHandler(handler)
    try:
        yield said
    finally:
        logger.removeHandler(handler)


def save_steps(workdir: Path, steps: tuple[int, ...]) -> Path:
    """Saves small states; the folder of the checkpoints."""
    with Checkpoints(workdir, keep=max(3, len(steps))) as checkpoints:
        for step in steps:
            checkpoints.save(small_state(step))
    return workdir / "checkpoints"


def files_of(folder: Path) -> list[Path]:
    """What the manifest speaks of, and itself."""
    return sorted(path for path in folder.rglob("*") if path.is_file())


def damage_once(checkpoints: Path, step: int, other: int, rng: random.Random) -> str:
    """Damages a step in one of five ways; which. Swaps are between files whose bytes differ."""
    folder, kind = checkpoints / str(step), rng.choice(KINDS)
    files = [path for path in files_of(folder) if path.stat().st_size]
    path = rng.choice(files)
    data = bytearray(path.read_bytes())
    if kind == "bit flip":
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        path.write_bytes(bytes(data))
    elif kind == "truncation":
        path.write_bytes(bytes(data[: rng.randrange(len(data))]))
    elif kind == "missing file":
        path.unlink()
    elif kind == "swapped files":
        others = [file for file in files_of(folder) if file.read_bytes() != bytes(data)]
        there = rng.choice(others)
        path.write_bytes(there.read_bytes())
        there.write_bytes(bytes(data))
    else:
        (checkpoints / str(other)).rename(checkpoints / "aside")
        folder.rename(checkpoints / str(other))
        (checkpoints / "aside").rename(folder)
    return kind


def damaged_corpus(count: int, seed: int) -> Counter:
    """Damages `count` copies of two good checkpoints; raises for one that is not found out, or a false alarm."""
    outcomes = Counter()
    with tempfile.TemporaryDirectory() as name:
        good = save_steps(Path(name) / "good", (1, 2))
        for number in range(count):
            rng = random.Random(f"{seed}/{number}")
            copy = epath.Path(shutil.copytree(good, Path(name) / "copy"))
            assert [damage(copy / str(step), step) for step in (1, 2)] == [None, None], "a false alarm"
            kind = damage_once(Path(copy), 2, 1, rng)
            unfinished = 2 not in finished_steps(copy)
            assert unfinished or damage(copy / "2", 2), f"{kind} {seed}/{number} was not found out"
            assert unfinished == (not (copy / "2" / MANIFEST).exists())
            assert kind == "swapped steps" or damage(copy / "1", 1) is None, "a false alarm"
            outcomes[kind] += 1
            copy.rmtree()
    return outcomes


def full_disk(places: int) -> Counter:
    """Saves on a file system with less and less room left: a save is whole, or it failed and nothing older is lost."""
    outcomes = Counter()
    with tempfile.TemporaryDirectory() as name:
        mounted = Path(name) / "disk"
        mounted.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "none", mounted], check=True)
        try:
            for place in range(places):
                outcomes[_save_with_room(mounted, place)] += 1
        finally:
            subprocess.run(["umount", mounted], check=True)
    return outcomes


def _save_with_room(disk: Path, pages: int) -> str:
    """One save where `pages` pages of 4 KiB are free, and another when there is room again."""
    workdir, filler = disk / "run", disk / "filler"
    with logged() as said, Checkpoints(workdir, every=1) as checkpoints:
        checkpoints.save_and_wait(small_state(1))
        free = shutil.disk_usage(disk).free
        filler.write_bytes(bytes(free - pages * 4096))
        checkpoints.save(small_state(2))
        checkpoints.wait()
        written = finished_steps(checkpoints.folder)
        assert written == ([1] if said else [1, 2]), (pages, written, said)
        for step in written:
            assert damage(checkpoints.folder / str(step), step) is None, (pages, step)
        filler.unlink()
        checkpoints.save_and_wait(small_state(3))
        assert_same(checkpoints.restore(small_state(0)), small_state(3))
    shutil.rmtree(workdir)
    return "failed and told" if said else "saved"


if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")
    absl_logging.set_verbosity(absl_logging.FATAL)
    what, count, seed = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    counted = damaged_corpus(count, seed) if what == "damage" else full_disk(count)
    shown = ", ".join(f"{name} {number}" for name, number in sorted(counted.items()))
    print(f"{counted.total()} {what}: {shown}; all as it should be")
