"""Convert PyTorch weights of a VDT, without torch and without trusting the file; and back.

    python convert_torch_ckpt.py --input=model.pt --output=checkpoints/sky
    python convert_torch_ckpt.py --to_torch --input=checkpoints/sky --output=sky.safetensors

Reads what torch.save or safetensors wrote: a state_dict of the official VDT, the checkpoints of trainers in the style
of DiT, or image weights of DiT itself as a start. Every tensor is used and every parameter filled, or nothing is
written. Beside the parameters stands conversion.json: each tensor's shape and mean, and the SHA-256 of the source.

An autoencoder needs no conversion (sample.py --vae); --to_torch writes one of the old files under today's names.
"""

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from vdt_jax import cli
from vdt_jax.checkpoints import load_model, save_model
from vdt_jax.errors import UserError
from vdt_jax.models.vdt import VDT
from vdt_jax.progress import progress
from vdt_jax.training.optimizer import count_trained
from vdt_jax.weights import autoencoder, read_sizes, to_torch
from vdt_jax.weights.dit import is_image_model, with_temporal_layers
from vdt_jax.weights.positions import resize_pos_embed, resize_time_embed
from vdt_jax.weights.safe_pickle import save_safetensors
from vdt_jax.weights.sources import WEIGHTS, Source, read_source
from vdt_jax.weights.tables import StateDict, read_table
from vdt_jax.weights.vdt import vdt_table

_INPUT = flags.DEFINE_string("input", None, "A .pt, .pth, .bin or .safetensors file; a folder with --to_torch.")
_OUTPUT = flags.DEFINE_string("output", None, "The folder to write; a .safetensors file with --to_torch.")
_TO_TORCH = flags.DEFINE_bool("to_torch", False, "The way back: the official names, in a .safetensors file.")
_WEIGHTS = flags.DEFINE_enum("weights", None, WEIGHTS, "Which weights, where a file has both; the average if not said.")
_NUM_HEADS = flags.DEFINE_integer("num_heads", None, "Needed where the sizes are no known variant: no shape tells it.")
_IMAGE_SIZE = flags.DEFINE_integer("image_size", None, "Side of the frames in pixels, if other than trained with.")
_NUM_FRAMES = flags.DEFINE_integer("num_frames", None, "Frames of a clip, if other than trained with (16 from DiT).")
_ZERO_TIME_EMBED = flags.DEFINE_bool("zero_time_embed", False, "From DiT: start as the image model, frame by frame.")
_VERIFY = flags.DEFINE_bool("verify", False, "Also run the model on a fixed input, for people to compare.")


def main(_) -> None:
    if _INPUT.value is None or _OUTPUT.value is None:
        raise UserError("say what to convert and where to write: --input=model.pt --output=checkpoints/NAME")
    output = Path(_OUTPUT.value)
    if output.exists():
        raise UserError(f"{output} exists: choose another --output, or remove it first")
    cli.quiet_start()
    export(Path(_INPUT.value), output) if _TO_TORCH.value else convert(Path(_INPUT.value), output)


def convert(path: Path, output: Path) -> None:
    """PyTorch's file to a folder that `load_model` reads."""
    source = read_source(path, _WEIGHTS.value)
    ignored = dict(source.ignored)
    state_dict = adapt(source, ignored)
    sizes = read_sizes(state_dict, _NUM_HEADS.value)
    model = VDT(**sizes)
    model.check_sizes()
    x = jax.ShapeDtypeStruct((1, *model.video_shape), jnp.float32)
    expected = jax.eval_shape(model.init, jax.random.key(0), x, jax.ShapeDtypeStruct((1,), jnp.float32))["params"]
    table = vdt_table(model.depth, model.patch_size)
    with progress("converting", sum(array.size for array in state_dict.values()), "values") as done:
        params, copied = read_table(state_dict, table, expected, done)
    report: dict[str, Any] = {
        "source": {"file": path.name, "sha256": sha256(path)},
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(params)),
        "trained_parameters": count_trained(params),
        "ignored": ignored,
        "tensors": {name: row._asdict() for name, row in copied.items()},
    }
    if _VERIFY.value:
        report["verify"] = verify(model, params)

    # The official process; `data` names no clips, so sampling needs --input.
    diffusion = dict(noise_schedule="linear", num_diffusion_timesteps=1000, prediction="eps", clip_denoised=False)
    config = {"model": sizes, "diffusion": diffusion, "data": {"name": "synthetic"}}
    unfinished = output.with_name(output.name + ".partial")
    try:
        shutil.rmtree(unfinished, ignore_errors=True)
        print("writing", flush=True)
        save_model(unfinished, config, params)
        (unfinished / "conversion.json").write_text(json.dumps(report, indent=1) + "\n")
        unfinished.rename(output)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    for name, reason in ignored.items():
        print(f"ignored: {name} ({reason})")
    print(f"{output}: {len(copied)} tensors, {report['trained_parameters'] / 1e6:.2f} M trained parameters, {sizes}")
    print(f"SHA-256 of the source: {report['source']['sha256']}")
    if _VERIFY.value:
        print(f"output on the fixed input: {report['verify']}")


def adapt(source: Source, ignored: dict[str, str]) -> StateDict:
    """The source's weights as those of a VDT of the sizes asked for; adds to `ignored` what is left out."""
    state_dict = dict(source.state_dict)
    if is_image_model(state_dict):
        ignored["y_embedder.embedding_table.weight[:-1]"] = "ImageNet classes: both rows become DiT's null row"
        num_frames = 16 if _NUM_FRAMES.value is None else _NUM_FRAMES.value
        state_dict = dict(with_temporal_layers(state_dict, num_frames, _ZERO_TIME_EMBED.value))
    elif _ZERO_TIME_EMBED.value:
        raise UserError("--zero_time_embed is for image weights: these have a time_embed of their own")
    if _IMAGE_SIZE.value is None and _NUM_FRAMES.value is None:
        return state_dict
    sizes = read_sizes(state_dict, _NUM_HEADS.value or 1)
    if _NUM_FRAMES.value is not None and _NUM_FRAMES.value != sizes["num_frames"]:
        if _NUM_FRAMES.value < 1:
            raise UserError(f"--num_frames={_NUM_FRAMES.value} cannot be: at least 1")
        state_dict["time_embed"] = resize_time_embed(state_dict["time_embed"], _NUM_FRAMES.value)
    if _IMAGE_SIZE.value is not None:
        cell = sizes["patch_size"] * (8 if sizes["in_channels"] == 4 else 1)  # pixels of a token: latents are an eighth
        side, remainder = divmod(_IMAGE_SIZE.value, cell)
        if remainder or side < 1:
            raise UserError(f"--image_size={_IMAGE_SIZE.value} cannot be: a multiple of {cell} pixels, one token")
        if side**2 != state_dict["pos_embed"].shape[1]:
            state_dict["pos_embed"] = resize_pos_embed(state_dict["pos_embed"], side)
    return state_dict


def export(path: Path, output: Path) -> None:
    """A folder of ours, or an autoencoder of diffusers, to a .safetensors file with today's names."""
    if output.suffix != ".safetensors":
        raise UserError(f"cannot write --output={output}: end its name in .safetensors")
    if is_autoencoder(path):
        tensors = autoencoder.to_torch(autoencoder.load_autoencoder(path)[1])
    else:
        model, params = load_model(path)
        tensors = to_torch(params, model.patch_size)
    with progress("writing", sum(array.nbytes for array in tensors.values())) as done:
        save_safetensors(output, tensors, done)
    print(f"{output}: {len(tensors)} tensors, SHA-256 {sha256(output)}")


def is_autoencoder(path: Path) -> bool:
    """A file, or a folder as diffusers saves it; folders of ours have a model in their config."""
    config = path / "config.json"
    return path.is_file() or (config.is_file() and "_class_name" in json.loads(config.read_text()))


def verify(model: VDT, params: Any) -> Mapping[str, Any]:
    """The output for x = sin(0, 1, 2, ...) in torch's order (1, F, C, H, W), t = 500, class 0, float32."""
    num_frames, height, width, channels = model.video_shape
    values = np.sin(np.arange(num_frames * channels * height * width, dtype=np.float64))
    x = values.reshape(1, num_frames, channels, height, width).transpose(0, 1, 3, 4, 2).astype(np.float32)
    with jax.default_matmul_precision("highest"):
        out = np.asarray(jax.jit(model.apply)({"params": params}, x, jnp.full(1, 500.0)), np.float64)
    first = out[0, 0, 0, 0, : min(4, out.shape[-1])]
    return {
        "mean": f"{out.mean():.6e}",
        "std": f"{out.std():.6e}",
        "largest": f"{np.abs(out).max():.6e}",
        "first pixel": [f"{value:.6e}" for value in first],
    }


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


if __name__ == "__main__":
    cli.run(main)
