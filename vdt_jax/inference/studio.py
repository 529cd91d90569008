"""What the page of app.py calls: a clip to look at, and sampling; every value is checked, as anybody may send it."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from vdt_jax.data import take
from vdt_jax.data.discover import LIST_SUFFIXES
from vdt_jax.errors import UserError
from vdt_jax.inference.inputs import fit_mask, open_videos
from vdt_jax.inference.options import SampleOptions
from vdt_jax.inference.pipeline import Pipeline
from vdt_jax.options import build
from vdt_jax.video import as_rgb, enlarge, to_uint8, write_video

PAINTED = "what I paint"  # in place of a task
MAX_STEPS = 250
_EDITOR_HEIGHT = 256


class Studio:
    """A model, and a folder for the files of the last sample."""

    def __init__(self, pipe: Pipeline, folder: Path):
        self.pipe, self._folder = pipe, folder

    def first_frame(self, file: Any, seed: Any) -> dict[str, Any]:
        """The frame that the editor shows to be painted on."""
        options = build(SampleOptions, {"seed": _whole("seed", seed)})
        video = open_videos(self._input(file, options.seed)[0])[0]
        frame = as_rgb(enlarge(to_uint8(video.read([0], self.pipe.shape[1:])), _EDITOR_HEIGHT))[0]
        return {"background": frame, "layers": [], "composite": frame}

    def run(
        self,
        file: Any,
        painted: Any,
        task: Any,
        num_given: Any,
        sampler: Any,
        steps: Any,
        seed: Any,
        progress: Callable[[int, int], object],
    ) -> tuple[str, str]:
        """Samples; returns the files of the comparison and of the sample."""
        options = {"sampler": sampler, "steps": _whole("steps", steps), "seed": _whole("seed", seed), "num_samples": 1}
        if options["steps"] > MAX_STEPS:
            raise UserError(f"steps must be <= {MAX_STEPS} on the page, got {options['steps']}")
        if task == PAINTED:
            options["mask"] = self._painted_mask(painted)
        else:
            options["task"] = task
        if task in ("predict", "backward"):
            options["num_given"] = _whole("num_given", num_given)
        checked = build(SampleOptions, options)
        input, options["labels"] = self._input(file, checked.seed)
        clip: Any = self.pipe.sample(input, progress=progress, **options)
        comparison, sample = self._folder / "sample.gif", self._folder / "sample.mp4"  # Gradio copies them
        clip.save_comparison(comparison)
        write_video(sample, enlarge(clip.video), clip.fps)
        return str(comparison), str(sample)

    def _input(self, file: Any, seed: int) -> tuple[Any, tuple[int, ...] | None]:
        """The uploaded file, or the held-out clip of this number and its label."""
        if file:
            # A list or a folder would name other files of this machine.
            if not isinstance(file, str) or not Path(file).is_file() or Path(file).suffix.lower() in LIST_SUFFIXES:
                raise UserError(
                    "the page accepts one video, GIF, image or array: upload a single file, not a list of files"
                )
            return file, None
        batch = take(self.pipe.source(), [seed])
        labels = tuple(batch["labels"].tolist()) if self.pipe.model.num_classes > 1 else None
        return to_uint8(batch["video"][0]), labels

    def _painted_mask(self, painted: Any) -> np.ndarray:
        """What was painted over, (H, W) bool."""
        layers = painted.get("layers") or [] if isinstance(painted, dict) else []
        shapes = [np.asarray(layer)[..., 3] > 0 for layer in layers if np.ndim(layer) == 3 and np.shape(layer)[2] == 4]
        if not any(shape.any() for shape in shapes):
            raise UserError("nothing is painted: paint over the region to generate, or choose a task")
        return fit_mask(np.any(shapes, axis=0), self.pipe.shape[1:3])


def _whole(name: str, value: Any) -> int:
    """A number of the page, which may be a float, as an integer."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value % 1:
        raise UserError(f"{name} must be a whole number, got {value!r}")
    return int(value)
