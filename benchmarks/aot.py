"""What pod_check and gpu_check share: training steps lowered for devices that are not here, and rows that are kept."""

import functools
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import Mesh
from json_lines import append_line, read_lines

from vdt_jax.diffusion.gaussian import make_diffusion
from vdt_jax.distributed.mesh import batch_sharding, gather_whole, replicated, state_shardings, with_shardings
from vdt_jax.models.vdt import VDT
from vdt_jax.training.optimizer import make_optimizer
from vdt_jax.training.step import init_state, make_train_step, shard_train_step

GIB = 2**30


def lowered_train_step(model: VDT, mesh: Mesh, batch_per_device: int, grad_accum: int = 1) -> jax.stages.Lowered:
    """The training step of a run, AdamW, EMA and drawing masks included, lowered for the devices of a mesh."""
    optimizer = make_optimizer(optax.constant_schedule(1e-4))
    like = jax.eval_shape(functools.partial(init_state, model, optimizer), jax.random.key(0))
    if mesh.shape["fsdp"] > 1:
        model = model.clone(gather=gather_whole(mesh, model.dtype))
    train_step = make_train_step(model, make_diffusion(learn_sigma=model.learn_sigma), optimizer, grad_accum=grad_accum)
    train_step = shard_train_step(train_step, like, mesh)
    size, sharding = batch_per_device * mesh.size, batch_sharding(mesh)
    batch = {
        "video": jax.ShapeDtypeStruct((size, *model.video_shape), np.float32, sharding=sharding),
        "labels": jax.ShapeDtypeStruct((size,), np.int32, sharding=sharding),
    }
    key = jax.ShapeDtypeStruct((), jax.random.key(0).dtype, sharding=replicated(mesh))
    return train_step.lower(with_shardings(like, state_shardings(like, mesh)), batch, key)


def compiled_rows(rows: Iterable[Any], compile_row: Callable[[Any], dict], output: str | None) -> list[dict]:
    """Compiles rows that take minutes, one by one; each is printed and appended to `output` as it comes.

    Rows that `output` already has are not compiled again.
    """
    path = Path(output) if output else None
    kept = read_lines(path) if path else []
    found = []
    for row in rows:
        wanted = json.loads(json.dumps(row._asdict()))
        done = next((old for old in kept if wanted.items() <= old.items()), None)
        found.append(done or row._asdict() | compile_row(row))
        print(json.dumps(found[-1]), flush=True)
        if path and not done:
            append_line(path, found[-1])
    return found
