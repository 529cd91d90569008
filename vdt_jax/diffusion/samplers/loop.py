"""The loop that all samplers are: a state, and a step that is one call of the network."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from vdt_jax.diffusion.gaussian import DenoiseFn, GaussianDiffusion, Prediction


class Sampling(NamedTuple):
    """A sampler at work.

    Attributes:
      num_steps: how often to step.
      state: a tuple of arrays, (B, ...) each; the first is x_t, and in the end the sample.
      step: (i, state) -> state for i = 0, 1, ..., num_steps - 1; the noisiest is 0.
    """

    num_steps: int
    state: tuple[jax.Array, ...]
    step: Callable[[Any, Any], Any]


def advance(sampling: Sampling, state: Any, first: jax.Array | int, last: jax.Array | int) -> Any:
    """The state after the steps first, ..., last - 1; traceable, so that one program serves any stretch of them."""
    return jax.lax.fori_loop(first, last, sampling.step, state)


def run(sampling: Sampling) -> jax.Array:
    """All steps at once: the sample (B, F, h, w, C)."""
    return advance(sampling, sampling.state, 0, sampling.num_steps)[0]


def sample_noise(keys: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Standard normal (B, *shape), one stream for each of the keys (B,): a sample does not depend on its batch."""
    return jax.vmap(lambda key: jax.random.normal(key, shape))(keys)


def start_noise(keys: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """x_T (B, *shape) of these keys (B,): the same for every sampler and any number of steps."""
    return sample_noise(jax.vmap(lambda key: jax.random.fold_in(key, 0))(keys), shape)


def step_keys(keys: jax.Array, step: jax.Array) -> jax.Array:
    """Keys (B,) for what a sampler draws at a step."""
    return jax.vmap(lambda key: jax.random.fold_in(jax.random.fold_in(key, 1), step))(keys)


def denoise(diffusion: GaussianDiffusion, denoise_fn: DenoiseFn, x_t: jax.Array, step: jax.Array) -> Prediction:
    """What the network says about x_t (B, F, h, w, C) at a step of the respaced process, a scalar."""
    steps = jnp.full(x_t.shape[0], step)
    timesteps = jnp.asarray(diffusion.schedule.timestep_map)[steps]
    return diffusion.p_mean_variance(denoise_fn(x_t, timesteps), x_t, steps, diffusion.clip_denoised)
