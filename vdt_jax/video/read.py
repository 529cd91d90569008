"""Read video: every file that FFmpeg or Pillow decodes, and folders of frames.

The first bytes of a file decide how it is decoded, not its name (except .mjpeg, which begins like an image).
"""

import contextlib
import itertools
import os
import struct
from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import av.error
import av.filter
import av.sidedata.sidedata
import numpy as np
from av.stream import Disposition
from PIL import Image, UnidentifiedImageError

from vdt_jax.errors import UserError, printable
from vdt_jax.video.images import folder_numbers, image_numbers, is_image, probe_folder, probe_image
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
_PLAYLISTS = (b"#EXTM3U", b"ffconcat", b"<?xml", b"<MPD")  # they name other files, for which FFmpeg may wait for ever
# How many frames before the wanted one a seek aims at, in the order of the tries. A seek may find a keyframe that is
# shown after the wanted frame, since files are searched in decoding order; in an MPEG stream, which has no index, it
# may land anywhere. The last try is further back than the 250 frames between two keyframes of x264.
_SEEK_MARGINS = (0, 16, 128, 300)
# In MPEG program streams (.mpg, .vob) FFmpeg guesses the times of the frames between two known times, and after a seek
# it guesses other times than when it reads from the beginning.
_GUESSED_TIMES = ("mpeg",)
# AVI stores only the decoding order; for these codecs FFmpeg does not find the display order from it.
_UNORDERED_IN_AVI = ("h264", "hevc")
_RATE_TOLERANCE = 0.05  # a declared rate that differs by more from the rate of the frames' times is not used
_LONGEST_PIXEL = 10  # a larger aspect of a pixel is an error of the file
_TRANSPOSE = ("transpose", "cclock_flip")
_WITH_ALPHA = {"vp8": "libvpx", "vp9": "libvpx-vp9"}  # FFmpeg's own decoders of these leave transparency out
# A title that is not UTF-8 must not make a video unreadable; PyAV 19 has no such option and does not raise.
_METADATA_ERRORS: Any = {"metadata_errors": "replace"} if int(av.__version__.partition(".")[0]) < 19 else {}


def probe(path: str | os.PathLike) -> VideoInfo:
    """Counts the frames of a video and finds when each is shown. Decodes the first; all, if the file's times are wrong.

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
        raise UserError(f"{path} has no frames: give another video")
    return info


def read_numbers(
    path: str | os.PathLike, numbers: Sequence[int], pts: Sequence[int] | None = None
) -> Iterator[np.ndarray]:
    """Decodes the frames with these numbers, (H, W, 3) uint8 each, until the video ends.

    Args:
      path: a file, or a folder of frames.
      numbers: rising, counted from 0 as by `probe`.
      pts: when these frames are shown, from `probe`; a file is then not decoded from its beginning, but from a keyframe
        before them.

    Raises:
      UserError: nothing there, or nothing that can be decoded.
    """
    with _named_failures(path):
        if Path(path).is_dir():
            yield from folder_numbers(path, numbers)
        elif is_image(path):
            yield from image_numbers(path, numbers)
        elif pts is None:
            yield from _chosen(path, _decode_all(path), numbers)
        else:
            yield from _chosen(path, _decode_before(path, pts[0]), pts)


def read_frames(path: str | os.PathLike, start: int = 0, stride: int = 1) -> Iterator[np.ndarray]:
    """Decodes frames start, start + stride, ... of a video, as `read_numbers` does."""
    yield from read_numbers(path, range(start, 1 << 62, stride))


@contextlib.contextmanager
def _named_failures(path: str | os.PathLike) -> Iterator[None]:
    """Whatever the decoders raise, as one line with the file's name; a pipe or a device is not even opened."""
    shown = printable(path)
    if not Path(path).exists():
        raise UserError(f"file not found: {shown}")
    if not (Path(path).is_file() or Path(path).is_dir()):
        raise UserError(f"{shown} is neither a file nor a folder")
    try:
        yield
    except UserError:
        raise
    except UnidentifiedImageError:
        raise UserError(f"{shown} cannot be decoded: it begins like an image, but the rest is not one") from None
    except _FAILURES as error:
        # What FFmpeg and the system say has a number and the path as well.
        reason = getattr(error, "strerror", None) or str(error).replace(os.fspath(path), "").strip()
        reason = reason or type(error).__name__
        raise UserError(f"{shown} cannot be decoded ({reason}): is it a video?") from None


class _Video:
    """An open file, its video stream, and the decoder."""

    def __init__(self, container: Any, stream: Any, decoder: Any):
        self.container, self.stream, self.decoder = container, stream, decoder
        self._graph: Any = None
        self._graph_is_for: Any = None  # format and size of the frames, and the filters

    def decode(self, packets: Iterable[Any] | None = None) -> Iterator[Any]:
        """The frames of these packets, or of all that follow."""
        for packet in self.container.demux(self.stream) if packets is None else packets:
            yield from self.decoder.decode(packet)

    def decode_from_key(self, target: int) -> Iterator[Any]:
        """Seeks a time, and decodes from the keyframe found; frames that are shown before the keyframe are left out."""
        self.container.seek(target, stream=self.stream)
        self.decoder.flush_buffers()
        packets = itertools.dropwhile(lambda packet: not packet.is_keyframe, self.container.demux(self.stream))
        key = next(packets, None)
        if key is not None and key.pts is not None:
            frames = self.decode(itertools.chain([key], packets))
            yield from (frame for frame in frames if frame.pts is not None and frame.pts >= key.pts)

    def rates(self) -> tuple[float, float]:
        """The frame rate that the file declares (25 if it declares none), and the seconds of one unit of its times."""
        fps = float(self.stream.average_rate or self.stream.guessed_rate or 25)
        return fps, float(self.stream.time_base or 1 / fps)

    def pixels(self, frame: Any) -> np.ndarray:
        """(H, W, 3) uint8 as players show it: square pixels, transparency on white, turned and mirrored."""
        if frame.is_corrupt:
            raise ValueError("a frame is corrupt")
        filters, size = _turns(frame), (frame.width, frame.height)
        width, height = size[::-1] if _TRANSPOSE in filters else size
        aspect = self.stream.sample_aspect_ratio or Fraction(1)
        aspect = 1 / aspect if _TRANSPOSE in filters else aspect
        if 1 / _LONGEST_PIXEL <= aspect <= _LONGEST_PIXEL:
            width = max(1, width * aspect.numerator // aspect.denominator)
        has_alpha = any(component.is_alpha for component in frame.format.components)
        filters += [("scale", f"{width}:{height}:flags=bicubic"), ("format", "rgba" if has_alpha else "rgb24")]
        pixels = self._filtered(frame, filters)
        return _on_white(pixels, self.decoder.name) if has_alpha else pixels

    def _filtered(self, frame: Any, filters: Sequence[tuple[str, str | None]]) -> np.ndarray:
        """(H, W, C) uint8 by FFmpeg's filters, which place chroma as players do."""
        given = {"format": frame.format.name, "width": frame.width, "height": frame.height}
        if self._graph_is_for != (given, filters):
            self._graph_is_for, self._graph = (given, filters), av.filter.Graph()
            self._graph.threads = 1
            source = self._graph.add_buffer(**given | {"format": frame.format}, time_base=frame.time_base)
            nodes = [self._graph.add(*entry) for entry in [*filters, ("buffersink", None)]]
            self._graph.link_nodes(source, *nodes).configure()
        self._graph.push(frame)
        return self._graph.pull().to_ndarray()


def _turns(frame: Any) -> list[tuple[str, str | None]]:
    """The filters that turn and mirror a frame as its display matrix asks for, to the nearest quarter turn."""
    data = frame.side_data.get(av.sidedata.sidedata.Type.DISPLAYMATRIX)
    if data is None:
        return []
    # A pixel at (x, y) is shown at (a x + c y, b x + d y), but for a shift.
    (a, b, _), (c, d, _), _ = np.frombuffer(bytes(data), np.int32).reshape(3, 3).tolist()
    transposed = abs(a) + abs(d) < abs(b) + abs(c)
    mirrored, upside_down = (c < 0, b < 0) if transposed else (a < 0, d < 0)
    asked = ((_TRANSPOSE, transposed), (("hflip", None), mirrored), (("vflip", None), upside_down))
    return [turn for turn, wanted in asked if wanted]


def _on_white(pixels: np.ndarray, codec: str) -> np.ndarray:
    """(H, W, 4) uint8 over white: (H, W, 3)."""
    if codec == "rawvideo" and not pixels[..., 3].any():  # screen recorders write the fourth byte as 0
        return pixels[..., :3]
    image = Image.fromarray(pixels)
    return np.asarray(Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB"))


@contextlib.contextmanager
def open_video(path: str | os.PathLike) -> Iterator[_Video]:
    """Opens a file, but no other file to which it refers: a playlist could refer to anything."""
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
        stream = container.streams.best("video")
        if stream is None or stream.disposition & Disposition.attached_pic:  # none, or cover art
            others = (video for video in container.streams.video if not video.disposition & Disposition.attached_pic)
            stream = next(others, None)
        if stream is None:
            raise UserError(f"{printable(path)} has no video stream: give a video")
        decoder = stream.codec_context
        if stream.metadata.get("alpha_mode") == "1" and decoder.name in _WITH_ALPHA:
            decoder = av.CodecContext.create(_WITH_ALPHA[decoder.name], "r")
        decoder.thread_type = "AUTO"
        yield _Video(container, stream, decoder)


def _probe_file(path: str | os.PathLike) -> VideoInfo:
    with open_video(path) as video:
        packets = [
            (packet.pts, packet.dts, packet.is_keyframe, packet.is_discard)
            for packet in video.container.demux(video.stream)
            if packet.size
        ]
        fps, time_base = video.rates()
        guessed = video.container.format.name in _GUESSED_TIMES
        unordered = video.container.format.name == "avi" and video.decoder.name in _UNORDERED_IN_AVI
    with open_video(path) as video:
        first = next(video.decode(), None)
        if first is None:
            return VideoInfo(0, fps, 0, 0)
        height, width, _ = video.pixels(first).shape
    # A recording may begin anywhere: what comes or is shown before its first whole frame cannot be decoded. Packets
    # that an edit list discards are decoded, since others need them, but not shown.
    whole = list(itertools.dropwhile(lambda packet: not packet[2], packets)) or packets
    stamps = [pts for pts, _, _, is_discarded in whole if not is_discarded]
    if None in stamps or first.pts is None or unordered:
        return VideoInfo(len(stamps), fps, height, width)
    stamps = sorted(stamp for stamp in stamps if stamp >= first.pts)
    if guessed:
        return VideoInfo(len(stamps), fps, height, width)
    order = [dts for _, dts, _, _ in whole if dts is not None]
    if order != sorted(order) or len(set(stamps)) < len(stamps) or stamps[:1] != [first.pts]:  # times that are wrong
        with open_video(path) as video:
            shown = [frame.pts for frame in video.decode()]
        known = [stamp for stamp in shown if stamp is not None]
        # The median: of joined recordings the times jump, in both directions.
        steps = [later - earlier for earlier, later in itertools.pairwise(known) if later > earlier]
        if steps:
            fps = _plausible(fps, float(np.median(steps)) * time_base)
        return VideoInfo(len(shown), fps, height, width)
    if len(stamps) > 1:
        fps = _plausible(fps, (stamps[-1] - stamps[0]) / (len(stamps) - 1) * time_base)
    return VideoInfo(len(stamps), fps, height, width, as_pts(stamps), time_base)


def _plausible(fps: float, seconds: float) -> float:
    """The rate that a file declares, or, where that differs too much, that of `seconds` from one frame to the next."""
    return fps if abs(1 / fps - seconds) <= _RATE_TOLERANCE * seconds else 1 / seconds


def _chosen(
    path: str | os.PathLike, frames: Iterator[tuple[int, _Video, Any]], wanted: Iterable[int]
) -> Iterator[np.ndarray]:
    """The pixels of the frames with these numbers or times, which rise."""
    wanted = iter(wanted)
    key = next(wanted)
    for found, video, frame in frames:
        if found > key:
            raise UserError(f"{path} has no frame at {key}: it is corrupt, or was changed meanwhile")
        if found == key:
            yield video.pixels(frame)
            key = next(wanted, None)
            if key is None:
                return


def _decode_all(path: str | os.PathLike) -> Iterator[tuple[int, _Video, Any]]:
    """The frames of a file with their numbers."""
    with open_video(path) as video:
        yield from ((number, video, frame) for number, frame in enumerate(video.decode()))


def _decode_before(path: str | os.PathLike, stamp: int) -> Iterator[tuple[int, _Video, Any]]:
    """Frames with their times, from a keyframe at or before this time; if no seek finds one, from the first frame."""
    with open_video(path) as video:
        fps, time_base = video.rates()
        for margin in _SEEK_MARGINS:
            try:
                frames = video.decode_from_key(stamp - round(margin / (fps * time_base)))
                first = next(frames, None)
            except av.error.FFmpegError:  # cannot seek, or cannot decode what was found
                continue
            if first is not None and first.pts <= stamp:
                yield from ((frame.pts, video, frame) for frame in itertools.chain([first], frames))
                return
    yield from ((frame.pts, video, frame) for _, video, frame in _decode_all(path) if frame.pts is not None)
