"""The options of sampling, for sample.py and for `Pipeline.sample`."""

import dataclasses
from typing import Any

from vdt_jax.diffusion.guidance import check_guidance_interval
from vdt_jax.diffusion.masks import TASKS
from vdt_jax.diffusion.samplers import SAMPLERS
from vdt_jax.errors import UserError
from vdt_jax.options import option, validate

MAX_SEED = 2**63 - 1


@dataclasses.dataclass(frozen=True)
class SampleOptions:
    """What to sample, and how. `None` means that an option is not used, or that its default depends on others.

    Raises:
      UserError: a value that is not allowed, or options that do not go together.
    """

    task: str | None = option(None, "What is generated; default: predict.", choices=TASKS)
    start: int = option(0, "First frame of the input to use.", minimum=0)
    stride: int | None = option(None, "Take every stride-th frame of the input; default: as trained.", minimum=1)
    num_given: int | None = option(
        None, "Frames given to predict and backward; default: half, or one if the input is an image.", minimum=1
    )
    given_frames: tuple[int, ...] | None = option(None, "Numbers of given frames, in place of a task.", minimum=0)
    mask: Any = option(None, "Image, video or .npz with `mask`, in place of a task; the white region is generated.")
    extend: int | None = option(None, "New frames after (task predict) or before (backward) the given ones.", minimum=1)
    fps_factor: int | None = option(None, "Factor by which the frame rate of the whole input is raised.", minimum=2)
    overlap: int | None = option(None, "Given frames that windows of fps_factor share; default: 2 or 1.", minimum=1)
    fps: float | None = option(
        None,
        "Frame rate of the samples, at which frames of the input are taken; default: as trained.",
        minimum=0.1,
        maximum=1000,
    )
    sound: bool = option(True, "With fps_factor, keep the sound of the input; not with a different fps.")
    num_samples: int | None = option(None, "Samples; default: one for each video or label.", minimum=1)
    batch_size: int = option(8, "Samples, or windows of fps_factor, at once.", minimum=1)
    seed: int = option(0, "Seed of noise and masks.", minimum=0, maximum=MAX_SEED)
    sampler: str = option("ddpm", "Sampler.", choices=tuple(SAMPLERS))
    steps: int = option(50, "Sampling steps, evenly spaced.", minimum=1)
    timestep_respacing: str | None = option(None, "In place of steps: ddim25, trailing16, ... (docs/sampling.md).")
    eta: float | None = option(None, "ddim: 0 adds no noise, 1 as much as ddpm.", minimum=0, maximum=1)
    lower_order_final: bool = option(False, "dpm_solver_pp, unipc: take the last steps with a lower order.")
    resamples: int | None = option(None, "repaint: how often each step is taken.", minimum=1)
    labels: tuple[int, ...] | None = option(None, "Classes, in turn; default: those of held-out clips.", minimum=0)
    guidance: float | None = option(None, "Scale of classifier-free guidance on labels; 1 is none.")
    mask_guidance: float | None = option(None, "Scale of guidance on the given frames; 1 is none.")
    guidance_interval: tuple[float, ...] | None = option(None, "LOW,HIGH: noise levels sigma / alpha that are guided.")
    given_noise: float | None = option(
        None, "Noise on given frames in the model's input, for long videos.", minimum=0, maximum=1
    )
    encode_full: bool = option(False, "Encode hidden pixels too, as the official code does.")
    paste: bool = option(True, "Paste given pixels from the input after decoding.")

    def __post_init__(self) -> None:
        validate(self)
        ways = [name for name in ("mask", "given_frames", "extend", "fps_factor") if getattr(self, name) is not None]
        if len(ways) > 1 and set(ways) != {"mask", "given_frames"}:
            raise UserError(f"{' and '.join(ways)} do not go together: choose one")
        if ways and ways != ["extend"] and (self.task is not None or self.num_given is not None):
            raise UserError(f"{ways[0]} says which frames are given: leave out task and num_given")
        if self.extend is not None and self.task not in (None, "predict", "backward"):
            raise UserError(f"extend needs task predict or backward, got '{self.task}'")
        if self.fps_factor is not None and self.stride is not None:
            raise UserError(f"fps_factor keeps every frame of the input: leave out stride, got {self.stride}")
        if self.guidance_interval is not None:
            check_guidance_interval(self.guidance_interval, self.guidance, self.mask_guidance)
        for name, items in (("labels", "class"), ("given_frames", "frame")):
            if getattr(self, name) == ():
                raise UserError(f"{name} must name at least one {items}, got none")

    @property
    def respacing(self) -> int | str:
        """The sampling steps, as `Pipeline.diffusion` takes them."""
        return self.timestep_respacing or self.steps

    @property
    def sampler_options(self) -> dict[str, Any]:
        """The options of `generate`."""
        names = ("sampler", "eta", "resamples", "guidance", "mask_guidance", "guidance_interval", "given_noise")
        return {name: getattr(self, name) for name in names} | {"lower_order_final": self.lower_order_final or None}
