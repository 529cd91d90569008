"""The metrics of OpenSTL (Tan et al. 2023, arXiv 2306.11249) as its code computes them: openstl/core/metrics.py."""

import jax
import jax.numpy as jnp

_WINDOW = 7  # pixels
_RANGE = 2.0  # not 1: scikit-image 0.19, which OpenSTL requires, takes float32 images to be in [-1, 1]


@jax.jit
def openstl(sample: jax.Array, truth: jax.Array, mask: jax.Array) -> dict[str, jax.Array]:
    """MSE and MAE summed over the pixels of a frame, SSIM and PSNR; each (B,).

    Values are in [0, 1], samples are clipped; OpenSTL does not clip for MSE and MAE. Whole frames count, averaged over
    those with a generated position. PSNR is at most 100. SSIM has a uniform 7x7 window and unbiased variances, leaves
    out a border of 3, and assumes a range of 2, which makes it larger.

    Args:
      sample, truth: (B, F, H, W, C) in [-1, 1].
      mask: (B, F, H, W, 1), 1 = generated.
    """
    counted = mask.any((2, 3, 4))

    def mean(of_frames):
        return (of_frames * counted).sum(1) / jnp.maximum(counted.sum(1), 1)

    x, y = jnp.clip((sample + 1) / 2, 0, 1), (truth + 1) / 2
    square = (x - y) ** 2
    return {
        "OpenSTL MSE": mean(square.sum((2, 3, 4))),
        "OpenSTL MAE": mean(jnp.abs(x - y).sum((2, 3, 4))),
        "OpenSTL SSIM": mean(_ssim(x, y).mean((2, 3, 4))),
        "OpenSTL PSNR": mean(-10 * jnp.log10(jnp.maximum(square.mean((2, 3, 4)), 1e-10))),
    }


def _ssim(x: jax.Array, y: jax.Array) -> jax.Array:
    """The map of the structural similarity without its border."""

    def local_mean(values):
        for axis in (2, 3):
            length = values.shape[axis] - _WINDOW + 1
            shifted = [jax.lax.slice_in_dim(values, i, i + length, axis=axis) for i in range(_WINDOW)]
            values = jnp.stack(shifted).mean(0)
        return values

    unbiased = _WINDOW**2 / (_WINDOW**2 - 1)
    mean_x, mean_y = local_mean(x), local_mean(y)
    variance_x, variance_y = (unbiased * (local_mean(v * v) - m**2) for v, m in ((x, mean_x), (y, mean_y)))
    covariance = unbiased * (local_mean(x * y) - mean_x * mean_y)
    c1, c2 = (0.01 * _RANGE) ** 2, (0.03 * _RANGE) ** 2
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    return luminance * (2 * covariance + c2) / (variance_x + variance_y + c2)
