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

from vdt_jax.data import Source, keys_of, take
from vdt_jax.data.windows import Window
from vdt_jax.errors import UserError
from vdt_jax.inference import inputs
from vdt_jax.inference.clip import Clip
from vdt_jax.inference.functional import check_labels, measure_step, sample_keys
from vdt_jax.inference.long_video import extend, raise_frame_rate, window_filler
from vdt_jax.inference.options import SampleOptions
from vdt_jax.inference.outputs import check_output, numbered, write_videos
from vdt_jax.video import check_rate, to_uint8

if TYPE_CHECKING:
    from vdt_jax.inference.pipeline import Pipeline

DEFAULT_FPS = 8.0
KEPT_FRAMES = 64  # of a long video that is written to a file

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
            f"time: {self.seconds_per_step:.3g} s per step, {batch:.3g} s per batch, {batch * self.num_batches:.3g} s "
            "in total, excluding compilation and the autoencoder"
        )


def run(
    pipe: "Pipeline", input: Inputs, options: SampleOptions, output: str | os.PathLike | None, progress: Progress
) -> list[Clip]:
    """The clips of `Pipeline.sample`."""
    if output is not None:
        check_output(output, page=False)
    request = Request(pipe, open_inputs(input), options, None if output is None else Path(output), progress)
    if options.fps_factor is not None:
        return list(_raise_rate(request))
    return list(_complete(request) if options.extend is None else _extend(request))


def measure(pipe: "Pipeline", input: Inputs, options: SampleOptions) -> Cost:
    """The cost of `Pipeline.sample`: one step of one batch is compiled and run."""
    rows, num_batches = Request(pipe, open_inputs(input), options).plan()
    diffusion = pipe.diffusion(options.respacing)
    clean = np.zeros((rows, *pipe.model.video_shape), np.float32)
    labels = None if options.labels is None else np.resize(options.labels, rows)
    arguments = (pipe.model, pipe.params, diffusion, clean, np.ones_like(clean[..., :1]), sample_keys(0, range(rows)))
    memory, seconds = measure_step(*arguments, labels=labels, **options.sampler_options)
    return Cost(pipe.shape, rows, num_batches, memory, seconds, len(diffusion.schedule))


def open_inputs(input: Inputs) -> list[inputs.Video]:
    """The videos of one input or of a list of inputs; none where held-out clips are sampled."""
    if input is None:
        return []
    given = input if isinstance(input, list | tuple) else [input]
    if not given:
        raise UserError("input must name at least one video, got an empty list")
    return [video for value in given for video in inputs.open_videos(value)]


@dataclasses.dataclass(frozen=True, eq=False)
class Request:
    """One call of `Pipeline.sample`: the model, the videos, the options, where samples are written."""

    pipe: "Pipeline"
    videos: list[inputs.Video]
    options: SampleOptions
    output: Path | None = None
    progress: Progress = None

    def __post_init__(self) -> None:
        if self.options.labels is not None:
            if self.pipe.model.num_classes == 1:
                raise UserError("labels need a model with classes, and this one has none: leave out labels")
            check_labels(np.array(self.options.labels), self.pipe.model)

    @property
    def num_samples(self) -> int:
        """Samples in all; videos and labels are taken in turn."""
        return self.options.num_samples or max(len(self.videos), len(self.options.labels or ()), 1)

    @property
    def num_given(self) -> int:
        """Frames given to each window of an extension."""
        num_frames = self.pipe.shape[0]
        num_given = self.options.num_given or num_frames // 2
        if num_given >= num_frames:
            raise UserError(f"num_given must be < {num_frames}, the frames of a window, got {num_given}")
        return num_given

    def window(self, number: int, num_frames: int) -> Window:
        """How the frames of a sample are chosen: by `stride` or `fps` of the options, or else as the model was trained.

        The frames of an array are those of a clip already, one after the other, unless the options have a stride.
        """
        data, stride, fps = self.pipe.config["data"], self.options.stride, self.options.fps
        if stride is None and fps is None:
            video = self.video(number)
            stride, fps = None if video and video.is_array else data.get("stride"), data.get("fps")
        return Window(num_frames, stride or 1, 0.0 if stride else fps or 0.0, hop=1)

    def video(self, number: int) -> inputs.Video | None:
        """The video of a sample, None for a held-out clip."""
        return self.videos[number % len(self.videos)] if self.videos else None

    def numbers(self, number: int, num_frames: int) -> list[int]:
        """The frames of its video that the clip of a sample has, at most `num_frames`; counted in a held-out clip."""
        video = self.video(number)
        if video is None:
            return list(range(num_frames))
        return video.numbers(self.window(number, num_frames), self.options.start)

    def fps(self, number: int) -> float:
        """The frame rate of a sample: that of its frames, or what `fps` says."""
        video, window = self.video(number), self.window(number, 1)
        of_input = video.rate / window.stride if video and video.rate else DEFAULT_FPS
        return self.options.fps or window.fps or of_input

    def name(self, number: int) -> str:
        """What a sample is made of, for messages and captions."""
        video = self.video(number)
        return video.name if video else f"held-out clip {number}"

    def labels(self, numbers: range) -> np.ndarray | None:
        """The classes (B,) that the options name for these samples, in turn."""
        labels = self.options.labels
        return None if labels is None else np.array([labels[n % len(labels)] for n in numbers], np.int32)

    def held_out(self, num_frames: int) -> Source:
        """Held-out clips of the model's data, with the stride or rate of the options."""
        data, stride, fps = dict(self.pipe.data), self.options.stride, self.options.fps
        if stride is not None:
            data |= {"stride": stride, "fps": None}
        elif fps is not None and "fps" in keys_of(data["name"]):
            data |= {"stride": None, "fps": fps}
        return self.pipe.source("held_out", data, num_frames)

    def batches(self) -> list[range]:
        """Sample numbers by batch; the last batch is as large as the others, and its surplus is not kept."""
        size = min(self.options.batch_size, self.num_samples)
        return [range(first, first + size) for first in range(0, self.num_samples, size)]

    def wanted(self, numbers: range) -> range:
        """The sample numbers of a batch without the surplus."""
        return numbers[: self.num_samples - numbers[0]]

    def files(self, numbers: range) -> list[Path]:
        """The files of samples; none without an output."""
        if self.output is None:
            return []
        return [numbered(self.output, number, self.num_samples) for number in numbers]

    def overlap(self) -> tuple[int, list[int], int]:
        """Of fps_factor: given frames that windows share, windows of each sample, and windows at once."""
        if not self.videos:
            raise UserError("fps_factor raises the frame rate of a video: give an input, got none")
        for number in range(self.num_samples):
            self.numbers(number, 1)  # there is a frame `start`
        per_window = (self.pipe.shape[0] - 1) // (self.options.fps_factor or 1) + 1
        overlap = self.options.overlap or max(min(2, per_window - 1), 1)
        lengths = [video.info.num_frames - self.options.start for video in self.videos]
        windows = [max(-(-(length - overlap) // max(per_window - overlap, 1)), 1) for length in lengths]
        windows = [windows[number % len(windows)] for number in range(self.num_samples)]
        return overlap, windows, min(self.options.batch_size, max(windows)) if overlap == 1 else 1

    def plan(self) -> tuple[int, int]:
        """Windows at once, and how many such batches there are."""
        if self.options.fps_factor is not None:
            _, windows, rows = self.overlap()
            return rows, sum(-(-count // rows) for count in windows)
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
    num_frames, complete = request.pipe.shape[0], request.completer()
    read, masks = _reader(request, num_frames), _masks(request)
    for numbers in request.batches():  # errors come before any work
        masks(numbers)
        for number in request.wanted(numbers) if request.output else ():
            check_rate(str(request.output), request.fps(number))
    for numbers in request.batches():
        clean, num_known, labels = read(numbers)
        samples, mask = complete(clean, masks(numbers), sample_keys(request.options.seed, numbers), labels=labels)
        for i, number in enumerate(request.wanted(numbers)):
            parts = (to_uint8(samples[i]), mask[i].astype(np.uint8), request.fps(number), to_uint8(clean[i]))
            clip = Clip(*parts, truth_known=bool(num_known[i] == num_frames), name=request.name(number))
            for path in request.files(range(number, number + 1)):
                clip.save(path)
            yield clip


def _extend(request: Request) -> Iterator[Clip]:
    """Windows one after another, all samples of a batch at once."""
    num_frames, num_given, num_new = request.pipe.shape[0], request.num_given, request.options.extend or 0
    backward, total = request.options.task == "backward", num_given + num_new
    for number in range(request.num_samples):
        if (known := len(request.numbers(number, num_given))) < num_given:
            name = request.name(number)
            raise UserError(
                f"num_given is {num_given}, but {name} has only {known} such frames: choose a smaller num_given"
            )
    # Frames before the first one of a file do not exist, so the truth is not known.
    read = _reader(request, num_given if backward and request.videos else total)
    complete = request.completer()
    for numbers in request.batches():
        clean, num_known, labels = read(numbers)
        given = clean[:, -num_given:] if backward else clean[:, :num_given]
        keys = sample_keys(request.options.seed, numbers)
        fill = window_filler(complete, keys, request.pipe.model.frame_size, labels)
        blocks: Any = map(to_uint8, extend(fill, given, num_new, num_frames, backward))
        blocks = [*list(blocks)[::-1], to_uint8(given)] if backward else itertools.chain([to_uint8(given)], blocks)
        wanted = request.wanted(numbers)
        files, rates = request.files(wanted), [request.fps(number) for number in wanted]
        shown = write_videos(files, blocks, rates, KEPT_FRAMES if files else total)
        new = np.arange(shown.shape[1])
        new = new < num_new if backward else new >= num_given
        for i, number in enumerate(wanted):
            known = bool(num_known[i] == total)
            input = to_uint8(clean[i, : len(new)]) if known else shown[i]
            yield Clip(shown[i], _frame_mask(new, shown[i]), rates[i], input, known, request.name(number))


def _raise_rate(request: Request) -> Iterator[Clip]:
    """Each video is read, filled in and written window by window."""
    pipe, options, factor = request.pipe, request.options, request.options.fps_factor or 1
    overlap, windows, rows = request.overlap()
    complete = request.completer()
    for number in range(len(windows)):
        video: Any = request.video(number)
        keys, labels = sample_keys(options.seed, [number]), request.labels(range(number, number + 1))
        fill = window_filler(complete, keys, pipe.model.frame_size, labels, rows)
        frames = video.stream(options.start, pipe.shape[1:])
        made = raise_frame_rate(fill, frames, factor, pipe.shape[0], overlap, rows)
        blocks = (to_uint8(frame)[None, None] for frame in made)
        files, fps = request.files(range(number, number + 1)), (options.fps or video.rate or DEFAULT_FPS) * factor
        kept = KEPT_FRAMES if files else video.info.num_frames * factor
        sound = video.sound(options.start) if options.sound and options.fps in (None, video.rate) else ()
        shown = write_videos(files, blocks, [fps], kept, sound)[0]
        yield Clip(shown, _frame_mask(np.arange(len(shown)) % factor > 0, shown), fps, shown, name=video.name)


def _frame_mask(new: np.ndarray, video: np.ndarray) -> np.ndarray:
    """The mask (F, H, W, 1) uint8 of a video whose frames were generated where `new` (F,)."""
    return np.broadcast_to(new[:, None, None, None], (*video.shape[:3], 1)).astype(np.uint8)


def _reader(request: Request, num_frames: int) -> Callable[[range], tuple[np.ndarray, np.ndarray, np.ndarray | None]]:
    """A function from sample numbers to clips (B, num_frames, H, W, C), known frames (B,), and labels (B,) if any."""
    shape = (num_frames, *request.pipe.shape[1:])
    source = None if request.videos else request.held_out(num_frames)

    def read(numbers: range) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        labels, known = request.labels(numbers), np.full(len(numbers), num_frames)
        if source is not None:
            batch = take(source, numbers)
            return batch["video"], known, batch["labels"] if labels is None else labels
        clips = np.zeros((len(numbers), *shape), np.float32)
        for i, number in enumerate(numbers):
            video: Any = request.video(number)
            frames = video.read(request.numbers(number, num_frames), shape[1:])
            clips[i, : len(frames)], known[i] = frames, len(frames)
        return clips, known, labels

    return read


def _masks(request: Request) -> Callable[[range], np.ndarray]:
    """A function from sample numbers to the masks (B, F, h, w, 1) over what the model denoises; 1 = generate."""
    pipe, options = request.pipe, request.options
    shape, latent_shape = pipe.shape[:3], pipe.model.video_shape[:3]
    if (last := max(options.given_frames or (), default=0)) >= shape[0]:
        raise UserError(f"given_frames must be < {shape[0]} (clips have {shape[0]} frames), got {last}")
    opened = None if options.mask is None else inputs.open_mask(options.mask)

    def of_task(number: int, num_known: int) -> np.ndarray:
        task, num_given = options.task or "predict", options.num_given
        if task == "predict" and num_known == 1:  # an image
            num_given = num_given or 1
        return np.asarray(pipe.task_masks(task, range(number, number + 1), options.seed, num_given))[0]

    def of_options(number: int, chosen: Sequence[int]) -> np.ndarray:
        if opened is None:
            mask = np.ones((*latent_shape, 1), np.float32)
        else:
            mask = pipe.space.shrink_mask(opened.of_clip(shape, request.video(number), chosen)[None])[0]
        mask[list(options.given_frames or ())] = 0
        if not mask.any():
            raise UserError("nothing is left to generate: list fewer given frames")
        return mask

    def mask_of(number: int) -> np.ndarray:
        chosen = request.numbers(number, shape[0])
        by_task = opened is None and options.given_frames is None
        mask = of_task(number, len(chosen)) if by_task else of_options(number, chosen)
        last_given = int(np.flatnonzero((mask < 0.5).any(axis=(1, 2, 3))).max(initial=-1))
        if last_given >= len(chosen):
            window = request.window(number, 1)
            pace = f"{window.fps:g} frames per second" if window.fps else f"stride {window.stride}"
            raise UserError(
                f"{request.name(number)} from frame {options.start} at {pace} has only {len(chosen)} frame(s), "
                f"but frame {last_given} (counted from 0) must be given: take a longer video, or give fewer frames"
            )
        return mask

    return lambda numbers: np.stack([mask_of(number) for number in numbers])
