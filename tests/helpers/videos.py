"""Small videos whose frames tell their numbers, and writing them as chosen."""

import itertools
import os
from fractions import Fraction

import av
import numpy as np

from vdt_jax.data import make_source
from vdt_jax.video import fit_frame, read_frames

SHAPE = (4, 16, 24, 3)


def count_up(num=40, height=32, width=48):
    """(F, H, W, 3): six black or white bars are the number of the frame in binary."""
    bits = np.arange(num)[:, None] >> np.arange(6) & 1
    bars = np.repeat(bits * 255, width // 6, axis=1).astype(np.uint8)
    return np.broadcast_to(bars[:, None, :, None], (num, height, width, 3)).copy()


def numbers_of(frames):
    """Which frames of `count_up` these are."""
    return [int((np.stack(np.split(frame.mean((0, 2)), 6)).mean(1) > 127) @ (1 << np.arange(6))) for frame in frames]


def write(path, frames, pts=None, codec="libx264", options=None, pix_fmt="yuv420p", format=None, rate=30, aspect=None):
    """A video file of RGB or RGBA frames, with chosen presentation times in units of 1 / rate, and aspect of pixels."""
    with av.open(os.fspath(path), "w", format=format) as container:
        stream = container.add_stream(codec, rate=rate, options=options or {})
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], pix_fmt
        stream.codec_context.time_base = stream.time_base = 1 / Fraction(rate)
        if aspect is not None:
            stream.codec_context.sample_aspect_ratio = aspect
        for number, image in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24" if image.shape[-1] == 3 else "rgba")
            frame.pts = number if pts is None else pts[number]
            frame.time_base = 1 / Fraction(rate)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def moving_square(num_frames=20, height=48, width=64):
    """(F, H, W, 3): a red square that moves right on blue."""
    frames = np.zeros((num_frames, height, width, 3), np.uint8)
    frames[..., 2] = 200
    for f in range(num_frames):
        frames[f, 16:32, 8 + 2 * f : 20 + 2 * f] = (220, 20, 20)
    return frames


def open_folder(path, split="train", shape=SHAPE, **options):
    return make_source({"name": "video_folder", "path": str(path), "held_out": 0.0} | options, shape, split)


def read_clip(path, shape, start=0, stride=1):
    """Frames start, start + stride, ... of a video, cropped and resized: uint8 of shape (F, H, W, C)."""
    frames = itertools.islice(read_frames(path, start, stride), shape[0])
    return np.stack([fit_frame(frame, shape[1:3], shape[3]) for frame in frames])
