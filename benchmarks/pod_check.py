"""Compiles the full training step ahead of time for TPU pods, on a CPU: `make pod-check`.

    python benchmarks/pod_check.py                      # every row of the table, minutes each
    python benchmarks/pod_check.py --rows=v5e:4x4/16 --model=tiny

Prints the memory per chip by the compiler's count, and the collectives of the program. Fails if a program has an
unexpected collective, if a step that must fit does not, or if memory per chip grows with the pod.
"""

import os
import re
import sys
import time
from collections import Counter
from typing import NamedTuple

os.environ.update(JAX_PLATFORMS="cpu", TPU_SKIP_MDS_QUERY="1", ALLOW_MULTIPLE_LIBTPU_LOAD="1")

import jax
import numpy as np
from absl import app, flags
from aot import GIB, compiled_rows, lowered_train_step
from jax.experimental import topologies

from vdt_jax.distributed.mesh import make_mesh
from vdt_jax.models.vdt import VDT, VDT_VARIANTS

_ROWS = flags.DEFINE_list("rows", None, "Rows of the table, as topology/fsdp; default: all.")
_MODEL = flags.DEFINE_enum("model", "VDT-L/2", [*VDT_VARIANTS, "tiny"], "Network.")
_OUTPUT = flags.DEFINE_string("output", None, "JSON-lines file of the rows; rows that it has are not compiled again.")


class Row(NamedTuple):
    """One program: a topology, the sharding of the state, and the work of a chip."""

    topology: str
    fsdp: int
    batch_per_chip: int
    remat: str
    fits: bool = True
    grad_accum: int = 1
    most: float | None = None  # GiB, if less than the chip has
    model: str = "VDT-L/2"


# v5e has 16 GiB per chip, v6e 32, v5p 95.
ROWS = (
    Row("v5e:16x16", 16, 1, "full"),
    Row("v6e:16x16", 1, 2, "matmuls"),
    Row("v5p:8x8x4", 1, 4, "matmuls"),
    Row("v5e:4x4", 16, 1, "full"),  # a sixteenth of the pod: the same memory
    Row("v5e:16x16", 1, 4, "full", fits=False),  # pure data parallelism: the state alone is 13 GiB
    # configs/sky_timelapse.py:24gb, for one GPU: counted for one larger chip; gpu_check counts it for a GPU.
    Row("v6e:1x1", 1, 32, "full", grad_accum=32, most=24.0),
)
TINY = dict(depth=2, hidden_size=256, patch_size=2, num_heads=4)

# Gradients are all-reduced. With FSDP kernels are gathered, and their gradients reduce-scattered, which the compiler
# does in a ring of collective-permutes during the product.
_ALLOWED = {False: {"all-reduce"}, True: {"all-reduce", "all-gather", "reduce-scatter", "collective-permute"}}
_COLLECTIVES = (
    "all-reduce|all-gather|reduce-scatter|all-to-all|ragged-all-to-all|collective-permute|collective-broadcast"
)


def census(program: str) -> tuple[dict[str, int], int]:
    """The number of each collective in an optimised HLO program, and the elements of the largest result of one other
    than all-reduce: with FSDP that is a kernel, never activations. An asynchronous start and its end count once."""
    found, largest = Counter(), 0
    for shape, kind in re.findall(rf"= \(?\w+\[([\d,]*)\].*? ({_COLLECTIVES})(?:-start)?\(", program):
        found[kind] += 1
        if kind != "all-reduce":
            largest = max(largest, int(np.prod([int(size) for size in shape.split(",") if size])))
    return dict(sorted(found.items())), largest


def compile_row(row: Row) -> dict:
    """Compiles one program: memory per chip in GiB, collectives, seconds; or `error` if it does not fit."""
    start = time.monotonic()
    alone = {"chips_per_host_bounds": [1, 1, 1]} if row.topology.endswith(":1x1") else {}
    devices = topologies.get_topology_desc(platform="tpu", topology_name=row.topology, **alone).devices
    mesh = make_mesh(devices=devices, fsdp=row.fsdp)
    sizes: dict = TINY if row.model == "tiny" else VDT_VARIANTS[row.model]
    model = VDT(**sizes, input_size=32, num_frames=16, in_channels=4, dtype="bfloat16", remat=row.remat)
    lowered = lowered_train_step(model, mesh, row.batch_per_chip, row.grad_accum)
    found = {"chips": mesh.size, "batch": row.batch_per_chip * mesh.size}
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        used = re.search(r"Used ([\d.]+\w) of ([\d.]+\w) hbm", str(error))
        return found | {"error": used.group(0) if used else str(error).splitlines()[0][:200]}
    memory = compiled.memory_analysis()
    collectives, largest = census(compiled.as_text())
    return found | {
        "state": round(memory.argument_size_in_bytes / GIB, 2),
        "peak": round(memory.peak_memory_in_bytes / GIB, 2),
        "collectives": collectives,
        "kernels": round(largest / (model.hidden_size * int(model.hidden_size * 6)), 3),
        "seconds": round(time.monotonic() - start),
    }


def problems(found: list[dict]) -> list[str]:
    """The errors of the compiled rows."""
    wrong = []
    for row in found:
        name = f"{row['topology']} fsdp={row['fsdp']}"
        if row["fits"] == ("error" in row):
            wrong.append(f"{name}: " + (f"does not fit: {row['error']}" if "error" in row else "fits, and should not"))
        if extra := row.get("collectives", {}).keys() - _ALLOWED[row["fsdp"] > 1]:
            wrong.append(f"{name}: {', '.join(sorted(extra))}")
        if row.get("kernels", 0) > 1:
            wrong.append(f"{name}: a collective moves {row['kernels']} times the largest kernel")
        if row["most"] is not None and row.get("peak", 0) > row["most"]:
            wrong.append(f"{name}: {row['peak']} GiB, and at most {row['most']} were to be taken")
    sized = [row for row in found if "peak" in row]
    for small in sized:
        for large in sized:
            same = all(small[key] == large[key] for key in ("fsdp", "batch_per_chip", "remat", "grad_accum"))
            kinds = {row["topology"].split(":")[0] for row in (small, large)}
            if same and len(kinds) == 1 and small["chips"] < large["chips"] and large["peak"] > 1.02 * small["peak"]:
                wrong.append(f"{large['topology']}: {large['peak']} GiB per chip, {small['topology']}: {small['peak']}")
    return wrong


def main(_: object) -> None:
    rows = [row for row in ROWS if _ROWS.value is None or f"{row.topology}/{row.fsdp}" in _ROWS.value]
    found = compiled_rows([row._replace(model=_MODEL.value) for row in rows], compile_row, _OUTPUT.value)
    for problem in (wrong := problems(found)):
        print("error:", problem, file=sys.stderr)
    sys.exit(bool(wrong))


if __name__ == "__main__":
    app.run(main)
