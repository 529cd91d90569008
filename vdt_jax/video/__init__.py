"""Read and write video: what FFmpeg decodes, GIF, animated WebP, images, folders of frames; mp4, GIF, PNG grids, npz.

Files and the functions here have frames as uint8 `(F, H, W, 3)`; elsewhere video is float32 `(F, H, W, C)` in [-1, 1].
mp4 is lossy: given frames in a file differ slightly from the input. GIF keeps 256 colours per frame.
"""

from vdt_jax.video.frames import (
    CENTRE,
    CENTRE_AS_DIT,
    Crop,
    as_rgb,
    enlarge,
    fit_frame,
    frame_grid,
    hide,
    side_by_side,
    to_float,
    to_uint8,
)
from vdt_jax.video.images import IMAGE_SUFFIXES
from vdt_jax.video.info import VideoInfo
from vdt_jax.video.read import VIDEO_SUFFIXES, probe, read_frames, read_numbers
from vdt_jax.video.write import OUTPUT_SUFFIXES, VideoWriter, check_rate, write_video

__all__ = [
    "CENTRE",
    "CENTRE_AS_DIT",
    "IMAGE_SUFFIXES",
    "OUTPUT_SUFFIXES",
    "VIDEO_SUFFIXES",
    "Crop",
    "VideoInfo",
    "VideoWriter",
    "as_rgb",
    "check_rate",
    "enlarge",
    "fit_frame",
    "frame_grid",
    "hide",
    "probe",
    "read_frames",
    "read_numbers",
    "side_by_side",
    "to_float",
    "to_uint8",
    "write_video",
]
