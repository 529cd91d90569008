"""What the samplers share: the problem that they solve, with its random draws and network call."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from vdt_jax.diffusion.gaussian import DenoiseFn, GaussianDiffusion, Prediction
from vdt_jax.diffusion.masks import Mask, Video, apply_mask

Steps = tuple[Any, Callable[[Any, Any], Any]]  # the state before the first step, and (i, state) -> state


def sample_noise(keys: Key[Array, " b"], shape: tuple[int, ...]) -> Float[Array, "b ..."]:
    """Standard normal (B, *shape), one stream for each key: a sample does not depend on its batch."""
    return jax.vmap(lambda key: jax.random.normal(key, shape))(keys)


@dataclasses.dataclass(frozen=True, eq=False)
class Problem:
    """What is sampled.

    Attributes:
      diffusion: the respaced process of T steps.
      denoise_fn: (x_t, timesteps) -> model_output.
      keys: (B,) one random key for each sample.
      clean: (B, F, h, w, C), read where mask = 0.
      mask: (B, F, h, w, 1), 1 = generate, 0 = given.
      start: x_T in place of a drawn one, (B, F, h, w, C).
    """

    diffusion: GaussianDiffusion
    denoise_fn: DenoiseFn
    keys: Key[Array, " b"]
    clean: Video
    mask: Mask
    start: Float[Array | np.ndarray, "b f h w c"] | None = None

    @property
    def num_steps(self) -> int:
        """T."""
        return len(self.diffusion.schedule)

    def with_given(self, x: Video) -> Video:
        """x with the clean values at given positions."""
        return apply_mask(self.mask, x, self.clean)

    def start_noise(self) -> Video:
        """x_T: `start`, or a draw that is the same for every sampler and any number of steps."""
        if self.start is not None:
            return jnp.asarray(self.start)
        return sample_noise(jax.vmap(lambda key: jax.random.fold_in(key, 0))(self.keys), self.clean.shape[1:])

    def step_keys(self, step: Int[Array, ""] | int) -> Key[Array, " b"]:
        """Keys for the draws of one step."""
        return jax.vmap(lambda key: jax.random.fold_in(jax.random.fold_in(key, 1), step))(self.keys)

    def noise(self, step: Int[Array, ""] | int) -> Video:
        """The z of one step."""
        return sample_noise(self.step_keys(step), self.clean.shape[1:])

    def denoise(self, x_t: Video, step: Int[Array, ""] | int) -> Prediction:
        """Calls the network on x_t at a step of the respaced process, and reads its output."""
        steps = jnp.full(x_t.shape[0], step)
        timesteps = jnp.asarray(self.diffusion.schedule.timestep_map)[steps]
        return self.diffusion.p_mean_variance(self.denoise_fn(x_t, timesteps), x_t, steps, self.diffusion.clip_denoised)


def samples_of(state: Any) -> Any:
    """The samples (B, F, h, w, C) in the state after the last step: its first array."""
    return jax.tree.leaves(state)[0]


def solve(sampler: Callable[..., Steps], problem: Problem, **options: Any) -> Any:
    """All steps of a sampler; returns the samples (B, F, h, w, C), equal to `clean` where mask = 0."""
    state, step = sampler(problem, **options)
    return samples_of(jax.lax.fori_loop(0, problem.num_steps, step, state))
