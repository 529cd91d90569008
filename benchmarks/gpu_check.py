"""Compiles training, sampling and the autoencoder for an H100, without a GPU: `make gpu-check`.

    python benchmarks/gpu_check.py                      # every row, minutes each
    python benchmarks/gpu_check.py --rows=S/2

For each row: the memory by the compiler's count, the bytes that its kernels move, and the time that they need at
least, the sum over kernels of max(FLOPs / peak, bytes / bandwidth) by group of kernels; for training also the model
FLOPs utilisation (MFU) that this bound allows. It is a bound of the program as compiled, not a prediction: nothing is
run, and without a GPU the compiler cannot try out kernels, as it would with one.

Fails on float32 operands in matrix products of a bfloat16 model, a state that is not donated, callbacks, loops without
a known number of iterations, unexpected collectives, gradients that are not summed over devices in float32, parameters
that FSDP gathers more than twice a step, or memory over the limit of the row.

Needs the compiler, in a folder of its own (a CUDA plugin without a driver logs errors): see the Makefile.
"""

import importlib
import importlib.util
import os
import re
import sys
import time
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any, NamedTuple

os.environ["JAX_PLATFORMS"] = "cpu"

import hlo
import jax
import jax.numpy as jnp
from absl import flags
from aot import GIB, compiled_rows, lowered_train_step
from jax.experimental import topologies
from jax.sharding import Mesh

from vdt_jax import cli
from vdt_jax.diffusion.gaussian import make_diffusion
from vdt_jax.distributed.mesh import make_mesh, path_name, replicated
from vdt_jax.errors import UserError
from vdt_jax.inference.functional import generate
from vdt_jax.models.autoencoder import AutoencoderKL
from vdt_jax.models.flops import PEAK_FLOPS, training_flops
from vdt_jax.models.vdt import VDT, VDT_VARIANTS, param_shapes

_ROWS = flags.DEFINE_list("rows", None, "Rows to compile; default: all.")
_OUTPUT = flags.DEFINE_string("output", None, "JSON-lines file of the rows; rows that it has are not compiled again.")
_KEEP = flags.DEFINE_string("keep", None, "Folder for the optimised programs.")

TARGET = Path(__file__).parent / "h100_sxm.txtpb"
PEAK = PEAK_FLOPS["NVIDIA H100"]


class Row(NamedTuple):
    """One program."""

    name: str
    program: str  # train, sample, encode or decode
    model: str = "VDT-L/2"  # of VDT_VARIANTS, a recipe of configs/, or autoencoder
    batch: int = 8  # samples a device, or frames
    devices: int = 1
    fsdp: int = 1
    remat: str = "matmuls"
    grad_accum: int = 1
    attention: str = "cudnn"
    unroll: int = 1
    most: float = 74.0  # GiB of 79.1; jax takes 59 unless XLA_PYTHON_CLIENT_MEM_FRACTION is raised


ROWS = (
    Row("S/2", "train", "VDT-S/2"),
    Row("S/2 unrolled", "train", "VDT-S/2", unroll=12),
    Row("S/2 unrolled remat=none", "train", "VDT-S/2", unroll=12, remat="none"),
    Row("L/2", "train"),
    Row("L/2 unrolled", "train", unroll=28),
    Row("24gb", "train", batch=32, remat="full", grad_accum=32, most=20.0),  # configs/sky_timelapse.py:24gb
    Row("vizdoom", "train", "vizdoom", batch=64, remat="none", unroll=10),
    Row("moving_fashion_mnist", "train", "moving_fashion_mnist", batch=64, remat="none", unroll=10),
    Row("data", "train", devices=8),
    Row("fsdp", "train", devices=8, fsdp=8),
    Row("sample", "sample"),
    Row("encode", "encode", "autoencoder", batch=4),
    Row("decode", "decode", "autoencoder", batch=4),
)

# Groups of kernels: the first pattern that is found in `kind source` counts.
_GROUPS = (
    ("fused attention", r"fmha|flash"),
    ("attention products", r"\.\.\.q[es],\.\.\.s[es]"),
    ("scan: stacking", r"dynamic_update"),
    ("scan: filling with zeros", r"broadcast_in_dim$|Loop $"),
    ("linear products", r"gemm|dot_general"),
    ("softmax", r"attn/(\w*softmax|convert_element_type|reduce_\w+|exp|sub|div|max)"),
    ("q, k, v and transposes", r"attn/(slice|transpose|concatenate|reshape|copy)"),
    ("optimizer and EMA", r"train_step\)/(jit\(_where\)|select_n|\w+$)"),
)


def group(kernel: hlo.Kernel) -> str:
    """The group of a kernel, by its kind and its source."""
    if kernel.flops and "fmha" not in kernel.kind and "...q" not in kernel.source:
        return "linear products"
    text = f"{kernel.kind} {kernel.source}"
    return next((name for name, pattern in _GROUPS if re.search(pattern, text)), "norms, GELU, gates, sums")


def lower(row: Row, mesh: Mesh) -> tuple[jax.stages.Lowered, VDT | None]:
    """The program of a row, lowered for the devices of the mesh, and the network that it trains."""

    def shapes(tree: Any, **changes: Any) -> Any:
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=replicated(mesh)), tree)

    if row.model == "autoencoder":
        autoencoder = AutoencoderKL()
        like = jax.eval_shape(autoencoder.init, jax.random.key(0), jnp.zeros((1, 64, 64, 3)))["params"]
        size = (row.batch, 256, 256, 3) if row.program == "encode" else (row.batch, 32, 32, 4)
        apply = jax.jit(lambda params, x: autoencoder.apply({"params": params}, x, method=row.program))
        return apply.lower(*shapes((like, jax.ShapeDtypeStruct(size, jnp.float32)))), None
    how = dict(remat=row.remat, attention=row.attention, unroll=row.unroll)
    sizes = VDT_VARIANTS.get(row.model) or sizes_of_recipe(row.model)
    model = VDT(**sizes, **how, dtype="bfloat16")
    if row.program == "train":
        return lowered_train_step(model, mesh, row.batch, row.grad_accum), model
    diffusion = make_diffusion(timestep_respacing="16")
    clean = jax.ShapeDtypeStruct((row.batch, *model.video_shape), jnp.float32)
    mask = jax.ShapeDtypeStruct((*clean.shape[:-1], 1), jnp.float32)
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), row.batch))
    sample = jax.jit(lambda params, *inputs: generate(model, params, diffusion, *inputs))
    return sample.lower(*shapes((param_shapes(model), clean, mask, keys))), None


def sizes_of_recipe(name: str) -> dict[str, Any]:
    """The model of a recipe of configs/, without what a row says of it."""
    model = importlib.import_module(f"configs.{name}").get_config().model.to_dict()
    return {key: value for key, value in model.items() if key not in ("remat", "attention", "unroll", "dtype")}


def bandwidth() -> float:
    """Bytes per second that the memory of the target moves."""
    found = re.search(r"memory_bandwidth: (\d+)", TARGET.read_text())
    assert found, f"{TARGET} states no memory_bandwidth"
    return float(found.group(1))


def compile_row(row: Row) -> dict[str, Any]:
    """Compiles one program: memory, bytes, bounds, collectives, what is wrong in it, and seconds."""
    if not importlib.util.find_spec("jax_cuda13_plugin"):
        raise UserError("there is no compiler for NVIDIA GPUs here: `make gpu-check` installs one in .gpu")
    start, processor = time.monotonic(), time.process_time()
    topology = topologies.get_topology_desc(
        platform="cuda", target_config=TARGET.read_text(), topology=f"1x1x{row.devices}"
    )
    lowered, trained = lower(row, make_mesh(devices=topology.devices, fsdp=row.fsdp))
    compiled = lowered.compile()
    text, memory = compiled.as_text(), compiled.memory_analysis()
    if _KEEP.value:
        Path(_KEEP.value).mkdir(parents=True, exist_ok=True)
        (Path(_KEEP.value) / f"{row.name.replace('/', '')}.hlo").write_text(text)
    program = hlo.Program(text)
    kernels, collectives = program.kernels(), program.collectives()
    bounds: dict[str, float] = defaultdict(float)
    for kernel in kernels:
        bounds[group(kernel)] += 1e3 * kernel.times * max(kernel.flops / PEAK, kernel.bytes / bandwidth())
    bound = sum(bounds.values())
    found = {
        "peak GiB": round(memory.peak_memory_in_bytes / GIB, 2),
        "GB moved": round(sum(kernel.bytes * kernel.times for kernel in kernels) / 1e9, 1),
        "bound ms": round(bound, 1),
        "groups": {name: round(ms, 2) for name, ms in sorted(bounds.items(), key=lambda item: -item[1])},
        "collectives": dict(Counter(one.kind for one in collectives)),
        "reduced GB": reduced(collectives),
        "seconds": round(time.monotonic() - start),
        "processor seconds": round(time.process_time() - processor),
    }
    if trained:
        found["highest MFU"] = round(training_flops(trained) * row.batch / PEAK / bound * 1e3, 3)
    wrong = red_flags(lowered.as_text(), program)
    if trained and memory.alias_size_in_bytes < memory.output_size_in_bytes - 2**20:
        wrong.append("the state is not donated")
    if trained and row.fsdp > 1:
        found["gathers"] = round(gathers(collectives, block_bytes(trained)), 2)
    return found | {"wrong": wrong}


def red_flags(stablehlo: str, program: hlo.Program) -> list[str]:
    """What should not be in a program, whatever it computes; `stablehlo` is the program before optimisation."""
    wrong, dtypes = [], hlo.operand_dtypes(stablehlo)
    if any("bf16" in pair for pair in dtypes):
        wrong += [f"{dtypes[pair]} matrix products of {pair[0]} and {pair[1]}" for pair in dtypes if "f32" in pair]
    wrong += [f"callback {name}" for name in hlo.callbacks(stablehlo)]
    wrong += [f"a loop without a known number of iterations: {source}" for source in program.endless()]
    return wrong


def block_bytes(model: VDT) -> int:
    """Bytes of the kernels of all blocks in the dtype of the computation: what FSDP gathers."""
    leaves = jax.tree_util.tree_leaves_with_path(param_shapes(model)["blocks"])
    count = sum(leaf.size for path, leaf in leaves if path_name(path).endswith("kernel"))
    return count * jnp.dtype(model.dtype).itemsize


def gathers(collectives: list[hlo.Collective], size: int) -> float:
    """How often a step gathers `size` bytes."""
    return sum(sum(one.bytes.values()) * one.times for one in collectives if one.kind == "all-gather") / size


def reduced(collectives: list[hlo.Collective]) -> dict[str, float]:
    """GB that a step sums over devices, by dtype."""
    total = Counter()
    for one in collectives:
        if one.kind in ("all-reduce", "reduce-scatter"):
            total.update({dtype: size * one.times for dtype, size in one.bytes.items()})
    return {dtype: round(size / 1e9, 3) for dtype, size in total.items()}


def problems(row: dict[str, Any]) -> list[str]:
    """The errors of a compiled row."""
    wrong = list(row["wrong"])
    allowed = {"all-reduce"} if row["devices"] > 1 else set()
    allowed |= {"all-gather", "reduce-scatter"} if row["fsdp"] > 1 else set()
    wrong += [f"unexpected {kind}" for kind in row["collectives"] if kind not in allowed]
    if row["peak GiB"] > row["most"]:
        wrong.append(f"{row['peak GiB']} GiB, and at most {row['most']} were to be taken")
    if row["reduced GB"].get("bf16", 0) > 0.01:
        wrong.append(f"{row['reduced GB']['bf16']} GB are summed over devices in bfloat16")
    if row.get("gathers", 0) > 2.05:
        wrong.append(f"the parameters of blocks are gathered {row['gathers']} times, and should be twice")
    return [f"{row['name']}: {each}" for each in wrong]


def main(_: object) -> None:
    names = [row.name for row in ROWS]
    chosen = _ROWS.value or names
    if unknown := set(chosen) - set(names):
        raise UserError(f"rows must be among {', '.join(names)}, got {', '.join(sorted(unknown))}")
    found = compiled_rows([row for row in ROWS if row.name in chosen], compile_row, _OUTPUT.value)
    wrong = [each for row in found for each in problems(row)]
    for problem in wrong:
        print("error:", problem, file=sys.stderr)
    sys.exit(bool(wrong))


if __name__ == "__main__":
    cli.run(main)
