"""Loading and saving models: for sampling, and as the start of another run."""

import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
from etils import epath

from vdt_jax.checkpoints.config import check_config, network_of
from vdt_jax.checkpoints.manifest import MANIFEST, all_steps, damage, finished_steps, write_manifest
from vdt_jax.checkpoints.untrusted import check_files, check_regular, read_json, read_params
from vdt_jax.distributed.mesh import path_name, put_whole
from vdt_jax.errors import UserError
from vdt_jax.files import atomic_write, in_bucket, open_folder
from vdt_jax.models.vdt import VDT, param_shapes

logger = logging.getLogger(__name__)
Config = dict[str, Any]
DEMO = "demo"  # names the bundled model
_COMMITTED = "commit_success.txt"  # of Orbax, which reads a folder without it: it holds the writer's absolute path


def _folder(path: str | os.PathLike) -> epath.Path:
    """The folder with the config.json: that of the run, where `path` is one of its checkpoints."""
    if str(path) == DEMO:
        return epath.Path(__file__).parent.parent / DEMO
    folder = open_folder(path)
    return folder.parent.parent if _is_step(folder) else folder


def _is_step(folder: epath.Path) -> bool:
    return folder.name.isdigit() and folder.parent.name == "checkpoints"


def load_config(path: str | os.PathLike) -> Config:
    """The config of a checkpoint; `demo` is the bundled model.

    Raises:
      UserError: no such folder, no config.json in it, or a config that describes no model.
    """
    file = _folder(path) / "config.json"
    if not file.is_file():
        raise UserError(f"no checkpoint in {path}: give a working directory of train.py or a converted folder")
    config = read_json(file)
    try:
        check_config(config)
    except UserError as error:
        raise UserError(f"{file}: {error}") from None
    return config


def save_config(path: str | os.PathLike, config: Config) -> None:
    """Writes config.json, atomically."""
    atomic_write(epath.Path(path) / "config.json", json.dumps(config, indent=2) + "\n")


def save_model(path: str | os.PathLike, config: Config, params: Any) -> None:
    """Writes a model on its own: `params/`, their manifest, and last `config.json`, which marks a folder as complete.

    The tree is converted to jax arrays (aligned NumPy arrays are not copied) and written in parts, because Orbax would
    hold two more copies of a NumPy tree.
    """
    import orbax.checkpoint as ocp  # slow to import, and reading needs none of it

    params = jax.tree.map(jax.device_put, params)
    with ocp.Checkpointer(ocp.StandardCheckpointHandler(save_concurrent_gb=1)) as checkpointer:
        checkpointer.save(open_folder(path) / "params", args=ocp.args.StandardSave(params), force=True)
    (open_folder(path) / "params" / _COMMITTED).unlink(missing_ok=True)
    write_manifest(open_folder(path), step=0, host=0, num_hosts=1)
    save_config(path, config)


def newest_checkpoint(path: str | os.PathLike) -> epath.Path:
    """The folder of the newest good checkpoint in a working directory, or the one that `path` itself is.

    A checkpoint that `path` names is read even if it has no manifest. UserError: there is no good one.
    """
    folder = _folder(path) / "checkpoints"
    asked = epath.Path(path)
    if not in_bucket(folder) and Path(folder).is_symlink():
        check_regular(folder)
    steps = [int(asked.name)] if _is_step(asked) else finished_steps(folder)
    for step in reversed(steps):
        check_files(folder / str(step))
        reason = damage(folder / str(step), step, "ema_params/") if step in finished_steps(folder) else None
        if reason is None:
            return folder / str(step)
        logger.warning(f"checkpoint {folder / str(step)} is damaged ({reason}): not used")
    if steps:
        raise UserError(f"no good checkpoint in {path}: {folder / str(steps[0])} is damaged, and there is no older one")
    if unfinished := all_steps(folder):
        example = folder / str(unfinished[-1])
        raise UserError(
            f"no finished checkpoint in {path}: {example} has no manifest.json, so it is incomplete, or was "
            f"saved by a version without manifests; to load it anyway, give its path: {example}"
        )
    raise UserError(f"no checkpoint in {path} yet: train longer, or name another folder")


def load_model(path: str | os.PathLike) -> tuple[VDT, Any]:
    """The model and its parameters from a working directory (the newest good EMA), one of its checkpoints, or a folder
    of `save_model`.

    Returns:
      (model, params): `model.apply({"params": params}, x, timesteps)`.

    Raises:
      UserError: no checkpoint there, or weights that are not those of its config.
    """
    model, folder = network_of(load_config(path)["model"]), _folder(path)
    params = folder / "params"
    if not params.is_dir():
        return model, read_params(newest_checkpoint(path) / "ema_params", param_shapes(model))
    check_files(params)
    manifest = folder / MANIFEST
    written = manifest.exists() or (not in_bucket(manifest) and Path(manifest).is_symlink())  # older folders have none
    if written and (reason := damage(folder, 0)):
        raise UserError(f"{path} is damaged ({reason}): fetch or convert it again")
    return model, read_params(params, param_shapes(model))


def start_from(path: str | os.PathLike, params: Any, fresh: Sequence[str] = ()) -> Any:
    """Freshly initialised parameters, replaced by those of a checkpoint.

    Args:
      path: as for `load_model`.
      params: a tree of arrays, or of shapes for a check only; the result has its shapes and shardings.
      fresh: paths like "y_embedder" or "blocks/temporal_fc" whose leaves are kept from `params`.

    Raises:
      UserError: parameters that are missing, left over, of a wrong shape, or named by `fresh` and unknown to `params`.
    """
    loaded = load_model(path)[1]
    theirs, ours = (
        {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)} for tree in (loaded, params)
    )
    staying = set(fresh_paths(params, fresh)) | set(fresh_paths(loaded, fresh))
    problems = [f"{name} is missing there" for name in ours.keys() - theirs.keys() if name not in staying]
    problems += [f"{name} is not in this model" for name in theirs.keys() - ours.keys() if name not in staying]
    problems += [
        f"{name} has shape {theirs[name].shape} there and {leaf.shape} here"
        for name, leaf in ours.items()
        if name in theirs and theirs[name].shape != leaf.shape and name not in staying
    ]
    problems += [f"no parameter is called {start}" for start in fresh if not fresh_paths(params, [start])]
    if problems:
        way_out = "change config.model, or name what shall start fresh in --config.init_fresh"
        raise UserError(f"--config.init_from={path} does not fit: {'; '.join(sorted(problems))}; {way_out}")

    def pick(path: Any, leaf: jax.Array) -> jax.Array:
        name = path_name(path)
        return leaf if name in staying else put_whole(theirs[name], leaf.sharding)

    return jax.tree_util.tree_map_with_path(pick, params)


def fresh_paths(params: Any, fresh: Sequence[str]) -> list[str]:
    """The paths of the leaves that `fresh` names: a/b names the leaf a/b and all leaves below it."""
    paths = [path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    return [path for path in paths if any(path == start or path.startswith(f"{start}/") for start in fresh)]
