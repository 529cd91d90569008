"""A folder of video files, any depth, through PyAV."""

from pathlib import Path

import av
import av.error

from vdt_jax.data.clips import Clip, UnreadableClip
from vdt_jax.errors import UserError
from vdt_jax.video import VIDEO_SUFFIXES, read_clip


def _count_frames(path: Path) -> int:
    """Frames of a video file: what the container says, else counted; 0 where it cannot be read."""
    try:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            return stream.frames or sum(1 for packet in container.demux(stream) if packet.size)
    except (av.error.FFmpegError, OSError, IndexError):
        return 0


class VideoFolder:
    """Clips of the videos below a folder: centre-cropped, resized, (F, H, W, C) uint8.

    One video in ten, and at least one, is held out; a folder of a single video serves both splits with it.

    Args:
      shape: (F, H, W, C), C = 3, or 1 for grey.
      split: `train` or `held_out`.
      path: the folder.
      stride: frames of the file from one frame of a clip to the next.
      hop: frames of the file from the start of one clip to the start of the next.

    Raises:
      UserError: no folder, no videos in it, or none long enough.
    """

    def __init__(self, shape: tuple[int, int, int, int], split: str, path: str, stride: int = 1, hop: int = 4):
        if not path:
            raise UserError("no folder of videos was named: add --config.data.path=FOLDER")
        if not Path(path).is_dir():
            raise UserError(f"no folder {path}: --config.data.path must name one with videos in it")
        if stride < 1 or hop < 1:
            raise UserError(f"data.stride={stride} and data.hop={hop} must be at least 1")
        if shape[3] not in (1, 3):
            raise UserError(f"videos have 3 channels, or 1 in grey: not in_channels={shape[3]}")
        videos = sorted(
            file for file in Path(path).rglob("*") if file.suffix.lower() in VIDEO_SUFFIXES and file.is_file()
        )
        if not videos:
            raise UserError(f"no videos in {path}: looked for {', '.join(VIDEO_SUFFIXES)}")
        if len(videos) > 1:
            videos = videos[::10] if split == "held_out" else [v for i, v in enumerate(videos) if i % 10]
        self.num_classes = 1
        self._shape, self._stride = shape, stride
        span = (shape[0] - 1) * stride + 1
        counts = {video: _count_frames(video) for video in videos}
        self._clips = [(video, start) for video, count in counts.items() for start in range(0, count - span + 1, hop)]
        if not self._clips:
            longest = max(counts.values())
            raise UserError(
                f"no video for the {split} split in {path} has the {span} frames of a clip: the longest has {longest}"
            )

    def __len__(self) -> int:
        return len(self._clips)

    def __getitem__(self, index: int) -> Clip:
        video, start = self._clips[index]
        try:
            return {"video": read_clip(video, self._shape, start, self._stride), "label": 0}
        except UserError as error:
            raise UnreadableClip(str(error)) from None
