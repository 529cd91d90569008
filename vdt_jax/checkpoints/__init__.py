"""Checkpoints of runs, with manifests, and models in folders; both are written by Orbax.

A working directory holds `config.json` and `checkpoints/<step>/`, which has two parts: `ema_params`, which sampling
reads, and `training`, the rest of the state. `manifest.json` is written last and marks a step as finished. A model on
its own is a folder with `config.json` and `params/`.
"""

from vdt_jax.checkpoints.manager import Checkpoints
from vdt_jax.checkpoints.models import (
    DEMO,
    fresh_paths,
    load_config,
    load_model,
    newest_checkpoint,
    newest_step,
    save_config,
    save_model,
    start_from,
)

__all__ = [
    "DEMO",
    "Checkpoints",
    "fresh_paths",
    "load_config",
    "load_model",
    "newest_checkpoint",
    "newest_step",
    "save_config",
    "save_model",
    "start_from",
]
