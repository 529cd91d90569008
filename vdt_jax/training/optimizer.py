"""The optimizer and its learning rate: AdamW or Muon, on the parameters that training changes."""

import re
from collections.abc import Iterable
from typing import Any

import jax
import optax
from optax.contrib import MuonDimensionNumbers, muon

from vdt_jax.distributed.mesh import path_name
from vdt_jax.errors import UserError
from vdt_jax.models.vdt import FROZEN_PARAMS

DECAYS = ("constant", "cosine", "tail")
OPTIMIZERS = ("adamw", "muon")  # both tuples are the choices of vdt_jax.training.config, which checks them


def make_learning_rate(peak: float, warmup_steps: int, total_steps: int, decay: str) -> optax.Schedule:
    """Linear warm-up from 0 to `peak`, then one of three decays.

    `constant` does not decay. `cosine` falls to 0 at `total_steps`. `tail` is constant, then falls linearly to 0 over
    the last fifth, so that a run can be extended without a new schedule (Hu et al. 2024, arXiv 2404.06395, sec. 4).
    """
    rest, fifth = max(total_steps - warmup_steps, 1), max(total_steps // 5, 1)
    after = {
        "constant": optax.constant_schedule(peak),
        "cosine": optax.cosine_decay_schedule(peak, rest),
        "tail": optax.linear_schedule(peak, 0.0, fifth, transition_begin=max(rest - fifth, 0)),
    }
    warmup = optax.linear_schedule(0.0, peak, warmup_steps)
    return optax.join_schedules([warmup, after[decay]], [warmup_steps])


def make_optimizer(
    learning_rate: optax.Schedule,
    *,
    name: str = "adamw",
    weight_decay: float = 0.0,
    clip_norm: float = 1.0,
    b2: float = 0.999,
    frozen: str = "",
) -> optax.GradientTransformation:
    """AdamW or Muon, after clipping by the global norm, if `clip_norm` is not 0.

    The sinusoidal tables and the parameters whose path matches the regex `frozen` (such as `blocks/attn|blocks/mlp`)
    are not updated, have no optimizer state, and do not count in the norm.

    Args:
      name: `adamw` (Loshchilov and Hutter 2019, arXiv 1711.05101), or `muon` (Jordan et al. 2024) for the parameters
        that `muon_params` lists and AdamW with Nesterov momentum for the others. Muon's updates are scaled to the size
        of AdamW's (Liu et al. 2025, arXiv 2502.16982, sec. 2.2), so one learning rate serves both. `init` raises
        UserError where `frozen` leaves Muon no parameter.
      weight_decay: decoupled, of all trained parameters.
      b2: decay of AdamW's second moment.
    """
    updates = {
        "adamw": optax.adamw(learning_rate, b2=b2, weight_decay=weight_decay),
        "muon": muon(
            learning_rate,
            weight_decay=weight_decay,
            adam_b2=b2,
            adam_weight_decay=weight_decay,
            consistent_rms=0.2,
            muon_weight_dimension_numbers=_muon_dimensions,
        ),
    }
    clip = optax.clip_by_global_norm(clip_norm) if clip_norm else optax.identity()
    clipped = optax.chain(clip, updates[name])

    def labels(params: Any) -> Any:
        trained = trained_params(params, frozen)
        if name == "muon" and not muon_params(trained):
            raise UserError(f"optimizer.frozen={frozen} leaves no parameter to muon: choose optimizer.name=adamw")
        label = {True: "trained", False: "frozen"}  # paths of checkpoints have these names
        return jax.tree_util.tree_map_with_path(lambda path, _: label[path_name(path) in trained], params)

    return optax.partition({"trained": clipped, "frozen": optax.set_to_zero()}, labels)


def muon_params(paths: Iterable[str]) -> list[str]:
    """The parameter paths that Muon updates: the kernels of the blocks, without adaLN's."""
    return [path for path in paths if re.fullmatch(r"blocks/(?!adaLN_modulation).*kernel", path)]


def _muon_dimensions(params: Any) -> Any:
    """The axes of each leaf that are a matrix for Muon, the last two of (depth, in, out); None leaves it to AdamW."""
    # Muon's default rule takes only 2-D leaves; the stacked kernels are 3-D.
    return jax.tree_util.tree_map_with_path(
        lambda path, _: MuonDimensionNumbers(1, 2) if muon_params([path_name(path)]) else None, params
    )


def trained_params(params: Any, frozen: str = "") -> dict[str, Any]:
    """{path: leaf} of the trained leaves of a tree like the parameters.

    Raises:
      UserError: `frozen` is not a regex, matches no path, or leaves nothing to train.
    """
    try:
        pattern = re.compile(frozen) if frozen else None
    except re.error as error:
        raise UserError(f"optimizer.frozen={frozen} is not a regular expression: {error}") from None
    leaves = {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params)}
    free = {path: leaf for path, leaf in leaves.items() if path.split("/")[0] not in FROZEN_PARAMS}
    trained = {path: leaf for path, leaf in free.items() if pattern is None or not pattern.search(path)}
    if frozen and len(trained) == len(free):
        raise UserError(f"optimizer.frozen={frozen} matches no parameter: paths look like {next(iter(free))}")
    if not trained:
        raise UserError(f"optimizer.frozen={frozen} leaves nothing to train: name fewer paths")
    return trained


def count_trained(params: Any, frozen: str = "") -> int:
    """The number of trained parameters."""
    return sum(leaf.size for leaf in trained_params(params, frozen).values())
