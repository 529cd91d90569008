"""Sample a task from a checkpoint, on a video of yours or on held-out clips of its training data.

    python sample.py --checkpoint=runs/video_folder_tiny --task=interpolation --input=clip.mp4 --output=out.mp4

A model of latents needs --vae, the autoencoder that it was trained with.

For each sample, beside OUT.mp4: OUT.gif (given | sample | truth) and OUT.png (the same as rows of frames).
"""

from pathlib import Path

import numpy as np
from absl import flags

from vdt_jax import cli
from vdt_jax.checkpoints import DEMO
from vdt_jax.data import make_source, take
from vdt_jax.errors import UserError
from vdt_jax.generate import clip_shape, generate_clips, load, load_vae, sample_keys, task_masks
from vdt_jax.masks import TASKS
from vdt_jax.pages import write_comparison
from vdt_jax.sampling import SAMPLERS
from vdt_jax.video import OUTPUT_SUFFIXES, frame_rate, read_clip, to_float, to_uint8, write_video

_CHECKPOINT = flags.DEFINE_string("checkpoint", DEMO, "A working directory, a converted folder, or `demo`.")
_TASK = flags.DEFINE_string("task", "predict", f"One of {', '.join(TASKS)}.")
_INPUT = flags.DEFINE_string("input", None, "A video file; without it, held-out clips of the training data.")
_OUTPUT = flags.DEFINE_string("output", "out.mp4", f"The sample: {', '.join(OUTPUT_SUFFIXES)}.")
_SAMPLER = flags.DEFINE_string("sampler", "ddpm", f"One of {', '.join(SAMPLERS)}.")
_STEPS = flags.DEFINE_integer("steps", 50, "Network calls.")
_SEED = flags.DEFINE_integer("seed", 0, "Of noise and masks.")
_NUM_GIVEN = flags.DEFINE_integer("num_given", None, "Frames given to predict and backward; half of them if not said.")
_NUM_SAMPLES = flags.DEFINE_integer("num_samples", 1, "Samples; numbered in their file names if more than one.")
_LABEL = flags.DEFINE_integer("label", None, "Class, for a model that has classes; that of the held-out clip, or 0.")
_START = flags.DEFINE_integer("start", 0, "First frame of --input to use.")
_VAE = flags.DEFINE_string(
    "vae", None, "Autoencoder: a folder, a file, or a repository like stabilityai/sd-vae-ft-ema."
)
_VAE_DTYPE = flags.DEFINE_enum("vae_dtype", "float32", ["float32", "bfloat16"], "What the autoencoder computes in.")
_ENCODE_FULL = flags.DEFINE_bool("encode_full", False, "Let the autoencoder see hidden pixels, as officially.")
_PASTE = flags.DEFINE_bool("paste", True, "Given pixels as in the input, not through the autoencoder (--nopaste).")
_FPS = flags.DEFINE_float("fps", None, "Of the output; the input's, or 8.")


def main(_) -> None:
    output = Path(_OUTPUT.value)
    if output.suffix not in OUTPUT_SUFFIXES:
        raise UserError(f"cannot write --output={output}: end its name in {', '.join(OUTPUT_SUFFIXES)}")
    if _NUM_SAMPLES.value < 1:
        raise UserError(f"--num_samples={_NUM_SAMPLES.value} cannot be: at least 1")
    cli.quiet_start()
    if _CHECKPOINT.value == DEMO:
        print("checkpoint: the model that ships with vdt_jax (moving digits); --checkpoint names another")
    loaded = load(_CHECKPOINT.value)
    model, data = loaded.model, loaded.config["data"]
    vae = None if _VAE.value is None else load_vae(_VAE.value, _VAE_DTYPE.value)
    shape = clip_shape(model, vae)

    numbers = range(_NUM_SAMPLES.value)
    fps = _FPS.value or 8.0
    if _INPUT.value is None:
        source = make_source(data, shape, "held_out")
        batch = take(source, numbers)
        clean, labels = batch["video"], batch["labels"]
    else:
        stride = data.get("stride", 1)
        clip = to_float(read_clip(_INPUT.value, shape, _START.value, stride))
        clean, labels = np.stack([clip] * len(numbers)), np.zeros(len(numbers), np.int32)
        fps = _FPS.value or frame_rate(_INPUT.value) / stride
    if _LABEL.value is not None:
        labels = np.full(len(numbers), _LABEL.value, np.int32)

    samples, mask = generate_clips(
        model,
        loaded.params,
        loaded.diffusion(_STEPS.value),
        clean,
        task_masks(_SEED.value, numbers, _TASK.value, model, _NUM_GIVEN.value),
        sample_keys(_SEED.value, numbers),
        vae=vae,
        encode_full=_ENCODE_FULL.value,
        paste=_PASTE.value,
        sampler=_SAMPLER.value,
        labels=labels,
    )
    for number in numbers:
        stem = output.with_name(output.stem + (f"_{number}" if len(numbers) > 1 else ""))
        if output.suffix in (".mp4", ".npz"):
            write_video(stem.with_suffix(output.suffix), to_uint8(samples[number]), fps)
        write_comparison(stem, clean[number], mask[number], [samples[number]], fps)
        print(f"{stem}: {_TASK.value}, {int(mask[number].mean() * 100)} % generated")


if __name__ == "__main__":
    cli.run(main)
