"""VDT in Flax Linen: a DiT over each frame, with temporal attention in front of every block.

Lu et al. 2024 (arXiv 2305.13311), section 3; DiT: Peebles and Xie 2023 (arXiv 2212.09748). A block computes

    x = x + temporal_fc(TemporalAttention(LN(x)))                                    over frames, per position
    x = x + gate_msa * SpatialAttention((1 + scale_msa) * LN(x) + shift_msa)         over positions, per frame
    x = x + gate_mlp * MLP((1 + scale_mlp) * LN(x) + shift_mlp)

with shift, scale and gate from the timestep (adaLN-Zero). One array (B, F, N, D) holds the tokens throughout; only the
queries, keys and values are laid out head by head, over frames or over tokens. Parameter paths are the torch names with
Flax's leaf names and the blocks stacked on axis 0: `blocks/attn/qkv/kernel (depth, D, 3D)`.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int, Num, PyTree

from vdt_jax.distributed.mesh import GATHERED
from vdt_jax.errors import UserError
from vdt_jax.models.layers import KEPT, AffineNorm, attention, dense, gated, gelu, layer_norm

VDT_VARIANTS = {
    "VDT-S/2": dict(depth=12, hidden_size=384, patch_size=2, num_heads=6),
    "VDT-L/2": dict(depth=28, hidden_size=1152, patch_size=2, num_heads=16),
}


def _keeps(primitive: Any, *args: Any, **params: Any) -> bool:
    """Products of linear layers, queries, keys and values, and the output of fused attention; not attention weights."""
    named = jax.checkpoint_policies.save_only_these_names(KEPT)
    return primitive.name.startswith("dot_product_attention_fwd") or named(primitive, *args, **params)


# Rematerialisation policies: what the backward pass keeps of a block's forward pass; it computes the rest again.
REMAT = {
    "none": jax.checkpoint_policies.save_anything_except_these_names(GATHERED),
    "full": jax.checkpoint_policies.nothing_saveable,
    "matmuls": _keeps,
}

ATTENTION = ("auto", "xla", "cudnn")

# Sinusoidal tables, in `params` as in the official checkpoints, never trained.
FROZEN_PARAMS = ("pos_embed", "time_embed")


def sincos_embedding(positions: Num[np.ndarray, "..."], dim: int) -> Float[np.ndarray, "n {dim}"]:
    """Sines, then cosines, of positions at dim/2 frequencies, in float64 (Vaswani et al. 2017, sec. 3.5)."""
    frequencies = 10000.0 ** (-np.arange(dim // 2) / (dim / 2))
    angles = positions.reshape(-1, 1) * frequencies
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=-1)


def grid_embedding(grid: tuple[int, int], dim: int) -> Float[np.ndarray, "n {dim}"]:
    """Embeds a grid: half of the width encodes the *column*, then half the row, as in the official code."""
    rows, columns = np.meshgrid(np.arange(grid[0]), np.arange(grid[1]), indexing="ij")
    return np.concatenate([sincos_embedding(columns, dim // 2), sincos_embedding(rows, dim // 2)], axis=-1)


def timestep_embedding(timesteps: Num[Array, " b"], dim: int = 256) -> Float[Array, "b {dim}"]:
    """Cosines, then sines, of timesteps, in float32 (the order of ADM, opposite to the position tables)."""
    frequencies = np.exp(-np.log(10000.0) * np.arange(dim // 2) / (dim // 2)).astype(np.float32)
    angles = timesteps[:, None].astype(jnp.float32) * frequencies[None]
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


def patchify(x: Float[Array, "b f h w c"], patch_size: int) -> Float[Array, "b f n d"]:
    """Video to tokens (B, F, N, p*p*C)."""
    return rearrange(x, "b f (h p) (w q) c -> b f (h w) (p q c)", p=patch_size, q=patch_size)


def unpatchify(tokens: Float[Array, "b f n d"], grid: tuple[int, int], patch_size: int) -> Float[Array, "b f h w c"]:
    """Tokens (B, F, N, p*p*C) of a grid of patches to video: the inverse of `patchify`."""
    return rearrange(tokens, "b f (h w) (p q c) -> b f (h p) (w q) c", h=grid[0], w=grid[1], p=patch_size, q=patch_size)


def modulation(flat: Float[Array, "b d"], parts: int, num_frames: int) -> Float[Array, "parts b f 1 each"]:
    """Shifts, scales and gates of adaLN for tokens (B, F, N, D), in float32.

    They are repeated for each frame, so that their gradients are summed over tokens first. XLA then sums them in the
    kernel that computes the summands, like the gradients of biases; the barrier keeps it from merging the two sums.
    """
    each = rearrange(flat, "b (parts d) -> parts b 1 1 d", parts=parts).astype(jnp.float32)
    return jax.lax.optimization_barrier(jnp.broadcast_to(each, (*each.shape[:2], num_frames, *each.shape[3:])))


class Attention(nn.Module):
    """Multi-head attention over frames or over the tokens of a frame.

    `qkv` is one matrix (D, 3D), laid out (3, heads, head width): its Xavier bound depends on it. The product is
    computed in three, so that queries, keys and values need not be copied apart.

    Attributes:
      over: "frames" or "tokens".
      fused: by cuDNN in one kernel, over tokens, on NVIDIA GPUs; otherwise by XLA.
    """

    num_heads: int
    over: str
    dtype: Any = jnp.float32
    fused: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "b f n d"]) -> Float[Array, "b f n d"]:
        width = x.shape[-1]
        parts = dense(3 * width, self.dtype, "qkv", parts=3)(x)
        # The axis of attention is next to the head width: XLA's CPU backend then fuses the whole attention.
        axes = "b n k f e" if self.over == "frames" else "b f k n e"
        if self.fused:
            axes = "(b f) n k e"

        def laid_out(part: Any) -> Any:
            return rearrange(part, f"b f n (k e) -> {axes}", k=self.num_heads)

        # Kept as attention over frames takes them, GPUs transpose them once; over tokens this would cost TPUs memory.
        query, key, value = (
            checkpoint_name(laid_out(part), KEPT) if self.over == "frames" else laid_out(checkpoint_name(part, KEPT))
            for part in parts
        )
        if self.fused:
            try:
                out = jax.nn.dot_product_attention(query, key, value, implementation="cudnn")
            except RuntimeError as error:
                raise UserError(f"attention=cudnn does not work here ({error}): use attention=auto or xla") from error
        else:
            out = attention(query * (width // self.num_heads) ** -0.5, key, value)
        out = rearrange(out, f"{axes} -> b f n (k e)", b=x.shape[0])
        return dense(width, self.dtype, "proj")(out)


class Mlp(nn.Module):
    """Linear, GELU (tanh form), linear, per token."""

    hidden_dim: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b f n d"]) -> Float[Array, "b f n d"]:
        hidden = gelu(dense(self.hidden_dim, self.dtype, "fc1")(x))
        return dense(x.shape[-1], self.dtype, "fc2")(hidden)


class VDTBlock(nn.Module):
    """Temporal attention (if `temporal`), then an adaLN-Zero block; `c` is the condition after SiLU.

    `fused` is for attention over tokens: a kernel of cuDNN works on 64 or more positions at once, frames are 16.
    """

    num_heads: int
    mlp_ratio: float = 4.0
    dtype: Any = jnp.float32
    temporal: bool = True
    fused: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "b f n d"], c: Float[Array, "b d"]) -> tuple[Float[Array, "b f n d"], None]:
        width = x.shape[-1]
        six = modulation(dense(6 * width, self.dtype, "adaLN_modulation", zero=True)(c), 6, x.shape[1])
        shift_msa, scale_msa, gate_msa, shift_mlp, scale_mlp, gate_mlp = six

        if self.temporal:
            temporal = AffineNorm(name="temporal_norm1")(x)
            temporal = Attention(self.num_heads, "frames", self.dtype, name="temporal_attn")(temporal)
            x = x + dense(width, self.dtype, "temporal_fc")(temporal)

        spatial = layer_norm(x, 1 + scale_msa, shift_msa, 1e-6)
        spatial = Attention(self.num_heads, "tokens", self.dtype, self.fused, name="attn")(spatial)
        x = x + gated(spatial, gate_msa)

        hidden = layer_norm(x, 1 + scale_mlp, shift_mlp, 1e-6)
        hidden = Mlp(int(width * self.mlp_ratio), self.dtype, name="mlp")(hidden)
        x = x + gated(hidden, gate_mlp)
        return x, None


class FinalLayer(nn.Module):
    """adaLN and a linear map to patches, (B, F, N, p*p*out_channels)."""

    patch_size: int
    out_channels: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b f n d"], c: Float[Array, "b d"]) -> Float[Array, "b f n patch"]:
        shift, scale = modulation(dense(2 * x.shape[-1], self.dtype, "adaLN_modulation", zero=True)(c), 2, x.shape[1])
        x = layer_norm(x, 1 + scale, shift, 1e-6)
        return dense(self.patch_size**2 * self.out_channels, self.dtype, "linear", zero=True)(x)


class PatchEmbed(nn.Module):
    """A linear map of each patch: equal to the official strided convolution."""

    hidden_size: int
    patch_size: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b f h w c"]) -> Float[Array, "b f n d"]:
        return dense(self.hidden_size, self.dtype, "proj")(patchify(x, self.patch_size))


class TimestepEmbedder(nn.Module):
    """Sinusoidal features of timesteps through a two-layer MLP."""

    hidden_size: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, timesteps: Num[Array, " b"]) -> Float[Array, "b d"]:
        features = timestep_embedding(timesteps).astype(self.dtype)
        hidden = nn.silu(dense(self.hidden_size, self.dtype, "mlp_0", normal=True)(features))
        return dense(self.hidden_size, self.dtype, "mlp_2", normal=True)(hidden)


class LabelEmbedder(nn.Module):
    """A table of num_classes + 1 rows; the last means "no label" (classifier-free guidance)."""

    num_classes: int
    hidden_size: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, labels: Int[Array, " b"]) -> Float[Array, "b d"]:
        table = nn.Embed(
            self.num_classes + 1,
            self.hidden_size,
            dtype=self.dtype,
            embedding_init=nn.initializers.normal(0.02),
            name="embedding_table",
        )
        return table(labels)


class VDT(nn.Module):
    """The denoiser: `model.apply({"params": params}, x, timesteps, labels) -> (B, F, H, W, 2C)`.

    Attributes:
      input_size: (H, W) of a frame (pixels or latent cells), or one number for a square.
      num_frames: F.
      in_channels: C.
      patch_size, hidden_size, depth, num_heads, mlp_ratio: the transformer's sizes.
      num_classes: classes of the label table, which has one more row for "no label"; 1 = unlabelled.
      learn_sigma: whether C more channels hold the variance fraction.
      dtype: of the computation ("float32", "bfloat16"); parameters and output are float32.
      unroll: blocks per iteration of the scan over depth.
      remat: what a block keeps for its gradient: everything ("none"), the outputs of linear layers ("matmuls"), nothing
        ("full").
      temporal: False omits temporal attention and time_embed: an image model, the first of two training stages.
      attention: of tokens, by XLA ("xla"), by cuDNN ("cudnn": NVIDIA GPUs, bfloat16, head widths that are multiples of
        8 up to 128), or by cuDNN where it can and XLA elsewhere ("auto").
      gather: gathers a block's parameters before use, where they are sharded over devices.

    Raises:
      UserError: sizes out of range or that do not fit together, or an input of another size.
    """

    input_size: int | tuple[int, int] = 32
    num_frames: int = 16
    in_channels: int = 4
    patch_size: int = 2
    hidden_size: int = 1152
    depth: int = 28
    num_heads: int = 16
    mlp_ratio: float = 4.0
    num_classes: int = 1
    learn_sigma: bool = True
    dtype: Any = jnp.float32
    unroll: int = 1
    remat: str = "none"
    temporal: bool = True
    attention: str = "auto"
    gather: Callable[[Any], Any] | None = None

    @property
    def frame_size(self) -> tuple[int, int]:
        """(H, W)."""
        size = self.input_size
        return (size, size) if isinstance(size, int) else (size[0], size[1])

    @property
    def video_shape(self) -> tuple[int, int, int, int]:
        """(F, H, W, C) of one sample."""
        return (self.num_frames, *self.frame_size, self.in_channels)

    @property
    def grid(self) -> tuple[int, int]:
        """Patches per column and row of a frame."""
        height, width = self.frame_size
        return height // self.patch_size, width // self.patch_size

    @property
    def null_label(self) -> int:
        """The label that means "no label"."""
        return self.num_classes

    @property
    def fused(self) -> bool:
        """Whether cuDNN computes attention over tokens."""
        if self.attention == "auto":
            return not self._unfit_for_cudnn() and jax.devices()[0].device_kind.startswith("NVIDIA")
        return self.attention == "cudnn"

    def _unfit_for_cudnn(self) -> str:
        """What keeps cuDNN from computing attention over tokens: empty, or the rest of a message."""
        width = self.hidden_size // self.num_heads
        if jnp.dtype(self.dtype) != jnp.bfloat16:
            return f"dtype=bfloat16, got {jnp.dtype(self.dtype)}"
        if width % 8 or width > 128:
            return f"head widths (hidden_size / num_heads) that are multiples of 8 up to 128, got {width}"
        return ""

    def check_sizes(self) -> None:
        """Raises UserError if a size is out of range or does not fit the others."""
        sizes = ("num_frames", "in_channels", "patch_size", "hidden_size", "depth", "num_heads", "num_classes")
        for name in sizes:
            if getattr(self, name) < 1:
                raise UserError(f"{name} must be >= 1, got {getattr(self, name)}")
        if str(self.dtype) not in ("float32", "bfloat16") and self.dtype not in (jnp.float32, jnp.bfloat16):
            raise UserError(f"dtype must be float32 or bfloat16, got {self.dtype}")
        if self.remat not in REMAT:
            raise UserError(f"remat must be one of {', '.join(REMAT)}, got '{self.remat}'")
        if self.attention not in ATTENTION:
            raise UserError(f"attention must be one of {', '.join(ATTENTION)}, got '{self.attention}'")
        height, width = self.frame_size
        if height % self.patch_size or width % self.patch_size or min(height, width) < 1:
            raise UserError(f"patch_size={self.patch_size} does not divide frames of {height}x{width}: change either")
        if self.hidden_size % self.num_heads or self.hidden_size % 4:
            raise UserError(f"hidden_size={self.hidden_size} must be a multiple of 4 and of num_heads={self.num_heads}")
        if self.attention == "cudnn" and (unfit := self._unfit_for_cudnn()):
            raise UserError(f"attention=cudnn takes {unfit}: use attention=auto or xla")

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b f h w c"],
        timesteps: Num[Array, " b"],
        labels: Int[Array, " b"] | None = None,
    ) -> Float[Array, "b f h w out"]:
        """Predicts the noise, or what the diffusion is set to predict, in a noisy video.

        Args:
          x: noisy video or latents (B, F, H, W, C), clean where given.
          timesteps: (B,) of the original process, 0 to 999.
          labels: (B,) in 0..num_classes, where num_classes means "no label", the default. For a model of one class the
            default is class 0, as in the official code.

        Returns:
          (B, F, H, W, 2C) float32: the prediction, then the variance fraction; C channels without learn_sigma.
        """
        self.check_sizes()
        if x.shape[1:] != self.video_shape:
            raise UserError(f"the model takes videos (F, H, W, C) = {self.video_shape}, got {tuple(x.shape[1:])}")
        if labels is None:
            labels = jnp.full(x.shape[0], self.null_label if self.num_classes > 1 else 0)

        tokens = PatchEmbed(self.hidden_size, self.patch_size, self.dtype, name="x_embedder")(x)  # (B, F, N, D)
        pos_embed = self.param("pos_embed", lambda _: _table(grid_embedding(self.grid, self.hidden_size)))
        positions = pos_embed[:, None]  # (1, 1, N, D)
        if self.temporal:
            frames = np.arange(self.num_frames)
            time_embed = self.param("time_embed", lambda _: _table(sincos_embedding(frames, self.hidden_size)))
            positions = positions + time_embed[:, :, None]  # (1, F, N, D)
        tokens = tokens + positions.astype(self.dtype)

        t = TimestepEmbedder(self.hidden_size, self.dtype, name="t_embedder")(timesteps)
        y = LabelEmbedder(self.num_classes, self.hidden_size, self.dtype, name="y_embedder")(labels)
        c = nn.silu(t + y)  # (B, D)

        block, gather = VDTBlock, None if self.is_initializing() else self.gather
        if gather is not None:
            block = nn.map_variables(block, "params", trans_in_fn=gather)
        if gather is not None or self.remat != "none":  # CSE cannot merge the recomputation across the scan's body
            block = nn.remat(block, policy=REMAT[self.remat], prevent_cse=self.unroll >= self.depth)
        blocks = nn.scan(
            block,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=nn.broadcast,  # pyright: ignore[reportArgumentType]
            length=self.depth,
            unroll=self.unroll,
        )
        sizes = (self.num_heads, self.mlp_ratio, self.dtype, self.temporal, self.fused)
        tokens, _ = blocks(*sizes, name="blocks")(tokens, c)

        out_channels = self.in_channels * (2 if self.learn_sigma else 1)
        tokens = FinalLayer(self.patch_size, out_channels, self.dtype, name="final_layer")(tokens, c)
        return unpatchify(tokens, self.grid, self.patch_size).astype(jnp.float32)


def param_shapes(model: VDT) -> PyTree:
    """Shapes and dtypes of the parameters; nothing is computed."""
    x = jax.ShapeDtypeStruct((1, *model.video_shape), jnp.float32)
    return jax.eval_shape(model.init, jax.random.key(0), x, jax.ShapeDtypeStruct((1,), jnp.float32))["params"]


def _table(embedding: Float[np.ndarray, "n d"]) -> Float[Array, "1 n d"]:
    return jnp.asarray(embedding[None], jnp.float32)
