"""What a run trains with: devices, network, data, optimizer, compiled step. Its state is apart."""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import Mesh

from vdt_jax.data import Source, make_source
from vdt_jax.data.pipeline import batches
from vdt_jax.diffusion.gaussian import GaussianDiffusion, make_diffusion
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
from vdt_jax.latents.space import (
    BatchEncoder,
    Space,
    autoencoder_hash,
    batch_encoder,
    load_space,
    source_shape,
    viewable,
)
from vdt_jax.models.flops import utilisation
from vdt_jax.models.vdt import VDT
from vdt_jax.training.config import TrainConfig
from vdt_jax.training.optimizer import count_trained, make_learning_rate, make_optimizer
from vdt_jax.training.step import Batch, Metrics, TrainState, init_state, make_train_step, shard_train_step

Step = Callable[[TrainState, Batch, jax.Array], tuple[TrainState, Metrics]]


@dataclasses.dataclass(frozen=True)
class Run:
    """What a run trains with.

    Attributes:
      config: its description.
      mesh: its devices.
      model: the network.
      diffusion: the process that it is trained for.
      space: pixels, or the latents of an autoencoder.
      source: the training clips, as they are read.
      held_out: the held-out clips, as they are looked at.
      learning_rate: by step.
      state: shapes and shardings of the training state.
      init_state: `init_state(init_key)` makes a fresh state, with its final sharding.
      train_step: `train_step(state, batch, train_key) -> (state, metrics)`; donates the state.
      encode: `encode(video, step)`, which `batch["video"]` passes through before the step.
      init_key, train_key: keys of the random draws.
    """

    config: TrainConfig
    mesh: Mesh
    model: VDT
    diffusion: GaussianDiffusion
    space: Space
    source: Source
    held_out: Source
    learning_rate: optax.Schedule
    state: TrainState
    init_state: Callable[[jax.Array], TrainState]
    train_step: Step
    encode: Callable[[jax.Array, int], jax.Array]
    init_key: jax.Array
    train_key: jax.Array

    @property
    def config_json(self) -> dict[str, Any]:
        """What config.json holds: the config, and the hash of the autoencoder whose latents are trained on."""
        return self.config.as_json() | {"autoencoder": autoencoder_hash(self.space, self.source)}

    @property
    def summary(self) -> str:
        """Sizes, data and devices, for the log."""
        trained, kind = count_trained(self.state.params, self.config.optimizer.frozen), self._device_kind
        return (
            f"{trained / 1e6:.2f} M trained parameters, {len(self.source)} clips, {self.mesh.size} {kind} device(s) in "
            f"{jax.process_count()} process(es)"
        )

    @property
    def _device_kind(self) -> str:
        return self.mesh.devices.flat[0].device_kind

    def utilisation(self, steps_per_second: float) -> float | None:
        """Model FLOPs utilisation, 0 to 1; None where the devices' peak is not known."""
        return utilisation(self.model, self.config.batch_size, self._device_kind, self.mesh.size, steps_per_second)

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


def set_up(config: TrainConfig, folder: Path) -> Run:
    """Builds everything but the state of a run; nothing is compiled, and the working directory is not written to.

    Args:
      folder: where data sources list the files that they cannot read.

    Raises:
      UserError: devices, data or autoencoder that do not fit the config.
    """
    mesh = make_mesh(**vars(config.mesh))
    check_batch_size(config.batch_size, mesh, config.grad_accum)
    model = VDT(**vars(config.model))
    diffusion = make_diffusion(**vars(config.diffusion), learn_sigma=model.learn_sigma)
    space = load_space(config.vae)
    source, held_out = _sources(config, model, space, folder)

    learning_rate = make_learning_rate(total_steps=config.total_steps, **vars(config.learning_rate))
    optimizer = make_optimizer(learning_rate, **vars(config.optimizer))
    draw_keys = jax.jit(lambda: jax.random.split(jax.random.key(config.seed), 3), out_shardings=replicated(mesh))
    init_key, train_key, encode_key = draw_keys()
    init = functools.partial(init_state, model, optimizer)
    state = jax.eval_shape(init, init_key)
    state = with_shardings(state, state_shardings(state, mesh))

    run = Run(
        config=config,
        mesh=mesh,
        model=model,
        diffusion=diffusion,
        space=space,
        source=source,
        held_out=held_out,
        learning_rate=learning_rate,
        state=state,
        init_state=jax.jit(init, out_shardings=state_shardings(state, mesh)),
        train_step=_train_step(config, model, diffusion, optimizer, state, mesh),
        encode=_encode(batch_encoder(space, source), encode_key, mesh),
        init_key=init_key,
        train_key=train_key,
    )
    jax.eval_shape(run.train_step, state, _batch_shapes(config, model, mesh), train_key)  # raises what is wrong still
    return run


def _sources(config: TrainConfig, model: VDT, space: Space, folder: Path) -> tuple[Source, Source]:
    """The training clips, and the held-out clips as they are looked at."""
    shape = source_shape(config.data, model, space)
    source = make_source(config.data, shape, "train", folder / "bad_files.jsonl")
    held_out = viewable(space, make_source(config.data, shape, "held_out", folder / "bad_files_held_out.jsonl"))
    if model.num_classes not in (1, source.num_classes):
        raise UserError(f"model.num_classes must be 1, or {source.num_classes} as in the data, got {model.num_classes}")
    return source, held_out


def _train_step(
    config: TrainConfig,
    model: VDT,
    diffusion: GaussianDiffusion,
    optimizer: optax.GradientTransformation,
    state: TrainState,
    mesh: Mesh,
) -> Step:
    """The step, jitted for the mesh."""
    step = make_train_step(
        model if config.mesh.fsdp == 1 else model.clone(gather=gather_whole(mesh, model.dtype)),
        diffusion,
        optimizer,
        ema_decay=config.ema_decay,
        grad_accum=config.grad_accum,
        frozen=config.optimizer.frozen,
        **vars(config.loss),
    )
    return shard_train_step(step, state, mesh)


def _encode(encoder: BatchEncoder | None, key: jax.Array, mesh: Mesh) -> Callable[[jax.Array, int], jax.Array]:
    """`encode(video, step)`, jitted for the mesh, with draws of its own at each step; nothing for pixels."""
    if encoder is None:
        return lambda video, step: video
    whole, split = replicated(mesh), batch_sharding(mesh)
    weights = jax.tree.map(functools.partial(put_whole, sharding=whole), encoder.weights)
    encode = jax.jit(encoder.encode, in_shardings=(whole, split, whole), out_shardings=split)
    return lambda video, step: encode(weights, video, jax.random.fold_in(key, step))


def _batch_shapes(config: TrainConfig, model: VDT, mesh: Mesh) -> Any:
    shapes = {
        "video": jax.ShapeDtypeStruct((config.batch_size, *model.video_shape), np.float32),
        "labels": jax.ShapeDtypeStruct((config.batch_size,), np.int32),
    }
    return with_shardings(shapes, jax.tree.map(lambda _: batch_sharding(mesh), shapes))
