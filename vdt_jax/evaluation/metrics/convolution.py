"""Convolution and pooling of video, built from two-dimensional convolutions and shifted maxima.

On XLA's CPU backend a three-dimensional convolution takes ten times as long as a two-dimensional one of the same size,
and a windowed maximum ten times as long as shifted maxima. Padding is TensorFlow's SAME: where it is odd, the end gets
one more.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax


def same_padding(size: int, window: int, stride: int) -> tuple[int, int]:
    """The padding before and after an axis that makes the result ceil(size / stride) long."""
    total = max((-(-size // stride) - 1) * stride + window - size, 0)
    return total // 2, total - total // 2


def _shifts(x: jax.Array, axis: int, window: int, stride: int, fill: float) -> list[jax.Array]:
    """The strided views of x for each offset of a window along an axis."""
    size = x.shape[axis]
    padding = [(0, 0)] * x.ndim
    padding[axis] = same_padding(size, window, stride)
    x = jnp.pad(x, padding, constant_values=fill)
    length = (-(-size // stride) - 1) * stride + 1
    return [lax.slice_in_dim(x, i, i + length, stride, axis) for i in range(window)]


def max_pool(x: jax.Array, window: tuple[int, int, int], strides: tuple[int, int, int]) -> jax.Array:
    """The maximum of each window (frames, rows, columns) of video (B, F, H, W, C), one axis at a time."""
    for axis, (size, stride) in enumerate(zip(window, strides, strict=True), 1):
        if size > 1:
            x = jnp.stack(_shifts(x, axis, size, stride, -jnp.inf)).max(0)
    return x


class Conv3D(nn.Module):
    """A convolution (B, F, H, W, C) -> (B, F', H', W', features) with a bias; kernel (frames, rows, columns, C, out).

    The frames of a window become channels of a two-dimensional convolution; a window of 1x1x1 is a matrix product.
    """

    features: int
    window: tuple[int, int, int] = (1, 1, 1)
    strides: tuple[int, int, int] = (1, 1, 1)

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (*self.window, x.shape[-1], self.features)
        kernel: Any = self.param("kernel", nn.initializers.lecun_normal(), shape)
        bias: Any = self.param("bias", nn.initializers.zeros, (self.features,))
        if self.window == (1, 1, 1):
            rows = x.reshape(-1, x.shape[-1]) @ kernel[0, 0, 0] + bias[None]
            return rows.reshape(*x.shape[:-1], self.features)
        x = jnp.concatenate(_shifts(x, 1, self.window[0], self.strides[0], 0.0), -1)
        flat = kernel.transpose(1, 2, 0, 3, 4).reshape(*self.window[1:], -1, self.features)
        pictures = lax.conv_general_dilated(
            x.reshape(-1, *x.shape[2:]), flat, self.strides[1:], "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        pictures += bias[None, None, None]
        return pictures.reshape(*x.shape[:2], *pictures.shape[1:])
