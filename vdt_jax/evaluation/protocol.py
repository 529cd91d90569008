"""How something was measured: every choice that changes a number, and presets named after papers.

A figure without these cannot be reproduced; with them it can be compared. They are printed and written with each
report, and a report that is resumed must have the same.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any, NamedTuple

from vdt_jax.errors import UserError

POSITIONS = ("generated", "all")
FVD_FRAMES = ("all", "generated")
METRICS = ("psnr", "ssim", "motion", "lpips", "fvd", "frame_frechet")


@dataclasses.dataclass(frozen=True)
class Protocol:
    """All that a report's numbers follow from, in plain values.

    Attributes:
      preset: the paper that this follows, and what was set otherwise.
      checkpoint, vae: as given on the command line.
      model_sha256, vae_sha256: of the sizes and parameters that were found there.
      data: the `data` section of the model's config.
      split: `held_out` or `train`.
      clips: their number, and `first_clip`, `every`: the clips are first_clip, first_clip + every, ...
      clips_sha256: of the clips themselves, 8 bits a value, in this order.
      frames, height, width, channels: of a clip.
      crop: how a frame becomes height x width.
      stride: frames of the file from one frame of a clip to the next, where there are files.
      clips_per_video: what is known of it.
      tasks: those measured.
      num_given: frames given to predict and backward.
      told_labels: tasks in which a model with classes is told those of the clips; "no label" in the others.
      guidance: its scale in those tasks, None for none.
      positions: PSNR, SSIM, motion and LPIPS count what was `generated` (LPIPS: whole frames with any of it), or `all`.
      fvd_frames: FVD compares `all` frames, the given ones included, or those `generated`.
      samples_per_clip: of each clip and task; scores are their mean, and the best of them beside it.
      sampler, steps, seed: of the sampling; sample j of clip n depends on seed + j and n alone.
      metrics: those measured.
      networks: which networks looked, and the SHA-256 of their weights.
      versions: of what computed.
    """

    preset: str | None
    checkpoint: str
    vae: str | None
    model_sha256: str
    vae_sha256: str | None
    data: dict[str, Any]
    split: str
    clips: int
    first_clip: int
    every: int
    clips_sha256: str
    frames: int
    height: int
    width: int
    channels: int
    crop: str
    stride: int | None
    clips_per_video: str
    tasks: list[str]
    num_given: int | None
    told_labels: list[str]
    guidance: float | None
    positions: str
    fvd_frames: str
    samples_per_clip: int
    sampler: str
    steps: int
    seed: int
    metrics: list[str]
    networks: dict[str, str]
    versions: dict[str, str]

    def lines(self) -> list[str]:
        """One line for each choice, for people."""
        shown = dataclasses.asdict(self).items()
        return [f"{name.replace('_', ' ')}: {_text(value)}" for name, value in shown]

    def keep(self, path: Path) -> None:
        """Writes the protocol, or sees that it is the one of the work that was begun there.

        Raises:
          UserError: it is another.
        """
        ours = json.loads(json.dumps(dataclasses.asdict(self)))
        if path.is_file():
            theirs = json.loads(path.read_text())
            differing = [f"{key}={theirs.get(key)}, now {ours[key]}" for key in ours if theirs.get(key) != ours[key]]
            if differing:
                raise UserError(
                    f"{path.parent} was begun with {'; '.join(differing)}: "
                    "choose another --output, or delete that folder"
                )
        unfinished = path.with_suffix(".tmp")
        unfinished.write_text(json.dumps(ours, indent=2) + "\n")
        unfinished.replace(path)


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_text(item)}" for name, item in value.items()) or "none"
    return ", ".join(map(str, value)) if isinstance(value, list) else "none" if value is None else str(value)


class Preset(NamedTuple):
    """What a paper's numbers were measured with.

    Attributes:
      frames, size: of the clips; a model of others cannot be measured so.
      flags: values of evaluate.py's flags. Clips are taken as far apart as there is room for, unless --every says.
      note: what is left open, and what is done here.
    """

    frames: int
    size: tuple[int, int]
    flags: dict[str, Any]
    note: str


# MCVD: github.com/voletiv/mcvd-pytorch at 451da2e (datasets, example_scripts/final, video_gen). Latte:
# github.com/Vchitect/Latte at b27c24a (tools/eval_metrics.sh). VDT published no code for its tables.
PRESETS = {
    "vdt-ucf101": Preset(
        16,
        (64, 64),
        {"tasks": ["unconditional"], "num_clips": 2048, "fvd_frames": "all", "split": "train"},
        "VDT, table of UCF-101, unconditional. The number of clips and the split are not known: 2,048 of the training "
        "split, as is usual for unconditional FVD.",
    ),
    "vdt-cityscapes": Preset(
        30,
        (128, 128),
        {"tasks": ["predict"], "num_given": 2, "num_clips": 256, "fvd_frames": "all"},
        "VDT, table of Cityscapes, 2 given frames and 28 to predict. Its protocol is not known. MCVD, with whose "
        "numbers it compares, takes 256 videos of the test split, counts the given frames in FVD, and the best of 10 "
        "samples in SSIM (of grey frames, without the border of 5): here one sample, each colour, and the border.",
    ),
    "mcvd-smmnist": Preset(
        15,
        (64, 64),
        {
            "tasks": ["predict"],
            "num_given": 5,
            "num_clips": 256,
            "samples_per_clip": 10,
            "fvd_frames": "all",
            "steps": 100,
        },
        "MCVD's code on stochastic moving MNIST: 256 test clips, 5 given frames and 10 to predict, 10 samples of "
        "each, the best of which counts in PSNR, SSIM and LPIPS; FVD takes all of them, given frames included. Not as "
        "there: which digits (there the first 256 of MNIST's test file), SSIM (there of pixels rounded to black and "
        "white, without the border of 5) and LPIPS (there of frames enlarged to 128x128).",
    ),
    "latte-sky": Preset(
        16,
        (256, 256),
        {"tasks": ["unconditional"], "num_clips": 2048, "fvd_frames": "all", "split": "train", "stride": 3},
        "Latte's code on Sky Time-Lapse: 2,048 samples against a clip of every third frame from each of 2,048 videos "
        "drawn at random, half of them mirrored. Which split is not known: the training split. Not as there: the copy "
        "of I3D, and no video is mirrored.",
    ),
}


def find_preset(name: str, frames: int, size: tuple[int, int]) -> Preset:
    """The preset of a name.

    Raises:
      UserError: an unknown one, or one for other clips than the model's.
    """
    if name not in PRESETS:
        raise UserError(f"no preset '{name}': choose from {', '.join(PRESETS)}")
    preset = PRESETS[name]
    if (preset.frames, preset.size) != (frames, size):
        raise UserError(
            f"preset {name} measures {preset.frames} frames of {preset.size[0]}x{preset.size[1]}, this model makes "
            f"{frames} of {size[0]}x{size[1]}: leave out --preset, or take another model"
        )
    return preset


def chosen_clips(total: int, count: int, first: int = 0, every: int | None = 1) -> range:
    """The numbers of up to `count` of a source's `total` clips.

    Args:
      every: so many-th clip is taken, from `first` on; None to take them as far apart as there is room for.

    Raises:
      UserError: no clip has the number `first`.
    """
    room = total - first
    if room < 1:
        raise UserError(f"--first_clip={first} is past the end: the split has {total} clips")
    step = every or max(1, room // count)
    return range(first, first + min(count * step, room), step)
