"""One training step, pure: `train_step(state, batch, key) -> (state, metrics)`.

Every random draw of step s comes from `fold_in(key, s)`, split by purpose, so a resumed run equals one that was never
stopped, and so does a run on another number of devices.
"""

import re
from collections.abc import Callable, Iterable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from optax.contrib import MuonDimensionNumbers, muon

from vdt_jax.diffusion.gaussian import GaussianDiffusion
from vdt_jax.diffusion.masks import draw_masks
from vdt_jax.distributed.mesh import batch_sharding, path_name, replicated, state_shardings
from vdt_jax.errors import UserError
from vdt_jax.models.vdt import FROZEN_PARAMS, VDT

Batch = dict[str, jax.Array]
Metrics = dict[str, jax.Array]
DECAYS = ("constant", "cosine", "tail")
OPTIMIZERS = ("adamw", "muon")


@flax.struct.dataclass
class TrainState:
    """All that a run is, but for its config: the data position follows from `step`."""

    step: jax.Array  # batches seen
    params: Any
    ema_params: Any
    opt_state: Any
    skipped: jax.Array  # (2,) int32: updates left out because something was not finite, in all and in a row


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
    learning_rate: optax.Schedule,
    *,
    name: str = "adamw",
    weight_decay: float = 0.0,
    clip_norm: float = 1.0,
    b2: float = 0.999,
    frozen: str = "",
) -> optax.GradientTransformation:
    """AdamW or Muon, after clipping by the global norm.

    The sinusoidal tables and the parameters whose path matches the regex `frozen` (`blocks/attn|blocks/mlp`) are not
    updated, have no optimizer state, and are left out of the norm.

    Args:
      learning_rate: of all parameters.
      name: `adamw` (Loshchilov and Hutter 2019, arXiv 1711.05101), or `muon` (Jordan et al. 2024) for the parameters
        that `muon_params` lists and AdamW with Nesterov momentum for the others. Muon's updates are scaled to the size
        of AdamW's (Liu et al. 2025, arXiv 2502.16982, sec. 2.2), so one learning rate serves both.
      weight_decay: decoupled, of all trained parameters.
      b2: decay of AdamW's second moment.

    Raises:
      UserError: an unknown optimizer; `init` raises it where `frozen` leaves Muon no parameter.
    """
    if name == "adamw":
        update = optax.adamw(learning_rate, b2=b2, weight_decay=weight_decay)
    elif name == "muon":
        update = muon(
            learning_rate,
            weight_decay=weight_decay,
            adam_b2=b2,
            adam_weight_decay=weight_decay,
            consistent_rms=0.2,
            muon_weight_dimension_numbers=_muon_dimensions,
        )
    else:
        raise UserError(f"unknown optimizer.name '{name}': choose from {', '.join(OPTIMIZERS)}")
    clipped = optax.chain(optax.clip_by_global_norm(clip_norm), update)

    def labels(params: Any) -> Any:
        trained = trained_params(params, frozen)
        if name == "muon" and not muon_params(trained):
            raise UserError(f"optimizer.frozen={frozen} leaves no parameter to muon: choose optimizer.name=adamw")
        return jax.tree_util.tree_map_with_path(
            lambda path, _: "trained" if path_name(path) in trained else "frozen", params
        )

    return optax.partition({"trained": clipped, "frozen": optax.set_to_zero()}, labels)


def muon_params(paths: Iterable[str]) -> list[str]:
    """Those of the parameter paths that Muon updates: the kernels of the blocks, adaLN's excepted."""
    return [path for path in paths if re.fullmatch(r"blocks/(?!adaLN_modulation).*kernel", path)]


def _muon_dimensions(params: Any) -> Any:
    """Which axes of each leaf are one matrix for Muon: of (depth, in, out) the last two; None leaves it to AdamW."""
    # Muon's default rule takes 2-D leaves alone, which are none of the stacked kernels.
    return jax.tree_util.tree_map_with_path(
        lambda path, _: MuonDimensionNumbers(1, 2) if muon_params([path_name(path)]) else None, params
    )


def trained_params(params: Any, frozen: str = "") -> dict[str, Any]:
    """{path: leaf} of a tree like the parameters, without what training does not touch.

    Raises:
      UserError: `frozen` is no regex, fits no path, or leaves nothing to train.
    """
    try:
        pattern = re.compile(frozen) if frozen else None
    except re.error as error:
        raise UserError(f"optimizer.frozen={frozen} is not a regular expression: {error}") from None
    leaves = {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params)}
    free = {path: leaf for path, leaf in leaves.items() if path.split("/")[0] not in FROZEN_PARAMS}
    trained = {path: leaf for path, leaf in free.items() if pattern is None or not pattern.search(path)}
    if frozen and len(trained) == len(free):
        raise UserError(f"optimizer.frozen={frozen} fits no parameter: paths look like {next(iter(free))}")
    if not trained:
        raise UserError(f"optimizer.frozen={frozen} leaves nothing to train")
    return trained


def init_state(model: VDT, optimizer: optax.GradientTransformation, key: jax.Array) -> TrainState:
    """A fresh state; jit it with out_shardings so that the parameters are born where they live."""
    x = jnp.zeros((1, *model.video_shape))
    params = model.init(key, x, jnp.zeros(1))["params"]
    # The EMA is a copy: the step donates its state, and a buffer cannot be given away twice.
    ema_params = jax.tree.map(jnp.copy, params)
    return TrainState(jnp.zeros((), jnp.int32), params, ema_params, optimizer.init(params), jnp.zeros(2, jnp.int32))


def count_trained(params: Any, frozen: str = "") -> int:
    """Parameters that the optimizer changes."""
    return sum(leaf.size for leaf in trained_params(params, frozen).values())


def draw_examples(
    model: VDT,
    diffusion: GaussianDiffusion,
    batch: Batch,
    key: jax.Array,
    *,
    mask_mixture: str = "varied",
    label_dropout: float = 0.1,
    noise_shift: float = 1.0,
) -> Batch:
    """A batch with all that a step draws at random, one of each for each sample.

    Args:
      batch: `video` (B, F, H, W, C) in [-1, 1], and `labels` (B,) int32, which a model of one class does not look at.
      mask_mixture: `varied` or `official`, see masks.
      label_dropout: share of samples whose label is replaced by "no label", for guidance.
      noise_shift: more than 1 trains at more noise, see NoiseSchedule.shifted_steps.

    Returns:
      `x_start`, `mask`, `steps`, `noise` as in GaussianDiffusion.training_losses, and `labels`; axis 0 is the batch.
    """
    step_key, noise_key, mask_key, label_key = jax.random.split(key, 4)
    x_start = batch["video"]
    batch_size = x_start.shape[0]
    steps = jnp.asarray(diffusion.schedule.shifted_steps(noise_shift))
    labels = batch["labels"] if model.num_classes > 1 else jnp.zeros(batch_size, jnp.int32)
    return {
        "x_start": x_start,
        "mask": draw_masks(mask_key, batch_size, model.video_shape[:3], mask_mixture),
        "steps": steps[jax.random.randint(step_key, (batch_size,), 0, len(steps))],
        "noise": jax.random.normal(noise_key, x_start.shape),
        "labels": jnp.where(jax.random.bernoulli(label_key, label_dropout, (batch_size,)), model.null_label, labels),
    }


def loss_fn(
    model: VDT, diffusion: GaussianDiffusion, params: Any, examples: Batch, loss: str = "normalised"
) -> tuple[jax.Array, Metrics]:
    """The mean loss of what `draw_examples` returns.

    Args:
      loss: `normalised` or `parity`, see GaussianDiffusion.training_losses.

    Returns:
      The scalar to minimise, and the means of its terms.
    """
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
    grad_accum: int = 1,
    frozen: str = "",
    loss: str = "normalised",
    **draw_options: Any,
) -> Callable[[TrainState, Batch, jax.Array], tuple[TrainState, Metrics]]:
    """The step of a run: gradient, AdamW, EMA.

    The EMA decay is warmed up, min(ema_decay, (1 + step) / (10 + step)), so that the first weights are forgotten. Where
    the loss or a gradient is not finite, nothing is updated but `step` and `skipped`.

    Args:
      grad_accum: the gradient is taken of so many parts of the batch, one after the other. All is drawn for the whole
        batch at once, so the update is that of the batch in one piece.
      frozen: what `make_optimizer` was told; those gradients do not count.
      loss: see `loss_fn`.
      draw_options: see `draw_examples`.
    """

    def gradient(params: Any, examples: Batch) -> tuple[Any, Metrics]:
        def loss_of(params):
            return loss_fn(model, diffusion, params, examples, loss)

        return jax.grad(loss_of, has_aux=True)(params)

    def accumulated_gradient(params: Any, examples: Batch) -> tuple[Any, Metrics]:
        # Part i has the samples i, i + grad_accum, ...: each device finds its share of it among its own samples.
        parts = jax.tree.map(lambda x: x.reshape(-1, grad_accum, *x.shape[1:]).swapaxes(0, 1), examples)

        def add(total, part):
            return jax.tree.map(jnp.add, total, gradient(params, part)), None

        first = jax.tree.map(lambda x: x[0], parts)
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(gradient, params, first))
        total, _ = jax.lax.scan(add, zeros, parts)
        return jax.tree.map(lambda x: x / grad_accum, total)

    def train_step(state: TrainState, batch: Batch, key: jax.Array) -> tuple[TrainState, Metrics]:
        examples = draw_examples(model, diffusion, batch, jax.random.fold_in(key, state.step), **draw_options)
        grads, metrics = (gradient if grad_accum == 1 else accumulated_gradient)(state.params, examples)
        trained = trained_params(grads, frozen)
        metrics["grad_norm"] = optax.tree.norm(trained)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        decay = jnp.minimum(ema_decay, (1 + state.step) / (10 + state.step))
        ema_params = optax.incremental_update(params, state.ema_params, 1 - decay)

        finite = jnp.isfinite(metrics["loss"]) & jnp.isfinite(metrics["grad_norm"])
        old = (state.params, state.ema_params, state.opt_state)
        kept = jax.tree.map(lambda new, old: jnp.where(finite, new, old), (params, ema_params, opt_state), old)
        skipped = jnp.where(finite, state.skipped * jnp.array([1, 0]), state.skipped + 1)
        metrics["skipped"], metrics["skipped_in_a_row"] = skipped
        return TrainState(state.step + 1, kept[0], kept[1], kept[2], skipped), metrics

    return train_step


def shard_train_step(train_step: Callable, like: Any, mesh: Mesh) -> Callable:
    """The step, compiled for a mesh: `like` has the shapes of the state, which is donated."""
    shardings = state_shardings(like, mesh)
    return jax.jit(
        train_step,
        in_shardings=(shardings, batch_sharding(mesh), replicated(mesh)),
        out_shardings=(shardings, replicated(mesh)),
        donate_argnums=0,
    )
