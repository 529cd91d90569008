"""State, loss and step of training; the step is pure: `train_step(state, batch, key) -> (state, metrics)`.

Every random draw of step s comes from `fold_in(key, s)`, split by purpose, and does not depend on the devices. So a
resumed run has the bits of an uninterrupted one; on a different number of devices sums are rounded differently.
"""

import functools
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from vdt_jax.diffusion.gaussian import GaussianDiffusion
from vdt_jax.diffusion.masks import draw_masks
from vdt_jax.distributed.mesh import batch_sharding, replicated, state_shardings
from vdt_jax.models.vdt import VDT
from vdt_jax.training.optimizer import trained_params

Batch = dict[str, jax.Array]
Metrics = dict[str, jax.Array]


@flax.struct.dataclass
class TrainState:
    """The complete state of a run; the data position follows from `step`."""

    step: jax.Array  # int32: steps done
    params: Any
    ema_params: Any
    opt_state: Any
    skipped: jax.Array  # (2,) int32: updates skipped because something was not finite, in total and in a row


def init_state(model: VDT, optimizer: optax.GradientTransformation, key: jax.Array) -> TrainState:
    """A fresh state; jit it with out_shardings to initialise the parameters with their final sharding."""
    # unroll=1: an unrolled model would take three times as long to compile, for the same parameters.
    params = model.clone(unroll=1).init(key, jnp.zeros((1, *model.video_shape)), jnp.zeros(1))["params"]
    # The EMA is a copy: the step donates its state, and a buffer cannot be given away twice.
    ema_params = jax.tree.map(jnp.copy, params)
    return TrainState(jnp.zeros((), jnp.int32), params, ema_params, optimizer.init(params), jnp.zeros(2, jnp.int32))


def draw_examples(
    model: VDT,
    diffusion: GaussianDiffusion,
    batch: Batch,
    key: jax.Array,
    *,
    mask_mixture: str = "varied",
    label_dropout: float = 0.1,
    noise_shift: float = 1.0,
    times: str = "uniform",
    given_noise: float = 0.0,
) -> Batch:
    """Adds to a batch what a step draws at random for each sample: mask, noise level, noise, label dropout.

    Args:
      batch: `video` (B, F, H, W, C) in [-1, 1], and `labels` (B,) int32, which a model of one class ignores.
      mask_mixture: `varied` or `official`, see masks.
      label_dropout: share of samples whose label is replaced by "no label", for guidance.
      noise_shift, times: how noise levels are drawn, see NoiseSchedule.draw_steps.
      given_noise: the standard deviation of the noise on given positions is drawn uniformly from 0 to this value.

    Returns:
      `x_start`, `mask`, `steps`, `noise` and, if not 0, `given_noise` as in GaussianDiffusion.training_losses, and
      `labels`; axis 0 is the batch.
    """
    step_key, noise_key, mask_key, label_key = jax.random.split(key, 4)
    x_start = batch["video"]
    batch_size = len(x_start)
    labels = batch["labels"] if model.num_classes > 1 else jnp.zeros(batch_size, jnp.int32)
    examples = {
        "x_start": x_start,
        "mask": draw_masks(mask_key, batch_size, model.video_shape[:3], mask_mixture),
        "steps": diffusion.schedule.draw_steps(step_key, batch_size, times, noise_shift),
        "noise": jax.random.normal(noise_key, x_start.shape),
        "labels": jnp.where(jax.random.bernoulli(label_key, label_dropout, (batch_size,)), model.null_label, labels),
    }
    if given_noise:
        given_key = jax.random.fold_in(key, 4)  # split(key, 4) gives the keys fold_in(key, 0) to (key, 3)
        examples["given_noise"] = jax.random.uniform(given_key, (batch_size,), maxval=given_noise)
    return examples


def loss_fn(
    model: VDT, diffusion: GaussianDiffusion, params: Any, examples: Batch, loss: str = "normalised"
) -> tuple[jax.Array, Metrics]:
    """The mean loss of what `draw_examples` returns, and the means of its terms; see `training_losses` for `loss`."""
    examples = dict(examples)
    labels = examples.pop("labels")

    def denoise_fn(x_t: jax.Array, timesteps: jax.Array) -> Any:
        return model.apply({"params": params}, x_t, timesteps, labels)

    losses = diffusion.training_losses(denoise_fn, loss=loss, **examples)
    means = jax.tree.map(jnp.mean, losses)
    return means["loss"], means


def make_train_step(
    model: VDT,
    diffusion: GaussianDiffusion,
    optimizer: optax.GradientTransformation,
    *,
    ema_decay: float = 0.9999,
    ema_warmup: bool = True,
    grad_accum: int = 1,
    frozen: str = "",
    loss: str = "normalised",
    **draw_options: Any,
) -> Callable[[TrainState, Batch, jax.Array], tuple[TrainState, Metrics]]:
    """The step of a run, `train_step(state, batch, key) -> (state, metrics)`: gradient, optimizer, EMA.

    Where the loss or a gradient is not finite, only `step` and `skipped` are updated.

    Args:
      ema_decay, ema_warmup: see `update_ema`.
      grad_accum: number of parts of the batch whose gradients are taken one after the other. All random draws are made
        for the whole batch, so the update does not depend on it.
      frozen: the regex that `make_optimizer` got; gradients of the parameters that it matches are left out of the norm.
      loss, draw_options: see `loss_fn` and `draw_examples`.
    """
    loss_of = functools.partial(loss_fn, model, diffusion, loss=loss)
    gradient = jax.grad(loss_of, has_aux=True)

    def train_step(state: TrainState, batch: Batch, key: jax.Array) -> tuple[TrainState, Metrics]:
        examples = draw_examples(model, diffusion, batch, jax.random.fold_in(key, state.step), **draw_options)
        grads, metrics = accumulate(gradient, state.params, examples, grad_accum)
        metrics["grad_norm"] = optax.tree.norm(trained_params(grads, frozen))
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        ema_params = update_ema(state.ema_params, params, state.step, ema_decay, ema_warmup)

        finite = jnp.isfinite(metrics["loss"]) & jnp.isfinite(metrics["grad_norm"])
        skipped = jnp.where(finite, state.skipped * jnp.array([1, 0]), state.skipped + 1)
        metrics["skipped"], metrics["skipped_in_a_row"] = skipped
        old = (state.params, state.ema_params, state.opt_state)
        kept = jax.tree.map(lambda new, old: jnp.where(finite, new, old), (params, ema_params, opt_state), old)
        return TrainState(state.step + 1, kept[0], kept[1], kept[2], skipped), metrics

    return train_step


def accumulate(gradient: Callable, params: Any, examples: Batch, grad_accum: int) -> tuple[Any, Metrics]:
    """The mean of `gradient(params, part)` over `grad_accum` equal parts of the examples, one after the other."""
    if grad_accum == 1:
        return gradient(params, examples)
    # Part i has the samples i, i + grad_accum, ..., so every device already holds its share of each part.
    parts = jax.tree.map(lambda x: x.reshape(-1, grad_accum, *x.shape[1:]).swapaxes(0, 1), examples)

    def add(total, part):
        return jax.tree.map(jnp.add, total, gradient(params, part)), None

    shapes = jax.eval_shape(gradient, params, jax.tree.map(lambda x: x[0], parts))
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    total, _ = jax.lax.scan(add, zeros, parts)
    return jax.tree.map(lambda x: x / grad_accum, total)


def update_ema(ema_params: Any, params: Any, step: jax.Array, ema_decay: float, warmup: bool = True) -> Any:
    """The EMA of the parameters after a step.

    With `warmup` the decay is min(ema_decay, (1 + step) / (10 + step)), so that the initial values are soon forgotten.
    """
    decay = jnp.minimum(ema_decay, (1 + step) / (10 + step)) if warmup else ema_decay
    return optax.incremental_update(params, ema_params, 1 - decay)


def shard_train_step(train_step: Callable, like: Any, mesh: Mesh) -> Callable:
    """The step, compiled for a mesh: `like` has the shapes of the state, which is donated."""
    state, batch, whole = state_shardings(like, mesh), batch_sharding(mesh), replicated(mesh)
    return jax.jit(train_step, in_shardings=(state, batch, whole), out_shardings=(state, whole), donate_argnums=0)
