"""Image weights of DiT (Peebles and Xie 2023, arXiv 2212.09748) as a start for the spatial half of a VDT.

DiT-XL/2 has the names and shapes of VDT-L/2 without its temporal layers. Those start so that they add nothing:
`temporal_fc` is zero. A VDT has no classes, and class 0 of DiT is an ImageNet class: both rows of the label table
become DiT's null row, or the mean of its classes where it was trained without one. diffusers' DiTTransformer2DModel
has names of its own, three matrices in place of `qkv`, a copy of the embedders in each block, and no pos_embed.
"""

import re

import numpy as np

from vdt_jax.errors import UserError
from vdt_jax.models.vdt import grid_embedding, sincos_embedding
from vdt_jax.weights.tables import StateDict
from vdt_jax.weights.untrusted import shown

_TABLE = "y_embedder.embedding_table.weight"
IMAGENET_CLASSES = 1000
# diffusers' layers outside of the blocks, in a block, and its copies of the embedders in a block; DiT's own names.
_OUTSIDE = {
    "pos_embed.proj": "x_embedder.proj",
    "proj_out_1": "final_layer.adaLN_modulation.1",
    "proj_out_2": "final_layer.linear",
}
_BLOCK = {
    "norm1.linear": "adaLN_modulation.1",
    "attn1.to_out.0": "attn.proj",
    "ff.net.0.proj": "mlp.fc1",
    "ff.net.2": "mlp.fc2",
}
_EMBEDDERS = {
    "norm1.emb.timestep_embedder.linear_1": "t_embedder.mlp.0",
    "norm1.emb.timestep_embedder.linear_2": "t_embedder.mlp.2",
    "norm1.emb.class_embedder.embedding_table": "y_embedder.embedding_table",
}


def is_image_model(state_dict: StateDict) -> bool:
    """Whether these are weights of a DiT: its names, and nothing temporal."""
    temporal = any(".temporal_" in name or name == "time_embed" for name in state_dict)
    return not temporal and {"pos_embed", _TABLE, "blocks.0.attn.qkv.weight"} <= state_dict.keys()


def is_diffusers_model(state_dict: StateDict) -> bool:
    """Whether these are weights of a DiT under diffusers' names."""
    return {"pos_embed.proj.weight", "transformer_blocks.0.norm1.linear.weight"} <= state_dict.keys()


def official_names(state_dict: StateDict, grid: tuple[int, int]) -> dict[str, np.ndarray]:
    """DiT's own names and arrays from diffusers', for frames of a grid of tokens (rows, columns).

    Names of other layers are kept, for the table to report. A UserError names a block whose embedders differ from those
    of block 0: the official model has one of each.
    """
    found: dict[str, np.ndarray] = {}
    for name, array in state_dict.items():
        layer, _, leaf = name.rpartition(".")
        block = re.fullmatch(r"transformer_blocks\.(\d{1,9})\.(.*)", layer)
        if layer in _OUTSIDE:
            found[f"{_OUTSIDE[layer]}.{leaf}"] = array
        elif block and block[2] in _BLOCK:
            found[f"blocks.{block[1]}.{_BLOCK[block[2]]}.{leaf}"] = array
        elif block and block[2] in _EMBEDDERS:
            first = state_dict.get(f"transformer_blocks.0.{block[2]}.{leaf}", array)
            if not np.array_equal(first, array):
                raise UserError(f"{name} differs from that of block 0: a VDT has one embedder for all blocks")
            found[f"{_EMBEDDERS[block[2]]}.{leaf}"] = first
        elif block and block[2] == "attn1.to_q":
            named = [state_dict.get(name.replace("to_q", part)) for part in ("to_q", "to_k", "to_v")]
            parts = [part for part in named if part is not None and part.shape == array.shape]
            if array.ndim == 0 or len(parts) < 3:
                raise UserError(f"{shown(name)} is without its to_k and to_v, or they have other shapes")
            found[f"blocks.{block[1]}.attn.qkv.{leaf}"] = np.concatenate(parts)
        elif not (block and block[2] in ("attn1.to_k", "attn1.to_v")) and name != "pos_embed.pos_embed":
            found[name] = array
    shape = found["x_embedder.proj.weight"].shape
    if len(shape) != 4 or shape[0] % 4:
        raise UserError(f"pos_embed.proj.weight has shape {shape}: 4 axes are needed, the first a multiple of 4")
    return found | {"pos_embed": grid_embedding(grid, shape[0])[None].astype(np.float32)}


def with_temporal_layers(
    state_dict: StateDict, num_frames: int, zero_time_embed: bool, null_row: bool = True
) -> StateDict:
    """DiT's names and arrays, and those that a VDT of `num_frames` has besides.

    With `zero_time_embed` the sinusoids are zeros: every frame's output is then exactly the image model's. The matrices
    of temporal attention are Xavier-uniform. Blocks of a different width than the label table's are a UserError.
    """
    rng = np.random.default_rng(0)
    width = state_dict[_TABLE].shape[-1]
    layers = {int(match[1]) for name in state_dict if (match := re.match(r"blocks\.(\d{1,9})\.", name))}
    for layer in layers:
        name = f"blocks.{layer}.attn.qkv.weight"
        if name not in state_dict or state_dict[name].shape != (3 * width, width):
            found = f"has shape {state_dict[name].shape}" if name in state_dict else "is missing"
            raise UserError(f"{name} {found}, expected {(3 * width, width)}")
    found = dict(state_dict)
    table = np.asarray(state_dict[_TABLE])
    row = table[-1:] if null_row else np.mean(table, axis=0, keepdims=True, dtype=np.float64).astype(table.dtype)
    found[_TABLE] = np.repeat(row, 2, axis=0)
    time_embed = sincos_embedding(np.arange(num_frames), width)[None].astype(np.float32)
    found["time_embed"] = np.zeros_like(time_embed) if zero_time_embed else time_embed
    for layer in sorted(layers):
        block = f"blocks.{layer}."
        for name, rows in (("temporal_attn.qkv", 3 * width), ("temporal_attn.proj", width)):
            bound = np.float32(np.sqrt(6 / (rows + width)))
            found[f"{block}{name}.weight"] = (2 * rng.random((rows, width), np.float32) - 1) * bound
            found[f"{block}{name}.bias"] = np.zeros(rows, np.float32)
        found[f"{block}temporal_norm1.weight"] = np.ones(width, np.float32)
        found[f"{block}temporal_norm1.bias"] = np.zeros(width, np.float32)
        found[f"{block}temporal_fc.weight"] = np.zeros((width, width), np.float32)
        found[f"{block}temporal_fc.bias"] = np.zeros(width, np.float32)
    return found
