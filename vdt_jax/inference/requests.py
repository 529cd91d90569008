"""From an input and options to clips: one window, an extension, or a higher frame rate."""

import dataclasses
import functools
import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np

from vdt_jax.data import take
from vdt_jax.errors import UserError
from vdt_jax.inference import inputs
from vdt_jax.inference.clip import Clip
from vdt_jax.inference.functional import measure_step, sample_keys
from vdt_jax.inference.long_video import extend, raise_frame_rate, window_filler
from vdt_jax.inference.options import SampleOptions
from vdt_jax.inference.outputs import check_output, numbered, write_videos
from vdt_jax.video import to_uint8

if TYPE_CHECKING:
    from vdt_jax.inference.pipeline import Pipeline

DEFAULT_FPS = 8.0
KEPT_FRAMES = 64  # of a long video that is written to a file
VIDEO_SUFFIXES = (".mp4", ".npz")

Inputs = inputs.Input | Sequence[inputs.Input] | None
Progress = Callable[[int, int], object] | None


class Cost(NamedTuple):
    """What a request would take: `num_batches` batches of `batch_size` windows (F, H, W, C) in pixels.

    `memory` is in bytes on each device, parameters included. `seconds_per_step` is of a batch, without compilation and
    the autoencoder.
    """

    window: tuple[int, int, int, int]
    batch_size: int
    num_batches: int
    memory: int
    seconds_per_step: float
    steps: int

    def __str__(self) -> str:
        batch = self.seconds_per_step * self.steps
        return (
            f"window: {self.window} (F, H, W, C) in pixels\n"
            f"batch: {self.batch_size} window(s) on {jax.device_count()} {jax.devices()[0].device_kind} device(s)\n"
            f"memory: {self.memory / 2**20:.0f} MiB on each device, parameters included\n"
            f"time: {self.seconds_per_step:.3g} s a step, {batch:.3g} s a batch, {batch * self.num_batches:.3g} s in "
            "all, without compilation and the autoencoder"
        )


def run(
    pipe: "Pipeline", input: Inputs, options: SampleOptions, output: str | os.PathLike | None, progress: Progress
) -> list[Clip]:
    """The clips of `Pipeline.sample`."""
    if output is not None:
        check_output(output, page=False)
    request = Request(pipe, input, options, None if output is None else Path(output), progress)
    if options.fps_factor is not None:
        return [_raise_rate(request)]
    return list(_complete(request) if options.extend is None else _extend(request))


def measure(pipe: "Pipeline", input: Inputs, options: SampleOptions) -> Cost:
    """The cost of `Pipeline.sample`: one step of one batch is compiled and run."""
    rows, num_batches = Request(pipe, input, options).plan()
    diffusion = pipe.diffusion(options.respacing)
    clean = np.zeros((rows, *pipe.model.video_shape), np.float32)
    labels = None if options.labels is None else np.resize(options.labels, rows)
    arguments = (pipe.model, pipe.params, diffusion, clean, np.ones_like(clean[..., :1]), sample_keys(0, range(rows)))
    memory, seconds = measure_step(*arguments, labels=labels, **options.sampler_options)
    return Cost(pipe.shape, rows, num_batches, memory, seconds, len(diffusion.schedule))


@dataclasses.dataclass(frozen=True, eq=False)
class Request:
    """One call of `Pipeline.sample`: the model, the inputs, the options, where samples are written."""

    pipe: "Pipeline"
    input: Inputs
    options: SampleOptions
    output: Path | None = None
    progress: Progress = None

    @functools.cached_property
    def inputs(self) -> list[Any]:
        """The inputs; none where held-out clips are sampled."""
        if self.input is None:
            return []
        given = list(self.input) if isinstance(self.input, list | tuple) else [self.input]
        if not given:
            raise UserError("input must name at least one video, got an empty list")
        return [inputs.as_input(value) for value in given]

    @property
    def video(self) -> Any:
        """The one input whose frame rate is raised."""
        if len(self.inputs) != 1:
            raise UserError(f"fps_factor makes one video of another: give one input, got {len(self.inputs)}")
        return self.inputs[0]

    @property
    def num_samples(self) -> int:
        """Samples in all."""
        return self.options.num_samples or max(len(self.inputs), 1)

    @property
    def num_given(self) -> int:
        """Frames given to each window of an extension."""
        num_frames = self.pipe.shape[0]
        num_given = self.options.num_given or num_frames // 2
        if num_given >= num_frames:
            raise UserError(f"num_given must be < {num_frames}, the frames of a window, got {num_given}")
        return num_given

    @property
    def stride(self) -> int:
        """Frames of the input from one frame of a clip to the next, as the model was trained."""
        return self.pipe.config["data"].get("stride") or 1

    @property
    def fps(self) -> float:
        """Frame rate of the output, before it is raised."""
        return self.options.fps or (inputs.input_rate(self.inputs[0]) if self.inputs else None) or DEFAULT_FPS

    def name(self, number: int) -> str:
        """The input of a sample, for messages."""
        return inputs.described(self.inputs[number % len(self.inputs)]) if self.inputs else "the clip"

    def batches(self) -> list[range]:
        """Sample numbers by batch; the last batch is as large as the others, and its surplus is not kept."""
        size = min(self.options.batch_size, self.num_samples)
        return [range(first, first + size) for first in range(0, self.num_samples, size)]

    def wanted(self, numbers: range) -> range:
        """The sample numbers of a batch without the surplus."""
        return numbers[: self.num_samples - numbers[0]]

    def files(self, numbers: range) -> list[Path]:
        """The video files of samples; none without an output, or where it is a picture for the comparison alone."""
        if self.output is None or self.output.suffix not in VIDEO_SUFFIXES:
            return []
        return [numbered(self.output, number, self.num_samples) for number in numbers]

    def overlap(self) -> tuple[int, int, int]:
        """Of fps_factor: given frames that windows share, windows in all, and windows at once."""
        num_frames, factor = self.pipe.shape[0], self.options.fps_factor or 1
        per_window = (num_frames - 1) // factor + 1
        overlap = self.options.overlap or max(min(2, per_window - 1), 1)
        _, num_input = inputs.stream_frames(self.video, self.pipe.shape, self.options.start)
        num_windows = max(-(-(num_input - overlap) // max(per_window - overlap, 1)), 1)
        return overlap, num_windows, min(self.options.batch_size, num_windows) if overlap == 1 else 1

    def plan(self) -> tuple[int, int]:
        """Windows at once, and how many such batches there are."""
        if self.options.fps_factor is not None:
            _, num_windows, rows = self.overlap()
            return rows, -(-num_windows // rows)
        batches, windows = self.batches(), 1
        if self.options.extend is not None:
            windows = -(-self.options.extend // (self.pipe.shape[0] - self.num_given))
        return len(batches[0]), len(batches) * windows

    def completer(self) -> Callable[..., tuple[np.ndarray, np.ndarray]]:
        """`Pipeline.complete` with the options of this request, reporting the steps of all batches together."""
        diffusion, done = self.pipe.diffusion(self.options.respacing), 0
        total = self.plan()[1] * len(diffusion.schedule)

        def on_steps(more: int) -> None:
            nonlocal done
            done += more
            if self.progress is not None:
                self.progress(done, total)

        options: dict[str, Any] = {"encode_full": self.options.encode_full, "paste": self.options.paste}
        options |= {"on_steps": None if self.progress is None else on_steps, **self.options.sampler_options}
        return functools.partial(self.pipe.complete, diffusion=diffusion, **options)


def _complete(request: Request) -> Iterator[Clip]:
    """One window for each sample."""
    read, complete = _reader(request, request.pipe.shape[0]), request.completer()
    for numbers in request.batches():
        clean, num_known, labels = read(numbers)
        mask = _masks(request, numbers, num_known)
        samples, mask = complete(clean, mask, sample_keys(request.options.seed, numbers), labels=labels)
        for i, number in enumerate(request.wanted(numbers)):
            parts = (to_uint8(samples[i]), mask[i].astype(np.uint8), request.fps, to_uint8(clean[i]))
            clip = Clip(*parts, truth_known=bool(num_known[i] == len(samples[i])))
            for path in request.files(range(number, number + 1)):
                clip.save(path)
            yield clip


def _extend(request: Request) -> Iterator[Clip]:
    """Windows one after another, all samples of a batch at once."""
    num_frames, num_given, num_new = request.pipe.shape[0], request.num_given, request.options.extend or 0
    backward, total = request.options.task == "backward", num_given + num_new
    # Frames before the first one of a file do not exist, so the truth is not known.
    read = _reader(request, num_given if backward and request.inputs else total)
    complete = request.completer()
    for numbers in request.batches():
        clean, num_known, labels = read(numbers)
        for number, known in zip(numbers, num_known, strict=True):
            if known < num_given:
                name = request.name(number)
                raise UserError(f"{name} has {known} of the {num_given} given frames: choose a smaller num_given")
        given = clean[:, -num_given:] if backward else clean[:, :num_given]
        keys = sample_keys(request.options.seed, numbers)
        fill = window_filler(complete, keys, request.pipe.model.frame_size, labels)
        blocks: Any = map(to_uint8, extend(fill, given, num_new, num_frames, backward))
        blocks = [*list(blocks)[::-1], to_uint8(given)] if backward else itertools.chain([to_uint8(given)], blocks)
        wanted = request.wanted(numbers)
        files = request.files(wanted)
        shown = write_videos(files, blocks, request.fps, KEPT_FRAMES if files else total)
        new = np.arange(shown.shape[1])
        new = new < num_new if backward else new >= num_given
        for i in range(len(wanted)):
            known = bool(num_known[i] == total)
            input = to_uint8(clean[i, : len(new)]) if known else shown[i]
            yield Clip(shown[i], _frame_mask(new, shown[i]), request.fps, input, truth_known=known)


def _raise_rate(request: Request) -> Clip:
    """The video is read, filled in and written window by window."""
    pipe, options, factor = request.pipe, request.options, request.options.fps_factor or 1
    fps = request.fps * factor
    frames, num_input = inputs.stream_frames(request.video, pipe.shape, options.start)
    overlap, _, rows = request.overlap()
    labels = None if not options.labels else np.array(options.labels[:1], np.int32)
    fill = window_filler(request.completer(), sample_keys(options.seed, range(1)), pipe.model.frame_size, labels, rows)
    made = raise_frame_rate(fill, frames, factor, pipe.shape[0], overlap, rows)
    blocks = (to_uint8(frame)[None, None] for frame in made)
    files = request.files(range(1))
    shown = write_videos(files, blocks, fps, KEPT_FRAMES if files else num_input * factor)[0]
    return Clip(shown, _frame_mask(np.arange(len(shown)) % factor > 0, shown), fps, shown)


def _frame_mask(new: np.ndarray, video: np.ndarray) -> np.ndarray:
    """The mask (F, H, W, 1) uint8 of a video whose frames were generated where `new` (F,)."""
    return np.broadcast_to(new[:, None, None, None], (*video.shape[:3], 1)).astype(np.uint8)


def _reader(request: Request, num_frames: int) -> Callable[[range], tuple[np.ndarray, np.ndarray, np.ndarray | None]]:
    """A function from sample numbers to clips (B, num_frames, H, W, C), known frames (B,), and labels (B,) if any."""
    options, shape = request.options, (num_frames, *request.pipe.shape[1:])
    read = [clip for input in request.inputs for clip in inputs.read_clips(input, shape, options.start, request.stride)]
    source = request.pipe.source("held_out", num_frames=num_frames) if request.input is None else None

    def clips(numbers: range) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        if source is not None:
            batch = take(source, numbers)
            clips, labels = batch["video"], batch["labels"]
            known = np.full(len(numbers), num_frames)
        else:
            chosen, labels = [read[number % len(read)] for number in numbers], None
            clips, known = np.zeros((len(numbers), *shape), np.float32), np.array([len(clip) for clip in chosen])
            for clip, frames in zip(clips, chosen, strict=True):
                clip[: len(frames)] = frames
        if options.labels is not None:
            labels = np.array([options.labels[n % len(options.labels)] for n in numbers], np.int32)
        return clips, known, labels

    return clips


def _masks(request: Request, numbers: range, num_known: np.ndarray) -> np.ndarray:
    """The masks (B, F, h, w, 1) over what the model denoises that the options ask for; 1 = generate, 0 = given."""
    pipe, options = request.pipe, request.options
    num_frames, height, width, _ = pipe.shape
    if options.mask is None and options.given_frames is None:
        task, num_given = options.task or "predict", options.num_given
        if task == "predict" and num_known.max() == 1:  # pictures
            num_given = num_given or 1
        mask = np.asarray(pipe.task_masks(task, numbers, options.seed, num_given))
    elif options.mask is None:
        mask = np.ones((len(numbers), *pipe.model.video_shape[:3], 1), np.float32)
    else:
        source_size = inputs.frame_size(request.inputs[0]) if request.inputs else None
        place = (source_size, options.start, request.stride)
        pixels = inputs.read_mask(inputs.as_input(options.mask), (num_frames, height, width), *place)
        mask = np.repeat(pipe.space.shrink_mask(pixels[None]), len(numbers), axis=0)
    if options.given_frames is not None:
        if (last := max(options.given_frames, default=0)) >= num_frames:
            raise UserError(f"given_frames must be < {num_frames}, the frames of a clip, got {last}")
        mask[:, list(options.given_frames)] = 0
    if not mask.any():
        raise UserError("the mask leaves nothing to generate: give fewer frames")
    for number, known, each in zip(numbers, num_known, mask, strict=True):
        if (last := np.flatnonzero(np.any(each < 0.5, axis=(1, 2, 3))).max(initial=-1)) >= known:
            raise UserError(
                f"{request.name(number)} from frame {options.start} at stride {request.stride} has {known} frame(s), "
                f"and frame {last} of the clip is to be given: take a longer video, or give fewer frames"
            )
    return mask
