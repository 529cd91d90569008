"""A model ready to sample: `Pipeline`, which the scripts, evaluation and the previews of training use.

pipe = vdt_jax.Pipeline.load("demo")
clip = pipe.predict("clip.mp4", num_given=4, steps=20)
clip.save("out.mp4")
"""

import dataclasses
import functools
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from vdt_jax.checkpoints import DEMO, load_config, load_model
from vdt_jax.data import Source, is_built_in
from vdt_jax.diffusion.gaussian import GaussianDiffusion, make_diffusion
from vdt_jax.distributed.mesh import make_mesh, replicated
from vdt_jax.errors import UserError
from vdt_jax.inference import requests
from vdt_jax.inference.clip import Clip
from vdt_jax.inference.functional import generate_on_devices, task_masks
from vdt_jax.inference.inputs import Input
from vdt_jax.inference.options import SampleOptions
from vdt_jax.latents.space import PixelSpace, Space, load_space, pixel_source
from vdt_jax.models.fingerprint import fingerprint
from vdt_jax.models.vdt import VDT
from vdt_jax.options import build


@dataclasses.dataclass(frozen=True, eq=False)
class Pipeline:
    """A network, its parameters, the config that it was trained with, and the space that it denoises in.

    Attributes:
      model: the network.
      params: its parameters, on the devices to sample on.
      config: of the training run; `diffusion`, `data`, `loss.mask_mixture` and `loss.label_dropout` are read.
      space: pixels, or the latents of an autoencoder.
      trust_data: whether the `data` section may name a class of your own, whose module is imported.
    """

    model: VDT
    params: Any
    config: Mapping[str, Any]
    space: Space = PixelSpace()
    trust_data: bool = True

    @classmethod
    def load(
        cls,
        path: str | os.PathLike = DEMO,
        *,
        vae: str | os.PathLike | None = None,
        vae_dtype: str = "float32",
        trust_data: bool = False,
    ) -> "Pipeline":
        """Loads a checkpoint onto all devices.

        Args:
          path: a working directory of train.py, a converted folder, or `demo`, the bundled model.
          vae: the autoencoder of a latent-space model: a folder, a file or a repository of the Hugging Face hub.
          vae_dtype: dtype of the autoencoder's computation, `float32` or `bfloat16`.
          trust_data: see `Pipeline`; if it is False, held-out clips of your own dataset class cannot be sampled.

        Raises:
          UserError: no checkpoint there, a latent-space model without its autoencoder, or a different autoencoder
            from the one that the model was trained with.
        """
        config = load_config(path)
        model, params = load_model(path)
        space = load_space(vae, vae_dtype, config)
        if vae is None and model.in_channels not in (1, 3):
            raise UserError(
                f"{path} is a latent-space model ({model.in_channels} channels): name its autoencoder (--vae)"
            )
        space.clip_shape(model)
        return cls(model, jax.device_put(params, replicated(make_mesh())), config, space, trust_data)

    def __repr__(self) -> str:
        return f"Pipeline(clips {self.shape} (F, H, W, C), {type(self.space).__name__})"

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(F, H, W, C) of a clip in pixels."""
        return self.space.clip_shape(self.model)

    @functools.cached_property
    def hash(self) -> str:
        """SHA-256 of the network's sizes and parameters."""
        return fingerprint(self.model, self.params)

    def diffusion(self, steps: int | str = 50) -> GaussianDiffusion:
        """The diffusion process of the model, respaced to a number of steps, or as `respace_timesteps` says."""
        if isinstance(steps, int) and steps < 1:
            raise UserError(f"steps must be >= 1, got {steps}")
        options = self.config["diffusion"]
        return make_diffusion(**options, timestep_respacing=str(steps), learn_sigma=self.model.learn_sigma)

    @property
    def mask_mixture(self) -> str:
        """The mixture of masks that the weights were trained with; `official` for a config that names none."""
        return self.config.get("loss", {}).get("mask_mixture", "official")

    @property
    def data(self) -> Mapping[str, Any]:
        """The `data` section of the config.

        Raises:
          UserError: it names a class outside of vdt_jax, and `trust_data` is False.
        """
        section = self.config["data"]
        if not self.trust_data and not is_built_in(section["name"]):
            raise UserError(
                f"data source {section['name']} of this checkpoint is a class outside of vdt_jax, and importing it "
                "runs its code: give videos of your own (input, or data in an evaluation), or set trust_data"
            )
        return section

    def source(
        self, split: str = "held_out", data: Mapping[str, Any] | None = None, num_frames: int | None = None
    ) -> Source:
        """The clips of a `data` section, by default of the model's own, as pixels; `split` is `train` or `held_out`."""
        return pixel_source(data or self.data, self.model, self.space, split, num_frames)

    def task_masks(self, task: str, numbers: range, seed: int = 0, num_given: int | None = None) -> jax.Array:
        """The masks (B, F, h, w, 1) of a task for these sample numbers, over the grid that the model denoises.

        1 = generate, 0 = given. See `diffusion.masks.task_mask`.
        """
        return task_masks(seed, numbers, task, self.model, num_given, self.mask_mixture)

    def complete(
        self,
        clips: np.ndarray,
        mask: jax.Array | np.ndarray,
        keys: jax.Array,
        *,
        diffusion: GaussianDiffusion,
        encode_full: bool = False,
        paste: bool = True,
        **options: Any,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Generates what a mask asks for, from pixels to pixels.

        Args:
          clips: (B, F, H, W, C) in [-1, 1].
          mask: (B, F, h, w, 1) over the grid that the model denoises (pixels or latent cells), 1 = generate, 0 = given.
          keys: (B,) one for each sample, see `sample_keys`.
          diffusion: see the method of this name.
          encode_full, paste: see `latents.space.VaeSpace`.
          options: of `generate_on_devices`: sampler, labels, guidance, on_steps and so on.

        Returns:
          The samples (B, F, H, W, C) in [-1, 1], and the mask over their pixels (B, F, H, W, 1).

        Raises:
          UserError: clips of a wrong shape or type, or what `generate` raises.
        """
        if clips.shape[1:] != self.shape or not np.issubdtype(clips.dtype, np.floating):
            got = f"{clips.dtype} of shape {clips.shape}"
            raise UserError(f"clips must be floats in [-1, 1] of shape (B, {str(self.shape)[1:]}, got {got}")
        mask = np.asarray(mask)
        if options.get("guidance") is not None and self.config.get("loss", {}).get("label_dropout") == 0:
            raise UserError("guidance needs a model trained with loss.label_dropout > 0, got 0: use mask_guidance")
        given = self.space.encode(clips, mask, keys, encode_full)
        samples = generate_on_devices(self.model, self.params, diffusion, given, mask, keys, **options)
        return self.space.decode(samples, clips, mask, paste), self.space.enlarge_mask(mask)

    def sample(
        self,
        input: Input | Sequence[Input] | None = None,
        task: str | None = None,
        *,
        output: str | os.PathLike | None = None,
        progress: Callable[[int, int], object] | None = None,
        **options: Any,
    ) -> Clip | list[Clip]:
        """Generates clips for any task or mask, of any length.

        Args:
          input: a video, GIF, image, folder of frames, folder or list of videos, .npz, .npy or .pt file, or an array
            (F, H, W, C) of uint8 or of floats in [-1, 1] or [0, 1]; several of them as a list. Frames of videos are
            chosen at the stride or rate that the model was trained with. None takes held-out clips of its data.
          task: one of `diffusion.masks.TASKS`; default: predict.
          output: a file in one of the formats of `Clip.save`, written while the sample is generated; of several
            samples each has its own, `out_3.mp4`.
          progress: called about 20 times per batch with the sampling steps done and their total.
          options: the flags of sample.py (`python sample.py --help`), such as steps, sampler, given_frames, seed.

        Returns:
          One clip; a list if `input` is a list or there are several clips.

        Raises:
          UserError: options that are not allowed, or an input that cannot be read.
        """
        chosen = build(SampleOptions, {"task": task, **options})
        clips = requests.run(self, input, chosen, output, progress)
        return clips if isinstance(input, list | tuple) or len(clips) > 1 else clips[0]

    def cost(self, input: Input | Sequence[Input] | None = None, **options: Any) -> requests.Cost:
        """Memory and time that `sample` would take with this input and these options; nothing is written."""
        return requests.measure(self, input, build(SampleOptions, options))

    # Each of the methods below is `sample` with a task or an option.

    def predict(self, input: Any = None, **options: Any) -> Any:
        """Generates the frames that follow `num_given` given ones."""
        return self.sample(input, "predict", **options)

    def backward(self, input: Any = None, **options: Any) -> Any:
        """Generates the frames that precede the last `num_given` ones."""
        return self.sample(input, "backward", **options)

    def interpolate(self, input: Any = None, **options: Any) -> Any:
        """Generates all frames except 0, 4, 8, ..., which are given; to give others, use `sample(given_frames=...)`."""
        return self.sample(input, "interpolation", **options)

    def generate(self, **options: Any) -> Any:
        """Generates a clip without given frames; `labels` chooses its class where the model has classes."""
        return self.sample(None, "unconditional", **options)

    def inpaint(self, input: Any, mask: Any, **options: Any) -> Any:
        """Generates the white region of a mask.

        Args:
          mask: an image for all frames, a video, an .npz, or an array (H, W) or (F, H, W), of the size of the input or
            of the model's clips; white (128 or more; 1 in an array without larger values) is generated.
        """
        if mask is None:
            raise UserError("inpaint needs a mask (an image, video, .npz or array), got None")
        return self.sample(input, mask=mask, **options)

    def extend(self, input: Any, num_new: int, **options: Any) -> Any:
        """Generates `num_new` frames after the given ones, which begin at `start`; with task backward, before them."""
        return self.sample(input, extend=num_new, **options)

    def raise_frame_rate(self, input: Any, factor: int, **options: Any) -> Any:
        """Generates `factor` - 1 frames between any two neighbouring frames of a video of any length."""
        return self.sample(input, fps_factor=factor, **options)
