"""What a run trains with: devices, network, data, optimizer, compiled step. Its state is apart."""

import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from vdt_jax.data import Source, make_source
from vdt_jax.data.pipeline import batches
from vdt_jax.diffusion.gaussian import make_diffusion
from vdt_jax.distributed.mesh import (
    batch_sharding,
    check_batch_size,
    gather_whole,
    make_mesh,
    put_whole,
    replicated,
    shard_batch,
    state_shardings,
    with_shardings,
)
from vdt_jax.errors import UserError
from vdt_jax.latents.space import autoencoder_hash, batch_encoder, load_space, source_shape, viewable
from vdt_jax.models.flops import utilisation
from vdt_jax.models.vdt import VDT
from vdt_jax.training.config import TrainConfig
from vdt_jax.training.optimizer import count_trained, make_learning_rate, make_optimizer
from vdt_jax.training.step import Batch, init_state, make_train_step, shard_train_step


class Run:
    """What a run trains with. The constructor compiles nothing and writes no file.

    Args:
      config: describes the run.
      folder: where data sources list the files that they cannot read.

    Attributes:
      mesh, model, diffusion, space: devices, network, diffusion process; pixels, or the latents of an autoencoder.
      source, held_out: the training clips as they are read, the held-out clips as they are looked at.
      learning_rate: by step.
      state: shapes and shardings of the training state.
      init_state: `init_state(init_key)` makes a fresh state, with its final sharding.
      train_step: `train_step(state, batch, train_key) -> (state, metrics)`; donates the state.
      encode: `encode(video, step)`, which `batch["video"]` passes through before the step.

    Raises:
      UserError: devices, data or autoencoder that do not fit the config.
    """

    def __init__(self, config: TrainConfig, folder: Path):
        self.config = config
        self.mesh = make_mesh(**vars(config.mesh))
        check_batch_size(config.batch_size, self.mesh, config.grad_accum)
        self.model = VDT(**vars(config.model))
        self.diffusion = make_diffusion(**vars(config.diffusion), learn_sigma=self.model.learn_sigma)
        self.space = load_space(config.vae)
        self.source, held_out = (self._source(split, folder) for split in ("train", "held_out"))
        self.held_out = viewable(self.space, held_out)
        if self.model.num_classes not in (1, self.source.num_classes):
            count = self.source.num_classes
            raise UserError(f"model.num_classes must be 1, or {count} as in the data, got {self.model.num_classes}")

        self.learning_rate = make_learning_rate(total_steps=config.total_steps, **vars(config.learning_rate))
        self.optimizer = make_optimizer(self.learning_rate, **vars(config.optimizer))
        draw = jax.jit(lambda: jax.random.split(jax.random.key(config.seed), 3), out_shardings=replicated(self.mesh))
        self.init_key, self.train_key, encode_key = draw()
        init = functools.partial(init_state, self.model, self.optimizer)
        shapes = jax.eval_shape(init, self.init_key)
        shardings = state_shardings(shapes, self.mesh)
        self.state_shapes = with_shardings(shapes, shardings)
        self.init_state = jax.jit(init, out_shardings=shardings)
        self.encode = self._encode(encode_key)
        self.train_step = self._train_step()

    def _source(self, split: str, folder: Path) -> Source:
        shape = source_shape(self.config.data, self.model, self.space)
        name = "bad_files.jsonl" if split == "train" else f"bad_files_{split}.jsonl"
        return make_source(self.config.data, shape, split, folder / name)

    def _encode(self, key: jax.Array) -> Callable[[jax.Array, int], jax.Array]:
        """`encode(video, step)`, jitted for the mesh, with other draws at each step; the identity for pixels."""
        encoder = batch_encoder(self.space, self.source)
        if encoder is None:
            return lambda video, step: video
        whole, split = replicated(self.mesh), batch_sharding(self.mesh)
        weights = jax.tree.map(functools.partial(put_whole, sharding=whole), encoder.weights)
        encode = jax.jit(encoder.encode, in_shardings=(whole, split, whole), out_shardings=split)
        return lambda video, step: encode(weights, video, jax.random.fold_in(key, step))

    def _train_step(self) -> Callable:
        """The step, jitted for the mesh; its shapes are checked."""
        config, model = self.config, self.model
        step = make_train_step(
            model if config.mesh.fsdp == 1 else model.clone(gather=gather_whole(self.mesh, model.dtype)),
            self.diffusion,
            self.optimizer,
            ema_decay=config.ema_decay,
            grad_accum=config.grad_accum,
            frozen=config.optimizer.frozen,
            **vars(config.loss),
        )
        step = shard_train_step(step, self.state_shapes, self.mesh)
        video = jax.ShapeDtypeStruct((config.batch_size, *model.video_shape), np.float32)
        batch = {"video": video, "labels": jax.ShapeDtypeStruct((config.batch_size,), np.int32)}
        batch = with_shardings(batch, jax.tree.map(lambda _: batch_sharding(self.mesh), batch))
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
            put=functools.partial(shard_batch, mesh=self.mesh),
        )

    def utilisation(self, steps_per_second: float) -> float | None:
        """Model FLOPs utilisation, 0 to 1; None where the devices' peak is not known."""
        return utilisation(self.model, self.config.batch_size, self._device, self.mesh.size, steps_per_second)

    @property
    def summary(self) -> str:
        """Sizes, data and devices, for the log."""
        trained = count_trained(self.state_shapes.params, self.config.optimizer.frozen) / 1e6
        devices = f"{self.mesh.size} {self._device} device(s) in {jax.process_count()} process(es)"
        return f"{trained:.2f} M trained parameters, {len(self.source)} clips, {devices}"

    @property
    def config_json(self) -> dict[str, Any]:
        """What config.json holds: the config, and the hash of the autoencoder whose latents are trained on."""
        return self.config.as_json() | {"autoencoder": autoencoder_hash(self.space, self.source)}

    @property
    def _device(self) -> str:
        return self.mesh.devices.flat[0].device_kind
