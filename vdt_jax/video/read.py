"""Read video: every file that FFmpeg or Pillow decodes, and folders of frames, by one door.

What a file is, its first bytes say, not its name.
"""

import contextlib
import itertools
import os
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import av
import av.error
import numpy as np
from PIL import Image, UnidentifiedImageError

from vdt_jax.errors import UserError
from vdt_jax.video.images import folder_numbers, image_numbers, is_image, printable, probe_folder, probe_image
from vdt_jax.video.info import VideoInfo, as_pts

# fmt: off
VIDEO_SUFFIXES = (
    ".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".gif", ".mpg", ".mpeg", ".wmv",
    ".flv", ".ts", ".mts", ".m2ts", ".3gp", ".ogv", ".y4m", ".mjpeg", ".vob",
)
# fmt: on
# Pillow raises OSError, SyntaxError for a broken PNG and struct.error for a GIF that ends too soon.
_PILLOW_FAILURES = (OSError, SyntaxError, struct.error, EOFError, IndexError, Image.DecompressionBombError)
_FAILURES = (av.error.FFmpegError, *_PILLOW_FAILURES, ValueError, MemoryError)
_PLAYLISTS = (b"#EXTM3U", b"ffconcat", b"<?xml", b"<MPD")  # they name other files, and some are waited for without end
# How many frames before the wanted one a seek aims at, one try after another: it may land on a keyframe that is shown
# later than the wanted frame, since files are searched in the order of decoding, and in an MPEG stream, which has no
# index, it lands anywhere. The last one reaches over x264's 250 frames from keyframe to keyframe.
_SEEK_MARGINS = (0, 16, 128, 300)
# Of MPEG program streams (.mpg, .vob) the times of frames are guessed from one known time to the next, and otherwise
# after a seek than from the beginning.
_GUESSED_TIMES = ("mpeg",)
# A title that is not UTF-8 must not make a video unreadable; PyAV 19 has no such option and does not raise.
_METADATA_ERRORS: Any = {"metadata_errors": "replace"} if int(av.__version__.partition(".")[0]) < 19 else {}


def probe(path: str | os.PathLike) -> VideoInfo:
    """Counts the frames of a video and finds when each is shown, without decoding more than the first.

    Raises:
      UserError: nothing there, or nothing that can be decoded.
    """
    with _named_failures(path):
        if Path(path).is_dir():
            info = probe_folder(path)
        elif is_image(path):
            info = probe_image(path)
        else:
            info = _probe_file(path)
    if not info.num_frames:
        raise UserError(f"{path} has no frames")
    return info


def read_numbers(
    path: str | os.PathLike, numbers: Sequence[int], pts: Sequence[int] | None = None
) -> Iterator[np.ndarray]:
    """Decodes the frames of these rising numbers, from 0, (H, W, 3) uint8 each, until the video ends.

    Args:
      path: a file, or a folder of frames.
      numbers: as `probe` counts them.
      pts: when these frames are shown, from `probe`; the file is then searched, not decoded from its beginning.

    Raises:
      UserError: nothing there, or nothing that can be decoded.
    """
    with _named_failures(path):
        if Path(path).is_dir():
            yield from folder_numbers(path, numbers)
        elif is_image(path):
            yield from image_numbers(path, numbers)
        elif pts is None:
            yield from _count_to(path, numbers)
        else:
            yield from _seek_to(path, pts)


def read_frames(path: str | os.PathLike, start: int = 0, stride: int = 1) -> Iterator[np.ndarray]:
    """Decodes frames start, start + stride, ... of a video, as `read_numbers` does."""
    yield from read_numbers(path, range(start, 1 << 62, stride))


def frame_rate(path: str | os.PathLike) -> float:
    """Frames a second of a video, 25 where it does not say."""
    return probe(path).fps


@contextlib.contextmanager
def _named_failures(path: str | os.PathLike) -> Iterator[None]:
    """Whatever the decoders raise, as one line with the file's name; a pipe or a device is not even opened."""
    shown = printable(path)
    if not Path(path).exists():
        raise UserError(f"no file {shown}: give a video that exists")
    if not (Path(path).is_file() or Path(path).is_dir()):
        raise UserError(f"{shown} is neither a file nor a folder")
    try:
        yield
    except UserError:
        raise
    except UnidentifiedImageError:
        raise UserError(f"{shown} cannot be decoded: it begins as a picture and goes on as none") from None
    except _FAILURES as error:
        reason = str(error).replace(os.fspath(path), "").strip() or type(error).__name__
        raise UserError(f"{shown} cannot be decoded ({reason}): is it a video?") from None


@contextlib.contextmanager
def _open(path: str | os.PathLike) -> Iterator[tuple[Any, Any]]:
    """A file and its first video stream. Nothing that the file names is opened: playlists could name anything."""
    with Path(path).open("rb") as file:
        if file.read(16).lstrip(b"\xef\xbb\xbf").startswith(_PLAYLISTS):
            raise UserError(f"{printable(path)} is a playlist: give the videos that it names")
    name = os.path.abspath(path)  # noqa: PTH100 -- FFmpeg takes a name with a colon for an address
    with contextlib.ExitStack() as stack:
        try:
            name.encode()
            opened: Any = name
        except UnicodeEncodeError:  # a name that is not UTF-8
            opened = stack.enter_context(Path(path).open("rb"))
        container = stack.enter_context(av.open(opened, options={"protocol_whitelist": "file"}, **_METADATA_ERRORS))
        if not container.streams.video:
            raise UserError(f"{printable(path)} has no video stream")
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        yield container, stream


def _probe_file(path: str | os.PathLike) -> VideoInfo:
    with _open(path) as (container, stream):
        packets = [packet for packet in container.demux(stream) if packet.size and not packet.is_discard]
        fps, time_base = _rates(stream)
        searchable = container.format.name not in _GUESSED_TIMES
    with _open(path) as (container, _):
        first = next(container.decode(video=0), None)
        if first is None:
            return VideoInfo(0, fps, 0, 0)
        frame = _upright(first)
    # A recording may begin anywhere: what comes or is shown before its first whole frame cannot be decoded.
    whole = list(itertools.dropwhile(lambda packet: not packet.is_keyframe, packets)) or packets
    stamps = [packet.pts for packet in whole]
    if None not in stamps and first.pts is not None:
        stamps = sorted(stamp for stamp in stamps if stamp >= first.pts)
        searchable = searchable and len(set(stamps)) == len(stamps) and first.pts == stamps[0]
    else:
        searchable = False
    pts = as_pts(stamps) if searchable else None
    return VideoInfo(len(stamps), fps, frame.shape[0], frame.shape[1], pts, time_base)


def _count_to(path: str | os.PathLike, numbers: Sequence[int]) -> Iterator[np.ndarray]:
    """Decodes from the beginning and counts."""
    wanted = iter(numbers)
    number = next(wanted, None)
    with _open(path) as (container, _):
        for index, frame in enumerate(container.decode(video=0)):
            if number is None:
                return
            if index == number:
                yield _upright(frame)
                number = next(wanted, None)


def _seek_to(path: str | os.PathLike, pts: Sequence[int]) -> Iterator[np.ndarray]:
    """Decodes the frames that are shown at these rising times."""
    wanted = iter(pts)
    stamp = next(wanted)
    for frame in _decode_before(path, stamp):
        if frame.pts is not None and frame.pts > stamp:
            raise UserError(f"no frame at {stamp} in {path}")
        if frame.pts == stamp:
            yield _upright(frame)
            stamp = next(wanted, None)
            if stamp is None:
                return


def _decode_before(path: str | os.PathLike, stamp: int) -> Iterator[Any]:
    """Decodes from a keyframe that is shown at this time or before: from the first one where no seek finds another."""
    with _open(path) as (container, stream):
        fps, time_base = _rates(stream)
        for margin in _SEEK_MARGINS:
            try:
                container.seek(stamp - round(margin / (fps * time_base)), stream=stream)
                frames = container.decode(video=0)
                first = next(frames, None)
            except av.error.FFmpegError:  # nothing to be searched, or nothing that can be decoded where it landed
                continue
            if first is not None and first.key_frame and first.pts is not None and first.pts <= stamp:
                yield first
                yield from frames
                return
    with _open(path) as (container, _):
        yield from container.decode(video=0)


def _rates(stream: Any) -> tuple[float, float]:
    """Frames a second, 25 where the file does not say, and the seconds that its times count in."""
    fps = float(stream.average_rate or stream.guessed_rate or 25)
    return fps, float(stream.time_base or 1 / fps)


def _upright(frame: Any) -> np.ndarray:
    """(H, W, 3) uint8, turned as the file asks for."""
    if frame.is_corrupt:
        raise ValueError("a frame is damaged")
    return np.ascontiguousarray(np.rot90(frame.to_ndarray(format="rgb24"), frame.rotation // 90))
