"""Checkpoints, by Orbax: the states of a run, each with a manifest that says it is whole, and models in folders.

A working directory holds `config.json` and `checkpoints/<step>/`, each in two parts: `ema_params`, which is all that
sampling reads, and `training` (all the rest). `manifest.json` is written last: a step without it is not finished. A
model on its own is a folder of `config.json` and `params/`.
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
