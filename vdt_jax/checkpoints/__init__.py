"""Checkpoints of runs, with manifests, and models in folders; both are written by Orbax.

A working directory holds `config.json` and `checkpoints/<step>/`, which has two parts: `ema_params`, which sampling
reads, and `training`, the rest of the state. `manifest.json` is written last and marks a step as finished. A model on
its own is a folder with `config.json` and `params/`.

`manager.Checkpoints` are those of a run; it is not imported here, because Orbax takes a quarter of a second to import,
and reading a model needs none of it.
"""

from vdt_jax.checkpoints.models import DEMO as DEMO
from vdt_jax.checkpoints.models import fresh_paths as fresh_paths
from vdt_jax.checkpoints.models import load_config as load_config
from vdt_jax.checkpoints.models import load_model as load_model
from vdt_jax.checkpoints.models import newest_checkpoint as newest_checkpoint
from vdt_jax.checkpoints.models import save_config as save_config
from vdt_jax.checkpoints.models import save_model as save_model
from vdt_jax.checkpoints.models import start_from as start_from
