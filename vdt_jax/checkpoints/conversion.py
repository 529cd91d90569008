"""Converts PyTorch weights of a VDT to a folder that `load_model` reads, and back.

Reads what torch.save or safetensors wrote: a state_dict of the official VDT, the checkpoints of trainers in the style
of DiT, or image weights of DiT itself as a start. Every tensor is used and every parameter filled, or nothing is
written.
"""

import dataclasses
import json
import logging
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vdt_jax.checkpoints.models import load_model, save_model
from vdt_jax.errors import UserError
from vdt_jax.files import file_sha256, writing
from vdt_jax.models.vdt import FROZEN_PARAMS, VDT, param_shapes
from vdt_jax.options import option, validate
from vdt_jax.progress import progress
from vdt_jax.weights import autoencoder, dit
from vdt_jax.weights.positions import resize_pos_embed, resize_time_embed
from vdt_jax.weights.safetensors_files import save_safetensors
from vdt_jax.weights.sources import WEIGHTS, Source, read_source
from vdt_jax.weights.tables import StateDict, read_table
from vdt_jax.weights.vdt import read_sizes, to_torch, vdt_table

logger = logging.getLogger(__name__)
_TABLE = "y_embedder.embedding_table.weight"


@dataclasses.dataclass(frozen=True)
class ConvertOptions:
    """What to convert, and how."""

    input: str | None = option(None, "A .pt, .pth, .bin or .safetensors file; a folder with to_torch.")
    output: str | None = option(None, "The folder to write; a .safetensors file with to_torch.")
    to_torch: bool = option(False, "Convert back: the official names, in a .safetensors file.")
    weights: str | None = option(None, "Which weights, where a file has both; default: ema.", choices=WEIGHTS)
    num_heads: int | None = option(
        None, "Attention heads; needed where the sizes are no known variant, since no shape tells it.", minimum=1
    )
    image_size: tuple[int, ...] | None = option(
        None,
        "Height and width of the frames in pixels, or one number for both, if other than trained with.",
        minimum=1,
        maximum=8192,
    )
    num_frames: int | None = option(
        None, "Frames of a clip, if other than trained with; default from DiT: 16.", minimum=1, maximum=65536
    )
    num_classes: int | None = option(
        None,
        "Classes that the model was trained on; needed where its label table has no null row, so as many rows.",
        minimum=1,
    )
    zero_time_embed: bool = option(False, "From DiT: start as the image model, frame by frame.")
    verify: bool = option(False, "Also run the model on a fixed input, so that two people can compare their models.")

    def __post_init__(self) -> None:
        validate(self)
        if self.input is None or self.output is None:
            raise UserError("input and output must be given: a file like model.pt, and a folder like checkpoints/NAME")
        if self.image_size is not None and len(self.image_size) not in (1, 2):
            got = ",".join(map(str, self.image_size)) or "nothing"
            raise UserError(f"image_size must be one number, or height,width; got {got}")
        if self.to_torch and Path(self.output).suffix != ".safetensors":
            raise UserError(f"output must end in .safetensors with to_torch, got {self.output}")


def convert(options: ConvertOptions) -> dict[str, Any]:
    """Converts, in the direction that `to_torch` says; writes the output atomically.

    Returns:
      From PyTorch, the report that is written as conversion.json. To PyTorch: the number of `tensors`, and the `sha256`
      of the file written.

    Raises:
      UserError: the output exists, or the input is not what `options` say.
    """
    path, output = Path(str(options.input)), Path(str(options.output))
    if output.exists():
        raise UserError(f"{output} exists: choose another output, or remove it first")
    return _to_torch(path, output) if options.to_torch else _from_torch(path, output, options)


def _from_torch(path: Path, output: Path, options: ConvertOptions) -> dict[str, Any]:
    source = read_source(path, options.weights)
    state_dict, sizes, ignored = _adapted(source, options)
    model = VDT(**sizes)
    model.check_sizes()
    expected = param_shapes(model)
    table = vdt_table(model.depth, model.patch_size)
    with progress("converting", sum(array.size for array in state_dict.values()), "values") as done:
        params, copied = read_table(state_dict, table, expected, done)
    trained = {name: part for name, part in params.items() if name not in FROZEN_PARAMS}
    report: dict[str, Any] = {
        "source": {"file": path.name, "sha256": file_sha256(path)},
        "model": sizes,
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(params)),
        "trained_parameters": sum(leaf.size for leaf in jax.tree.leaves(trained)),
        "ignored": ignored,
        "tensors": {name: row._asdict() for name, row in copied.items()},
    }
    if options.verify:
        report["verify"] = _output_on_fixed_input(model, params)

    # The official process and masks; `data` names no clips, so sampling needs an input.
    diffusion = dict(noise_schedule="linear", num_diffusion_timesteps=1000, prediction="eps", clip_denoised=False)
    loss: dict[str, Any] = {"mask_mixture": "official"}
    if _lacks_null_row(source.state_dict, options.num_classes):
        loss["label_dropout"] = 0.0  # guidance is refused
    config = {"model": sizes, "diffusion": diffusion, "loss": loss, "data": {"name": "synthetic"}}
    unfinished = output.with_name(output.name + ".partial")
    try:
        with writing(output):
            shutil.rmtree(unfinished, ignore_errors=True)
            save_model(unfinished, config, params)
            (unfinished / "conversion.json").write_text(json.dumps(report, indent=1) + "\n")
            unfinished.rename(output)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return report


def _adapted(source: Source, options: ConvertOptions) -> tuple[StateDict, dict[str, Any], dict[str, str]]:
    """The source's weights as those of a VDT of the sizes asked for, its sizes, and what is left out, with reasons."""
    state_dict, ignored = dict(source.state_dict), dict(source.ignored)
    grid = _grid(state_dict, options.image_size)
    if dit.is_diffusers_model(state_dict):
        if grid is None:
            raise UserError(
                "a DiT with the names of diffusers does not tell its image size: add --image_size, as in its training, "
                "such as 256"
            )
        state_dict = dit.official_names(state_dict, grid)
    lacks_null_row = _lacks_null_row(state_dict, options.num_classes)
    if dit.is_image_model(state_dict):
        null_row = "the mean of its classes, as it has no null row" if lacks_null_row else "DiT's null row"
        ignored[_TABLE if lacks_null_row else f"{_TABLE}[:-1]"] = f"ImageNet classes: both rows become {null_row}"
        state_dict = dict(
            dit.with_temporal_layers(state_dict, options.num_frames or 16, options.zero_time_embed, not lacks_null_row)
        )
    elif options.zero_time_embed:
        raise UserError("zero_time_embed is for image weights of DiT: these weights have a time_embed of their own")
    elif lacks_null_row:
        table = state_dict[_TABLE]
        logger.warning(f"{_TABLE} has no null row: one is added, the mean of the others, and guidance is refused")
        mean = np.mean(table, axis=0, keepdims=True, dtype=np.float64)
        state_dict[_TABLE] = np.concatenate([table, mean.astype(table.dtype)])
    if grid is not None and "pos_embed" in state_dict:
        state_dict["pos_embed"] = resize_pos_embed(state_dict["pos_embed"], grid)
    if options.num_frames is not None and "time_embed" in state_dict:
        state_dict["time_embed"] = resize_time_embed(state_dict["time_embed"], options.num_frames)
    return state_dict, read_sizes(state_dict, options.num_heads, grid), ignored


def _grid(state_dict: StateDict, image_size: tuple[int, ...] | None) -> tuple[int, int] | None:
    """(rows, columns) of tokens in frames of a size in pixels; None where no size is given, or no patches are there."""
    name = "pos_embed.proj.weight" if dit.is_diffusers_model(state_dict) else "x_embedder.proj.weight"
    if image_size is None or name not in state_dict or state_dict[name].ndim != 4 or 0 in state_dict[name].shape:
        return None
    _, in_channels, patch_size, _ = state_dict[name].shape
    cell = patch_size * (8 if in_channels == 4 else 1)  # pixels of a token: latents are an eighth
    if any(size % cell for size in image_size):
        got = ",".join(map(str, image_size))
        raise UserError(f"image_size must be a multiple of {cell} pixels, one token, got {got}")
    return image_size[0] // cell, image_size[-1] // cell


def _lacks_null_row(state_dict: StateDict, num_classes: int | None) -> bool:
    """Whether the label table of a model has no row for "no label": it was trained without label dropout.

    No shape tells it: without `num_classes` only one row, and the 1,000 of ImageNet, are known to be without it.
    """
    if _TABLE not in state_dict or state_dict[_TABLE].ndim != 2:
        return False
    rows = state_dict[_TABLE].shape[0]
    if num_classes is None:
        return rows in (1, dit.IMAGENET_CLASSES)
    if rows not in (num_classes, num_classes + 1):
        raise UserError(f"num_classes must be {rows - 1}, or {rows} without a null row, got {num_classes}")
    return rows == num_classes


def _to_torch(path: Path, output: Path) -> dict[str, Any]:
    """A folder of ours, or an autoencoder of diffusers, to a .safetensors file with the present names."""
    if path.is_file() or _is_diffusers_folder(path):
        tensors = autoencoder.to_torch(autoencoder.load_autoencoder(path)[1])
    else:
        model, params = load_model(path)
        tensors = to_torch(params, model.patch_size)
    with progress("writing", sum(array.nbytes for array in tensors.values())) as done:
        save_safetensors(output, tensors, done)
    return {"tensors": len(tensors), "sha256": file_sha256(output)}


def _is_diffusers_folder(path: Path) -> bool:
    """Whether a config names a class, as diffusers' do; what is wrong with it is found where it is loaded."""
    try:
        return "_class_name" in json.loads((path / "config.json").read_text())
    except (OSError, ValueError, TypeError, RecursionError):
        return False


def _output_on_fixed_input(model: VDT, params: Any) -> dict[str, Any]:
    """The output for x = sin(0, 1, 2, ...) in torch's order (1, F, C, H, W), t = 500, class 0, float32."""
    num_frames, height, width, channels = model.video_shape
    values = np.sin(np.arange(num_frames * channels * height * width, dtype=np.float64))
    x = values.reshape(1, num_frames, channels, height, width).transpose(0, 1, 3, 4, 2).astype(np.float32)
    with jax.default_matmul_precision("highest"):
        out = np.asarray(jax.jit(model.apply)({"params": params}, x, jnp.full(1, 500.0), jnp.zeros(1, int)), np.float64)
    measured = {"mean": out.mean(), "std": out.std(), "largest": np.abs(out).max()}
    report: dict[str, Any] = {name: f"{value:.6e}" for name, value in measured.items()}
    return report | {"first pixel": [f"{value:.6e}" for value in out[0, 0, 0, 0, :4]]}
