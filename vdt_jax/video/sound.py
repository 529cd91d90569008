"""Copies the sound of a video into an mp4, packet by packet, without re-encoding."""

import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av.error

from vdt_jax.video.images import is_image
from vdt_jax.video.read import open_film

logger = logging.getLogger(__name__)


def packets(path: str | os.PathLike, start: float, output: Any) -> Iterator[tuple[float, Any]]:
    """Adds the sound of a file to an output container; then its packets, each with its time in seconds.

    There are none where there is no sound, where the output cannot hold it, or after damage; the last two are logged.

    Args:
      path: a video in any form.
      start: seconds from its first frame to the first frame of the output.
      output: a container of PyAV, before its first packet; the packets are for it.
    """
    if Path(path).is_dir() or is_image(path):
        return iter(())
    with open_film(path) as film:
        first = next(film.decode())
        source = film.container.streams.best("audio")
        if source is None:
            return iter(())
        codec = source.codec_context.codec.canonical_name
        if codec not in output.supported_codecs:
            logger.warning("the sound of %s is not kept: an mp4 cannot hold %s", path, codec)
            return iter(())
        target = output.add_stream_from_template(source)
    return _shifted(path, start + float((first.pts or 0) * first.time_base), target)


def _shifted(path: str | os.PathLike, origin: float, target: Any) -> Iterator[tuple[float, Any]]:
    """The packets of the sound of a file that are not over at `origin`, in seconds, which becomes 0."""
    with open_film(path) as film:
        source = film.container.streams.best("audio")
        shift = round(origin / source.time_base)
        try:
            for packet in film.container.demux(source):
                if packet.pts is None or packet.dts is None or packet.pts + (packet.duration or 0) < shift:
                    continue
                packet.pts, packet.dts, packet.stream = packet.pts - shift, packet.dts - shift, target
                yield float(packet.pts * source.time_base), packet
        except av.error.FFmpegError as error:
            logger.warning("the sound of %s is cut off where it is damaged: %s", path, error)
