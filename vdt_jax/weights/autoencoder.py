"""Names and layouts of diffusers' AutoencoderKL, today's and those of the public sd-vae-ft-ema and sd-vae-ft-mse files.

The attention's four linear maps are called to_q, to_k, to_v, to_out.0 today, query, key, value, proj_attn in the older
files, and are matrices (C, C) or 1x1 convolutions (C, C, 1, 1). Stable Diffusion's single files have CompVis' names:
`first_stage_model.encoder.down.0.block.0.norm1.weight`, beside the other parts of the model; its up blocks are counted
from the last one.
"""

import json
import os
import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange

from vdt_jax.distributed.mesh import path_name
from vdt_jax.errors import UserError
from vdt_jax.models.autoencoder import AutoencoderKL
from vdt_jax.weights.sources import model_of, read_source
from vdt_jax.weights.tables import Layout, Row, StateDict, Tree, layer_rows, norm_rows, read_table, write_table

FILE_NAMES = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin")
_OLD_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
_COMPVIS_PREFIXES = ("first_stage_model.", "vae.")
# CompVis' names as diffusers', in this order.
_COMPVIS = (
    (r"\.down\.(\d+)\.block\.", r".down_blocks.\1.resnets."),
    (r"\.down\.(\d+)\.downsample\.", r".down_blocks.\1.downsamplers.0."),
    (r"\.up\.(\d+)\.block\.", r".up_blocks.\1.resnets."),
    (r"\.up\.(\d+)\.upsample\.", r".up_blocks.\1.upsamplers.0."),
    (r"\.mid\.block_1\.", ".mid_block.resnets.0."),
    (r"\.mid\.block_2\.", ".mid_block.resnets.1."),
    (r"\.mid\.attn_1\.norm\.", ".mid_block.attentions.0.group_norm."),
    (r"\.mid\.attn_1\.([qkv])\.", r".mid_block.attentions.0.to_\1."),
    (r"\.mid\.attn_1\.proj_out\.", ".mid_block.attentions.0.to_out.0."),
    (r"\.nin_shortcut\.", ".conv_shortcut."),
    (r"coder\.norm_out\.", "coder.conv_norm_out."),
)
_CONV = Layout(lambda w: rearrange(w, "o i p q -> p q i o"), lambda w: rearrange(w, "p q i o -> o i p q"))
_SIZES = AutoencoderKL.__annotations__.keys() - {"block_out_channels", "dtype"}
# What a config.json may say besides, and the only values with which it describes our network.
_FIXED = {
    "act_fn": ("silu",),
    "shift_factor": (None, 0, 0.0),
    "latents_mean": (None,),
    "latents_std": (None,),
    "_class_name": ("AutoencoderKL",),
}


def read_config(config: dict[str, Any]) -> dict[str, Any]:
    """Keyword arguments of `AutoencoderKL` from a diffusers config.json.

    Raises:
      UserError: a different class, or blocks that are not the plain ones.
    """
    for name, allowed in _FIXED.items():
        if config.get(name, allowed[0]) not in allowed:
            raise UserError(f"{name} of the autoencoder must be {allowed[0]!r}, got {config[name]!r}")
    for name, plain in (("down_block_types", "DownEncoderBlock2D"), ("up_block_types", "UpDecoderBlock2D")):
        if set(config.get(name, [plain])) != {plain}:
            raise UserError(f"{name} of the autoencoder must all be {plain}, got {config[name]}")
    options = {name: config[name] for name in _SIZES if config.get(name) is not None}
    for name, value in options.items():
        kind = AutoencoderKL.__annotations__[name]
        accepted = (int, float) if kind is float else (kind,)
        if type(value) not in accepted or (kind is float and not 0 < value < 1e6):
            wanted = {int: "an integer", bool: "true or false", float: "a number above 0 and below 1e6"}[kind]
            raise UserError(f"{name} of the autoencoder must be {wanted}, got {value!r}")
    channels = config.get("block_out_channels", AutoencoderKL.block_out_channels)
    numbers = [*channels, *(value for name, value in options.items() if type(value) is int)]
    groups = options.get("norm_num_groups", AutoencoderKL.norm_num_groups)
    possible = 0 < len(channels) <= 8 and all(type(n) is int and 0 < n <= 1 << 14 for n in numbers)
    if not possible or options.get("layers_per_block", 1) > 16 or any(n % groups for n in channels):
        raise UserError(
            f"no autoencoder has block_out_channels={channels} with {options}: channels must be multiples of {groups}, "
            "up to 16384, in at most 8 blocks of at most 16 layers"
        )
    return options | {"block_out_channels": tuple(channels)}


def autoencoder_table(expected: Tree) -> list[Row]:
    """A row for each tensor, from the tree of our shapes; a torch name has dots where ours has slashes and numbers."""
    rows = []
    for path, _ in jax.tree_util.tree_leaves_with_path(expected):
        layer, _, leaf = path_name(path).rpartition("/")
        name = re.sub(r"_(\d+)(?=/|_|$)", r".\1", layer).replace("/", ".")
        name = re.sub(r"(samplers\.0)_conv", r"\1.conv", name)
        if leaf == "scale":
            rows += norm_rows(name, layer)
        elif leaf == "kernel":
            rows += layer_rows(name, layer) if "/attentions_" in layer else layer_rows(name, layer, _CONV)
    return rows


def param_shapes(model: AutoencoderKL) -> Tree:
    """The tree of shapes of an autoencoder's parameters."""
    side = 2 * model.factor
    x = jax.ShapeDtypeStruct((1, side, side, model.in_channels), jnp.float32)
    return jax.eval_shape(model.init, jax.random.key(0), x)["params"]


def _names_of_diffusers(state_dict: StateDict) -> StateDict:
    """The autoencoder of a file with CompVis' names under diffusers'; any other state_dict itself."""
    for prefix in _COMPVIS_PREFIXES:
        part = {name.removeprefix(prefix): array for name, array in state_dict.items() if name.startswith(prefix)}
        state_dict = part or state_dict
    if "encoder.down.0.block.0.norm1.weight" not in state_dict:
        return state_dict
    parts = ("encoder.", "decoder.", "quant_conv.", "post_quant_conv.")  # the rest served its training
    level = re.compile(r"(?<=^decoder\.up\.)\d{1,9}(?=\.)")
    last = max((int(match[0]) for match in map(level.search, state_dict) if match), default=0)
    found = {}
    for name, array in state_dict.items():
        if name.startswith(parts):
            name = level.sub(lambda match: str(last - int(match[0])), name)
            for pattern, replacement in _COMPVIS:
                name = re.sub(pattern, replacement, name)
            found[name] = array
    return found


def present_names(state_dict: StateDict) -> StateDict:
    """The same arrays under today's names of diffusers, attention weights as matrices."""
    found = {}
    for name, array in _names_of_diffusers(state_dict).items():
        match = re.fullmatch(r"(.*\.attentions\.\d+\.)(query|key|value|proj_attn)\.(weight|bias)", name)
        name = f"{match[1]}{_OLD_NAMES[match[2]]}.{match[3]}" if match else name
        attention = re.search(r"\.attentions\.\d+\.to_(q|k|v|out\.0)\.weight$", name)
        found[name] = array[:, :, 0, 0] if attention and array.shape[2:] == (1, 1) else array
    return found


def from_torch(state_dict: StateDict, expected: Tree) -> Tree:
    """Our tree from diffusers' names, today's or the old ones; strict as `read_table` is."""
    return read_table(present_names(state_dict), autoencoder_table(expected), expected)[0]


def to_torch(params: Tree) -> dict[str, np.ndarray]:
    """diffusers' present names and arrays from our tree: the inverse of `from_torch`."""
    return write_table(params, autoencoder_table(params))


def load_autoencoder(where: str | os.PathLike, dtype: str = "float32") -> tuple[AutoencoderKL, Tree]:
    """An autoencoder and its parameters.

    Args:
      where: a folder with config.json and weights as diffusers saves it; a file of weights, with its config.json beside
        it or of the public autoencoders' sizes; or a repository of the Hugging Face hub.
      dtype: of the computation.

    Raises:
      UserError: nothing there, not an autoencoder of this class, or weights that do not fit.
    """
    path = Path(where)
    if not path.exists():
        path = _fetch(str(where))
    file = path if path.is_file() else next((path / name for name in FILE_NAMES if (path / name).is_file()), None)
    if file is None:
        raise UserError(f"no weights in {path}: an autoencoder's folder has one of {', '.join(FILE_NAMES)}")
    config = file.with_name("config.json")
    try:
        options = read_config(json.loads(config.read_text())) if config.is_file() else {}
    except (ValueError, RecursionError, AttributeError, TypeError) as error:
        raise UserError(f"{config} is no config of an autoencoder ({error})") from None
    model = AutoencoderKL(**options, dtype=dtype)
    state_dict, shapes = present_names(read_source(file).state_dict), param_shapes(model)
    if state_dict.keys().isdisjoint(row.name for row in autoencoder_table(shapes)):
        raise UserError(f"{file} holds {model_of(state_dict)}: an autoencoder is needed, like sd-vae-ft-ema")
    return model, from_torch(state_dict, shapes)


def _fetch(name: str) -> Path:
    """A repository of the hub, in the hub's own cache; only its config and weights."""
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise UserError(
            f"no autoencoder at {name}: give a folder, a file, or a repository like stabilityai/sd-vae-ft-ema"
        )
    try:
        import huggingface_hub  # an optional extra  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise UserError(
            f"folder not found: {name}; to fetch it from the hub: pip install huggingface_hub, or fetch it by hand"
        ) from None
    try:
        return Path(huggingface_hub.snapshot_download(name, allow_patterns=["config.json", *FILE_NAMES[:1]]))
    except Exception as error:  # offline, no such repository, not allowed in: it has a class for each
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"folder not found: {name}, and it cannot be fetched from the hub ({reason}): fetch it by hand"
        ) from None
