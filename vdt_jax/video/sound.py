"""Copies the sound of a video into an mp4, packet by packet, without re-encoding."""

import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av.error

from vdt_jax.video.images import is_image
from vdt_jax.video.read import open_video

logger = logging.getLogger(__name__)


def packets(path: str | os.PathLike, start: float, output: Any) -> Iterator[tuple[float, Any]]:
    """The packets of the sound of a file, each with its time in seconds; their stream is added to `output` first.

    There are none where the file has no sound. Sound that the output cannot hold, and damage, are logged.

    Args:
      path: a video in any form.
      start: seconds from its first frame to the first frame of the output.
      output: a container of PyAV, before its first packet.
    """
    if Path(path).is_dir() or is_image(path):
        return
    with open_video(path) as video:
        first = next(video.decode())
        origin = start + float((first.pts or 0) * first.time_base)
    with open_video(path) as video:
        source = video.container.streams.best("audio")
        if source is None:
            return
        codec = source.codec_context.codec.canonical_name
        if codec not in output.supported_codecs:
            logger.warning("the sound of %s is not kept: an mp4 cannot hold %s", path, codec)
            return
        target, shift = output.add_stream_from_template(source), round(origin / source.time_base)
        try:
            for packet in video.container.demux(source):
                if packet.dts is not None and packet.pts + (packet.duration or 0) >= shift:
                    packet.pts, packet.dts, packet.stream = packet.pts - shift, packet.dts - shift, target
                    yield float(packet.pts * source.time_base), packet
        except av.error.FFmpegError as error:
            logger.warning("the sound of %s is cut off where it is damaged: %s", path, error)
