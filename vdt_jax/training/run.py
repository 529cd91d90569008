"""A training run: what it trains with, its first state, its skipped steps, and the check of its working directory."""

import functools
import logging
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from vdt_jax.checkpoints import fresh_paths, load_config, start_from
from vdt_jax.data import Source, make_source
from vdt_jax.data.pipeline import batches, clip_numbers
from vdt_jax.diffusion.gaussian import make_diffusion
from vdt_jax.distributed import mesh as meshes
from vdt_jax.errors import RunStopped, UserError
from vdt_jax.files import differing
from vdt_jax.latents.space import autoencoder_hash, batch_encoder, load_space, source_shape, viewable
from vdt_jax.models.flops import utilisation
from vdt_jax.models.vdt import VDT
from vdt_jax.training.config import TrainConfig
from vdt_jax.training.optimizer import count_trained, make_learning_rate, make_optimizer
from vdt_jax.training.step import Batch, Metrics, TrainState, init_state, make_train_step, shard_train_step

logger = logging.getLogger(__name__)
MAX_SKIPPED = 5  # steps in a row; then the run stops
# A run can be resumed with other values of these keys; a different value of any other key makes it a different run.
FREE_KEYS = (
    *("total_steps", "log_every", "checkpoint_every", "keep_checkpoints", "keep_every"),
    *("preview", "validation", "tracker"),
    *("data_threads", "data.max_bad", "data.time_limit", "data.memory_limit"),
    *("mesh", "grad_accum", "model.remat", "model.unroll", "model.attention"),  # how a step is computed, not what
)
# These keys are free, too, if the identity of the data (`clips`) is known: then `clips` is compared instead of them.
PLACES = ("data.path", "data.held_out_path")


class Run:
    """What a run trains with. The training step is not compiled yet, and nothing of a checkpoint is read.

    Args:
      config: describes the run; UserError where devices, data or autoencoder do not fit it.
      folder: where data sources list the files that they cannot read.

    Attributes:
      mesh, model, diffusion: devices, network, diffusion process.
      space: what the network denoises: pixels, or the latents of an autoencoder.
      source: the training clips; if the data is a latent cache, moments.
      held_out: the held-out clips; if the data is a latent cache, decoded, or latents if there is no autoencoder.
      state_shapes: shapes and shardings of the training state; `init_state(init_key)` makes a fresh one.
      train_step: `train_step(state, batch, train_key) -> (state, metrics)`; donates the state.
      encode: `encode(video, step)`, which `batch["video"]` passes through before the step.
    """

    def __init__(self, config: TrainConfig, folder: Path):
        self.config = config
        self.mesh = meshes.make_mesh(**vars(config.mesh))
        meshes.check_batch_size(config.batch_size, self.mesh, config.grad_accum)
        self.model = VDT(**vars(config.model))
        self.diffusion = make_diffusion(**vars(config.diffusion), learn_sigma=self.model.learn_sigma)
        self.space = load_space(config.vae)
        self.source, held_out = (self._source(split, folder) for split in ("train", "held_out"))
        self._clips = [getattr(source, "identity", None) for source in (self.source, held_out)]
        self.held_out = viewable(self.space, held_out)
        if self.model.num_classes not in (1, self.source.num_classes):
            count = self.source.num_classes
            raise UserError(f"model.num_classes must be 1, or {count} as in the data, got {self.model.num_classes}")

        self.learning_rate = make_learning_rate(total_steps=config.total_steps, **vars(config.learning_rate))
        self.optimizer = make_optimizer(self.learning_rate, **vars(config.optimizer))
        whole = meshes.replicated(self.mesh)
        draw = jax.jit(lambda: jax.random.split(jax.random.key(config.seed), 3), out_shardings=whole)
        self.init_key, self.train_key, encode_key = draw()
        init = functools.partial(init_state, self.model, self.optimizer)
        shapes = jax.eval_shape(init, self.init_key)
        shardings = meshes.state_shardings(shapes, self.mesh)
        self.state_shapes = meshes.with_shardings(shapes, shardings)
        self.init_state = jax.jit(init, out_shardings=shardings)
        self.encode = self._encode(encode_key)
        self.train_step = self._train_step()

    def _source(self, split: str, folder: Path) -> Source:
        shape = source_shape(self.config.data, self.model, self.space)
        name = "bad_files.jsonl" if split == "train" else f"bad_files_{split}.jsonl"
        return make_source(self.config.data, shape, split, folder / name)

    def _encode(self, key: jax.Array) -> Callable[[jax.Array, int], jax.Array]:
        """`encode(video, step)`, jitted for the mesh, with new random draws at each step; pixels stay as they are."""
        encoder = batch_encoder(self.space, self.source)
        if encoder is None:
            return lambda video, step: video
        whole, split = meshes.replicated(self.mesh), meshes.batch_sharding(self.mesh)
        weights = jax.tree.map(functools.partial(meshes.put_whole, sharding=whole), encoder.weights)
        encode = jax.jit(encoder.encode, in_shardings=(whole, split, whole), out_shardings=split)
        return lambda video, step: encode(weights, video, jax.random.fold_in(key, step))

    def _train_step(self) -> Callable:
        """The step, jitted for the mesh; its shapes are checked."""
        config, model = self.config, self.model
        if config.mesh.fsdp > 1:
            model = model.clone(gather=meshes.gather_whole(self.mesh, model.dtype))
        options = {name: getattr(config, name) for name in ("ema_decay", "ema_warmup", "grad_accum")}
        options |= {"frozen": config.optimizer.frozen, **vars(config.loss)}
        step = make_train_step(model, self.diffusion, self.optimizer, **options)
        step = shard_train_step(step, self.state_shapes, self.mesh)
        video = jax.ShapeDtypeStruct((config.batch_size, *model.video_shape), np.float32)
        batch = {"video": video, "labels": jax.ShapeDtypeStruct((config.batch_size,), np.int32)}
        batch = meshes.with_shardings(batch, jax.tree.map(lambda _: meshes.batch_sharding(self.mesh), batch))
        jax.eval_shape(step, self.state_shapes, batch, self.train_key)
        return step

    def batches(self, first_step: int) -> Iterator[Batch]:
        """The training batches after `first_step` steps, on the mesh; each process reads its share."""
        return batches(
            self.source,
            batch_size=self.config.batch_size,
            seed=self.config.seed,
            first_step=first_step,
            host=jax.process_index(),
            num_hosts=jax.process_count(),
            num_threads=self.config.data_threads,
            put=functools.partial(meshes.shard_batch, mesh=self.mesh),
        )

    def utilisation(self, steps_per_second: float) -> float | None:
        """Model FLOPs utilisation, 0 to 1; None where the devices' peak is not known."""
        return utilisation(self.model, self.config.batch_size, self._device, self.mesh.size, steps_per_second)

    @property
    def _device(self) -> str:
        return self.mesh.devices.flat[0].device_kind

    def __str__(self) -> str:
        """Sizes, data and devices, for the log."""
        trained = count_trained(self.state_shapes.params, self.config.optimizer.frozen) / 1e6
        devices = f"{self.mesh.size} {self._device} device(s) in {jax.process_count()} process(es)"
        return f"{trained:.2f} M trained parameters, {len(self.source)} clips, {devices}"

    @property
    def config_json(self) -> dict[str, Any]:
        """What config.json holds: the config, the hash of the autoencoder, and the identity of the data, if known."""
        clips = None if None in self._clips else dict(zip(("train", "held_out"), self._clips, strict=True))
        return self.config.as_json() | {"autoencoder": autoencoder_hash(self.space, self.source), "clips": clips}

    def check_init_from(self) -> None:
        """Raises UserError if the parameters of `init_from` do not fit, or `init_fresh` is set without it."""
        if self.config.init_from is None and self._fresh:
            raise UserError(f"init_fresh={self.config.init_fresh} needs init_from, a folder of parameters: name both")
        if self.config.init_from is not None:
            start_from(self.config.init_from, self.state_shapes.params, self._fresh)

    def first_state(self) -> TrainState:
        """The state before the first step; with `init_from`, that folder's parameters, except those of `init_fresh`."""
        state = self.init_state(self.init_key)
        if self.config.init_from is None:
            return state
        params = start_from(self.config.init_from, state.params, self._fresh)
        fresh = ", ".join(fresh_paths(state.params, self._fresh)) or "none"
        logger.info("parameters from %s, fresh: %s", self.config.init_from, fresh)
        # The EMA is a copy: the step donates its state, and a buffer cannot be given away twice.
        return state.replace(params=params, ema_params=jax.tree.map(jnp.copy, params))

    @property
    def _fresh(self) -> list[str]:
        return [name for name in (self.config.init_fresh or "").split(",") if name]

    def report_skipped(self, step: int, metrics: Metrics, newest: Callable[[], str]) -> None:
        """Warns of a step whose update was skipped because the loss or a gradient was not finite, and names its clips.

        Args:
          newest: names the newest checkpoint.

        Raises:
          RunStopped: MAX_SKIPPED steps in a row were skipped.
        """
        in_a_row, size = int(metrics["skipped_in_a_row"]), self.config.batch_size
        if in_a_row == 0:
            return
        clips = clip_numbers(len(self.source), self.config.seed, range((step - 1) * size, step * size))
        logger.warning(
            f"step {step} is skipped: loss {metrics['loss']:.4g}, gradient norm {metrics['grad_norm']:.4g}; "
            f"{int(metrics['skipped'])} skipped in total, {in_a_row} in a row; clips {', '.join(map(str, clips))}"
        )
        if in_a_row >= MAX_SKIPPED:
            raise RunStopped(
                f"{in_a_row} steps in a row, up to step {step}, had a loss or a gradient that is not finite; the last "
                f"good checkpoint is {newest()}"
            )


def check_same_run(workdir: epath.Path, config: Mapping[str, Any]) -> None:
    """Raises UserError where the working directory belongs to a run with a different config.

    A run without a checkpoint may be started again with a different config. `autoencoder` and `clips` are compared only
    if both configs have them: old runs did not store them, and the new one has them only when its data is open.
    """
    saved = [*(workdir / "checkpoints").glob("*"), *workdir.glob("params")]
    if all("tmp" in path.name for path in saved) or not (workdir / "config.json").is_file():
        return
    theirs, ours, ignore = load_config(workdir), dict(config), list(FREE_KEYS)
    for key, default in TrainConfig().as_json().items():  # a key that did not exist yet when the saved run was made
        theirs[key] = default | theirs.get(key, {}) if isinstance(default, dict) else theirs.get(key, default)
    ignore += [key for key in ("autoencoder", "clips") if key not in theirs or key not in ours]
    if theirs.get("clips") and ours.get("clips", "unknown"):
        ignore += PLACES
        theirs["data"], ours["data"] = (_without_folder(config["data"]) for config in (theirs, ours))
    if shown := differing(theirs, ours, ignore):
        raise UserError(f"{workdir} belongs to a run with {shown}: choose another --workdir, or the same values")


def _without_folder(data: Mapping[str, Any]) -> dict[str, Any]:
    """A config's `data` section without the folder in a name like tfds:FOLDER."""
    return {**data, "name": "tfds" if data["name"].startswith("tfds:") else data["name"]}
