"""A tiny VDT in training, on any mesh: compiled once for each set-up."""

import functools

import jax
import numpy as np
import optax

from vdt_jax.data import make_source
from vdt_jax.data.pipeline import batches
from vdt_jax.diffusion.gaussian import make_diffusion
from vdt_jax.distributed.mesh import batch_sharding, gather_whole, make_mesh, replicated, shard_batch, state_shardings
from vdt_jax.models.vdt import VDT
from vdt_jax.training.optimizer import make_optimizer
from vdt_jax.training.step import init_state, make_train_step

MODEL = VDT(input_size=16, num_frames=4, in_channels=1, patch_size=8, hidden_size=32, depth=2, num_heads=2)
DIFFUSION = make_diffusion()
OPTIMIZER = make_optimizer(optax.constant_schedule(3e-3))
KEY = jax.random.key(7)
MUON = make_optimizer(optax.constant_schedule(3e-3), name="muon", weight_decay=0.1)
# Devices, mesh.fsdp, grad_accum, remat, optimizer.
SETUPS = {
    "one device": (1, 1, 1, "none", OPTIMIZER),
    "data parallel": (8, 1, 1, "none", OPTIMIZER),
    "fsdp": (8, 4, 1, "none", OPTIMIZER),
    "accumulation": (4, 2, 2, "full", OPTIMIZER),
    "muon": (1, 1, 1, "none", MUON),
    "muon, fsdp and accumulation": (4, 4, 2, "none", MUON),
}


@functools.cache
def compiled(setup="one device"):
    num_devices, fsdp, grad_accum, remat, optimizer = SETUPS[setup]
    mesh = make_mesh(num_devices, fsdp)
    model = MODEL.clone(remat=remat, gather=gather_whole(mesh, MODEL.dtype) if fsdp > 1 else None)
    step = make_train_step(model, DIFFUSION, optimizer, ema_decay=0.9, grad_accum=grad_accum)
    shardings = state_shardings(first_state(optimizer), mesh)
    in_shardings = (shardings, batch_sharding(mesh), replicated(mesh))
    return mesh, jax.jit(step, in_shardings=in_shardings, out_shardings=(shardings, replicated(mesh)))


@functools.cache
def first_state(optimizer=OPTIMIZER):
    return jax.device_get(jax.jit(functools.partial(init_state, MODEL, optimizer))(jax.random.key(0)))


def data(first_step=0):
    source = make_source({"name": "moving_digits"}, MODEL.video_shape, "train")
    return batches(source, batch_size=8, seed=0, first_step=first_step)


def fresh(mesh, optimizer=OPTIMIZER):
    return jax.device_put(first_state(optimizer), state_shardings(first_state(optimizer), mesh))


def run(num_steps, setup="one device", state=None):
    mesh, step = compiled(setup)
    state = fresh(mesh, SETUPS[setup][-1]) if state is None else state
    metrics, stream = [], data(int(state.step))
    for _ in range(num_steps):
        state, found = step(state, shard_batch(next(stream), mesh), KEY)
        metrics.append([float(found["loss"]), float(found["grad_norm"])])
    return state, metrics


@functools.cache
def twenty_steps():
    """On one device: the state after the first step and after twenty, and all metrics."""
    first, one = run(1)
    last, others = run(19, state=first)
    return first, last, one + others


def assert_equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(a), jax.device_get(b))
