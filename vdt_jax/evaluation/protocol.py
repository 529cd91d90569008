"""The protocol of an evaluation: every choice that changes a number.

It is logged first and written with each report. An evaluation resumes only with the protocol that it was started with.
"""

import hashlib
import json
import logging
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from vdt_jax.data import Source, take
from vdt_jax.errors import UserError
from vdt_jax.evaluation.measures import networks_of
from vdt_jax.evaluation.metrics.baselines import opencv_version
from vdt_jax.evaluation.metrics.weights import describe
from vdt_jax.evaluation.options import EvaluateOptions
from vdt_jax.files import atomic_write, differing
from vdt_jax.inference.pipeline import Pipeline
from vdt_jax.video import to_uint8

logger = logging.getLogger(__name__)

Protocol = dict[str, Any]  # plain values, as in JSON; `make_protocol` explains the entries
_OPTIONS = ("tasks", "num_given", "told_labels", "guidance", "guidance_interval")
_OPTIONS += ("positions", "psnr_of", "ssim_border", "fvd_frames")


def protocol_text(protocol: Protocol) -> str:
    """A line for each entry."""
    return "\n".join(f"{name.replace('_', ' ')}: {_text(value)}" for name, value in protocol.items())


def keep_protocol(protocol: Protocol, path: Path) -> None:
    """Writes the protocol; raises UserError where an earlier start wrote a different one."""
    if path.is_file() and (changed := differing(json.loads(path.read_text()), protocol)):
        raise UserError(f"{path.parent} has an evaluation with {changed}: choose another output, or delete that folder")
    atomic_write(path, json.dumps(protocol, indent=2) + "\n")


def clip_numbers(protocol: Protocol) -> range:
    """The numbers of the clips."""
    first, every = protocol["first_clip"], protocol["every"]
    return range(first, first + protocol["clips"] * every, every)


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
    """The protocol of an evaluation with options of `apply_preset` and `metrics`, on the clips of a `data` section."""
    numbers = chosen_clips(len(source), options.num_clips or 0, options.first_clip, options.every)
    frames, height, width, channels = pipeline.shape
    return {
        "preset": preset,  # the paper that this follows, with the settings that differ
        "checkpoint": checkpoint,
        "vae": vae,
        "model_sha256": pipeline.hash,  # of sizes and parameters
        "vae_sha256": pipeline.space.hash,
        "data": dict(data),
        "split": options.split,
        "clips": len(numbers),
        "first_clip": options.first_clip,
        "every": numbers.step,
        "clips_sha256": clips_hash(source, numbers),
        "frames": frames,
        "height": height,
        "width": width,
        "channels": channels,
        "crop": source.crop,  # how a frame came to height x width
        "stride": None if source.generated or data.get("fps") else data.get("stride") or 1,
        "clips_per_video": "1" if source.generated else "as many as the source cuts from it (data.hop)",
        "mask_mixture": pipeline.mask_mixture,  # where the blocks of spatial_temporal stand
        **{name: getattr(options, name) for name in _OPTIONS},
        **{name: getattr(options, name) for name in ("samples_per_clip", "sampler", "steps")},
        "seed": options.seed,  # sample j of clip n depends on seed + j and n only
        "metrics": options.metrics,
        **software(options),
    }


def software(options: EvaluateOptions) -> Protocol:
    """The entries on the networks of the metrics, with the SHA-256 of their weights, and on versions of libraries."""
    networks = [network for metric, network in networks_of(options.lpips).items() if metric in (options.metrics or ())]
    return {
        "networks": {name: describe(name, options.metric_weights) for name in networks},
        "versions": {name: metadata.version(name) for name in ("jax", "numpy")} | {"OpenCV": opencv_version()},
    }


def chosen_clips(total: int, count: int, first: int = 0, every: int | None = 1) -> range:
    """The numbers of up to `count` of the `total` clips of a source; `every` None spreads them evenly over it."""
    room = total - first
    if room < 1:
        raise UserError(f"first_clip must be < {total}, the clips of the split, got {first}")
    step = every or max(1, room // count)
    numbers = range(first, first + min(count * step, room), step)
    if len(numbers) < count:
        logger.warning(
            "%d clips are measured, not num_clips=%d: there are %d in total (first_clip=%d, every=%d)",
            *(len(numbers), count, total, first, step),
        )
    return numbers


def clips_hash(source: Source, numbers: range) -> str:
    """SHA-256 of these clips, 8 bits a value."""
    digest = hashlib.sha256()
    for number in numbers:
        digest.update(to_uint8(take(source, [number])["video"]).tobytes())
    return digest.hexdigest()
