"""Random mutants of good files: each is loaded or refused, in bounded memory, and nothing runs. `make torture`.

python tests/torture/weights.py 100000 0        # how many, and the seed
"""

import random
import sys
import tempfile
import time
import tracemalloc
from collections import Counter
from pathlib import Path

import numpy as np
from helpers import audit
from helpers.hostile_files import safetensors
from helpers.mutants import mutate
from helpers.torch_files import Call, archived, pickled, tensor

from vdt_jax.errors import UserError
from vdt_jax.weights.sources import load_weights

_MEMORY_EVERY = 50  # tracing memory is slow: every N-th mutant is measured


def good_files() -> dict[str, bytes]:
    """What is mutated: a torch file as a whole, its pickle alone, and a safetensors file."""
    nest = {
        "model": {f"blocks.{i}.w": tensor() for i in range(3)},
        "opt": [{"lr": 0.1, "betas": (0.9, 0.999), "params": [0, 1, 70000]}],
        "args": Call("argparse", "Namespace"),
        "epoch": -3,
    }
    header = {f"w{i}": {"dtype": "F32", "shape": [2, 3], "data_offsets": [24 * i, 24 * i + 24]} for i in range(3)} | {
        "__metadata__": {"format": "pt"}
    }
    return {
        "archive": archived(pickled(nest)),
        "pickle": pickled(nest),
        "safetensors": safetensors(header, np.arange(18, dtype=np.float32).tobytes()),
    }


def torture(count: int, seed: int) -> Counter:
    """How many of each kind were loaded and refused; raises for the first that does anything else."""
    files, outcomes = good_files(), Counter()
    with tempfile.TemporaryDirectory() as folder:
        for number in range(count):
            rng = random.Random(f"{seed}/{number}")
            kind = rng.choice(list(files))
            mutant = mutate(files[kind], rng)
            # A pickle is put into an archive with a right checksum, or the archive's check would be all that is tested.
            data = archived(mutant) if kind == "pickle" else mutant
            path = Path(folder) / ("a.safetensors" if kind == "safetensors" else "a.pt")
            path.write_bytes(data)
            measured = number % _MEMORY_EVERY == 0
            if measured:
                tracemalloc.start()
            with audit.watched() as events:
                try:
                    load_weights(path)
                    outcome = "loaded"
                except UserError:
                    outcome = "refused"
            if events:
                raise AssertionError(f"mutant {seed}/{number} of {kind}: {sorted(set(events))}")
            if measured:
                peak = tracemalloc.get_traced_memory()[1]
                tracemalloc.stop()
                assert peak < 2 * len(data) + (64 << 20), f"mutant {seed}/{number} of {kind}: {peak} bytes"
            assert [entry.name for entry in Path(folder).iterdir()] == [path.name], f"mutant {seed}/{number}: wrote"
            path.unlink()
            outcomes[f"{kind} {outcome}"] += 1
    return outcomes


if __name__ == "__main__":
    start = time.monotonic()
    found = torture(int(sys.argv[1]), int(sys.argv[2]))
    shown = ", ".join(f"{name} {number}" for name, number in sorted(found.items()))
    print(f"{found.total()} mutants in {time.monotonic() - start:.0f} s: {shown}; nothing ran, nothing was written")
