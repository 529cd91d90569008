"""Long videos of the arms of the study: how fidelity and identity change with the number of the frame."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
from arms import DATASETS, MODEL, SAMPLING_STEPS, Arm, pipeline

from vdt_jax.data import make_source, take
from vdt_jax.inference.functional import sample_keys
from vdt_jax.inference.long_video import extend, window_filler
from vdt_jax.models.vdt import VDT

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))
from glyphs import NOTHING, digits_shown

NUM_NEW, NUM_CLIPS = 200, 16
NUM_GIVEN = MODEL["num_frames"] // 2  # of each window
MEASURES = ("PSNR", "identity", "empty", "motion")


def measure_drift(
    arm: Arm, sizes: dict[str, Any], params: Any, num_new: int = NUM_NEW, num_clips: int = NUM_CLIPS
) -> Any:
    """Extends held-out videos of one digit by `num_new` frames, as `sample.py --extend` does.

    Returns:
      {level of given_noise: {measure: a value for each new frame}}, means over the videos: PSNR, the share of frames
      that show the true digit (`identity`), the share that show none (`empty`), and `motion` over the truth's mean.
    """
    model = VDT(**sizes)
    shape, numbers = (NUM_GIVEN + num_new, *model.video_shape[1:]), range(num_clips)
    clips = take(make_source(DATASETS["digits"][0], shape, "held_out"), numbers)
    video, pipe = clips["video"], pipeline(arm, model, params)
    curves = {}
    for level in arm.extended:

        def complete(*arguments, level=level, **options):
            diffusion = pipe.diffusion(SAMPLING_STEPS)
            return pipe.complete(*arguments, diffusion=diffusion, given_noise=level or None, **options)

        fill = window_filler(complete, sample_keys(0, numbers), model.frame_size)
        made = np.concatenate(list(extend(fill, video[:, :NUM_GIVEN], num_new, model.num_frames)), axis=1)
        curves[f"{level:g}"] = _curves(made, video[:, NUM_GIVEN:], video[:, NUM_GIVEN - 1], clips["labels"])
    return curves


def _curves(made: np.ndarray, truth: np.ndarray, before: np.ndarray, labels: np.ndarray) -> dict[str, list[float]]:
    """The measures of new frames (B, F, H, W, C); `before` is the frame before them."""
    made = np.clip(made, -1, 1)
    psnr = 10 * np.log10(4 / ((made - truth) ** 2).mean((2, 3, 4)))
    shown = np.stack([digits_shown(clip) for clip in made])
    speeds = [
        np.abs(np.diff(np.concatenate([before[:, None], x], axis=1), axis=1)).mean((2, 3, 4)) for x in (made, truth)
    ]
    values = (psnr, shown == labels[:, None], shown == NOTHING, speeds[0] / speeds[1].mean())
    return {name: [round(float(x), 4) for x in value.mean(0)] for name, value in zip(MEASURES, values, strict=True)}
