"""From a source to batches: order, replacement, sharing among hosts, prefetch.

**A data position is a number.** Example number p of a run is a function of (source, seed, p) alone: epoch after epoch,
each in its own shuffled order. A clip that cannot be read is replaced by the next one in that order. Step s of a run
with batch size B takes positions s * B to s * B + B - 1, so a run that resumes at step s needs no iterator state, on
any number of hosts and threads.
"""

from collections.abc import Iterator
from typing import Any

import grain
import numpy as np

from vdt_jax.data.clips import Clip, Source, UnreadableClip, as_example
from vdt_jax.errors import UserError

_MAX_REPLACEMENTS = 1000


class _Examples:
    """One host's positions of a run, in order: item i of it is a clip for a global position."""

    def __init__(self, order: Any, first: int, batch_size: int, host: int, num_hosts: int):
        self._order, self._first, self._batch_size = order, first, batch_size
        self._host, self._share = host, batch_size // num_hosts

    def __len__(self) -> int:
        return 2**50

    def __getitem__(self, index: int) -> Clip:
        step, offset = divmod(index, self._share)
        position = self._first + step * self._batch_size + self._host * self._share + offset
        for replacement in range(position, position + _MAX_REPLACEMENTS):
            try:
                return self._order[replacement]
            except UnreadableClip as error:
                reason = error
        raise UserError(f"{_MAX_REPLACEMENTS} clips in a row cannot be read; the last: {reason}")


def batches(
    source: Source,
    *,
    batch_size: int,
    seed: int,
    first_step: int = 0,
    host: int = 0,
    num_hosts: int = 1,
    num_threads: int = 2,
) -> Iterator[dict[str, np.ndarray]]:
    """Endless batches from step `first_step` on, "video": float32 (B / num_hosts, F, H, W, C) in [-1, 1] and "labels".

    Args:
      source: clips by index.
      batch_size: B, of all hosts together.
      seed: of the order.
      host, num_hosts: which share of each batch is wanted.
      num_threads: that decode ahead.

    Raises:
      UserError: a batch that the hosts cannot share evenly.
    """
    if batch_size % num_hosts:
        raise UserError(f"batch_size={batch_size} cannot be shared by {num_hosts} hosts: make it a multiple")
    order = grain.MapDataset.source(source).shuffle(seed=seed).repeat()
    examples = _Examples(order, first_step * batch_size, batch_size, host, num_hosts)
    options = grain.ReadOptions(
        num_threads=num_threads, prefetch_buffer_size=4 * max(num_threads, batch_size // num_hosts)
    )
    dataset = grain.MapDataset.source(examples).map(as_example)
    return iter(dataset.to_iter_dataset(options).batch(batch_size // num_hosts))


def clip_numbers(num_clips: int, seed: int, positions: range) -> list[int]:
    """Which clips of the source stand at these positions of a run, if all can be read: to name those of a bad batch."""
    order: Any = grain.MapDataset.range(num_clips).shuffle(seed=seed).repeat()
    return [int(order[position]) for position in positions]
