"""A cache of latents: every frame of every video, encoded once by prepare.py.

    DIR/metadata.json      the autoencoder's hash, scaling factor and dtype, the sizes, the number of shards
    DIR/shard_00000.npy    moments (frames, h, w, 2 c) float16: mean and logvar, so that each epoch draws new latents
    DIR/shard_00000.json   its videos in order, those that could not be decoded, a CRC-32 of each frame, the SHA-256 of
                           the .npy; written last

Clips are moments; training draws latents from them on the device.
"""

import functools
import json
import os
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vdt_jax.data.clips import Clip, identity_of
from vdt_jax.data.discover import Found
from vdt_jax.data.windows import ClipTable, Window, class_numbers, log_short, of_split, usable
from vdt_jax.errors import UserError
from vdt_jax.files import atomic, atomic_write, differing, file_sha256
from vdt_jax.video import VideoInfo

FORMAT = 1
_DAMAGE = (OSError, ValueError, EOFError, LookupError, TypeError)  # from reading a truncated or missing file


class CachedVideo(NamedTuple):
    """A video of a shard: `Found`'s name, label and split, a `VideoInfo` as JSON, and its first frame in the shard."""

    name: str
    label: str
    split: str
    info: dict[str, Any]
    first: int


def read_metadata(path: str | os.PathLike) -> dict[str, Any]:
    """metadata.json of a cache; UserError if there is none, or one of a different version."""
    try:
        metadata = json.loads((Path(path) / "metadata.json").read_text())
    except (OSError, ValueError):
        raise UserError(f"no latent cache in {path}: python prepare.py --input=FOLDER --vae=... makes one") from None
    if metadata.get("format") != FORMAT:
        raise UserError(
            f"the latent cache in {path} is of format {metadata.get('format')}, not {FORMAT}: make it again"
        )
    return metadata


def write_metadata(path: Path, metadata: dict[str, Any]) -> None:
    """Writes metadata.json; UserError if the cache was begun with other settings."""
    metadata = metadata | {"format": FORMAT}
    if (path / "metadata.json").is_file():
        theirs = read_metadata(path)
        # Older caches lack some settings.
        if changed := differing(theirs, metadata, ignore=metadata.keys() - theirs.keys()):
            raise UserError(f"{path} was begun with {changed}: choose another --output, or the same values")
        return
    atomic_write(path / "metadata.json", json.dumps(metadata, indent=2))


def shard_is_whole(path: Path, number: int) -> bool:
    """Whether a shard exists and its data has the right SHA-256."""
    try:
        description = json.loads(_shard(path, number, ".json").read_text())
        return file_sha256(_shard(path, number, ".npy")) == description["sha256"]
    except _DAMAGE:
        return False


def bad_videos(path: Path, number: int) -> dict[str, str]:
    """The videos of a whole shard that could not be decoded: their names and the reasons."""
    return json.loads(_shard(path, number, ".json").read_text()).get("bad", {})


def write_shard(
    path: Path, number: int, videos: Sequence[tuple[Found, VideoInfo, np.ndarray]], bad: Mapping[str, str] | None = None
) -> None:
    """Writes the moments (frames, h, w, 2 c) of some videos: first the data, then its description.

    `bad` has the names of the videos that could not be decoded, and the reasons.
    """
    moments = [np.asarray(array, np.float16) for _, _, array in videos]
    firsts = np.cumsum([0, *map(len, moments)])
    described = [
        CachedVideo(video.name, video.label, video.split, info.to_json(), int(first))._asdict()
        for (video, info, _), first in zip(videos, firsts, strict=False)
    ]
    checks = [zlib.crc32(frame.tobytes()) for array in moments for frame in array]
    with atomic(_shard(path, number, ".npy")) as unfinished:
        np.save(unfinished, np.concatenate(moments) if moments else np.zeros((0, 1, 1, 2), np.float16))
        digest = file_sha256(unfinished)
    description = {"videos": described, "bad": dict(bad or {}), "crc32": checks, "sha256": digest}
    atomic_write(_shard(path, number, ".json"), json.dumps(description))


class Latents:
    """Clips of a latent cache, as moments (F, h, w, 2 C) float16: mean and logvar, unscaled.

    Args:
      shape: (F, h, w, C) of the latents.
      split: `train` or `held_out`, as for `VideoFolder`.
      path: the cache.
      held_out, stride, fps, hop, short, labels: as for `VideoFolder`.

    Attributes:
      autoencoder: the hash of the autoencoder that encoded the videos.
      scaling_factor: of the autoencoder: latents are scaling_factor * (mean + exp(logvar / 2) eps).

    Raises:
      UserError: no cache, one that is not finished or of a different size, no video long enough.
    """

    generated = False
    crop = "that of the latent cache; the truth is what its modes decode to"

    def __init__(
        self,
        shape: tuple[int, int, int, int],
        split: str,
        path: str = "",
        held_out: float = 0.1,
        stride: int = 1,
        fps: float = 0.0,
        hop: int = 4,
        short: str = "skip",
        labels: bool = False,
    ):
        if not path:
            raise UserError("data.path is missing: add --config.data.path=DIR, which prepare.py --vae wrote")
        metadata, self._path = read_metadata(path), Path(path)
        self.autoencoder: str = metadata["autoencoder"]
        self.scaling_factor: float = metadata["scaling_factor"]
        if tuple(metadata["latent_size"]) != shape[1:]:
            raise UserError(
                f"{path} holds latents of {metadata['latent_size']} (h, w, c), not {shape[1:]}: set model.input_size "
                "and model.in_channels to these, or prepare a different size"
            )
        missing = [n for n in range(metadata["num_shards"]) if not _shard(self._path, n, ".json").is_file()]
        if missing:
            done = metadata["num_shards"] - len(missing)
            raise UserError(
                f"{path} has {done} of its {metadata['num_shards']} shards: run prepare.py again to finish it"
            )
        self._window = Window(shape[0], stride, fps, hop, short)
        self._checks: list[np.ndarray] = []
        videos = list(self._read_shards(metadata["num_shards"]))
        chosen = [videos[n] for n in of_split([video[0] for video in videos], split, held_out)]
        self.identity = identity_of([[*video[0], video[1].num_frames] for video in chosen])
        self._videos = usable(chosen, self._window, split, path)
        self._clips = ClipTable([self._window.count(video[1]) for video in self._videos])
        if split == "train":
            log_short(path, self._window, [video[1] for video in videos])
        classes = class_numbers(video[0] for video in videos)
        self.num_classes = len(classes) if labels else 1
        self._labels = classes if labels else dict.fromkeys(classes, 0)

    def _read_shards(self, count: int) -> Iterator[tuple[Found, VideoInfo, int, int]]:
        for shard in range(count):
            try:
                description = json.loads(_shard(self._path, shard, ".json").read_text())
                self._checks.append(np.array(description["crc32"], np.uint32))
                videos = [CachedVideo(**fields) for fields in description["videos"]]
                known = [VideoInfo.from_json(video.info) for video in videos]
            except _DAMAGE:
                raise _damaged(self._path, shard, ".json") from None
            for video, info in zip(videos, known, strict=True):
                yield Found(video.name, video.label, video.split), info, shard, video.first

    def check_autoencoder(self, other: str) -> None:
        """Raises UserError if the autoencoder of the hash `other` did not encode these latents."""
        if other != self.autoencoder:
            raise UserError(
                f"{self._path} was made by the autoencoder {self.autoencoder[:12]}, the one named is {other[:12]}: "
                "name the one that made it, or make the cache again with this one"
            )

    def __len__(self) -> int:
        return len(self._clips)

    def clip(self, number: int, rng: np.random.Generator | None = None) -> Clip:
        """See `Source`; `rng` is not used.

        Raises:
          UserError: a corrupt cache.
        """
        number, which = self._clips[number]
        video, info, shard, first = self._videos[number]
        frames = [first + n for n in self._window.numbers(info, which)]
        try:
            moments = np.asarray(_open(self._path, shard)[frames])
        except _DAMAGE:
            raise _damaged(self._path, shard, ".npy") from None
        if [zlib.crc32(frame) for frame in moments] != self._checks[shard][frames].tolist():
            raise _damaged(self._path, shard, ".npy")
        return {"video": moments, "label": self._labels[video.label]}


@functools.lru_cache(maxsize=256)
def _open(path: Path, shard: int) -> np.ndarray:
    return np.load(_shard(path, shard, ".npy"), mmap_mode="r")


def _shard(path: Path, number: int, suffix: str) -> Path:
    return path / f"shard_{number:05d}{suffix}"


def _damaged(path: Path, shard: int, suffix: str) -> UserError:
    return UserError(f"{_shard(path, shard, suffix)} is corrupt: re-run prepare.py to repair it")
