"""LPIPS: the distance of two images in the features of a classifier (Zhang et al. 2018, arXiv 1801.03924, eq. 1).

    d(x, y) = sum over layers l of  mean over positions of  w_l . (f_l(x) - f_l(y))^2

with f_l the features of a layer after ReLU, normalised to length 1 at each position, and w_l weights fitted to human
judgements.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

NETWORKS = ("vgg16", "alexnet")

# ImageNet's mean and standard deviation, for images in [-1, 1].
_SHIFT = np.array([-0.030, -0.088, -0.188], np.float32).reshape(1, 1, 1, 3)
_SCALE = np.array([0.458, 0.448, 0.450], np.float32).reshape(1, 1, 1, 3)
_VGG16 = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))  # pooled between the groups
_ALEXNET = (64, 192, 384, 256, 256)


class VGG16(nn.Module):
    """The convolutions of VGG16 (Simonyan and Zisserman 2015): the features before each pooling and after the last."""

    @nn.compact
    def __call__(self, x: jax.Array) -> list[jax.Array]:
        features, number = [], 0
        for group, widths in enumerate(_VGG16):
            if group:
                x = nn.max_pool(x, (2, 2), (2, 2))
            for width in widths:
                x = nn.relu(nn.Conv(width, (3, 3), padding=1, name=f"Conv_{number}")(x))
                number += 1
            features.append(x)
        return features


class AlexNet(nn.Module):
    """The convolutions of AlexNet (Krizhevsky 2014, arXiv 1404.5997): the features after each of them."""

    @nn.compact
    def __call__(self, x: jax.Array) -> list[jax.Array]:
        features = []
        for number, width in enumerate(_ALEXNET):
            if number in (1, 2):
                x = nn.max_pool(x, (3, 3), (2, 2))
            size, stride, padding = {0: (11, 4, 2), 1: (5, 1, 2)}.get(number, (3, 1, 1))
            x = nn.relu(nn.Conv(width, (size, size), stride, padding, name=f"Conv_{number}")(x))
            features.append(x)
        return features


class LPIPS(nn.Module):
    """The distances (B,) of two batches of images (B, H, W, 3) in [-1, 1]."""

    network: str = "vgg16"

    def setup(self):
        self.features = VGG16() if self.network == "vgg16" else AlexNet()
        widths = [group[-1] for group in _VGG16] if self.network == "vgg16" else _ALEXNET
        self.heads = [self.param(f"head_{i}", nn.initializers.ones, (width,)) for i, width in enumerate(widths)]

    def __call__(self, x: jax.Array, y: jax.Array) -> jax.Array:
        layers = zip(self.heads, *(self.features((picture - _SHIFT) / _SCALE) for picture in (x, y)), strict=True)
        return jnp.stack([((_unit(f) - _unit(g)) ** 2).mean((1, 2)) @ weights for weights, f, g in layers]).sum(0)


def _unit(features: jax.Array) -> jax.Array:
    return features / (jnp.sqrt((features**2).sum(-1, keepdims=True)) + 1e-10)
