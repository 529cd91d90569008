"""From a source to batches: order, replacement, sharing among hosts, prefetch.

**A data position is a number.** Example number p of a run is a function of (source, seed, p) alone: epoch after epoch,
each in its own shuffled order, with its own crops and flips. A clip that cannot be read is replaced by the next one in
that order. Step s of a run with batch size B takes positions s * B to s * B + B - 1, so a run that
resumes at step s needs no iterator state, on any number of hosts and threads.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import grain
import numpy as np
from grain.experimental import ThreadPrefetchIterDataset, index_shuffle

from vdt_jax.data.clips import MAX_REPLACEMENTS, Source, readable_example
from vdt_jax.errors import UserError

_MAX_TABLE = 2**18  # clips whose order is a table; index_shuffle needs none and is slow for few
_AHEAD = 16  # clips that each thread reads ahead; grain's cost of a clip grows with it
_READY = 2  # batches that are ready before the step asks for them


class _Examples:
    """The examples of one host, in order."""

    def __init__(self, source: Source, seed: int, first: int, batch_size: int, share: int):
        self._source, self._seed = source, seed
        self._first, self._batch_size, self._share = first, batch_size, share

    def __len__(self) -> int:
        return 2**50

    def __getitem__(self, index: int) -> dict[str, Any]:
        step, offset = divmod(index, self._share)
        position = self._first + step * self._batch_size + offset
        tried = range(position, position + MAX_REPLACEMENTS)
        numbers = (_number_at(p, len(self._source), self._seed) for p in tried)
        draws = (np.random.default_rng([self._seed, p]) for p in tried)
        return readable_example(self._source, zip(numbers, draws, strict=True))


def _number_at(position: int, num_clips: int, seed: int) -> int:
    """The number of the clip at a position of a run."""
    epoch, index = divmod(position, num_clips)
    if num_clips <= _MAX_TABLE:
        return int(_epoch_order(seed, epoch, num_clips)[index])
    epoch_seed = int(np.random.SeedSequence([seed, epoch]).generate_state(1)[0])
    return index_shuffle(index, max_index=num_clips - 1, seed=epoch_seed, rounds=4)


@functools.lru_cache(maxsize=2)
def _epoch_order(seed: int, epoch: int, num_clips: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(num_clips)


def batches(
    source: Source,
    *,
    batch_size: int,
    seed: int,
    first_step: int = 0,
    host: int = 0,
    num_hosts: int = 1,
    num_threads: int = 2,
    put: Callable[[dict[str, np.ndarray]], Any] = lambda batch: batch,
) -> Iterator[Any]:
    """Endless batches, from step `first_step` on: "video" (B / num_hosts, F, H, W, C) and "labels", as of `take`.

    Args:
      source: clips by number.
      batch_size: B, of all hosts together.
      seed: of the order, and of what is random in a clip.
      first_step: of a resumed run.
      host, num_hosts: which share of each batch to return.
      num_threads: threads that read ahead; files are decoded in as many processes.
      put: moves a batch to the devices.

    Raises:
      UserError: a negative seed, a batch that the hosts cannot share evenly.
    """
    if seed < 0:
        raise UserError(f"seed must be >= 0, got {seed}")
    if batch_size % num_hosts:
        raise UserError(f"batch_size must be a multiple of the number of hosts, {num_hosts}; got {batch_size}")
    share = batch_size // num_hosts
    examples = _Examples(source, seed, first_step * batch_size + host * share, batch_size, share)
    options = grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=_AHEAD * num_threads)
    dataset = grain.MapDataset.source(examples).to_iter_dataset(options).batch(share).map(put)
    return iter(ThreadPrefetchIterDataset(dataset, prefetch_buffer_size=_READY))


def clip_numbers(num_clips: int, seed: int, positions: range) -> list[int]:
    """The numbers of the clips at these positions of a run, without replacements: to name those of a bad batch."""
    return [_number_at(position, num_clips, seed) for position in positions]
