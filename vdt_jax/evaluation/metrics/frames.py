"""PSNR, SSIM and motion on the generated positions.

Videos are float (B, F, H, W, C) in [-1, 1], masks (B, F, H, W, 1) with 1 = generate; each function gives (B,).
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np


def mean_where(x: jax.Array, mask: jax.Array) -> jax.Array:
    """The mean (B,) of x (B, F, H, W, C) where mask (B, F, H, W, 1) is 1; 0 where it is 1 nowhere."""
    return (x * mask).sum((1, 2, 3, 4)) / jnp.maximum(mask.sum((1, 2, 3, 4)) * x.shape[-1], 1)


@jax.jit
def psnr(sample: jax.Array, truth: jax.Array, mask: jax.Array) -> jax.Array:
    """Peak signal-to-noise ratio in dB of each video's mean squared error, at most 100."""
    square = ((sample - truth) / 2) ** 2
    return -10 * jnp.log10(jnp.maximum(mean_where(square, mask), 1e-10))


def psnr_of_frames(sample: jax.Array, truth: jax.Array, mask: jax.Array) -> jax.Array:
    """The mean of the `psnr` of the frames with a generated position: never below that of the video."""
    by_frame = psnr(*(x.reshape(-1, 1, *x.shape[2:]) for x in (sample, truth, mask))).reshape(mask.shape[:2])
    counted = mask.any((2, 3, 4))
    return (by_frame * counted).sum(1) / jnp.maximum(counted.sum(1), 1)


@functools.partial(jax.jit, static_argnames="border")
def ssim(sample: jax.Array, truth: jax.Array, mask: jax.Array, border: int = 0) -> jax.Array:
    """Structural similarity (Wang et al. 2004): 11x11 Gaussian window of sigma 1.5, per channel, borders reflected.

    The map covers the whole frame; its mean is taken over the generated positions. scikit-image leaves out a border of
    5 pixels, where the window reaches beyond the frame.
    """
    offsets = np.arange(-5, 6)
    window = np.exp(-(offsets**2) / (2 * 1.5**2))
    window = jnp.asarray(window / window.sum(), jnp.float32)

    def blur(x):
        height, width = x.shape[2:4]
        x = jnp.pad(x, ((0, 0), (0, 0), (5, 5), (5, 5), (0, 0)), mode="symmetric")
        x = jnp.stack([window[i] * x[:, :, i : i + height] for i in range(11)]).sum(0)
        return jnp.stack([window[i] * x[:, :, :, i : i + width] for i in range(11)]).sum(0)

    x, y = (sample + 1) / 2, (truth + 1) / 2
    mean_x, mean_y = blur(x), blur(y)
    variance_x, variance_y = blur(x * x) - mean_x**2, blur(y * y) - mean_y**2
    covariance = blur(x * y) - mean_x * mean_y
    c1, c2 = 0.01**2, 0.03**2
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    structure = (2 * covariance + c2) / (variance_x + variance_y + c2)
    height, width = mask.shape[2:4]
    inside = (slice(None), slice(None), slice(border, height - border), slice(border, width - border))
    return mean_where((luminance * structure)[inside], mask[inside])


@jax.jit
def motion(video: jax.Array, mask: jax.Array) -> jax.Array:
    """The mean absolute difference from frame to frame, as a share of the range of values; 0 for a still video.

    A difference counts where either of its two frames is generated.
    """
    changed = jnp.maximum(mask[:, 1:], mask[:, :-1])
    return mean_where(jnp.abs(video[:, 1:] - video[:, :-1]) / 2, changed)


@jax.jit
def motion_error(sample: jax.Array, truth: jax.Array, mask: jax.Array) -> jax.Array:
    """The mean distance of the differences of a sample from those of the truth: `motion` of their difference."""
    return motion(sample - truth, mask)
