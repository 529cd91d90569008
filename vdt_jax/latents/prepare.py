"""Prepares a folder of videos for training: a cache of latents, or a tensorflow-datasets dataset of clips."""

import dataclasses
import functools
import hashlib
import json
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vdt_jax.data.clips import BadFiles, UnreadableClip
from vdt_jax.data.decoders import Decoders
from vdt_jax.data.discover import Found, find_videos
from vdt_jax.data.doom import Vizdoom
from vdt_jax.data.index import index_videos
from vdt_jax.data.video_folder import VideoFolder
from vdt_jax.distributed.mesh import batch_sharding, make_mesh, map_batches, replicated
from vdt_jax.errors import UserError
from vdt_jax.files import writing
from vdt_jax.latents.cache import bad_videos, shard_is_whole, write_metadata, write_shard
from vdt_jax.latents.codec import encode_moments
from vdt_jax.latents.space import VaeSpace
from vdt_jax.options import option, validate
from vdt_jax.progress import progress
from vdt_jax.video import VideoInfo
from vdt_jax.weights.autoencoder import load_autoencoder

_READ_FRAMES = 128  # frames that are decoded at once, which bounds the memory of a long video
_TIME_LIMIT = 60.0  # seconds that decoding these may take
logger = logging.getLogger(__name__)

Video = tuple[Found, VideoInfo]


@dataclasses.dataclass(frozen=True)
class PrepareOptions:
    """Options of `prepare`; those after `max_bad` are for a dataset of clips."""

    input: str | None = option(None, "A folder of videos, a .csv or .jsonl list, or vizdoom:SCENARIO.")
    output: str | None = option(None, "The folder to write.")
    size: tuple[int, ...] = option(
        (256,), "Height and width of the frames in pixels, or one number for both.", minimum=1
    )
    vae: str | None = option(None, "Autoencoder, as --vae of sample.py; without it a dataset is written.")
    vae_dtype: str = option("float32", "What the autoencoder computes in.", choices=("float32", "bfloat16"))
    batch_size: int = option(8, "Frames that a device encodes at once.", minimum=1)
    shard_frames: int = option(4096, "Frames of a shard, about: what a kill can lose.", minimum=1)
    num_processes: int = option(1, "Hosts that share the work of a latent cache.", minimum=1)
    process_id: int = option(0, "Number of this host, from 0.", minimum=0)
    max_bad: float = option(0.1, "Share of the videos that may be unreadable.", minimum=0, maximum=1)
    num_frames: int = option(16, "Frames of a clip.", minimum=1)
    stride: int = option(1, "Frames of the video from one frame of a clip to the next.", minimum=1)
    fps: float = option(0.0, "Frame rate of a clip, whatever the video's; 0 to use stride.", minimum=0)
    hop: int = option(16, "Frames of the video from the start of one clip to the next.", minimum=1)
    short: str = option("skip", "What to do with videos shorter than a clip.", choices=("skip", "pad"))
    labels: bool = option(False, "Whether the folders below the input, or the labels of the list, are classes.")
    held_out: float = option(0.1, "Share of the videos in the split held_out, less than 1.", minimum=0)
    num_clips: int = option(2000, "Clips of vizdoom:SCENARIO, those of both splits together.", minimum=2)

    def __post_init__(self) -> None:
        validate(self)
        if not self.input or not self.output:
            raise UserError("input and output are required: --input=FOLDER --output=DIR")
        if len(self.size) not in (1, 2):
            raise UserError(
                f"size must be one number, or height,width; got {','.join(map(str, self.size)) or 'nothing'}"
            )
        if self.fps and self.stride != 1:
            raise UserError(f"fps and stride exclude each other, got fps={self.fps:g} and stride={self.stride}")
        if self.held_out >= 1:
            raise UserError(f"held_out must be < 1, got {self.held_out:g}")
        if self.process_id >= self.num_processes:
            raise UserError(f"process_id must be from 0 to {self.num_processes - 1}, got {self.process_id}")
        if self.vae is None and self.num_processes > 1:
            raise UserError("a dataset is written by one process: omit num_processes, or add vae for a latent cache")

    @property
    def frame_size(self) -> tuple[int, int]:
        """(height, width)."""
        return self.size[0], self.size[-1]


def prepare(options: PrepareOptions) -> None:
    """Writes a cache of latents if there is an autoencoder, else a dataset of clips.

    Raises:
      UserError: no videos, too many unreadable ones, or an output with other content.
    """
    if options.vae is None:
        write_clips(options)
    else:
        cache_latents(options, VaeSpace(*load_autoencoder(options.vae, options.vae_dtype)))


def write_clips(options: PrepareOptions) -> None:
    """Writes the clips of both splits as a tensorflow-datasets dataset."""
    from vdt_jax.data.tfds_builder import readable_clips, write_dataset  # tensorflow_datasets takes a second

    output = Path(str(options.output))
    if output.exists() and any(output.rglob("dataset_info.json")):
        raise UserError(f"{output} has a dataset already: choose another output")
    shape = (options.num_frames, *options.frame_size, 3)
    sources = {
        split: _clips_of(options, shape, split) for split in (("train", "held_out") if options.held_out else ("train",))
    }
    with writing(output), progress("clips", sum(map(len, sources.values())), unit="clip") as advance:
        clips = {split: readable_clips(source, advance) for split, source in sources.items()}
        actions = getattr(sources["train"], "actions", ())
        folder = write_dataset(output, clips, shape, sources["train"].classes, actions)
    logger.info("%s: train on it with --config.data.name=tfds:%s", folder, output)


def _clips_of(options: PrepareOptions, shape: tuple[int, int, int, int], split: str) -> VideoFolder | Vizdoom:
    """The clips of a split: of a scenario of ViZDoom, or of the videos of the input."""
    prefix, _, scenario = str(options.input).partition(":")
    names = ("stride", "held_out", "fps", "hop", "short", "labels", "max_bad")
    if prefix == "vizdoom":
        for name in names[2:]:
            if getattr(options, name) != getattr(PrepareOptions, name):
                raise UserError(f"{name} is for videos, not for clips of vizdoom: omit it")
        held_out = min(math.ceil(options.num_clips * options.held_out), options.num_clips - 1)
        num_clips = held_out if split == "held_out" else options.num_clips - held_out
        return Vizdoom(shape, split, scenario, num_clips, options.stride)
    chosen = {name: getattr(options, name) for name in names}
    bad_files = Path(str(options.output)) / "bad_files.jsonl"
    return VideoFolder(shape, split, str(options.input), **chosen, bad_files=bad_files)


def cache_latents(options: PrepareOptions, space: VaeSpace) -> None:
    """Writes the missing and corrupt shards of this host."""
    output, decoders = Path(str(options.output)), Decoders(_TIME_LIMIT)
    root, found = find_videos(str(options.input))
    host = "" if options.num_processes == 1 else f"_{options.process_id}"
    bad = BadFiles(len(found), options.max_bad, output / f"bad_files{host}.jsonl")
    known = index_videos(root, found, decoders, bad)
    videos = [(video, info) for video, info in zip(found, known, strict=True) if isinstance(info, VideoInfo)]
    shards = _shards(videos, options.shard_frames)
    write_metadata(output, _metadata(options, space, videos, len(shards)))

    mine = range(options.process_id, len(shards), options.num_processes)
    missing = [number for number in mine if not shard_is_whole(output, number)]
    for number in sorted(set(mine) - set(missing)):
        for name, reason in bad_videos(output, number).items():
            bad.add(name, reason)
    bad.check()
    logger.info("%d of %d shards are there and whole", len(mine) - len(missing), len(mine))

    encode = _encoder(space, options.batch_size)
    with progress("latents", sum(info.num_frames for n in missing for _, info in shards[n]), unit="frame") as advance:
        for number in missing:
            done, failed = [], {}
            for video, info in shards[number]:
                try:
                    pieces = _decoded(root / video.name, info, options.frame_size, decoders)
                    done.append((video, info, np.concatenate([encode(frames) for frames in pieces])))
                except UnreadableClip as error:
                    failed[video.name] = str(error)
                    bad.add(video.name, str(error))
                    bad.check()
                advance(info.num_frames)
            write_shard(output, number, done, failed)
    logger.info("%s: %d shards, train on it with --config.data.name=latents", output, len(shards))


def _metadata(options: PrepareOptions, space: VaeSpace, videos: Sequence[Video], num_shards: int) -> dict[str, Any]:
    """What a cache is made from; a cache is continued only with the same."""
    (height, width), factor = options.frame_size, space.model.factor
    if height % factor or width % factor:
        raise UserError(f"size must be multiples of the autoencoder's factor {factor}, got {height},{width}")
    listing = json.dumps([[video.name, video.label, video.split, info.num_frames] for video, info in videos])
    return {
        "autoencoder": space.hash,
        "scaling_factor": space.model.scaling_factor,
        "vae_dtype": options.vae_dtype,
        "frame_size": [height, width],
        "latent_size": [height // factor, width // factor, space.model.latent_channels],
        "videos": hashlib.sha256(listing.encode()).hexdigest(),
        "num_shards": num_shards,
    }


def _shards(videos: Sequence[Video], shard_frames: int) -> list[list[Video]]:
    """The videos in order, as shards of at least `shard_frames` frames."""
    shards: list[list[Video]] = []
    room = 0
    for video, info in videos:
        if room <= 0:
            shards.append([])
            room = shard_frames
        shards[-1].append((video, info))
        room -= info.num_frames
    return shards


def _decoded(path: Path, info: VideoInfo, size: tuple[int, int], decoders: Decoders) -> Iterator[np.ndarray]:
    """All frames of a video in pieces, (n, H, W, 3) uint8."""
    for first in range(0, info.num_frames, _READ_FRAMES):
        numbers = range(first, min(first + _READ_FRAMES, info.num_frames))
        yield decoders.clip(str(path.absolute()), numbers, info, (*size, 3))


def _encoder(space: VaeSpace, batch_size: int) -> Callable[[np.ndarray], np.ndarray]:
    """A function from frames (n, H, W, 3) uint8 to moments (n, h, w, 2 c) float16, on all devices of this host."""
    mesh = make_mesh()
    params = jax.device_put(space.params, replicated(mesh))

    @functools.partial(jax.jit, in_shardings=(replicated(mesh), batch_sharding(mesh)))
    def moments(params: Any, frames: jax.Array) -> jax.Array:
        return encode_moments(space.model, params, frames.astype(jnp.float32) / 127.5 - 1).astype(jnp.float16)

    return functools.partial(map_batches, functools.partial(moments, params), batch_size * mesh.size)
