"""I3D, the network of FVD (Carreira and Zisserman 2017, arXiv 1705.07750, figure 3).

An Inception v1 with windows inflated in time: the Kinetics-400 network in RGB. Its batch normalisation, a scale and a
shift of each channel after training, is folded into the kernels by `load_i3d` (weights.py).

Convolutions and pooling of video are built from two-dimensional convolutions and shifted maxima: on XLA's CPU backend a
three-dimensional convolution takes ten times as long as a two-dimensional one of the same size, and a windowed maximum
ten times as long as shifted maxima. Padding is TensorFlow's SAME: where it is odd, the end gets one more.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

SIZE = 224  # pixels, height and width
MIN_FRAMES = 9  # with fewer, one frame is left for the last pooling, which needs two

# Channels of the four branches of each block: 1x1x1; 1x1x1 then 3x3x3; 1x1x1 then 3x3x3; pooling then 1x1x1.
BLOCKS = {
    "Mixed_3b": (64, 96, 128, 16, 32, 32),
    "Mixed_3c": (128, 128, 192, 32, 96, 64),
    "Mixed_4b": (192, 96, 208, 16, 48, 64),
    "Mixed_4c": (160, 112, 224, 24, 64, 64),
    "Mixed_4d": (128, 128, 256, 24, 64, 64),
    "Mixed_4e": (112, 144, 288, 32, 64, 64),
    "Mixed_4f": (256, 160, 320, 32, 128, 128),
    "Mixed_5b": (256, 160, 320, 32, 128, 128),
    "Mixed_5c": (384, 192, 384, 48, 128, 128),
}


def _shifts(x: jax.Array, axis: int, window: int, stride: int, fill: float) -> list[jax.Array]:
    """The strided views of x for each offset of a window along an axis."""
    length = (-(-x.shape[axis] // stride) - 1) * stride + 1
    total = max(length - 1 + window - x.shape[axis], 0)
    padding = [(0, 0)] * x.ndim
    padding[axis] = (total // 2, total - total // 2)
    x = jnp.pad(x, padding, constant_values=fill)
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


class Inception(nn.Module):
    """Four branches, concatenated on the channels: (B, F, H, W, C) -> (B, F, H, W, sum of their last widths)."""

    widths: tuple[int, int, int, int, int, int]

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        def unit(name: str, features: int, size: int, x: jax.Array) -> jax.Array:
            return nn.relu(Conv3D(features, (size, size, size), name=name)(x))

        one, narrow, wide, narrow_2, wide_2, pooled = self.widths
        return jnp.concatenate(
            [
                unit("Branch_0_Conv3d_0a_1x1", one, 1, x),
                unit("Branch_1_Conv3d_0b_3x3", wide, 3, unit("Branch_1_Conv3d_0a_1x1", narrow, 1, x)),
                unit("Branch_2_Conv3d_0b_3x3", wide_2, 3, unit("Branch_2_Conv3d_0a_1x1", narrow_2, 1, x)),
                unit("Branch_3_Conv3d_0b_1x1", pooled, 1, max_pool(x, (3, 3, 3), (1, 1, 1))),
            ],
            axis=-1,
        )


class I3D(nn.Module):
    """Video (B, F, 224, 224, 3) in [-1, 1], at least 9 frames, to the 400 logits of Kinetics: (B, 400)."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.relu(Conv3D(64, (7, 7, 7), (2, 2, 2), name="Conv3d_1a_7x7")(x))  # (B, F/2, 112, 112, 64)
        x = max_pool(x, (1, 3, 3), (1, 2, 2))
        x = nn.relu(Conv3D(64, name="Conv3d_2b_1x1")(x))
        x = nn.relu(Conv3D(192, (3, 3, 3), name="Conv3d_2c_3x3")(x))
        x = max_pool(x, (1, 3, 3), (1, 2, 2))  # (B, F/2, 28, 28, 192)
        for name, widths in BLOCKS.items():
            if name == "Mixed_4b":
                x = max_pool(x, (3, 3, 3), (2, 2, 2))  # (B, F/4, 14, 14, 480)
            if name == "Mixed_5b":
                x = max_pool(x, (2, 2, 2), (2, 2, 2))  # (B, F/8, 7, 7, 832)
            x = Inception(widths, name=name)(x)
        # The mean over 7x7 places and pairs of frames, then over all pairs; the classifier is linear, so it comes last.
        x = x.mean((2, 3))
        x = (x[:, :-1] + x[:, 1:]).mean(1) / 2  # (B, 1024)
        return Conv3D(400, name="Logits_Conv3d_0c_1x1")(x[:, None, None, None])[:, 0, 0, 0]
