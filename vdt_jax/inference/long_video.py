"""Videos longer than the model's window: windows that overlap, one after another, a few frames in memory at a time.

`fill` is whatever completes windows, (clips (B, F, H, W, C), mask (B, F), numbers) -> clips (B, F, H, W, C): frames are
given where mask = 0 and come back as they are; `numbers` are those of the windows, for their noise.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import numpy as np

from vdt_jax.errors import UserError

Fill = Callable[[np.ndarray, np.ndarray, range], np.ndarray]


def extend(
    fill: Fill, given: np.ndarray, num_new: int, num_frames: int, backward: bool = False
) -> Iterator[np.ndarray]:
    """Generates `num_new` frames after the given ones (B, G, H, W, C), 1 <= G < F, or before them if `backward`.

    All samples are generated at once, in windows of F = `num_frames` frames. Each is given the last G frames of the
    previous window, or with `backward` its first G.

    Yields:
      New frames (B, f, H, W, C), at most F - G at a time; backward, each block comes before the last one.
    """
    num_given = given.shape[1]
    mask = np.ones((len(given), num_frames), np.float32)
    mask[:, slice(-num_given, None) if backward else slice(num_given)] = 0
    known, done, number = given, 0, 0
    while done < num_new:
        clips = np.zeros((len(given), num_frames, *given.shape[2:]), np.float32)
        clips[mask < 0.5] = known.reshape(-1, *given.shape[2:])
        clips = fill(clips, mask, range(number, number + 1))
        size = min(num_frames - num_given, num_new - done)
        if backward:
            yield clips[:, num_frames - num_given - size : num_frames - num_given]
            known = clips[:, :num_given]
        else:
            yield clips[:, num_given : num_given + size]
            known = clips[:, num_frames - num_given :]
        done, number = done + size, number + 1


def raise_frame_rate(
    fill: Fill, frames: Iterable[np.ndarray], factor: int, num_frames: int, overlap: int = 1, batch_size: int = 1
) -> Iterator[np.ndarray]:
    """Generates factor - 1 frames between any two (H, W, C): n frames become (n - 1) factor + 1.

    A window of F = `num_frames` frames has every factor-th frame given; the next one begins `overlap` given frames
    before its end. The frames generated between these are given to it too: they show how things moved. Windows are
    filled one after another where overlap > 1, and `batch_size` at once where it is 1.

    Raises:
      UserError: a factor or an overlap out of range, or fewer than two frames.
    """
    if not 2 <= factor < num_frames:
        raise UserError(f"fps_factor must be from 2 to {num_frames - 1} with this model, got {factor}")
    per_window = (num_frames - 1) // factor + 1
    if not 1 <= overlap < per_window:
        raise UserError(
            f"overlap must be from 1 to {per_window - 1}, since a window has {per_window} given frames; got {overlap}"
        )
    number, made = 0, np.zeros(0)
    for windows in _batched(_windows(iter(frames), per_window, overlap), batch_size if overlap == 1 else 1):
        clips = np.zeros((len(windows), num_frames, *windows[0][0][0].shape), np.float32)
        mask = np.ones((len(windows), num_frames), np.float32)
        for clip, hidden, (given, num_done) in zip(clips, mask, windows, strict=True):
            positions = np.arange(len(given)) * factor
            clip[positions], hidden[positions] = given, 0
            if overlap > 1 and num_done:
                clip[: num_done * factor], hidden[: num_done * factor] = made[-num_done * factor - 1 : -1], 0
        if number == 0:
            yield clips[0, 0]
        clips = fill(clips, mask, range(number, number + len(windows)))
        for clip, (given, num_done) in zip(clips, windows, strict=True):
            yield from clip[num_done * factor + 1 : (len(given) - 1) * factor + 1]
        made = clips[-1, : (per_window - 1) * factor + 1]
        number += len(windows)


def _windows(frames: Iterator[np.ndarray], per_window: int, overlap: int) -> Iterator[tuple[list[np.ndarray], int]]:
    """The given frames of each window, and how many intervals at its beginning are filled; the last window is full."""
    given = list(itertools.islice(frames, per_window))
    if len(given) < 2:
        raise UserError(f"a video of {len(given)} frame(s) has nothing between them: at least 2 are needed")
    yield given, 0
    while new := list(itertools.islice(frames, per_window - overlap)):
        given = (given + new)[-per_window:]
        yield given, len(given) - 1 - len(new)


def _batched(windows: Iterator, size: int) -> Iterator[list]:
    while batch := list(itertools.islice(windows, size)):
        yield batch


def window_filler(
    complete: Callable[..., Any], keys: jax.Array, frame_size: tuple[int, int], labels: Any = None, rows: int = 0
) -> Fill:
    """The `fill` of `extend` and `raise_frame_rate`: windows completed by a model.

    Args:
      complete: as `Pipeline.complete`.
      keys, labels: (B,) one for each sample of `extend`, or (1,) for `raise_frame_rate`.
      frame_size: (h, w) of what the model denoises.
      rows: windows of a call, for windows of one video: fewer are padded, so that one program serves all.
    """

    def fill(clips: np.ndarray, mask: np.ndarray, numbers: range) -> np.ndarray:
        take = np.minimum(np.arange(max(len(clips), rows)), len(clips) - 1)
        samples, windows = np.broadcast_arrays(np.arange(len(keys)), np.asarray(numbers)[take if rows else 0])
        positions = np.broadcast_to(mask[take][..., None, None, None], (*mask[take].shape, *frame_size, 1))
        each_label = None if labels is None else labels[samples]
        filled, _ = complete(clips[take], positions, _window_keys(keys[samples], windows), labels=each_label)
        return filled[: len(clips)]

    return fill


@jax.jit
def _window_keys(keys: jax.Array, windows: jax.Array) -> jax.Array:
    return jax.vmap(lambda key, window: jax.random.fold_in(jax.random.fold_in(key, 4), window))(keys, windows)
