"""The options of evaluation, for evaluate.py and for `evaluate`."""

import dataclasses
from typing import Any

from vdt_jax.data import SPLITS
from vdt_jax.diffusion.guidance import check_guidance_interval
from vdt_jax.diffusion.masks import TASKS
from vdt_jax.diffusion.samplers import SAMPLERS
from vdt_jax.errors import UserError
from vdt_jax.evaluation.metrics.lpips import NETWORKS
from vdt_jax.evaluation.presets import PRESETS
from vdt_jax.inference.options import MAX_SEED
from vdt_jax.options import option, validate

METRICS = ("psnr", "ssim", "motion", "lpips", "fvd", "openstl")
POSITIONS = ("generated", "all")
PSNR_OF = ("clip", "frames")
FVD_FRAMES = ("all", "generated")
# Options that a preset may set have the default None, and these values after it.
_DEFAULTS = dict(
    tasks=TASKS, split="held_out", num_clips=16, samples_per_clip=1, steps=50, fvd_frames="all", ssim_border=0
)


@dataclasses.dataclass(frozen=True)
class EvaluateOptions:
    """What to measure, and how. `None` means that an option is not given: a preset or the default sets it.

    Raises:
      UserError: a value that is not allowed, or options that do not go together.
    """

    output: Any = option(None, "Folder for the report and its page.")
    preset: str | None = option(None, "Measure as a paper did.", choices=tuple(PRESETS))
    tasks: tuple[str, ...] | None = option(None, "Tasks to measure; default: all.", choices=TASKS)
    num_given: int | None = option(None, "Frames given to predict and backward; default: half of the clip.", minimum=1)
    told_labels: tuple[str, ...] = option((), "Tasks in which the model is given the clips' classes.", choices=TASKS)
    guidance: float | None = option(None, "Scale of classifier-free guidance in the tasks of told_labels.")
    guidance_interval: tuple[float, ...] | None = option(None, "LOW,HIGH: noise levels sigma / alpha that are guided.")
    data: Any = option(None, "A folder or list of videos; default: the data that the model was trained on.")
    stride: int | None = option(None, "Frames of the file from one to the next; default: as trained.", minimum=1)
    fps: float | None = option(None, "Frame rate at which frames are taken; default: as trained.", minimum=0.01)
    split: str | None = option(None, "Which clips; default: held_out.", choices=SPLITS)
    num_clips: int | None = option(None, "Clips per task; default: 16.", minimum=1)
    first_clip: int = option(0, "Number of the first clip.", minimum=0)
    every: int | None = option(None, "Use every N-th clip; default: 1, with a preset spread evenly.", minimum=1)
    samples_per_clip: int | None = option(None, "Samples of each clip: their mean and best; default: 1.", minimum=1)
    batch_size: int = option(16, "Clips sampled at once, on all devices together.", minimum=1)
    sampler: str = option("ddpm", "Sampler.", choices=tuple(SAMPLERS))
    steps: int | None = option(None, "Sampling steps; default: 50.", minimum=1)
    seed: int = option(0, "Seed of noise and masks.", minimum=0, maximum=MAX_SEED)
    metrics: tuple[str, ...] | None = option(None, "Metrics; default: all but openstl.", choices=METRICS)
    lpips: str = option("alexnet", "Network of LPIPS.", choices=NETWORKS)
    metric_weights: str | None = option(None, "Folder with the weights of LPIPS and FVD; default: the extra `eval`.")
    positions: str = option("generated", "Positions that PSNR, SSIM, motion and LPIPS count.", choices=POSITIONS)
    psnr_of: str = option("clip", "What a PSNR is of: a whole clip, or each frame, averaged.", choices=PSNR_OF)
    ssim_border: int | None = option(None, "Pixels that SSIM leaves out at the border; default: 0.", minimum=0)
    fvd_frames: str | None = option(None, "Frames that FVD compares; default: all.", choices=FVD_FRAMES)
    shown: int = option(2, "Worst clips and best clips per task on the page; 0: no clips.", minimum=0)

    def __post_init__(self) -> None:
        validate(self)
        if not self.output:
            raise UserError("output must name a folder for the report, got none: --output=FOLDER")
        if self.tasks == ():
            raise UserError(f"tasks must name at least one of {', '.join(TASKS)}, got none")
        if self.stride is not None and self.fps is not None:
            raise UserError(f"stride and fps exclude each other, got stride={self.stride} and fps={self.fps:g}")
        if self.guidance is not None and not self.told_labels:
            raise UserError(
                f"guidance={self.guidance} needs classes: name the tasks in which the model is given them (told_labels)"
            )
        if self.guidance_interval is not None:
            check_guidance_interval(self.guidance_interval, self.guidance)


def apply_preset(options: EvaluateOptions, shape: tuple[int, int, int, int]) -> tuple[EvaluateOptions, str | None]:
    """Fills the options that were not given, for a model of clips (F, H, W, C), from the preset and the defaults.

    Returns them with the preset's entry in the protocol: its name, what was given otherwise, and its note.
    """
    values, text = dict[str, Any](_DEFAULTS), None
    if options.preset is None:
        values["every"] = 1
    else:
        preset = PRESETS[options.preset]
        if (preset.frames, preset.size) != (shape[0], shape[1:3]):
            raise UserError(
                f"preset {options.preset} measures {preset.frames} frames of {preset.size[0]}x{preset.size[1]}, this "
                f"model generates {shape[0]} of {shape[1]}x{shape[2]}: leave out preset, or use another model"
            )
        given = {name: getattr(options, name) for name in preset.options}
        changed = [
            f"{name}={','.join(value) if isinstance(value, tuple) else value}"
            for name, value in given.items()
            if value not in (None, preset.options[name])
        ]
        text = " ".join([options.preset, *(["but", *changed] if changed else []), f"({preset.note})"])
        values |= preset.options
    missing = {name: value for name, value in values.items() if getattr(options, name) is None}
    return dataclasses.replace(options, **missing), text
