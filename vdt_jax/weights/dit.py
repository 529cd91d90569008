"""Image weights of DiT (Peebles and Xie 2023, arXiv 2212.09748) as a start for the spatial half of a VDT.

DiT-XL/2 has the names and shapes of VDT-L/2 without its temporal layers. Those start so that they add nothing:
`temporal_fc` is zero. A VDT has no classes, and class 0 of DiT is an ImageNet class: both rows of the label table
become DiT's null row.
"""

import re

import numpy as np

from vdt_jax.errors import UserError
from vdt_jax.models.vdt import sincos_embedding
from vdt_jax.weights.tables import StateDict

_TABLE = "y_embedder.embedding_table.weight"


def is_image_model(state_dict: StateDict) -> bool:
    """Whether these are weights of a DiT: its names, and nothing temporal."""
    temporal = any(".temporal_" in name or name == "time_embed" for name in state_dict)
    return not temporal and {"pos_embed", _TABLE, "blocks.0.attn.qkv.weight"} <= state_dict.keys()


def with_temporal_layers(state_dict: StateDict, num_frames: int, zero_time_embed: bool) -> StateDict:
    """DiT's names and arrays, and those that a VDT of `num_frames` has besides.

    With `zero_time_embed` the sinusoids are zeros: every frame's output is then exactly the image model's. The matrices
    of temporal attention are Xavier-uniform. Blocks of another width than the label table's are a UserError.
    """
    rng = np.random.default_rng(0)
    width = state_dict[_TABLE].shape[-1]
    layers = {int(match[1]) for name in state_dict if (match := re.match(r"blocks\.(\d{1,9})\.", name))}
    for layer in layers:
        name = f"blocks.{layer}.attn.qkv.weight"
        if name not in state_dict or state_dict[name].shape != (3 * width, width):
            found = f"has shape {state_dict[name].shape}" if name in state_dict else "is missing"
            raise UserError(f"{name} {found}, ours would be {(3 * width, width)}")
    found = dict(state_dict)
    found[_TABLE] = np.repeat(np.asarray(state_dict[_TABLE])[-1:], 2, axis=0)
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
