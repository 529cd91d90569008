"""Turn a folder of videos into what training reads fast.

    python prepare.py --input=FOLDER --output=DIR --vae=sd-vae-ft-ema --size=256     # a cache of latents
    python prepare.py --input=FOLDER --output=DIR --size=64 --num_frames=16          # a tensorflow-datasets dataset

Train on them with --config.data.name=latents --config.data.path=DIR, or --config.data.name=tfds:DIR. A cache that was
interrupted goes on with the same command. Several hosts share its work with --num_processes=4 --process_id=0 and so on;
they need not know of each other. Videos that cannot be read are listed in DIR/bad_files.jsonl, or bad_files_0.jsonl and
so on of several hosts.
"""

import functools
import hashlib
import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from vdt_jax import cli
from vdt_jax.data.bad_files import BadFiles
from vdt_jax.data.clips import Clip, UnreadableClip
from vdt_jax.data.decoders import Decoders
from vdt_jax.data.discover import Found, find_videos
from vdt_jax.data.index import index_videos
from vdt_jax.data.video_folder import VideoFolder
from vdt_jax.distributed.mesh import batch_sharding, make_mesh, replicated
from vdt_jax.errors import UserError
from vdt_jax.inference.generation import LoadedAutoencoder, load_vae
from vdt_jax.latents.cache import bad_videos, shard_is_whole, write_metadata, write_shard
from vdt_jax.models.fingerprint import fingerprint
from vdt_jax.progress import progress
from vdt_jax.video import VideoInfo

_INPUT = flags.DEFINE_string("input", None, "A folder of videos, or a .csv or .jsonl list.")
_OUTPUT = flags.DEFINE_string("output", None, "Folder of what is written.")
_SIZE = flags.DEFINE_list("size", ["256"], "Height and width of the frames in pixels, or one number for both.")
_VAE = flags.DEFINE_string("vae", None, "Autoencoder, as --vae of sample.py; without it a dataset is written.")
_VAE_DTYPE = flags.DEFINE_enum("vae_dtype", "float32", ["float32", "bfloat16"], "What the autoencoder computes in.")
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 8, "Frames that a device encodes at once.")
_SHARD_FRAMES = flags.DEFINE_integer("shard_frames", 4096, "Frames of a shard, about: what a kill can lose.")
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", 1, "Hosts that share the work of a latent cache.")
_PROCESS_ID = flags.DEFINE_integer("process_id", 0, "Which of them this is, from 0.")
_MAX_BAD = flags.DEFINE_float("max_bad", 0.1, "Share of the videos that may be unreadable.")

_NUM_FRAMES = flags.DEFINE_integer("num_frames", 16, "Frames of a clip of a dataset.")
_STRIDE = flags.DEFINE_integer("stride", 1, "Frames of the video from one frame of a clip to the next.")
_FPS = flags.DEFINE_float("fps", 0.0, "Or frames a second of a clip, whatever the video's.")
_HOP = flags.DEFINE_integer("hop", 16, "Frames of the video from one clip of a dataset to the next.")
_SHORT = flags.DEFINE_enum("short", "skip", ["skip", "pad"], "Videos that are shorter than a clip.")
_LABELS = flags.DEFINE_bool("labels", False, "Whether the folders below --input, or the list's labels, are classes.")
_HELD_OUT = flags.DEFINE_float("held_out", 0.1, "Share of the videos that becomes the split held_out.")

_READ_FRAMES = 128  # decoded at once: it bounds the memory that a long video takes
_TIME_LIMIT = 60.0  # seconds for these

Video = tuple[Found, VideoInfo]


def main(_) -> None:
    if not _INPUT.value or not _OUTPUT.value:
        raise UserError("say what to read and where to write: --input=FOLDER --output=DIR")
    size = frame_size(_SIZE.value)
    for flag in (_BATCH_SIZE, _SHARD_FRAMES, _NUM_PROCESSES, _NUM_FRAMES, _STRIDE, _HOP):
        if flag.value < 1:
            raise UserError(f"--{flag.name}={flag.value} cannot be: at least 1")
    if _FPS.value < 0 or (_FPS.value and _STRIDE.value != 1):
        raise UserError(f"--fps={_FPS.value:g} with --stride={_STRIDE.value} cannot be: fps above 0, or a stride")
    if not 0 <= _HELD_OUT.value < 1:
        raise UserError(f"--held_out={_HELD_OUT.value:g} cannot be: a share, from 0 to less than 1")
    if not 0 <= _PROCESS_ID.value < _NUM_PROCESSES.value:
        raise UserError(f"--process_id={_PROCESS_ID.value} cannot be: it is 0 to {_NUM_PROCESSES.value - 1}")
    if _VAE.value is None and _NUM_PROCESSES.value > 1:
        raise UserError(
            "a dataset is written by one process: leave out --num_processes, or add --vae for a latent cache"
        )
    cli.quiet_start()
    output, decoders = Path(_OUTPUT.value), Decoders(_TIME_LIMIT)
    if _VAE.value is None:
        write_clips(size, output)
        return
    root, found = find_videos(_INPUT.value)
    host = "" if _NUM_PROCESSES.value == 1 else f"_{_PROCESS_ID.value}"
    bad = BadFiles(len(found), _MAX_BAD.value, output / f"bad_files{host}.jsonl")
    videos = readable(root, found, decoders, bad)
    cache_latents(root, videos, decoders, bad, load_vae(_VAE.value, _VAE_DTYPE.value), size, output)


def frame_size(values: list[str]) -> tuple[int, int]:
    """--size as (height, width)."""
    if not 1 <= len(values) <= 2 or not all(value.isdecimal() and int(value) for value in values):
        raise UserError(f"--size={','.join(values)} is no size: one number, or height,width")
    return int(values[0]), int(values[-1])


def readable(root: Path, found: list[Found], decoders: Decoders, bad: BadFiles) -> list[Video]:
    """The videos that can be read, with what is known of them."""
    videos = []
    for video, info in zip(found, index_videos(root, found, decoders), strict=True):
        if isinstance(info, str):
            bad.add(video.name, info)
        else:
            videos.append((video, info))
    bad.check()
    return videos


# ------------------------------------------------------------------ a dataset


def write_clips(size: tuple[int, int], output: Path) -> None:
    """Writes the clips of both splits as a tensorflow-datasets dataset."""
    from vdt_jax.data.tfds_builder import write_dataset  # tensorflow_datasets takes a second

    if output.exists() and any(output.rglob("dataset_info.json")):
        raise UserError(f"{output} has a dataset already: choose another --output")
    shape = (_NUM_FRAMES.value, *size, 3)
    options = {"held_out": _HELD_OUT.value, "stride": _STRIDE.value, "fps": _FPS.value, "hop": _HOP.value}
    options |= {"short": _SHORT.value, "labels": _LABELS.value, "max_bad": _MAX_BAD.value}

    def source(split: str) -> VideoFolder:
        return VideoFolder(shape, split, str(_INPUT.value), **options, bad_files=output / "bad_files.jsonl")

    splits = {"train": source("train")} | ({"held_out": source("held_out")} if _HELD_OUT.value else {})
    with progress("clips", sum(map(len, splits.values())), unit="clip") as advance:
        clips = {name: readable_clips(source, advance) for name, source in splits.items()}
        folder = write_dataset(output, clips, shape, splits["train"].classes)
    print(f"{folder}: --config.data.name=tfds:{output} trains on it")


def readable_clips(source: VideoFolder, advance: Any) -> Iterator[Clip]:
    """The clips of a folder in order, decoded a few at a time in parallel, without those that cannot be."""

    def read(number: int) -> Clip | None:
        try:
            return source.clip(number)
        except UnreadableClip:
            return None

    threads = os.cpu_count() or 1
    with ThreadPoolExecutor(threads) as pool:
        for first in range(0, len(source), 4 * threads):
            for clip in pool.map(read, range(first, min(first + 4 * threads, len(source)))):
                advance(1)
                if clip is not None:
                    yield clip


# ------------------------------------------------------------------ latents


def cache_latents(
    root: Path,
    videos: list[Video],
    decoders: Decoders,
    bad: BadFiles,
    vae: LoadedAutoencoder,
    size: tuple[int, int],
    output: Path,
) -> None:
    """Writes the shards of this host that are not there yet."""
    factor = vae.model.factor
    if size[0] % factor or size[1] % factor:
        raise UserError(f"--size={size[0]},{size[1]} has no latents: both sides must be multiples of {factor}")
    shards = plan(videos, _SHARD_FRAMES.value)
    listing = json.dumps([[video.name, video.label, video.split, info.num_frames] for video, info in videos])
    metadata = {
        "autoencoder": fingerprint(vae.model, vae.params),
        "scaling_factor": vae.model.scaling_factor,
        "vae_dtype": _VAE_DTYPE.value,
        "frame_size": list(size),
        "latent_size": [size[0] // factor, size[1] // factor, vae.model.latent_channels],
        "videos": hashlib.sha256(listing.encode()).hexdigest(),
        "num_shards": len(shards),
    }
    write_metadata(output, metadata)
    mine = range(_PROCESS_ID.value, len(shards), _NUM_PROCESSES.value)
    missing = [number for number in mine if not shard_is_whole(output, number)]
    for number in mine:
        if number not in missing:
            for name, reason in bad_videos(output, number).items():
                bad.add(name, reason)
    bad.check()
    print(f"{len(mine) - len(missing)} of {len(mine)} shards are there and whole", flush=True)

    encode = make_encode(vae)
    total = sum(info.num_frames for number in missing for _, info in shards[number])
    with progress("latents", total, unit="frame") as advance:
        for number in missing:
            done, failed = [], {}
            for video, info in shards[number]:
                try:
                    moments = [encode(frames) for frames in read_whole(root, video, info, size, decoders)]
                    done.append((video, info, np.concatenate(moments)))
                except UnreadableClip as error:
                    failed[video.name] = str(error)
                    bad.add(video.name, str(error))
                    bad.check()
                advance(info.num_frames)
            write_shard(output, number, done, failed)
    print(f"{output}: {len(shards)} shards, autoencoder {metadata['autoencoder'][:12]}")


def plan(videos: list[Video], shard_frames: int) -> list[list[Video]]:
    """Videos in order, as shards of about so many frames."""
    shards: list[list[Video]] = []
    room = 0
    for video, info in videos:
        if room <= 0:
            shards.append([])
            room = shard_frames
        shards[-1].append((video, info))
        room -= info.num_frames
    return shards


def read_whole(
    root: Path, video: Found, info: VideoInfo, size: tuple[int, int], decoders: Decoders
) -> Iterator[np.ndarray]:
    """All frames of a video in pieces, (n, H, W, 3) uint8."""
    for first in range(0, info.num_frames, _READ_FRAMES):
        numbers = range(first, min(first + _READ_FRAMES, info.num_frames))
        yield decoders.clip(str((root / video.name).absolute()), numbers, info, (*size, 3))


def make_encode(vae: LoadedAutoencoder) -> Any:
    """A function from frames (n, H, W, 3) uint8 to moments (n, h, w, 2 c) float16, on all devices of this host."""
    mesh = make_mesh()
    batch = _BATCH_SIZE.value * mesh.size
    params = jax.device_put(vae.params, replicated(mesh))

    @functools.partial(jax.jit, in_shardings=(replicated(mesh), batch_sharding(mesh)))
    def moments(params: Any, frames: jax.Array) -> jax.Array:
        pixels = frames.astype(jnp.float32) / 127.5 - 1
        both: Any = vae.model.apply({"params": params}, pixels, method="encode")
        return jnp.concatenate(both, axis=-1).astype(jnp.float16)

    def encode(frames: np.ndarray) -> np.ndarray:
        parts = []
        for first in range(0, len(frames), batch):
            part = frames[first : first + batch]
            filled = np.concatenate([part, np.repeat(part[-1:], batch - len(part), axis=0)])
            parts.append(np.asarray(moments(params, filled))[: len(part)])
        return np.concatenate(parts)

    return encode


if __name__ == "__main__":
    cli.run(main)
