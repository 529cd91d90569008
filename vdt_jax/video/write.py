"""Write video in the format of a file's suffix."""

import os
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image

from vdt_jax.errors import UserError
from vdt_jax.video.frames import as_rgb, frame_grid

OUTPUT_SUFFIXES = (".mp4", ".gif", ".png", ".npz")


def write_video(path: str | os.PathLike, frames: np.ndarray, fps: float = 8) -> None:
    """Writes uint8 frames (F, H, W, 1 or 3) in the format of the suffix: .mp4, .gif, .png (a grid) or .npz (`video`).

    Raises:
      UserError: another suffix.
    """
    path = Path(path)
    frames = as_rgb(frames)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".mp4":
        _write_mp4(path, frames, fps)
    elif path.suffix == ".gif":
        images = [Image.fromarray(frame) for frame in frames]
        images[0].save(path, save_all=True, append_images=images[1:], duration=round(1000 / fps), loop=0)
    elif path.suffix == ".png":
        Image.fromarray(frame_grid(frames)).save(path)
    elif path.suffix == ".npz":
        np.savez_compressed(path, video=frames)
    else:
        raise UserError(f"cannot write {path}: end its name in {', '.join(OUTPUT_SUFFIXES)}")


def _write_mp4(path: Path, frames: np.ndarray, fps: float) -> None:
    height, width = frames.shape[1:3]
    even = np.pad(frames, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), mode="edge")  # yuv420p halves both
    with av.open(os.fspath(path), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001), options={"crf": "16"})
        stream.width, stream.height, stream.pix_fmt = even.shape[2], even.shape[1], "yuv420p"
        for frame in even:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
