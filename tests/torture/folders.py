"""Random mutants of a model's folder: each is loaded or refused in one line, within its time. `make torture`.

python tests/torture/folders.py 20000 0        # how many, and the seed
"""

import copy
import functools
import json
import logging
import random
import resource
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import jax
import numpy as np
from helpers.hostile_folders import ABSURD, CONFIG, outcome
from helpers.mutants import mutate

from vdt_jax.checkpoints import models, save_model
from vdt_jax.checkpoints.config import network_of
from vdt_jax.models.vdt import param_shapes

_MAX_GROWTH = 1 << 20  # KiB that all mutants together may add to the memory of the process
_VALUES = [*ABSURD, -(2**63), 2**64, "../../../dev/zero", "/dev/zero", "a" * 300, [[]], {"a": {}}, 1e-300, -0.0]


def mutated_json(text: str, rng: random.Random) -> str:
    """One to three values replaced, removed, doubled or renamed, at any depth."""
    value = json.loads(text)
    for _ in range(rng.randint(1, 3)):
        node: Any = value
        while children := [child for child in _children(node) if isinstance(child, dict | list) and child]:
            if rng.random() < 0.3:
                break
            node = rng.choice(children)
        key = rng.choice(list(node) if isinstance(node, dict) else range(len(node)))
        kind = rng.randrange(4)
        if kind == 0:
            del node[key]
        elif kind == 1 and isinstance(node, dict):
            node[str(rng.choice(_VALUES))] = node.pop(key)
        else:
            node[key] = copy.deepcopy(rng.choice([*_VALUES, *_children(node)]))
        if not value:
            break
    return json.dumps(value)


def _children(node: Any) -> list[Any]:
    return list(node.values()) if isinstance(node, dict) else list(node)


def torture(count: int, seed: int) -> Counter:
    """How many of each file were loaded and refused; raises for the first that does anything else."""
    outcomes = Counter()
    models.param_shapes = functools.cache(param_shapes)  # most of the time otherwise
    with tempfile.TemporaryDirectory() as place:
        good, folder = Path(place) / "good", Path(place) / "model"
        shapes, rng = param_shapes(network_of(CONFIG["model"])), np.random.default_rng(0)
        save_model(good, CONFIG, jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape, np.float32), shapes))
        names = sorted(str(path.relative_to(good)) for path in good.rglob("*") if path.is_file())
        outcome(good)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for number in range(count):
            rng = random.Random(f"{seed}/{number}")
            name = rng.choice(["config.json", "manifest.json", "params/_METADATA", *names])
            shutil.copytree(good, folder)
            data = (good / name).read_bytes()
            by_value = name in ("config.json", "manifest.json", "params/_METADATA") and rng.random() < 0.7
            mutant = mutated_json(data.decode(), rng).encode() if by_value else mutate(data, rng)
            (folder / name).write_bytes(mutant)
            if name.startswith("params/"):  # or the manifest would find it out
                (folder / "manifest.json").unlink()
            try:
                found = outcome(folder)
            except BaseException as error:
                shutil.copytree(folder, f"{tempfile.gettempdir()}/mutant", dirs_exist_ok=True)
                raise AssertionError(f"mutant {seed}/{number} of {name}: {error!r}") from error
            outcomes[
                f"{name.split('/')[1][:11] if '/' in name else name} {found if found == 'loaded' else 'refused'}"
            ] += 1
            shutil.rmtree(folder)
            if number % 500 == 499:
                print(f"{number + 1} mutants", flush=True)
        growth = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        assert growth < _MAX_GROWTH, f"{growth >> 10} MiB more"
    return outcomes


if __name__ == "__main__":
    logging.disable()
    start = time.monotonic()
    found = torture(int(sys.argv[1]), int(sys.argv[2]))
    shown = ", ".join(f"{name} {number}" for name, number in sorted(found.items()))
    print(f"{found.total()} mutants of folders in {time.monotonic() - start:.0f} s: {shown}; each in one line")
