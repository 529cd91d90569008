"""How much moves, and whether it moves as in the truth: differences between neighbouring frames.

Videos are float (B, F, H, W, C) in [-1, 1], masks (B, F, H, W, 1) with 1 = generate; each function gives (B,). A
difference counts where either of its two frames is generated.
"""

import jax
import jax.numpy as jnp


def _mean_of_moved(x: jax.Array, mask: jax.Array) -> jax.Array:
    moved = jnp.maximum(mask[:, 1:], mask[:, :-1])
    return (x * moved).sum((1, 2, 3, 4)) / jnp.maximum(moved.sum((1, 2, 3, 4)) * x.shape[-1], 1)


@jax.jit
def motion(video: jax.Array, mask: jax.Array) -> jax.Array:
    """The mean size of the change from frame to frame, of a range of 1; 0 for a picture that stands still."""
    return _mean_of_moved(jnp.abs(video[:, 1:] - video[:, :-1]) / 2, mask)


@jax.jit
def motion_error(sample: jax.Array, truth: jax.Array, mask: jax.Array) -> jax.Array:
    """The mean distance between a sample's changes and the truth's, of a range of 1."""
    changes, true_changes = sample[:, 1:] - sample[:, :-1], truth[:, 1:] - truth[:, :-1]
    return _mean_of_moved(jnp.abs(changes - true_changes) / 2, mask)
