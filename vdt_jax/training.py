"""One training step, pure: `train_step(state, batch, key) -> (state, metrics)`.

Every random draw of step s comes from `fold_in(key, s)`, split by purpose, so a resumed run equals one that was never
stopped, and so does a run on another number of devices.
"""

from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from vdt_jax.diffusion import GaussianDiffusion
from vdt_jax.errors import UserError
from vdt_jax.masks import draw_masks
from vdt_jax.models import FROZEN_PARAMS, VDT

Batch = dict[str, jax.Array]
Metrics = dict[str, jax.Array]
DECAYS = ("constant", "cosine", "tail")


@flax.struct.dataclass
class TrainState:
    """All that a run is, but for its config: the data position follows from `step`."""

    step: jax.Array
    params: Any
    ema_params: Any
    opt_state: Any


def make_learning_rate(peak: float, warmup_steps: int, total_steps: int, decay: str) -> optax.Schedule:
    """Linear warm-up from 0 to `peak`, then as `decay` says.

    `constant` stays; `cosine` falls to 0 at `total_steps`; `tail` stays, then falls in a line over the last fifth, so
    that a run can be made longer until it is worth ending (Hu et al. 2024, arXiv 2404.06395, sec. 4).
    """
    if decay not in DECAYS:
        raise UserError(f"no learning-rate decay '{decay}': choose from {', '.join(DECAYS)}")
    warmup = optax.linear_schedule(0.0, peak, warmup_steps)
    after = optax.constant_schedule(peak)
    if decay == "cosine":
        after = optax.cosine_decay_schedule(peak, max(total_steps - warmup_steps, 1))
    if decay == "tail":
        fifth = max(total_steps // 5, 1)
        after = optax.linear_schedule(peak, 0.0, fifth, transition_begin=max(total_steps - warmup_steps - fifth, 0))
    return optax.join_schedules([warmup, after], [warmup_steps])


def make_optimizer(
    learning_rate: optax.Schedule, *, weight_decay: float = 0.0, clip_norm: float = 1.0, b2: float = 0.999
) -> optax.GradientTransformation:
    """AdamW (Loshchilov and Hutter 2019, arXiv 1711.05101) after clipping by global norm.

    The sinusoidal tables are not touched, have no moments, and do not count in the norm.
    """
    adamw = optax.chain(
        optax.clip_by_global_norm(clip_norm), optax.adamw(learning_rate, b2=b2, weight_decay=weight_decay)
    )
    return optax.partition({"trained": adamw, "frozen": optax.set_to_zero()}, _trained_or_frozen)


def _trained_or_frozen(params: Any) -> Any:
    return {
        name: jax.tree.map(lambda _: "frozen" if name in FROZEN_PARAMS else "trained", subtree)  # noqa: B023
        for name, subtree in params.items()
    }


def init_state(model: VDT, optimizer: optax.GradientTransformation, key: jax.Array) -> TrainState:
    """A fresh state; jit it with out_shardings so that the parameters are born where they live."""
    x = jnp.zeros((1, *model.video_shape))
    params = model.init(key, x, jnp.zeros(1))["params"]
    # The EMA is a copy: the step donates its state, and a buffer cannot be given away twice.
    ema_params = jax.tree.map(jnp.copy, params)
    return TrainState(jnp.zeros((), jnp.int32), params, ema_params, optimizer.init(params))


def count_trained(params: Any) -> int:
    """Parameters that the optimizer changes."""
    return sum(x.size for name, tree in params.items() if name not in FROZEN_PARAMS for x in jax.tree.leaves(tree))


def loss_fn(
    model: VDT,
    diffusion: GaussianDiffusion,
    params: Any,
    batch: Batch,
    key: jax.Array,
    *,
    loss: str = "normalised",
    mask_mixture: str = "varied",
    label_dropout: float = 0.1,
    noise_shift: float = 1.0,
) -> tuple[jax.Array, Metrics]:
    """The mean loss of a batch, with steps, noise and masks drawn from `key`.

    Args:
      batch: `video` (B, F, H, W, C) in [-1, 1], and `labels` (B,) int32, which a model of one class does not look at.
      loss: `normalised` or `parity`, see GaussianDiffusion.training_losses.
      mask_mixture: `varied` or `official`, see masks.
      label_dropout: share of samples whose label is replaced by "no label", for guidance.
      noise_shift: more than 1 trains at more noise, see NoiseSchedule.shifted_steps.

    Returns:
      The scalar to minimise, and the means of its terms.
    """
    step_key, noise_key, mask_key, label_key = jax.random.split(key, 4)
    x_start = batch["video"]
    batch_size = x_start.shape[0]
    steps = jnp.asarray(diffusion.schedule.shifted_steps(noise_shift))
    steps = steps[jax.random.randint(step_key, (batch_size,), 0, len(steps))]
    noise = jax.random.normal(noise_key, x_start.shape)
    mask = draw_masks(mask_key, batch_size, model.video_shape[:3], mask_mixture)
    labels = batch["labels"] if model.num_classes > 1 else jnp.zeros(batch_size, jnp.int32)
    labels = jnp.where(jax.random.bernoulli(label_key, label_dropout, (batch_size,)), model.null_label, labels)

    def denoise_fn(x_t: jax.Array, timesteps: jax.Array) -> Any:
        return model.apply({"params": params}, x_t, timesteps, labels)

    losses = diffusion.training_losses(denoise_fn, x_start, mask, steps, noise, loss)
    means = jax.tree.map(jnp.mean, losses)
    return means["loss"], means


def make_train_step(
    model: VDT,
    diffusion: GaussianDiffusion,
    optimizer: optax.GradientTransformation,
    *,
    ema_decay: float = 0.9999,
    **loss_options: Any,
) -> Callable[[TrainState, Batch, jax.Array], tuple[TrainState, Metrics]]:
    """The step of a run: gradient, AdamW, EMA. `loss_options` go to `loss_fn`.

    The EMA decay is warmed up, min(ema_decay, (1 + step) / (10 + step)), so that the first weights are forgotten.
    """

    def train_step(state: TrainState, batch: Batch, key: jax.Array) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(key, state.step)

        def loss_of(params):
            return loss_fn(model, diffusion, params, batch, key, **loss_options)

        grads, metrics = jax.grad(loss_of, has_aux=True)(state.params)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        decay = jnp.minimum(ema_decay, (1 + state.step) / (10 + state.step))
        ema_params = optax.incremental_update(params, state.ema_params, 1 - decay)
        metrics["grad_norm"] = optax.tree.norm({k: v for k, v in grads.items() if k not in FROZEN_PARAMS})
        return TrainState(state.step + 1, params, ema_params, opt_state), metrics

    return train_step
