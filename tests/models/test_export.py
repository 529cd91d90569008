"""Training step, sampler and autoencoder lowered for GPUs and TPUs, without either: dtypes, no calls into Python."""

import functools

import hlo
import jax
import jax.numpy as jnp
import optax
import pytest

from vdt_jax.diffusion.gaussian import make_diffusion
from vdt_jax.inference.functional import generate
from vdt_jax.models.autoencoder import AutoencoderKL
from vdt_jax.models.vdt import VDT, param_shapes
from vdt_jax.training.optimizer import make_optimizer
from vdt_jax.training.step import init_state, make_train_step

MODEL = VDT(
    input_size=8, num_frames=4, in_channels=1, patch_size=4, hidden_size=16, depth=2, num_heads=2, dtype="bfloat16"
)
VIDEO = jax.ShapeDtypeStruct((2, *MODEL.video_shape), jnp.float32)
KEY = jax.eval_shape(lambda: jax.random.key(0))


def training():
    model = MODEL.clone(remat="matmuls")
    optimizer = make_optimizer(optax.constant_schedule(1e-4))
    state = jax.eval_shape(functools.partial(init_state, model, optimizer), KEY)
    batch = {"video": VIDEO, "labels": jax.ShapeDtypeStruct((2,), jnp.int32)}
    return make_train_step(model, make_diffusion(), optimizer), (state, batch, KEY)


def sampling():
    mask = jax.ShapeDtypeStruct((*VIDEO.shape[:-1], 1), jnp.float32)
    keys = jax.eval_shape(lambda key: jax.random.split(key, 2), KEY)
    diffusion = make_diffusion(timestep_respacing="4")
    return lambda params, *inputs: generate(MODEL, params, diffusion, *inputs), (param_shapes(MODEL), VIDEO, mask, keys)


def autoencoder():
    model = AutoencoderKL(block_out_channels=(8, 8), norm_num_groups=2, dtype="bfloat16")
    frames = jax.ShapeDtypeStruct((1, 8, 8, 3), jnp.float32)
    return lambda variables, x: model.apply(variables, x), (jax.eval_shape(model.init, KEY, frames), frames)


@pytest.mark.parametrize("program", [training, sampling, autoencoder])
def test_programs_for_gpus_and_tpus(program):
    function, shapes = program()
    text = jax.export.export(jax.jit(function), platforms=["cuda", "tpu"])(*shapes).mlir_module()
    dtypes = hlo.operand_dtypes(text)
    assert sum(dtypes.values()) > 5 and set(dtypes) == {("bf16", "bf16")}
    assert hlo.callbacks(text) == []
