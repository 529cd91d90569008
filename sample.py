"""Sample a checkpoint: any task, any mask, any length, on a video of yours or on held-out clips of its training data.

    python sample.py --task=interpolation --input=clip.mp4 --output=samples/out.mp4
    python sample.py --input=clip.mp4 --mask=hole.png                # white is generated
    python sample.py --task=predict --input=clip.mp4 --extend=200    # and backward
    python sample.py --input=clip.mp4 --fps_factor=4

A model of latents needs --vae, the autoencoder that it was trained with. For each sample OUT: OUT.mp4 (or .npz),
OUT.gif (given | sample | truth), OUT.png (the same as rows of frames), and index.html to look at them. docs/sampling.md
has examples of everything.
"""

import dataclasses
import itertools
import shlex
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags

from vdt_jax import cli
from vdt_jax.checkpoints import DEMO
from vdt_jax.data import take
from vdt_jax.diffusion.gaussian import GaussianDiffusion
from vdt_jax.diffusion.masks import TASKS
from vdt_jax.diffusion.samplers import SAMPLERS
from vdt_jax.errors import UserError
from vdt_jax.inference.generation import (
    LoadedAutoencoder,
    LoadedModel,
    clip_shape,
    generate_clips,
    load,
    load_vae,
    measure_step,
    sample_keys,
    sampled_clips,
    task_masks,
    window_filler,
)
from vdt_jax.inference.inputs import check_known, frame_size, input_rate, read_clips, read_mask, stream_frames
from vdt_jax.inference.long_video import extend, raise_frame_rate
from vdt_jax.inference.outputs import Example, Section, check_free, write_comparison, write_page, write_videos
from vdt_jax.latents.space import shrink_mask
from vdt_jax.progress import progress
from vdt_jax.video import OUTPUT_SUFFIXES, to_float, to_uint8

_CHECKPOINT = flags.DEFINE_string("checkpoint", DEMO, "A working directory, a converted folder, or `demo`.")
_TASK = flags.DEFINE_string("task", "predict", f"One of {', '.join(TASKS)}.")
_INPUT = flags.DEFINE_string(
    "input", None, "A video, GIF, folder of frames, picture, .npz or .pt; without it, held-out clips of the data."
)
_START = flags.DEFINE_integer("start", 0, "First frame of --input to use.")
_NUM_GIVEN = flags.DEFINE_integer("num_given", None, "Frames given to predict and backward; half of them if not said.")
_GIVEN_FRAMES = flags.DEFINE_list("given_frames", None, "Numbers of the frames that are given, in place of a task.")
_MASK = flags.DEFINE_string(
    "mask", None, "What is generated, in white, in place of a task: a picture for all frames, a video, or an .npz."
)
_EXTEND = flags.DEFINE_integer("extend", None, "New frames after (--task=predict) or before (backward) those given.")
_FPS_FACTOR = flags.DEFINE_integer("fps_factor", None, "Raise the frame rate of all of --input so many times.")
_OVERLAP = flags.DEFINE_integer("overlap", None, "Given frames that windows of --fps_factor share; 2 if there is room.")
_OUTPUT = flags.DEFINE_string("output", "samples/sample.mp4", f"The sample: {', '.join(OUTPUT_SUFFIXES)}.")
_FPS = flags.DEFINE_float("fps", None, "Of the output; the input's, or 8.")
_NUM_SAMPLES = flags.DEFINE_integer("num_samples", 1, "Samples; numbered in their file names if more than one.")
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 8, "Samples, or windows of --fps_factor, at once.")
_SEED = flags.DEFINE_integer("seed", 0, "Of noise and masks.")
_SAMPLER = flags.DEFINE_string("sampler", "ddpm", f"One of {', '.join(SAMPLERS)}.")
_STEPS = flags.DEFINE_integer("steps", 50, "Network calls, evenly spread.")
_RESPACING = flags.DEFINE_string(
    "timestep_respacing", None, "In place of --steps: 250, ddim25, 10,15,20, trailing16 or logsnr16."
)
_ETA = flags.DEFINE_float("eta", None, "ddim: 0 draws nothing on the way, 1 as much as ddpm.")
_RESAMPLES = flags.DEFINE_integer("resamples", None, "repaint: how often each step is taken.")
_LABELS = flags.DEFINE_list(
    "labels", None, "Classes of the samples, in turn; else those of held-out clips, none for a file."
)
_GUIDANCE = flags.DEFINE_float("guidance", None, "Scale of guidance on labels; 1 is none.")
_MASK_GUIDANCE = flags.DEFINE_float("mask_guidance", None, "Scale of guidance on what is given; 1 is none.")
_VAE = flags.DEFINE_string(
    "vae", None, "Autoencoder: a folder, a file, or a repository like stabilityai/sd-vae-ft-ema."
)
_VAE_DTYPE = flags.DEFINE_enum("vae_dtype", "float32", ["float32", "bfloat16"], "What the autoencoder computes in.")
_ENCODE_FULL = flags.DEFINE_bool("encode_full", False, "Let the autoencoder see hidden pixels, as officially.")
_PASTE = flags.DEFINE_bool("paste", True, "Given pixels as in the input, not through the autoencoder (--nopaste).")
_DRY_RUN = flags.DEFINE_bool("dry_run", False, "Print shapes, memory and time, and write nothing.")

_SHOWN_FRAMES = 64  # of a long video, in its pictures


@dataclasses.dataclass(frozen=True)
class Job:
    """What all ways of sampling need."""

    loaded: LoadedModel
    vae: LoadedAutoencoder | None
    diffusion: GaussianDiffusion
    options: dict[str, Any]  # of generate
    output: Path
    fps: float

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(F, H, W, C) of a window, in pixels."""
        return clip_shape(self.loaded.model, self.vae)

    def call(self, generate: Callable, *arguments: Any, **options: Any) -> Any:
        """A call of generate_clips, or of what else takes its first arguments and options."""
        given = {"vae": self.vae, "encode_full": _ENCODE_FULL.value, "paste": _PASTE.value, **self.options, **options}
        return generate(self.loaded.model, self.loaded.params, self.diffusion, *arguments, **given)

    def stem(self, number: int) -> Path:
        """Where a sample goes, without its suffix."""
        name = self.output.stem + (f"_{number}" if _NUM_SAMPLES.value > 1 else "")
        return self.output.with_name(name)

    def files(self, numbers: Iterable[int]) -> list[Path]:
        """Where the samples themselves go; a .gif or .png is their comparison with the truth, and nothing else."""
        suffix = self.output.suffix
        return [self.stem(number).with_suffix(suffix) for number in numbers] if suffix in (".mp4", ".npz") else []

    def batches(self) -> list[range]:
        """The numbers of the samples. The last batch is as large as the others; what is too many is not written."""
        size = min(_BATCH_SIZE.value, _NUM_SAMPLES.value)
        return [range(first, first + size) for first in range(0, _NUM_SAMPLES.value, size)]

    def report(self, batch_size: int, num_batches: int) -> None:
        """What --dry_run says."""
        shape = (batch_size, *self.loaded.model.video_shape)
        arguments = (
            np.zeros(shape, np.float32),
            np.ones((*shape[:-1], 1), np.float32),
            sample_keys(0, range(batch_size)),
        )
        memory, seconds = measure_step(
            self.loaded.model, self.loaded.params, self.diffusion, *arguments, **self.options
        )
        batch = seconds * len(self.diffusion.schedule)
        print(f"window: {self.shape} (F, H, W, C) in pixels, {shape[1:]} in the model")
        print(f"batch: {batch_size} window(s) on {jax.device_count()} {jax.devices()[0].device_kind} device(s)")
        print(f"memory of the sampling program on each device: {memory / 2**20:.0f} MiB, parameters and all")
        print(f"time: {seconds:.3g} s a step, {batch:.3g} s a batch, {batch * num_batches:.3g} s in all,")
        print(f"without compiling{' and the autoencoder' if self.vae else ''}")


def main(_) -> None:
    output = Path(_OUTPUT.value)
    check_flags(output)
    cli.quiet_start()
    if _CHECKPOINT.value == DEMO:
        print("checkpoint: the model that ships with vdt_jax (moving digits); --checkpoint names another")
    loaded = load(_CHECKPOINT.value)
    vae = None if _VAE.value is None else load_vae(_VAE.value, _VAE_DTYPE.value, loaded.config)
    options = {
        "sampler": _SAMPLER.value,
        "eta": _ETA.value,
        "resamples": _RESAMPLES.value,
        "guidance": _GUIDANCE.value,
        "mask_guidance": _MASK_GUIDANCE.value,
    }
    fps = _FPS.value or (input_rate(_INPUT.value) if _INPUT.value else None) or 8.0
    job = Job(loaded, vae, loaded.diffusion(_RESPACING.value or _STEPS.value), options, output, fps)
    if _FPS_FACTOR.value is not None and _INPUT.value is not None:
        stems = fill_in(job, _INPUT.value, _FPS_FACTOR.value)
    elif _EXTEND.value is not None:
        stems = roll_on(job, _EXTEND.value)
    else:
        stems = complete(job)
    if _DRY_RUN.value:
        return
    examples = [Example(f"{stem.name}.gif", stem.name) for stem in stems]
    section = Section("Samples", shlex.join(["python", *sys.argv]), examples)
    page = output.parent / "index.html"
    write_page(page, "Samples", "Given | sample | truth, where it is known. Violet was generated.", [], [], [section])
    print(f"page: {page}")


def check_flags(output: Path) -> None:
    """The mistakes that can be seen before anything is loaded."""
    if output.suffix not in OUTPUT_SUFFIXES:
        raise UserError(f"cannot write --output={output}: end its name in {', '.join(OUTPUT_SUFFIXES)}")
    for flag in (_NUM_SAMPLES, _BATCH_SIZE, _EXTEND):
        if flag.value is not None and flag.value < 1:
            raise UserError(f"--{flag.name}={flag.value} cannot be: at least 1")
    if _START.value < 0:
        raise UserError(f"--start={_START.value} cannot be: at least 0")
    ways = [flag.name for flag in (_MASK, _GIVEN_FRAMES, _EXTEND, _FPS_FACTOR) if flag.value is not None]
    if len(ways) > 1 and set(ways) != {"mask", "given_frames"}:
        raise UserError(f"--{' and --'.join(ways)} do not go together: leave out all but one")
    if ways and ways != ["extend"] and (flags.FLAGS["task"].present or _NUM_GIVEN.value is not None):
        raise UserError(f"--{ways[0]} says what is given: leave out --task and --num_given")
    if _EXTEND.value is not None and _TASK.value not in ("predict", "backward"):
        raise UserError(f"--extend goes with --task=predict or backward, not {_TASK.value}")
    if _FPS_FACTOR.value is not None and (_INPUT.value is None or _NUM_SAMPLES.value > 1):
        raise UserError("--fps_factor makes one video of another: give --input=FILE, and leave out --num_samples")
    check_free(output.parent / "index.html")


def clips_for(job: Job, num_frames: int) -> Callable[[range], tuple[np.ndarray, int, np.ndarray | None]]:
    """From sample numbers to clips (B, num_frames, H, W, C), how many of their frames are known, labels (B,) if any."""
    data, shape = job.loaded.config["data"], (num_frames, *job.shape[1:])
    source: Any = None
    read = np.zeros((1, num_frames, 0))
    if _INPUT.value is None:
        source = sampled_clips(data, job.loaded.model, job.vae, "held_out", num_frames)
    else:
        read = read_clips(_INPUT.value, shape, _START.value, data.get("stride") or 1)

    def clips(numbers: range) -> tuple[np.ndarray, int, np.ndarray | None]:
        if source is not None:
            batch = take(source, numbers)
            clips, labels = batch["video"], batch["labels"]
        else:
            clips, labels = np.zeros((len(numbers), *shape), np.float32), None
            clips[:, : read.shape[1]] = read[[number % len(read) for number in numbers]]
        if _LABELS.value is not None:
            chosen = [parse_number("labels", label) for label in _LABELS.value]
            labels = np.array([chosen[number % len(chosen)] for number in numbers], np.int32)
        return clips, read.shape[1], labels

    return clips


def parse_number(flag: str, text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise UserError(f"--{flag}: {text!r} is not a whole number") from None


def masks_for(job: Job, numbers: range, num_known: int) -> np.ndarray:
    """The masks (B, F, h, w, 1) that the flags ask for."""
    num_frames, height, width, _ = job.shape
    size, stride = len(numbers), job.loaded.config["data"].get("stride") or 1
    if _MASK.value is None and _GIVEN_FRAMES.value is None:
        task, num_given = _TASK.value, _NUM_GIVEN.value
        if num_known == 1 and task == "predict":
            num_given = num_given or 1  # a picture
        mask = np.asarray(task_masks(_SEED.value, numbers, task, job.loaded.model, num_given))
    elif _MASK.value is None:
        mask = np.ones((size, *job.loaded.model.video_shape[:3], 1), np.float32)
    else:
        source_size = None if _INPUT.value is None else frame_size(_INPUT.value)
        pixels = read_mask(_MASK.value, (num_frames, height, width), source_size, _START.value, stride)[None]
        mask = pixels if job.vae is None else shrink_mask(pixels, job.vae.model.factor)
        mask = np.repeat(mask, size, axis=0)
    if _GIVEN_FRAMES.value is not None:
        mask = np.array(mask)
        for frame in (parse_number("given_frames", text) for text in _GIVEN_FRAMES.value):
            if not 0 <= frame < num_frames:
                raise UserError(f"--given_frames: there is no frame {frame}, only 0 to {num_frames - 1}")
            mask[:, frame] = 0
    if not mask.any():
        raise UserError("nothing is left to generate: give fewer frames")
    check_known(f"{_INPUT.value} from frame {_START.value} at stride {stride}", num_known, mask)
    return mask


def complete(job: Job) -> list[Path]:
    """One window for each sample."""
    batches, clips, stems = job.batches(), clips_for(job, job.shape[0]), []
    with progress("sampling", len(job.diffusion.schedule) * len(batches), "step") as on_steps:
        for numbers in batches:
            clean, num_known, labels = clips(numbers)
            mask = masks_for(job, numbers, num_known)
            if _DRY_RUN.value:
                job.report(len(numbers), len(batches))
                return []
            keys = sample_keys(_SEED.value, numbers)
            samples, mask = job.call(generate_clips, clean, mask, keys, labels=labels, on_steps=on_steps)
            for i, number in enumerate(numbers[: _NUM_SAMPLES.value - numbers[0]]):
                stems.append(stem := job.stem(number))
                write_videos(job.files([number]), [to_uint8(samples[i])[None]], job.fps)
                write_comparison(stem, clean[i], mask[i], [samples[i]], job.fps, num_known == job.shape[0])
                print(f"{stem}: {int(mask[i].mean() * 100)} % generated")
    return stems


def roll_on(job: Job, num_new: int) -> list[Path]:
    """--extend: windows one after another, all samples of a batch at once."""
    num_frames, num_given = job.shape[0], _NUM_GIVEN.value or job.shape[0] // 2
    if not 1 <= num_given < num_frames:
        raise UserError(f"{num_given} given frames of {num_frames} cannot be: choose 1 to {num_frames - 1}")
    backward, total = _TASK.value == "backward", num_given + num_new
    # What comes before the first frame of a file is not read: its truth is not known.
    clips = clips_for(job, num_given if backward and _INPUT.value else total)
    batches, num_windows, stems = job.batches(), -(-num_new // (num_frames - num_given)), []
    with progress("sampling", len(job.diffusion.schedule) * len(batches) * num_windows, "step") as on_steps:
        for numbers in batches:
            clean, num_known, labels = clips(numbers)
            if num_known < num_given:
                raise UserError(
                    f"{_INPUT.value} has {num_known} of the {num_given} given frames: --num_given=1 needs 1"
                )
            if _DRY_RUN.value:
                job.report(len(numbers), len(batches) * num_windows)
                return []
            given = clean[:, -num_given:] if backward else clean[:, :num_given]
            fill = job.call(window_filler, sample_keys(_SEED.value, numbers), labels=labels, on_steps=on_steps)
            blocks = map(to_uint8, extend(fill, given, num_new, num_frames, backward))
            blocks = [*list(blocks)[::-1], to_uint8(given)] if backward else itertools.chain([to_uint8(given)], blocks)
            numbers = numbers[: _NUM_SAMPLES.value - numbers[0]]
            shown = to_float(write_videos(job.files(numbers), blocks, job.fps, _SHOWN_FRAMES))
            hidden = np.arange(shown.shape[1])
            hidden = hidden < num_new if backward else hidden >= num_given
            truth = clean[:, : len(hidden)] if num_known == total else None
            for i, number in enumerate(numbers):
                write_pictures(job.stem(number), shown[i], hidden, job.fps, None if truth is None else truth[i])
                stems.append(job.stem(number))
                print(f"{job.stem(number)}: {num_new} new frames {'before' if backward else 'after'} {num_given}")
    return stems


def write_pictures(stem: Path, video: np.ndarray, hidden: np.ndarray, fps: float, truth: np.ndarray | None) -> None:
    """The pictures of a video (F, H, W, C) of which frames were generated where `hidden` (F,)."""
    mask = np.broadcast_to(hidden[:, None, None, None], (*video.shape[:3], 1))
    write_comparison(stem, video if truth is None else truth, mask, [video], fps, truth is not None)


def fill_in(job: Job, path: str, factor: int) -> list[Path]:
    """--fps_factor: the video is read, filled in and written window by window."""
    num_frames, stem, fps = job.shape[0], job.stem(0), job.fps * factor
    frames, num_input = stream_frames(path, job.shape, _START.value)
    per_window = (num_frames - 1) // max(factor, 1) + 1
    overlap = max(min(2, per_window - 1), 1) if _OVERLAP.value is None else _OVERLAP.value
    num_windows = max(-(-(num_input - overlap) // max(per_window - overlap, 1)), 1)
    rows = min(_BATCH_SIZE.value, num_windows) if overlap == 1 else 1
    num_batches = -(-num_windows // rows)
    if _DRY_RUN.value:
        job.report(rows, num_batches)
        return []
    labels = None if not _LABELS.value else np.array([parse_number("labels", _LABELS.value[0])], np.int32)
    with progress("sampling", len(job.diffusion.schedule) * num_batches, "step") as on_steps:
        key = sample_keys(_SEED.value, range(1))
        fill = job.call(window_filler, key, labels=labels, rows=rows, on_steps=on_steps)
        made = raise_frame_rate(fill, frames, factor, num_frames, overlap, rows)
        blocks = (to_uint8(frame)[None, None] for frame in made)
        shown = to_float(write_videos(job.files([0]), blocks, fps, _SHOWN_FRAMES))[0]
    write_pictures(stem, shown, np.arange(len(shown)) % factor > 0, fps, None)
    print(f"{stem}: {factor} times the frames, {fps:g} a second")
    return [stem]


if __name__ == "__main__":
    cli.run(main)
