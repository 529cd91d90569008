"""What a config.json describes: the network and the diffusion process, as options with types and limits."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from vdt_jax.diffusion.gaussian import PREDICTIONS, make_diffusion
from vdt_jax.diffusion.masks import MIXTURES
from vdt_jax.diffusion.schedules import NOISE_SCHEDULES
from vdt_jax.errors import UserError
from vdt_jax.models.vdt import ATTENTION, REMAT, VDT
from vdt_jax.options import build, option, validate

_MAX_TABLE = 1 << 27  # numbers of a position table, which is computed before anything else of a model

# Keys of a `data` section by type; None stands for the default of the source.
_DATA: dict[type, tuple[str, ...]] = {
    str: ("path", "held_out_path", "short", "feature", "crop"),
    int: ("stride", "hop", "num_digits", "memory_limit"),
    float: ("fps", "held_out", "max_bad", "time_limit", "random_crop"),
    bool: ("labels", "random_flip"),
    dict: ("options",),
}


@dataclasses.dataclass(frozen=True)
class ModelOptions:
    """Of `vdt_jax.models.vdt.VDT`; VDT_VARIANTS there has the paper's sizes."""

    input_size: tuple[int, ...] = option(
        (32, 32), "Height and width of a frame, in pixels or latent cells.", minimum=1, maximum=8192
    )
    num_frames: int = option(16, "Frames of a clip.", minimum=1, maximum=65536)
    in_channels: int = option(
        4, "Channels of a frame: 3 or 1 in pixels, those of the latents otherwise.", minimum=1, maximum=4096
    )
    patch_size: int = option(2, "Height and width of a patch.", minimum=1, maximum=1024)
    hidden_size: int = option(384, "Width of the transformer.", minimum=1, maximum=65536)
    depth: int = option(12, "Blocks.", minimum=1, maximum=1024)
    num_heads: int = option(6, "Attention heads.", minimum=1, maximum=4096)
    mlp_ratio: float = option(4.0, "Width of the MLPs over hidden_size.", minimum=0.25, maximum=64)
    num_classes: int = option(1, "Classes of the labels; 1 is unlabelled.", minimum=1, maximum=1_000_000)
    learn_sigma: bool = option(True, "Predict the variance of the reverse process, too.")
    dtype: str = option("float32", "Type of the computation; parameters are float32.", choices=("float32", "bfloat16"))
    unroll: int = option(1, "Training: blocks per iteration of the scan over depth.", minimum=1, maximum=1024)
    remat: str = option(
        "matmuls",
        "Rematerialisation: what of a block is kept for its gradient; none keeps all, full nothing.",
        choices=tuple(REMAT),
    )
    attention: str = option(
        "auto",
        "Attention over tokens: by XLA, by cuDNN on NVIDIA GPUs (bfloat16), or auto, cuDNN where it can.",
        choices=ATTENTION,
    )
    temporal: bool = option(True, "False for a model of images, the first stage of training in two.")


@dataclasses.dataclass(frozen=True)
class DiffusionOptions:
    """Of `vdt_jax.diffusion.gaussian.make_diffusion`."""

    noise_schedule: str = option("linear", "Noise schedule.", choices=NOISE_SCHEDULES)
    num_diffusion_timesteps: int = option(1000, "Timesteps.", minimum=1, maximum=100_000)
    prediction: str = option("eps", "What the network predicts.", choices=PREDICTIONS)
    loss_on: str | None = option(
        None, "What the squared error is taken of; default: of the prediction.", choices=PREDICTIONS
    )
    min_snr_gamma: float | None = option(None, "Limit of the loss weight of a noise level, e.g. 5.", above=0)
    clip_denoised: bool = option(False, "Clip predictions of x_start to [-1, 1]: for pixels.")
    zero_terminal_snr: bool = option(False, "Rescale the schedule to end in pure noise; for v and x_start.")
    residual: bool = option(False, "Diffuse the difference from the linear blend of the given frames.")


def network_of(values: Mapping[str, Any]) -> VDT:
    """The network of a config's `model` section, which is checked before anything is computed.

    Raises:
      UserError: an unknown key, or a value of a wrong type or outside of its limits.
    """
    size = values.get("input_size")
    checked = {**values, "input_size": (size, size)} if type(size) is int else values
    options = build(ModelOptions, checked, "model.")
    validate(options, "model.")
    if len(options.input_size) != 2:
        raise UserError(f"model.input_size must be (height, width), got {options.input_size}")
    # What is not there keeps the network's own default.
    sizes: dict[str, Any] = {name: getattr(options, name) for name in values}
    if type(size) is int:
        sizes["input_size"] = size
    model = VDT(**sizes)
    model.check_sizes()
    tokens = model.grid[0] * model.grid[1]
    if max(tokens, model.num_frames) * model.hidden_size > _MAX_TABLE:
        raise UserError(
            f"model has {tokens} tokens per frame, {model.num_frames} frames and width {model.hidden_size}: "
            f"tokens x width and frames x width must each be <= {_MAX_TABLE}: choose smaller sizes"
        )
    return model


def check_diffusion(options: DiffusionOptions) -> DiffusionOptions:
    """The same options; UserError where they do not go together."""
    limit = options.num_diffusion_timesteps
    if options.noise_schedule == "linear" and limit <= 20:  # its last beta, 20 / limit, must be below 1
        raise UserError(f"diffusion.num_diffusion_timesteps must be > 20 with the linear schedule, got {limit}")
    if limit == 1 and (options.noise_schedule == "rectified_flow" or options.zero_terminal_snr):
        raise UserError("diffusion.num_diffusion_timesteps must be > 1 with rectified_flow or zero_terminal_snr, got 1")
    make_diffusion(**vars(options))
    return options


def check_config(config: dict[str, Any]) -> None:
    """Raises UserError where the model, its diffusion or its data are not described by values of their types."""
    for name in ("model", "diffusion", "data", "loss"):
        if not isinstance(config.get(name, {}), dict):
            raise UserError(f"{name} must be a mapping, got {config[name]!r}")
    if "model" not in config:
        raise UserError("it describes no model: give a working directory of train.py or a converted folder")
    network_of(config["model"])
    diffusion = build(DiffusionOptions, config.get("diffusion", {}), "diffusion.")
    validate(diffusion, "diffusion.")
    check_diffusion(diffusion)
    loss, autoencoder = config.get("loss", {}), config.get("autoencoder")
    dropout, mixture = loss.get("label_dropout", 0.1), loss.get("mask_mixture", MIXTURES[0])
    if type(dropout) not in (int, float) or not 0 <= dropout <= 1:
        raise UserError(f"loss.label_dropout must be a number from 0 to 1, got {dropout!r}")
    if mixture not in MIXTURES:
        raise UserError(f"loss.mask_mixture must be one of {', '.join(MIXTURES)}, got {mixture!r}")
    if autoencoder is not None and not isinstance(autoencoder, str):
        raise UserError(f"autoencoder must be a hash or null, got {autoencoder!r}")
    if "data" in config:
        _check_data(config["data"])


def _check_data(data: dict[str, Any]) -> None:
    """Checks the keys that the package's sources share; a source of the user's own checks its others."""
    if not isinstance(data.get("name"), str):
        raise UserError(f"data.name must be a text, got {data.get('name')!r}")
    for kind, names in _DATA.items():
        for name in names:
            value = data.get(name)
            if value is not None and type(value) not in (kind, int if kind is float else kind):
                raise UserError(f"data.{name} must be of type {kind.__name__}, got {value!r}")
            if kind in (int, float) and not 0 <= (value or 0) < 1e9:
                raise UserError(f"data.{name} must be from 0 to 1e9, got {value!r}")
