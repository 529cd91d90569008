"""What the samplers share: random draws, the network call, and the type of their loop."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from vdt_jax.diffusion.gaussian import DenoiseFn, GaussianDiffusion, Prediction

# jax.lax.fori_loop or a function with its arguments, (0, num_steps, step, state) -> state: to watch a sampler, to run
# some of its steps, or to run them in Python.
Loop = Callable[[int, int, Callable[[Any, Any], Any], Any], Any]


def sample_noise(keys: Key[Array, " b"], shape: tuple[int, ...]) -> Float[Array, "b ..."]:
    """Standard normal (B, *shape), one stream for each key: a sample does not depend on its batch."""
    return jax.vmap(lambda key: jax.random.normal(key, shape))(keys)


def start_noise(
    keys: Key[Array, " b"], shape: tuple[int, ...], start: Float[Array | np.ndarray, "b ..."] | None = None
) -> Float[Array, "b ..."]:
    """x_T (B, *shape): `start`, or a draw that is the same for every sampler and any number of steps."""
    if start is not None:
        return jnp.asarray(start)
    return sample_noise(jax.vmap(lambda key: jax.random.fold_in(key, 0))(keys), shape)


def step_keys(keys: Key[Array, " b"], step: Int[Array, ""] | int) -> Key[Array, " b"]:
    """Keys for the draws of one step."""
    return jax.vmap(lambda key: jax.random.fold_in(jax.random.fold_in(key, 1), step))(keys)


def denoise(
    diffusion: GaussianDiffusion, denoise_fn: DenoiseFn, x_t: Float[Array, "b f h w c"], step: Int[Array, ""] | int
) -> Prediction:
    """Calls the network on x_t at a step of the respaced process, and reads its output."""
    steps = jnp.full(x_t.shape[0], step)
    timesteps = jnp.asarray(diffusion.schedule.timestep_map)[steps]
    return diffusion.p_mean_variance(denoise_fn(x_t, timesteps), x_t, steps, diffusion.clip_denoised)
