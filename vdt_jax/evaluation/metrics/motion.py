"""Motion: differences between neighbouring frames, and their distance from those of the truth.

Videos are float (B, F, H, W, C) in [-1, 1], masks (B, F, H, W, 1) with 1 = generate; each function gives (B,). A
difference counts where either of its two frames is generated.
"""

import jax
import jax.numpy as jnp

from vdt_jax.evaluation.metrics.frames import mean_where


@jax.jit
def motion(video: jax.Array, mask: jax.Array) -> jax.Array:
    """The mean absolute difference from frame to frame, as a share of the range of values; 0 for a still video."""
    return _mean_of_differences(video[:, 1:] - video[:, :-1], mask)


@jax.jit
def motion_error(sample: jax.Array, truth: jax.Array, mask: jax.Array) -> jax.Array:
    """The mean distance of the differences of a sample from those of the truth, as a share of the range of values."""
    differences, true_differences = sample[:, 1:] - sample[:, :-1], truth[:, 1:] - truth[:, :-1]
    return _mean_of_differences(differences - true_differences, mask)


def _mean_of_differences(differences: jax.Array, mask: jax.Array) -> jax.Array:
    return mean_where(jnp.abs(differences) / 2, jnp.maximum(mask[:, 1:], mask[:, :-1]))
