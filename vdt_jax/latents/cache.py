"""A cache of latents: what an autoencoder makes of each frame of each video, encoded once by prepare.py.

    DIR/metadata.json      the autoencoder's hash, scaling factor and dtype, the sizes, how many shards there are
    DIR/shard_00000.npy    moments (frames, h, w, 2 c) float16: mean and logvar, so that each epoch draws anew
    DIR/shard_00000.json   its videos in order, those that could not be decoded, a CRC-32 of each frame, the SHA-256 of
                           the .npy; written last

Clips are served as moments, and the step draws scaling_factor * (mean + exp(logvar / 2) eps) on the device.
"""

import functools
import hashlib
import json
import os
import socket
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vdt_jax.data.clips import Clip
from vdt_jax.data.discover import Found
from vdt_jax.data.windows import ClipTable, Window, nothing_of, of_split, tell_short
from vdt_jax.errors import UserError
from vdt_jax.video import VideoInfo
from vdt_jax.video.images import natural_key

FORMAT = 1
_DAMAGE = (OSError, ValueError, EOFError, LookupError, TypeError)  # what reading half a file, or none, may raise


class CachedVideo(NamedTuple):
    """A video of a shard: its name, class and split as `Found` has them, what is known of it, its first frame there."""

    name: str
    label: str
    split: str
    info: dict[str, Any]
    first: int


def read_metadata(path: str | os.PathLike) -> dict[str, Any]:
    """metadata.json of a cache.

    Raises:
      UserError: no cache there, or one of another version.
    """
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
    """Writes metadata.json, or compares with the one that is there.

    Raises:
      UserError: a cache that was begun with something else.
    """
    metadata = metadata | {"format": FORMAT}
    if (path / "metadata.json").is_file():
        theirs = read_metadata(path)
        # What a cache from before says nothing of is left open.
        if differing := sorted(key for key in theirs if theirs[key] != metadata.get(key)):
            shown = ", ".join(f"{key}={theirs[key]} (now {metadata.get(key)})" for key in differing)
            raise UserError(f"{path} was begun with {shown}: choose another --output, or the same values")
        return
    path.mkdir(parents=True, exist_ok=True)
    _write_whole(path / "metadata.json", json.dumps(metadata, indent=2).encode())


def shard_is_whole(path: Path, number: int) -> bool:
    """Whether a shard is there with the bytes that were written."""
    try:
        description = json.loads(_shard(path, number, ".json").read_text())
        with _shard(path, number, ".npy").open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == description["sha256"]
    except _DAMAGE:
        return False


def bad_videos(path: Path, number: int) -> dict[str, str]:
    """Why those videos of a whole shard that are not in it could not be decoded, by name."""
    return json.loads(_shard(path, number, ".json").read_text()).get("bad", {})


def write_shard(
    path: Path, number: int, videos: Sequence[tuple[Found, VideoInfo, np.ndarray]], bad: Mapping[str, str] | None = None
) -> None:
    """Writes the moments (frames, h, w, 2 c) of some videos: the data, then, as a sign that it is whole, what it is.

    `bad` are those videos that could not be decoded, with the reasons.
    """
    moments = [np.asarray(array, np.float16) for _, _, array in videos]
    firsts = np.cumsum([0, *map(len, moments)])
    described = [
        CachedVideo(video.name, video.label, video.split, info.to_json(), int(first))._asdict()
        for (video, info, _), first in zip(videos, firsts, strict=False)
    ]
    checks = [zlib.crc32(frame.tobytes()) for array in moments for frame in array]
    data = _shard(path, number, ".npy")
    unfinished = data.with_suffix(".tmp")
    with unfinished.open("wb") as file:
        np.save(file, np.concatenate(moments) if moments else np.zeros((0, 1, 1, 2), np.float16))
    with unfinished.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    unfinished.replace(data)
    description = {"videos": described, "bad": dict(bad or {}), "crc32": checks, "sha256": digest}
    _write_whole(_shard(path, number, ".json"), json.dumps(description).encode())


class Latents:
    """Clips of a latent cache, as moments (F, h, w, 2 C) float16: mean and logvar, not scaled.

    Args:
      shape: (F, h, w, C) of the latents.
      split: `train` or `held_out`, as for `VideoFolder`.
      path: the cache.
      held_out, stride, fps, hop, short, labels: as for `VideoFolder`.

    Attributes:
      autoencoder: the hash of the autoencoder that made it.
      scaling_factor: of the autoencoder; latents are its product with what is drawn.

    Raises:
      UserError: no cache, one that is not finished or of another size, no video long enough.
    """

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
            raise UserError("no latent cache was named: add --config.data.path=DIR, which prepare.py --vae wrote")
        metadata, self._path = read_metadata(path), Path(path)
        self.autoencoder: str = metadata["autoencoder"]
        self.scaling_factor: float = metadata["scaling_factor"]
        if tuple(metadata["latent_size"]) != shape[1:]:
            raise UserError(f"{path} holds latents of {metadata['latent_size']} (h, w, c), not {shape[1:]}")
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
        usable = [video for video in chosen if self._window.count(video[1])]
        if not usable:
            raise UserError(nothing_of(split, path, len(chosen), [video[1] for video in chosen], self._window))
        self._videos = usable
        self._clips = ClipTable([self._window.count(video[1]) for video in usable])
        if split == "train":
            tell_short(path, self._window, [video[1] for video in videos])
        classes = list(dict.fromkeys(sorted((video[0].label for video in videos), key=natural_key)))
        self.num_classes = len(classes) if labels else 1
        self._labels = {label: number if labels else 0 for number, label in enumerate(classes)}

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
        """Raises UserError where the autoencoder of another hash is to decode these latents."""
        if other != self.autoencoder:
            raise UserError(
                f"{self._path} was made by the autoencoder {self.autoencoder[:12]}, the one named is {other[:12]}: "
                "name the one that made it, or make the cache again with this one"
            )

    def __len__(self) -> int:
        return len(self._clips)

    def clip(self, number: int, rng: np.random.Generator | None = None) -> Clip:
        """See `Source`; nothing in moments is random.

        Raises:
          UserError: the cache is not what was written.
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
    return UserError(f"{_shard(path, shard, suffix)} is damaged: run prepare.py again, which mends it")


def _write_whole(path: Path, content: bytes) -> None:
    """Several hosts may write the same file at once, with the same content."""
    unfinished = path.with_suffix(f".{socket.gethostname()}.{os.getpid()}.tmp")
    unfinished.write_bytes(content)
    unfinished.replace(path)
