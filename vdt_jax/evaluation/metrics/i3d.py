"""I3D, the network of FVD (Carreira and Zisserman 2017, arXiv 1705.07750, figure 3).

An Inception v1 with windows inflated in time: the Kinetics-400 network in RGB. Its batch normalisation, a scale and a
shift of each channel after training, is folded into the kernels by `load_i3d` (weights.py).
"""

import jax
import jax.numpy as jnp
from flax import linen as nn

from vdt_jax.evaluation.metrics.convolution import Conv3D, max_pool

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
