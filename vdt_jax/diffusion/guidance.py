"""Classifier-free guidance on labels and on given frames, and noise on given frames."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from vdt_jax.diffusion.gaussian import DenoiseFn, GaussianDiffusion
from vdt_jax.diffusion.masks import Mask, Video, apply_mask
from vdt_jax.diffusion.schedules import at
from vdt_jax.errors import UserError


def guide(
    network: Callable[[jax.Array, jax.Array, jax.Array], jax.Array],
    diffusion: GaussianDiffusion,
    labels: Int[Array, " b"],
    clean: Video,
    mask: Mask,
    noise: Video,
    *,
    null_label: int,
    guidance: jax.Array | float | int | None = None,
    mask_guidance: jax.Array | float | int | None = None,
    guidance_interval: Sequence[Any] | jax.Array | None = None,
    given_noise: jax.Array | float | int | None = None,
) -> DenoiseFn:
    """Classifier-free guidance (Ho and Salimans 2022, eq. 6, arXiv 2207.12598), on labels, on given frames, or both.

        output = f(x_t, label) + (guidance - 1) (f(x_t, label) - f(x_t, no label))
                               + (mask_guidance - 1) (f(x_t, label) - f(x_t with nothing given, label))

    A scale of 1 changes nothing. In the branch with nothing given, given positions hold q(x_t | clean), with the same
    noise at every step. The variance fraction is that of f(x_t, label).

    Args:
      network: (x_t, timesteps, labels) -> model_output, for any batch size.
      diffusion: the respaced process; timesteps must be in its timestep_map.
      mask: (B, F, h, w, 1), 1 = generate, 0 = given.
      noise: standard normal, for given positions in the branch with nothing given, and for given_noise.
      null_label: the label that means "no label".
      guidance, mask_guidance: scales; None omits the branch.
      guidance_interval: (low, high) of the noise-to-signal ratio sigma / alpha. Where it is not in (low, high] the
        scales are 1, and the other branches are not computed (Kynkäänniemi et al. 2024, arXiv 2404.07724). None guides
        everywhere. All timesteps of a call must be equal.
      given_noise: standard deviation of noise on given positions in the network's input, the same at every step.
    """
    timestep_map = jnp.asarray(diffusion.schedule.timestep_map)
    scales = [scale for scale in (guidance, mask_guidance) if scale is not None]

    def network_input(x_t: Video) -> Video:
        return x_t if given_noise is None else apply_mask(mask, x_t, clean + given_noise * noise)

    def plain(x_t: Video, timesteps: Int[Array, " b"]) -> Float[Array, "b f h w out"]:
        return network(network_input(x_t), timesteps, labels)

    def guided(x_t: Video, timesteps: Int[Array, " b"]) -> Float[Array, "b f h w out"]:
        branches = [(network_input(x_t), labels)]
        if guidance is not None:
            branches.append((network_input(x_t), jnp.full_like(labels, null_label)))
        if mask_guidance is not None:
            steps = jnp.searchsorted(timestep_map, timesteps)
            branches.append((apply_mask(mask, x_t, diffusion.q_sample(clean, steps, noise)), labels))
        # Stacked as (B, branches, ...), so that a batch that is sharded over devices is not moved.
        inputs, each_label = (jnp.stack(parts, axis=1) for parts in zip(*branches, strict=True))
        outputs = network(inputs.reshape(-1, *x_t.shape[1:]), timesteps.repeat(len(branches)), each_label.reshape(-1))
        return _extrapolate(outputs.reshape(*each_label.shape, *outputs.shape[1:]), scales, x_t.shape[-1])

    return guided if guidance_interval is None else _within(guidance_interval, diffusion, guided, plain)


def _extrapolate(
    outputs: Float[Array, "b branches f h w out"], scales: Sequence[jax.Array | float | int], channels: int
) -> Float[Array, "b f h w out"]:
    """Classifier-free guidance of branch 0 by each other branch; its variance, after `channels` channels, is kept."""
    full = outputs[:, 0]
    output = full[..., :channels]
    for branch, scale in enumerate(scales, 1):
        output += (scale - 1) * (full[..., :channels] - outputs[:, branch, ..., :channels])
    return jnp.concatenate([output, full[..., channels:]], axis=-1)


def _within(
    interval: Sequence[Any] | jax.Array, diffusion: GaussianDiffusion, guided: DenoiseFn, plain: DenoiseFn
) -> DenoiseFn:
    """`guided` where the noise-to-signal ratio is in (low, high], `plain` elsewhere; only one of them is computed."""
    timestep_map = jnp.asarray(diffusion.schedule.timestep_map)
    low, high = interval

    def denoise_fn(x_t: Video, timesteps: Int[Array, " b"]) -> Float[Array, "b f h w out"]:
        log_noise = -at(diffusion.schedule.half_log_snr, jnp.searchsorted(timestep_map, timesteps[0]))
        inside = (jnp.log(low) < log_noise) & (log_noise <= jnp.log(high))
        return jax.lax.cond(inside, guided, plain, x_t, timesteps)

    return denoise_fn


def check_guidance_interval(interval: Any, *scales: Any) -> None:
    """Raises UserError for an interval that is not 0 <= low < high, or one without a scale that is not None."""
    if len(interval) != 2 or not 0 <= interval[0] < interval[1]:
        got = ",".join(f"{level:g}" for level in interval)
        raise UserError(
            f"guidance_interval must be LOW,HIGH with 0 <= LOW < HIGH, such as 0.3,3, got {got or 'nothing'}"
        )
    if all(scale is None for scale in scales):
        raise UserError("guidance_interval limits a guidance, and none is given: add guidance or mask_guidance")
