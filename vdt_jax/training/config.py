"""What a training run is described by: `TrainConfig`, which train.py makes of a recipe of configs/.

Each nested section holds keyword arguments of what its docstring names. Everything is checked when a `TrainConfig` is
made, before anything is compiled or opened.
"""

import dataclasses
import json
import math
from typing import Any

from vdt_jax.checkpoints.config import DiffusionOptions, ModelOptions, check_diffusion, network_of
from vdt_jax.diffusion.gaussian import LOSSES
from vdt_jax.diffusion.masks import MIXTURES
from vdt_jax.diffusion.schedules import TIMES
from vdt_jax.errors import UserError
from vdt_jax.inference.options import MAX_SEED
from vdt_jax.options import option, validate
from vdt_jax.training.log import TRACKERS
from vdt_jax.training.optimizer import DECAYS, OPTIMIZERS


@dataclasses.dataclass(frozen=True)
class LossOptions:
    """Of `vdt_jax.training.step.loss_fn` and `draw_examples`."""

    loss: str = option("normalised", "Mean over generated positions, or as the official code.", choices=LOSSES)
    mask_mixture: str = option("varied", "Distribution of the masks.", choices=MIXTURES)
    label_dropout: float = option(0.1, "Share of samples without their label, for guidance.", minimum=0, maximum=1)
    noise_shift: float = option(1.0, "More than 1 trains at more noise.", above=0, maximum=1000)
    times: str = option("uniform", "Distribution of the timesteps; logit_normal is SD3's.", choices=TIMES)
    given_noise: float = option(0.0, "Largest noise on given positions, for long videos.", minimum=0, maximum=1)


@dataclasses.dataclass(frozen=True)
class OptimizerOptions:
    """Of `vdt_jax.training.optimizer.make_optimizer`."""

    name: str = option("adamw", "Optimizer; muon is for the kernels of the blocks.", choices=OPTIMIZERS)
    weight_decay: float = option(0.0, "Decoupled weight decay.", minimum=0)
    clip_norm: float = option(1.0, "Limit of the global gradient norm; 0 for none.", minimum=0)
    b2: float = option(0.999, "Decay of the second moment.", minimum=0, below=1)
    frozen: str = option("", "Regex of paths of parameters that are not trained, e.g. blocks/(attn|mlp).")


@dataclasses.dataclass(frozen=True)
class LearningRateOptions:
    """Of `vdt_jax.training.optimizer.make_learning_rate`."""

    peak: float = option(1e-4, "Learning rate after the warm-up.", minimum=0, maximum=1)
    warmup_steps: int = option(1_000, "Steps of linear warm-up.", minimum=0)
    decay: str = option("constant", "Decay after the warm-up.", choices=DECAYS)


@dataclasses.dataclass(frozen=True)
class MeshOptions:
    """Of `vdt_jax.distributed.mesh.make_mesh` (docs/scaling.md)."""

    fsdp: int = option(1, "Devices over which parameters, EMA and optimizer state are split.", minimum=1)


@dataclasses.dataclass(frozen=True)
class SamplesOptions:
    """When the EMA weights sample every task on held-out clips, and how."""

    every: int = option(2_000, "Steps from one time to the next; 0 for never.", minimum=0)
    num_steps: int = option(25, "Sampling steps.", minimum=1)
    num_clips: int = option(8, "Number of clips.", minimum=1, maximum=10_000)


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """A training run. UserError: a value that is not allowed, or values that do not go together."""

    seed: int = option(0, "Seed of all random draws.", minimum=0, maximum=MAX_SEED)
    batch_size: int = option(32, "Global batch size.", minimum=1)
    total_steps: int = option(100_000, "Training steps.", minimum=1)
    log_every: int = option(100, "Steps between lines of metrics.", minimum=1)
    checkpoint_every: int = option(2_000, "Steps between checkpoints.", minimum=1)
    keep_checkpoints: int = option(3, "Number of newest checkpoints that are kept.", minimum=1)
    keep_every: int | None = option(None, "Checkpoints of steps that it divides are kept for good.", minimum=1)
    mesh: MeshOptions = option(MeshOptions(), "Devices.")
    grad_accum: int = option(1, "Parts that a batch is taken in, one after the other, to save memory.", minimum=1)
    init_from: str | None = option(None, "Converted folder or working directory with parameters to start from.")
    init_fresh: str | None = option(None, "Paths that are not taken from there, e.g. y_embedder,time_embed.")
    model: ModelOptions = option(ModelOptions(), "The network.")
    vae: str | None = option(
        None, "Autoencoder of a latent-space model, as --vae of sample.py; encodes batches and is not trained."
    )
    diffusion: DiffusionOptions = option(DiffusionOptions(), "The diffusion process.")
    loss: LossOptions = option(LossOptions(), "The loss.")
    optimizer: OptimizerOptions = option(OptimizerOptions(), "The optimizer.")
    learning_rate: LearningRateOptions = option(LearningRateOptions(), "The learning rate.")
    ema_decay: float = option(0.9999, "Decay of the EMA of the parameters.", minimum=0, maximum=1)
    ema_warmup: bool = option(True, "The decay rises from 0.1, (1 + step) / (10 + step); False has it from the start.")
    data: dict[str, Any] = dataclasses.field(
        default_factory=lambda: {"name": "synthetic"},
        metadata={"help": "`name` and keyword arguments of a data source, which checks them (docs/data.md)."},
    )
    data_threads: int = option(2, "Threads that read ahead.", minimum=1, maximum=1024)
    preview: SamplesOptions = option(
        SamplesOptions(num_steps=50, num_clips=2),
        "Samples in WORKDIR/samples; at a step with validation its samples are shown.",
    )
    tracker: str | None = option(
        None, "Where metrics and previews are shown beside TensorBoard (docs/recipes.md).", choices=TRACKERS
    )
    validation: SamplesOptions = option(SamplesOptions(), "Losses by task and noise level; PSNR and SSIM of samples.")

    def __post_init__(self) -> None:
        validate(self)
        network_of(vars(self.model))
        if not isinstance(self.data.get("name"), str):
            raise UserError(f"data.name must be a text, got {self.data.get('name')!r}")
        for name, value in self.data.items():
            if isinstance(value, float) and not math.isfinite(value):
                raise UserError(f"data.{name} must be a finite number, got {value}")
        limit = check_diffusion(self.diffusion).num_diffusion_timesteps
        for name, part in (("preview", self.preview), ("validation", self.validation)):
            if part.every and part.num_steps > limit:
                most = f"diffusion.num_diffusion_timesteps={limit}"
                raise UserError(f"{name}.num_steps must be <= {most}, got {part.num_steps}")

    def as_json(self) -> dict[str, Any]:
        """The nested dictionary that config.json holds."""
        return json.loads(json.dumps(dataclasses.asdict(self)))


@dataclasses.dataclass(frozen=True)
class RunOptions:
    """Where and how far train.py runs; not a part of what is trained."""

    workdir: str | None = option(None, "Working directory; default: runs/<recipe>.")
    stop_after: int | None = option(None, "Save and stop after this step; re-run the command to resume.", minimum=1)
    coordinator: str | None = option(None, "host:port of process 0, where SLURM or a TPU does not say it.")
    num_processes: int | None = option(None, "Number of processes of the run, with --coordinator.", minimum=1)
    process_id: int | None = option(None, "Number of this process, from 0, with --coordinator.", minimum=0)

    def __post_init__(self) -> None:
        validate(self)
