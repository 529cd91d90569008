"""Checkpoints, by Orbax: a run's state, and the model in a folder.

A working directory holds `config.json` and `checkpoints/<step>/`, each in two parts: `ema_params`, which is all that
sampling reads, and `training` (step, params, opt_state). A model on its own is a folder of `config.json` and `params/`.
"""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from vdt_jax.errors import UserError
from vdt_jax.models import VDT
from vdt_jax.training import TrainState

Config = dict[str, Any]
DEMO = "demo"  # names the model that ships with the package


class Checkpoints:
    """The checkpoints of one run; a context manager that waits for the last save."""

    def __init__(self, workdir: str | os.PathLike, keep: int = 3):
        folder = Path(workdir).absolute() / "checkpoints"
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, create=True)
        self._manager = ocp.CheckpointManager(folder, options=options, item_names=("training", "ema_params"))

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: object) -> None:
        self._manager.wait_until_finished()
        self._manager.close()

    def save(self, state: TrainState) -> None:
        """Starts to write the state; a step that is already there is left alone."""
        step = int(state.step)
        if step in self._manager.all_steps():
            return
        training = {"step": state.step, "params": state.params, "opt_state": state.opt_state}
        self._manager.save(
            step,
            args=ocp.args.Composite(
                training=ocp.args.StandardSave(training), ema_params=ocp.args.StandardSave(state.ema_params)
            ),
        )

    def restore(self, like: TrainState) -> TrainState | None:
        """The newest state, on the devices of `like` (arrays, or shapes with shardings); None if there is none."""
        step = self._manager.latest_step()
        if step is None:
            return None
        training = {"step": like.step, "params": like.params, "opt_state": like.opt_state}
        restored = self._manager.restore(
            step,
            args=ocp.args.Composite(
                training=ocp.args.StandardRestore(training), ema_params=ocp.args.StandardRestore(like.ema_params)
            ),
        )
        return TrainState(ema_params=restored["ema_params"], **restored["training"])


def _folder(path: str | os.PathLike) -> Path:
    return Path(__file__).parent / DEMO if str(path) == DEMO else Path(path).absolute()


def load_config(path: str | os.PathLike) -> Config:
    """The config beside a checkpoint; `demo` is the model that ships.

    Raises:
      UserError: no such folder, or none that this project wrote.
    """
    file = _folder(path) / "config.json"
    if not file.is_file():
        raise UserError(f"no checkpoint in {path}: give a working directory of train.py or a converted folder")
    return json.loads(file.read_text())


def save_config(path: str | os.PathLike, config: Config) -> None:
    """Writes config.json, whole or not at all."""
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    unfinished = folder / "config.json.tmp"
    unfinished.write_text(json.dumps(config, indent=2) + "\n")
    unfinished.replace(folder / "config.json")


def save_model(path: str | os.PathLike, config: Config, params: Any) -> None:
    """Writes a model on its own: `params/` first, `config.json` last, so that a folder with a config is complete.

    As jax arrays (without a copy, where aligned NumPy arrays come in) and not all at once: Orbax would hold two more
    copies of a NumPy tree while it writes.
    """
    params = jax.tree.map(jax.device_put, params)
    with ocp.Checkpointer(ocp.StandardCheckpointHandler(save_concurrent_gb=1)) as checkpointer:
        checkpointer.save(Path(path).absolute() / "params", args=ocp.args.StandardSave(params), force=True)
    save_config(path, config)


def newest_step(path: str | os.PathLike) -> int:
    """The step of the newest checkpoint in a working directory.

    Raises:
      UserError: there is none yet.
    """
    steps = [int(step.name) for step in (_folder(path) / "checkpoints").glob("*") if step.name.isdigit()]
    if not steps:
        raise UserError(f"no checkpoint in {path} yet: train longer, or name another folder")
    return max(steps)


def load_model(path: str | os.PathLike) -> tuple[VDT, Any]:
    """The model and its parameters from a working directory (the newest EMA) or a folder of `save_model`.

    Returns:
      (model, params): `model.apply({"params": params}, x, timesteps)`.

    Raises:
      UserError: no checkpoint there, or weights that are not those of its config.
    """
    options: dict[str, Any] = load_config(path)["model"]
    if isinstance(options["input_size"], list):  # JSON knows no tuples, and a module's fields must be hashable
        options["input_size"] = tuple(options["input_size"])
    model = VDT(**options)
    x = jax.ShapeDtypeStruct((1, *model.video_shape), jnp.float32)
    expected = jax.eval_shape(model.init, jax.random.key(0), x, jax.ShapeDtypeStruct((1,), jnp.float32))["params"]
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    expected = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), expected)
    folder = _folder(path) / "params"
    if not folder.is_dir():
        folder = folder.parent / "checkpoints" / str(newest_step(path)) / "ema_params"
    with ocp.StandardCheckpointer() as checkpointer:
        try:
            return model, checkpointer.restore(folder, expected)
        except ValueError as error:
            reason = str(error).splitlines()[0]
            raise UserError(f"{folder} does not hold the model of its config.json: {reason}") from None


def start_from(path: str | os.PathLike, params: Any, fresh: Sequence[str] = ()) -> Any:
    """Freshly initialised parameters, replaced by those of a checkpoint.

    Args:
      path: as for `load_model`.
      params: a tree of arrays, or of shapes to see whether all fits; the result has its shapes and shardings.
      fresh: paths like "y_embedder" or "blocks/temporal_fc" whose leaves stay as they are in `params`.

    Raises:
      UserError: every parameter that is missing, of another shape, left over, or named in `fresh` in vain.
    """
    theirs = {_path(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(load_model(path)[1])}
    ours = {_path(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params)}

    def stays(name: str) -> bool:
        return any(name == start or name.startswith(f"{start}/") for start in fresh)

    problems = [f"{name} is missing there" for name in ours.keys() - theirs.keys() if not stays(name)]
    problems += [f"{name} is not in this model" for name in theirs.keys() - ours.keys() if not stays(name)]
    problems += [
        f"{name} has shape {theirs[name].shape} there and {leaf.shape} here"
        for name, leaf in ours.items()
        if name in theirs and theirs[name].shape != leaf.shape and not stays(name)
    ]
    problems += [
        f"no parameter is called {start}"
        for start in fresh
        if not any(name == start or name.startswith(f"{start}/") for name in ours)
    ]
    if problems:
        raise UserError(
            f"--config.init_from={path} does not fit: {'; '.join(sorted(problems))}; change config.model, or name what "
            "shall start fresh in --config.init_fresh"
        )

    def pick(path: Any, leaf: jax.Array) -> jax.Array:
        name = _path(path)
        return leaf if stays(name) else jax.device_put(theirs[name], leaf.sharding)

    return jax.tree_util.tree_map_with_path(pick, params)


def _path(entries: Sequence[Any]) -> str:
    return "/".join(entry.key for entry in entries)
