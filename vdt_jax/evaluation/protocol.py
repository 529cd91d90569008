"""The protocol of an evaluation: every choice that changes a number.

It is logged first and written with each report. An evaluation resumes only with the protocol that it was started with.
"""

import dataclasses
import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from vdt_jax.data import Source, take
from vdt_jax.errors import UserError
from vdt_jax.evaluation.measures import networks_of
from vdt_jax.evaluation.metrics import optical_flow
from vdt_jax.evaluation.metrics.weights import describe
from vdt_jax.evaluation.options import EvaluateOptions
from vdt_jax.files import atomic_write, differing
from vdt_jax.inference.pipeline import Pipeline
from vdt_jax.video import to_uint8

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Protocol:
    """What the numbers of a report follow from, in plain values.

    Attributes that are not explained here are the options of the same name.

    Attributes:
      preset: the paper that this follows, with the settings that differ.
      checkpoint, vae: names of the model and of its autoencoder.
      model_sha256, vae_sha256: of their sizes and parameters.
      data: the `data` section of a config.
      clips, first_clip, every: number of clips; they are first_clip, first_clip + every, and so on.
      clips_sha256: of the clips in this order, 8 bits a value.
      frames, height, width, channels: of a clip.
      crop: how a frame came to height x width.
      stride: frames of the file from one frame of a clip to the next; None for clips that are not read from files, or
        whose frames are taken at the rate of `data`.
      clips_per_video: as far as it is known.
      seed: sample j of clip n depends on seed + j and n only.
      networks: those of LPIPS and FVD, with the SHA-256 of their weights.
      versions: of the libraries that computed.
    """

    preset: str | None
    checkpoint: str | None
    vae: str | None
    model_sha256: str
    vae_sha256: str | None
    data: dict[str, Any]
    split: str
    clips: int
    first_clip: int
    every: int
    clips_sha256: str
    frames: int
    height: int
    width: int
    channels: int
    crop: str
    stride: int | None
    clips_per_video: str
    tasks: Sequence[str]
    num_given: int | None
    told_labels: Sequence[str]
    guidance: float | None
    positions: str
    fvd_frames: str
    samples_per_clip: int
    sampler: str
    steps: int
    seed: int
    metrics: Sequence[str]
    networks: dict[str, str]
    versions: dict[str, str]

    @property
    def numbers(self) -> range:
        """The numbers of the clips."""
        return range(self.first_clip, self.first_clip + self.clips * self.every, self.every)

    def __str__(self) -> str:
        shown = dataclasses.asdict(self).items()
        return "\n".join(f"{name.replace('_', ' ')}: {_text(value)}" for name, value in shown)

    def keep(self, path: Path) -> None:
        """Writes the protocol, or compares it with that of an earlier start.

        Raises:
          UserError: the earlier one is another.
        """
        ours = dataclasses.asdict(self)
        if path.is_file() and (changed := differing(json.loads(path.read_text()), ours)):
            raise UserError(
                f"{path.parent} has an evaluation with {changed}: choose another output, or delete that folder"
            )
        atomic_write(path, json.dumps(ours, indent=2) + "\n")


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_text(item)}" for name, item in value.items()) or "none"
    return ", ".join(value) if isinstance(value, list | tuple) else "none" if value is None else str(value)


def make_protocol(
    pipeline: Pipeline,
    source: Source,
    data: Mapping[str, Any],
    options: EvaluateOptions,
    *,
    preset: str | None,
    checkpoint: str | None,
    vae: str | None,
) -> Protocol:
    """The protocol of an evaluation with options of `apply_preset` and `metrics`, on the clips of a `data` section.

    Raises:
      UserError: no clip has the number first_clip.
    """
    numbers = chosen_clips(len(source), options.num_clips or 0, options.first_clip, options.every)
    frames, height, width, channels = pipeline.shape
    networks = networks_of(options.metrics or (), options.lpips)
    names = [field.name for field in dataclasses.fields(Protocol) if hasattr(options, field.name)]
    values = {name: getattr(options, name) for name in names} | {
        "preset": preset,
        "checkpoint": checkpoint,
        "vae": vae,
        "model_sha256": pipeline.hash,
        "vae_sha256": pipeline.space.hash,
        "data": dict(data),
        "clips": len(numbers),
        "every": numbers.step,
        "clips_sha256": clips_hash(source, numbers),
        "frames": frames,
        "height": height,
        "width": width,
        "channels": channels,
        "crop": source.crop,
        "stride": None if source.generated or data.get("fps") else data.get("stride") or 1,
        "clips_per_video": "1" if source.generated else "as many as the source cuts from it (data.hop)",
        "networks": {name: describe(name, options.metric_weights) for name in networks},
        "versions": {name: metadata.version(name) for name in ("jax", "numpy")} | {"OpenCV": optical_flow.version()},
    }
    return Protocol(**values)


def chosen_clips(total: int, count: int, first: int = 0, every: int | None = 1) -> range:
    """The numbers of up to `count` of the `total` clips of a source.

    Args:
      first: number of the first one.
      every: use every N-th clip; None spreads them evenly over the source.

    Raises:
      UserError: no clip has the number `first`.
    """
    room = total - first
    if room < 1:
        raise UserError(f"first_clip must be < {total}, the clips of the split, got {first}")
    step = every or max(1, room // count)
    numbers = range(first, first + min(count * step, room), step)
    if len(numbers) < count:
        logger.warning(
            "%d clips are measured, not num_clips=%d: there are %d in all (first_clip=%d, every=%d)",
            *(len(numbers), count, total, first, step),
        )
    return numbers


def clips_hash(source: Source, numbers: range) -> str:
    """SHA-256 of these clips, 8 bits a value."""
    digest = hashlib.sha256()
    for number in numbers:
        digest.update(to_uint8(take(source, [number])["video"]).tobytes())
    return digest.hexdigest()
