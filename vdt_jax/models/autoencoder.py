"""The autoencoder of Stable Diffusion (AutoencoderKL) in Flax Linen, frame by frame.

Rombach et al. 2022 (arXiv 2112.10752), section 3.1, in the sizes of sd-vae-ft-ema and sd-vae-ft-mse or any other with
plain blocks. A frame (H, W, 3) in [-1, 1] becomes a normal distribution over latents (H/8, W/8, 4):

    mean, logvar = encode(x)
    z = scaling_factor * (mean + exp(logvar / 2) eps)
    x = decode(z / scaling_factor)

Parameter paths are diffusers' names with Flax's leaf names: `encoder/down_blocks_0/resnets_1/conv1/kernel`.
`vdt_jax.latents.codec` encodes and decodes whole videos.
"""

from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn
from jaxtyping import Array, Float

SCALING_FACTOR = 0.18215  # latents of the public autoencoders times this have about unit variance

_EPSILON = 1e-6
_LAYOUT = ("NHWC", "HWIO", "NHWC")
_LOGVAR_LIMITS = (-30.0, 20.0)


class ResnetBlock(nn.Module):
    """GroupNorm, SiLU and a 3x3 convolution, twice, with a shortcut."""

    channels: int
    groups: int
    dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w out"]:
        hidden = _conv(self.channels, 3, self.dtype, "conv1")(nn.silu(_norm(self.groups, self.dtype, "norm1")(x)))
        hidden = _conv(self.channels, 3, self.dtype, "conv2")(nn.silu(_norm(self.groups, self.dtype, "norm2")(hidden)))
        if x.shape[-1] != self.channels:
            x = _conv(self.channels, 1, self.dtype, "conv_shortcut")(x)
        return x + hidden


class Attention(nn.Module):
    """Single-head attention over all positions of a frame."""

    groups: int
    dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        height, width, channels = x.shape[1:]
        tokens = rearrange(_norm(self.groups, self.dtype, "group_norm")(x), "b h w c -> b (h w) c")
        query, key, value = (nn.Dense(channels, dtype=self.dtype, name=f"to_{name}")(tokens) for name in "qkv")
        logits = jnp.einsum("bnc,bmc->bnm", query * channels**-0.5, key)
        weights = nn.softmax(logits.astype(jnp.float32)).astype(self.dtype)
        out = nn.Dense(channels, dtype=self.dtype, name="to_out_0")(jnp.einsum("bnm,bmc->bnc", weights, value))
        return x + rearrange(out, "b (h w) c -> b h w c", h=height, w=width)


class MidBlock(nn.Module):
    """Resnet block, attention (optional), resnet block, at the lowest resolution."""

    groups: int
    attention: bool
    dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        x = ResnetBlock(x.shape[-1], self.groups, self.dtype, name="resnets_0")(x)
        if self.attention:
            x = Attention(self.groups, self.dtype, name="attentions_0")(x)
        return ResnetBlock(x.shape[-1], self.groups, self.dtype, name="resnets_1")(x)


class Upsample(nn.Module):
    """Each pixel repeated 2x2, then a 3x3 convolution, without computing on the repeated pixels.

    Three rows of repeated pixels are two rows of x: the first two are the same one, or the last two, by the parity of
    the output's row. So each of the four parities of row and column is a 2x2 convolution of x, with sums of the
    kernel: 4 products in place of 9.
    """

    channels: int
    dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h_out w_out out"]:
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (3, 3, x.shape[-1], self.channels))
        bias = self.param("bias", nn.initializers.zeros, (self.channels,))
        x, bias = x.astype(self.dtype), bias.astype(self.dtype)

        def folded(kernel: Any, parity: int, axis: int) -> Any:
            first, middle, last = jnp.split(kernel, 3, axis)
            return jnp.concatenate([first + middle, last] if parity else [first, middle + last], axis)

        def of_parity(row: int, column: int) -> Any:
            of_pixels = folded(folded(kernel, row, 0), column, 1).astype(self.dtype)
            padding = ((1 - row, row), (1 - column, column))
            out = jax.lax.conv_general_dilated(x, of_pixels, (1, 1), padding, dimension_numbers=_LAYOUT)
            return out + bias[None, None, None]

        rows = [jnp.stack([of_parity(row, column) for column in (0, 1)], axis=3) for row in (0, 1)]
        return rearrange(rows, "p b h w q c -> b (h p) (w q) c")


class Level(nn.Module):
    """Resnet blocks at one resolution, then the change of size to the next: "down", "up" or None.

    Down is a convolution of stride 2, padded on the right and bottom only; up is `Upsample`.
    """

    channels: int
    num_layers: int
    groups: int
    resize: str | None
    dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h_out w_out out"]:
        for layer in range(self.num_layers):
            x = ResnetBlock(self.channels, self.groups, self.dtype, name=f"resnets_{layer}")(x)
        if self.resize == "down":
            x = _conv(self.channels, 3, self.dtype, "downsamplers_0_conv", strides=2, padding=((0, 1), (0, 1)))(x)
        if self.resize == "up":
            x = Upsample(self.channels, self.dtype, name="upsamplers_0_conv")(x)
        return x


class Encoder(nn.Module):
    """(B, H, W, 3) -> (B, h, w, 2 * latent channels)."""

    config: "AutoencoderKL"

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h_out w_out out"]:
        c, last = self.config, len(self.config.block_out_channels) - 1
        x = _conv(c.block_out_channels[0], 3, c.dtype, "conv_in")(x)
        for i, channels in enumerate(c.block_out_channels):
            sizes = (channels, c.layers_per_block, c.norm_num_groups, "down" if i < last else None, c.dtype)
            x = Level(*sizes, name=f"down_blocks_{i}")(x)
        x = MidBlock(c.norm_num_groups, c.mid_block_add_attention, c.dtype, name="mid_block")(x)
        x = nn.silu(_norm(c.norm_num_groups, c.dtype, "conv_norm_out")(x))
        return _conv(2 * c.latent_channels, 3, c.dtype, "conv_out")(x)


class Decoder(nn.Module):
    """(B, h, w, latent channels) -> (B, H, W, 3)."""

    config: "AutoencoderKL"

    @nn.compact
    def __call__(self, z: Float[Array, "b h w c"]) -> Float[Array, "b h_out w_out out"]:
        c, last = self.config, len(self.config.block_out_channels) - 1
        x = _conv(c.block_out_channels[-1], 3, c.dtype, "conv_in")(z)
        x = MidBlock(c.norm_num_groups, c.mid_block_add_attention, c.dtype, name="mid_block")(x)
        for i, channels in enumerate(c.block_out_channels[::-1]):
            sizes = (channels, c.layers_per_block + 1, c.norm_num_groups, "up" if i < last else None, c.dtype)
            x = Level(*sizes, name=f"up_blocks_{i}")(x)
        x = nn.silu(_norm(c.norm_num_groups, c.dtype, "conv_norm_out")(x))
        return _conv(c.out_channels, 3, c.dtype, "conv_out")(x)


class AutoencoderKL(nn.Module):
    """The autoencoder: `encode` (B, H, W, 3) to (mean, logvar), `decode` (B, h, w, 4) to (B, H, W, 3); unscaled.

    Attributes:
      in_channels, out_channels, latent_channels: channels of a frame, of a decoded frame, and of latents.
      block_out_channels: channels of each level; each level but the last halves the frame.
      layers_per_block, norm_num_groups, mid_block_add_attention, use_quant_conv, use_post_quant_conv: as in diffusers.
      scaling_factor: factor of the latents; see `encode_video`.
      dtype: of the computation ("float32", "bfloat16"); parameters and results are float32.
    """

    in_channels: int = 3
    out_channels: int = 3
    latent_channels: int = 4
    block_out_channels: tuple[int, ...] = (128, 256, 512, 512)
    layers_per_block: int = 2
    norm_num_groups: int = 32
    mid_block_add_attention: bool = True
    use_quant_conv: bool = True
    use_post_quant_conv: bool = True
    scaling_factor: float = SCALING_FACTOR
    dtype: Any = jnp.float32

    def setup(self) -> None:
        """Creates the submodules, with diffusers' names."""
        # An unbound copy: the sizes only, not the parameters of this module.
        sizes = self.clone(parent=None)
        self.encoder, self.decoder = Encoder(sizes), Decoder(sizes)
        if self.use_quant_conv:
            self.quant_conv = _conv(2 * self.latent_channels, 1, self.dtype)
        if self.use_post_quant_conv:
            self.post_quant_conv = _conv(self.latent_channels, 1, self.dtype)

    @property
    def factor(self) -> int:
        """Side of a latent cell in pixels."""
        return 2 ** (len(self.block_out_channels) - 1)

    def encode(self, x: Float[Array, "b H W c"]) -> tuple[Float[Array, "b h w latent"], Float[Array, "b h w latent"]]:
        """Encodes frames (B, H, W, 3) in [-1, 1] to mean and log-variance of their latents, (B, h, w, 4) float32."""
        moments = self.encoder(x)
        if self.use_quant_conv:
            moments = self.quant_conv(moments)
        mean, logvar = jnp.split(moments.astype(jnp.float32), 2, axis=-1)
        return mean, jnp.clip(logvar, *_LOGVAR_LIMITS)

    def decode(self, z: Float[Array, "b h w latent"]) -> Float[Array, "b H W c"]:
        """Decodes latents (B, h, w, 4), unscaled, to frames (B, H, W, 3) float32, near [-1, 1] but not clipped."""
        if self.use_post_quant_conv:
            z = self.post_quant_conv(z)
        return self.decoder(z).astype(jnp.float32)

    def __call__(self, x: Float[Array, "b H W c"]) -> Float[Array, "b H W c"]:
        """Encodes to the mean and decodes; used by `init`."""
        return self.decode(self.encode(x)[0])


def _conv(channels: int, size: int, dtype: Any, name: str | None = None, **options: Any) -> nn.Conv:
    return nn.Conv(channels, (size, size), dtype=dtype, name=name, **options)


def _norm(groups: int, dtype: Any, name: str) -> nn.GroupNorm:
    return nn.GroupNorm(groups, epsilon=_EPSILON, dtype=dtype, use_fast_variance=False, name=name)
