"""Names and layouts of the official PyTorch VDT.

Our paths are the torch names; the leaves differ (`weight` of a linear is a transposed `kernel`, of a norm a `scale`),
`blocks.7.attn.qkv.weight` is slice 7 of `blocks/attn/qkv/kernel`, and the patch convolution is a linear map.
"""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from einops import rearrange

from vdt_jax.errors import UserError
from vdt_jax.models.vdt import VDT_VARIANTS
from vdt_jax.weights import tables
from vdt_jax.weights.sources import model_of
from vdt_jax.weights.tables import SAME, Layout, Row, StateDict, Tree, layer_rows, norm_rows

_OUTSIDE = [
    Row("pos_embed", "pos_embed", SAME),
    Row("time_embed", "time_embed", SAME),
    Row("x_embedder.proj.bias", "x_embedder/proj/bias", SAME),
    *layer_rows("t_embedder.mlp.0", "t_embedder/mlp_0"),
    *layer_rows("t_embedder.mlp.2", "t_embedder/mlp_2"),
    Row("y_embedder.embedding_table.weight", "y_embedder/embedding_table/embedding", SAME),
    *layer_rows("final_layer.linear", "final_layer/linear"),
    *layer_rows("final_layer.adaLN_modulation.1", "final_layer/adaLN_modulation"),
]
_BLOCK = [
    *layer_rows("attn.qkv", "attn/qkv"),
    *layer_rows("attn.proj", "attn/proj"),
    *layer_rows("mlp.fc1", "mlp/fc1"),
    *layer_rows("mlp.fc2", "mlp/fc2"),
    *layer_rows("adaLN_modulation.1", "adaLN_modulation"),
    *norm_rows("temporal_norm1", "temporal_norm1"),
    *layer_rows("temporal_attn.qkv", "temporal_attn/qkv"),
    *layer_rows("temporal_attn.proj", "temporal_attn/proj"),
    *layer_rows("temporal_fc", "temporal_fc"),
]
# What the sizes are read from: name and number of axes.
_MEASURED = {
    "x_embedder.proj.weight": 4,
    "pos_embed": 3,
    "time_embed": 3,
    "y_embedder.embedding_table.weight": 2,
    "final_layer.linear.bias": 1,
    "blocks.0.mlp.fc1.weight": 2,
}
_MAX_DEPTH = 1000


def vdt_table(depth: int, patch_size: int) -> list[Row]:
    """A row for each tensor of a VDT."""
    patch = Layout(
        lambda w: rearrange(w, "d c p q -> (p q c) d"),
        lambda w: rearrange(w, "(p q c) d -> d c p q", p=patch_size, q=patch_size),
    )
    blocks = [
        Row(f"blocks.{n}.{row.name}", f"blocks/{row.path}", row.layout, n) for n in range(depth) for row in _BLOCK
    ]
    return [Row("x_embedder.proj.weight", "x_embedder/proj/kernel", patch), *_OUTSIDE, *blocks]


def read_sizes(
    state_dict: StateDict, num_heads: int | None = None, grid: tuple[int, int] | None = None
) -> dict[str, Any]:
    """The keyword arguments of `VDT` that these weights fit, read off their shapes.

    Args:
      state_dict: torch names to arrays.
      num_heads: needed unless depth and width are those of a known variant; no shape tells it.
      grid: (rows, columns) of tokens; default: as many of both.

    Raises:
      UserError: weights of a different model, or unknown heads.
    """
    missing = [name for name in _MEASURED if name not in state_dict]
    if missing:
        raise UserError(
            f"the file holds {model_of(state_dict)}, not a VDT or DiT: it has no {tables.some(missing, 2)}; give the "
            "weights of a VDT, or of a DiT as a start"
        )
    shapes = {name: tuple(state_dict[name].shape) for name in _MEASURED}
    for name, axes in _MEASURED.items():
        if len(shapes[name]) != axes or 0 in shapes[name]:
            raise UserError(f"{name} has shape {shapes[name]}: {axes} axes are needed, none of them empty")
    hidden_size, in_channels, patch_size, _ = shapes["x_embedder.proj.weight"]
    for name in ("pos_embed", "time_embed"):
        if shapes[name] != (1, shapes[name][1], hidden_size):
            raise UserError(f"{name} has shape {shapes[name]}, not (1, positions, {hidden_size})")
    depth = 1 + max(int(match[1]) for name in state_dict if (match := re.match(r"blocks\.(\d{1,9})\.", name)))
    if depth > _MAX_DEPTH:
        raise UserError(f"the file has parameters of blocks.{depth - 1}: a model may have at most {_MAX_DEPTH} blocks")
    count = shapes["pos_embed"][1]
    rows, columns = grid or (round(count**0.5),) * 2
    if rows * columns != count:
        raise UserError(f"pos_embed has {count} positions, which is no square grid: say image_size, e.g. 64,112")
    if num_heads is None:
        known = {(v["depth"], v["hidden_size"]): v["num_heads"] for v in VDT_VARIANTS.values()}
        if (depth, hidden_size) not in known:
            raise UserError(f"depth {depth} and width {hidden_size} are no known variant: say num_heads")
        num_heads = known[depth, hidden_size]
    return dict(
        input_size=rows * patch_size if rows == columns else (rows * patch_size, columns * patch_size),
        num_frames=shapes["time_embed"][1],
        in_channels=in_channels,
        patch_size=patch_size,
        hidden_size=hidden_size,
        depth=depth,
        num_heads=num_heads,
        mlp_ratio=shapes["blocks.0.mlp.fc1.weight"][0] / hidden_size,
        num_classes=shapes["y_embedder.embedding_table.weight"][0] - 1,
        learn_sigma=shapes["final_layer.linear.bias"][0] == 2 * in_channels * patch_size**2,
    )


def from_torch(state_dict: StateDict, sizes: Mapping[str, Any], expected: Tree) -> Tree:
    """Our parameter tree of the shapes `expected` from torch names and arrays; strict as `read_table` is.

    `sizes` are those of `read_sizes`.
    """
    return tables.read_table(state_dict, vdt_table(sizes["depth"], sizes["patch_size"]), expected)[0]


def to_torch(params: Tree, patch_size: int) -> dict[str, np.ndarray]:
    """Torch names and arrays from our parameter tree: the exact inverse of `from_torch`."""
    depth = params["blocks"]["attn"]["qkv"]["bias"].shape[0]
    return tables.write_table(params, vdt_table(depth, patch_size))
