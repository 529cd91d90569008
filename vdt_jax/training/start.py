"""How a run begins: whether a working directory is its own, and the state before the first step."""

import dataclasses
import logging
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from etils import epath

from vdt_jax.checkpoints import fresh_paths, load_config, start_from
from vdt_jax.errors import UserError
from vdt_jax.files import differing
from vdt_jax.training.setup import Run
from vdt_jax.training.step import TrainState

logger = logging.getLogger(__name__)

# A run can be resumed with other values of these keys; another value of any other key makes it another run.
FREE_KEYS = (
    "total_steps",
    "log_every",
    "checkpoint_every",
    "keep_checkpoints",
    "keep_every",
    "data_threads",
    "data.max_bad",
    "data.time_limit",
    "data.memory_limit",
    "preview",
    "validation",
    "mesh",  # this and the next change how a step is computed, not what
    "grad_accum",
    "model.remat",
    "model.unroll",
)


def check_same_run(workdir: epath.Path, config: Mapping[str, Any]) -> None:
    """Raises UserError where the working directory belongs to a run with another config."""
    if not (workdir / "config.json").is_file():
        return
    theirs, ignore = load_config(workdir), FREE_KEYS
    if not ("autoencoder" in theirs and "autoencoder" in config):  # unknown in old runs, and before the data is opened
        ignore = (*FREE_KEYS, "autoencoder")
    if shown := differing(theirs, config, ignore):
        raise UserError(f"{workdir} belongs to a run with {shown}: choose another --workdir, or the same values")


def check_init_from(run: Run) -> None:
    """Raises UserError where the parameters of `init_from` do not fit."""
    if run.config.init_from is not None:
        start_from(run.config.init_from, run.state_shapes.params, _fresh(run))


def first_state(run: Run) -> TrainState:
    """The state before the first step; with `init_from`, its parameters but for those that `init_fresh` names."""
    state = run.init_state(run.init_key)
    if run.config.init_from is None:
        return state
    params = start_from(run.config.init_from, state.params, _fresh(run))
    fresh = ", ".join(fresh_paths(state.params, _fresh(run))) or "none"
    logger.info("parameters from %s, fresh: %s", run.config.init_from, fresh)
    # The EMA is a copy: the step donates its state, and a buffer cannot be given away twice.
    return dataclasses.replace(state, params=params, ema_params=jax.tree.map(jnp.copy, params))


def _fresh(run: Run) -> list[str]:
    return [name for name in (run.config.init_fresh or "").split(",") if name]
