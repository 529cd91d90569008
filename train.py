"""Train a VDT.

    python train.py --config=configs/moving_digits.py --workdir=runs/digits --config.batch_size=64

The same command starts a run and continues it. A working directory keeps the config, checkpoints, metrics.jsonl,
TensorBoard events and previews.
"""

import functools
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from ml_collections import config_flags

from vdt_jax import cli
from vdt_jax.autoencoder import encode_batch
from vdt_jax.checkpoints import Checkpoints, load_config, save_config, start_from
from vdt_jax.data import Source, make_source, take
from vdt_jax.data.pipeline import batches
from vdt_jax.diffusion import make_diffusion
from vdt_jax.errors import UserError
from vdt_jax.generate import LoadedAutoencoder, generate_clips, load_vae, respaced, sample_keys, task_masks
from vdt_jax.masks import TASKS
from vdt_jax.models import VDT
from vdt_jax.pages import write_comparison
from vdt_jax.progress import RunLog
from vdt_jax.sharding import batch_sharding, check_batch_size, make_mesh, replicated, shard_batch
from vdt_jax.training import TrainState, count_trained, init_state, make_learning_rate, make_optimizer, make_train_step

_CONFIG = config_flags.DEFINE_config_file("config", None, "A recipe of configs/.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Where the run lives; runs/<recipe> if not given.")
_STOP_AFTER = flags.DEFINE_integer("stop_after", None, "Save and end after this step; the same command goes on later.")

# A run may be continued with other values of these; with other values of the rest it would be another run.
_FREE_KEYS = ("total_steps", "log_every", "checkpoint_every", "keep_checkpoints", "data_threads", "preview")


def main(_) -> None:
    config: Any = cli.load_config_flag(_CONFIG.value)
    cli.quiet_start()
    workdir = Path(_WORKDIR.value or f"runs/{recipe_name()}")
    print(f"working directory: {workdir}", flush=True)
    options = json.loads(config.to_json())
    check_same_run(workdir, options)

    for name in ("total_steps", "log_every", "checkpoint_every", "keep_checkpoints", "data_threads"):
        if config[name] < 1:
            raise UserError(f"config.{name}={config[name]} cannot be: at least 1")

    # ------------------------------------------------------------------ model, data, optimizer
    mesh = make_mesh()
    check_batch_size(config.batch_size, mesh)
    model = VDT(**config.model)
    model.check_sizes()
    vae = None if config.vae is None else load_vae(config.vae)
    diffusion = make_diffusion(**config.diffusion, learn_sigma=model.learn_sigma)
    clip_shape = model.video_shape if vae is None else vae.clip_shape(model)
    source = make_source(config.data, clip_shape, "train")
    held_out = make_source(config.data, clip_shape, "held_out")
    if model.num_classes not in (1, source.num_classes):
        raise UserError(f"model.num_classes={model.num_classes}, but the data has {source.num_classes}: use that, or 1")
    learning_rate = make_learning_rate(total_steps=config.total_steps, **config.learning_rate)
    optimizer = make_optimizer(learning_rate, **config.optimizer)
    init_key, train_key, encode_key = jax.random.split(jax.random.key(config.seed), 3)

    init = functools.partial(init_state, model, optimizer)
    train_step = jax.jit(
        make_train_step(model, diffusion, optimizer, ema_decay=config.ema_decay, **config.loss),
        in_shardings=(replicated(mesh), batch_sharding(mesh), replicated(mesh)),
        out_shardings=replicated(mesh),
        donate_argnums=0,
    )
    if vae is not None:
        encode = jax.jit(
            functools.partial(encode_batch, vae.model),
            in_shardings=(replicated(mesh), batch_sharding(mesh), replicated(mesh)),
            out_shardings=batch_sharding(mesh),
        )

    # ------------------------------------------------------------------ state: fresh, or where the run was left
    like = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=replicated(mesh)), jax.eval_shape(init, init_key)
    )
    batch_like = {
        "video": jax.ShapeDtypeStruct((config.batch_size, *model.video_shape), np.float32),
        "labels": jax.ShapeDtypeStruct((config.batch_size,), np.int32),
    }
    jax.eval_shape(train_step, like, batch_like, train_key)  # any mistake that is left shows before a file is written
    if config.init_from is not None and not (workdir / "config.json").is_file():
        start_from(config.init_from, like.params, fresh_names(config))
    save_config(workdir, options)
    checkpoints = Checkpoints(workdir, config.keep_checkpoints)
    state = checkpoints.restore(like)
    if state is None:
        state = jax.jit(init, out_shardings=replicated(mesh))(init_key)
        if config.init_from is not None:
            state = start_state(state, config)
    first_step = int(state.step)
    last_step = min(config.total_steps, _STOP_AFTER.value or config.total_steps)
    train_batches = batches(
        source,
        batch_size=config.batch_size,
        seed=config.seed,
        first_step=first_step,
        host=jax.process_index(),
        num_hosts=jax.process_count(),
        num_threads=config.data_threads,
    )

    # ------------------------------------------------------------------ loop
    with checkpoints, RunLog(workdir, first_step, config.total_steps) as log:
        log.say(
            f"{count_trained(state.params) / 1e6:.2f} M trained parameters, {len(source)} clips, "
            f"{mesh.size} {mesh.devices.flat[0].device_kind} device(s), step {first_step} to {last_step}"
        )
        for step in range(first_step + 1, last_step + 1):
            batch = shard_batch(next(train_batches), mesh)
            if vae is not None:
                batch["video"] = encode(vae.params, batch["video"], jax.random.fold_in(encode_key, step))
            state, metrics = train_step(state, batch, train_key)

            if step % config.log_every == 0 or step in (first_step + 1, last_step):
                values = {name: float(value) for name, value in metrics.items()}
                log.metrics(step, values | {"learning_rate": float(np.asarray(learning_rate(step - 1)))})
            if step % config.checkpoint_every == 0 or step == last_step:
                checkpoints.save(state)
            if config.preview.every and (step % config.preview.every == 0 or step == last_step):
                folder = workdir / "samples" / f"step_{step:07d}"
                preview(model, vae, state.ema_params, config, held_out, folder)
                log.say(f"samples of every task: {folder}")


def start_state(state: TrainState, config: Any) -> TrainState:
    """A fresh state with the parameters of the checkpoint `init_from`, but for those named in `init_fresh`."""
    params = start_from(config.init_from, state.params, fresh_names(config))
    print(f"parameters from {config.init_from}, fresh: {', '.join(fresh_names(config)) or 'none'}", flush=True)
    # The EMA is a copy: the step donates its state, and a buffer cannot be given away twice.
    return TrainState(state.step, params, jax.tree.map(jnp.copy, params), state.opt_state)


def fresh_names(config: Any) -> list[str]:
    """The paths in `init_fresh`, which have commas between them."""
    return [name for name in (config.init_fresh or "").split(",") if name]


def recipe_name() -> str:
    """configs/sky.py:24gb is sky_24gb."""
    file, _, variant = config_flags.get_config_filename(flags.FLAGS["config"]).partition(":")
    return "_".join(filter(None, [Path(file).stem, variant]))


def check_same_run(workdir: Path, options: dict) -> None:
    """Raises UserError where the working directory belongs to a run with another config."""
    if not (workdir / "config.json").is_file():
        return
    theirs, ours = _flatten(load_config(workdir)), _flatten(options)
    differing = sorted(
        key
        for key in theirs.keys() | ours.keys()
        if theirs.get(key) != ours.get(key) and key.split(".")[0] not in _FREE_KEYS
    )
    if differing:
        shown = ", ".join(f"{key}={theirs.get(key)} (now {ours.get(key)})" for key in differing[:5])
        raise UserError(f"{workdir} belongs to a run with {shown}: choose another --workdir, or the same values")


def _flatten(tree: dict, prefix: str = "") -> dict:
    leaves = {}
    for key, value in tree.items():
        leaves |= _flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return leaves


def preview(
    model: VDT, vae: LoadedAutoencoder | None, ema_params: Any, config: Any, held_out: Source, folder: Path
) -> None:
    """Samples every task on the first held-out clips with the EMA weights; one GIF and one PNG a task and clip."""
    diffusion = respaced(config.diffusion, config.preview.num_steps, model.learn_sigma)
    numbers = range(config.preview.num_clips)
    batch = take(held_out, numbers)
    clean, labels = batch["video"], batch["labels"]
    ema_params = jax.device_put(ema_params, jax.local_devices()[0])
    for task in TASKS:
        drawn = task_masks(config.seed, numbers, task, model)
        keys = sample_keys(config.seed, numbers)
        samples, mask = generate_clips(model, ema_params, diffusion, clean, drawn, keys, vae=vae, labels=labels)
        for number in numbers:
            write_comparison(folder / f"{task}_{number}", clean[number], mask[number], [samples[number]])


if __name__ == "__main__":
    cli.run(main)
