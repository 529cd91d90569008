"""Train a VDT.

    python train.py --config=configs/moving_digits.py --workdir=runs/digits --config.batch_size=64

The same command starts a run and continues it, on one device or on many hosts (docs/scaling.md). A working directory
keeps the config, checkpoints, metrics.jsonl, TensorBoard events and previews. Exit codes: 2 a mistake in the input,
3 the run cannot go on, 75 it was interrupted and saved.
"""

import functools
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from etils import epath
from jax.sharding import Mesh
from ml_collections import config_flags

from vdt_jax import cli
from vdt_jax.checkpoints import Checkpoints, fresh_paths, load_config, save_config, start_from
from vdt_jax.data import Source, make_source, take
from vdt_jax.data.pipeline import batches, clip_numbers
from vdt_jax.diffusion.gaussian import make_diffusion
from vdt_jax.diffusion.masks import TASKS
from vdt_jax.distributed.mesh import (
    batch_sharding,
    check_batch_size,
    gather_whole,
    make_mesh,
    put_whole,
    replicated,
    shard_batch,
    state_shardings,
    with_shardings,
)
from vdt_jax.distributed.processes import Interruption, Watch, start_processes
from vdt_jax.errors import INTERRUPTED, RunStopped, UserError
from vdt_jax.files import Mirror, open_folder
from vdt_jax.inference.generation import (
    CachedClips,
    LoadedAutoencoder,
    generate_clips,
    load_vae,
    respaced,
    sample_keys,
    task_masks,
)
from vdt_jax.inference.outputs import write_comparison
from vdt_jax.latents.cache import Latents
from vdt_jax.latents.codec import draw_latents, encode_batch
from vdt_jax.latents.space import autoencoder_of
from vdt_jax.models.flops import utilisation
from vdt_jax.models.vdt import VDT
from vdt_jax.progress import RunLog
from vdt_jax.training.optimizer import count_trained, make_learning_rate, make_optimizer
from vdt_jax.training.step import TrainState, init_state, make_train_step, shard_train_step
from vdt_jax.training.validation import make_validation

_CONFIG = config_flags.DEFINE_config_file("config", None, "A recipe of configs/.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Where the run lives; runs/<recipe> if not given.")
_STOP_AFTER = flags.DEFINE_integer("stop_after", None, "Save and end after this step; the same command goes on later.")
_COORDINATOR = flags.DEFINE_string("coordinator", None, "host:port of process 0, where SLURM or a TPU does not say it.")
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "Processes of the run, with --coordinator.")
_PROCESS_ID = flags.DEFINE_integer("process_id", None, "Which of them this is, from 0.")

# A run may be continued with other values of these; with other values of the rest it would be another run.
_FREE_KEYS = (
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
)
_FREE_KEYS += ("mesh", "grad_accum", "model.remat", "model.unroll")  # these change how a step is computed, not what
MAX_SKIPPED = 5  # steps in a row without a finite loss and gradient; then the run stops


def main(_) -> None:
    config: Any = cli.load_config_flag(_CONFIG.value)
    cli.quiet_start()
    start_processes(_COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value)
    with Interruption() as interruption, Watch() as watch:
        train(config, interruption, watch)


def train(config: Any, interruption: Interruption, watch: Watch) -> None:
    path = _WORKDIR.value or f"runs/{recipe_name()}"
    print(f"working directory: {path}", flush=True)
    workdir = open_folder(path)
    options = json.loads(config.to_json())
    check_same_run(workdir, options)

    for name in ("total_steps", "log_every", "checkpoint_every", "keep_checkpoints", "data_threads"):
        if config[name] < 1:
            raise UserError(f"config.{name}={config[name]} cannot be: at least 1")

    # ------------------------------------------------------------------ model, data, optimizer
    mesh = make_mesh(**config.mesh)
    check_batch_size(config.batch_size, mesh, config.grad_accum)
    first_process = jax.process_index() == 0
    model = VDT(**config.model)
    model.check_sizes()
    vae = None if config.vae is None else load_vae(config.vae)
    diffusion = make_diffusion(**config.diffusion, learn_sigma=model.learn_sigma)
    cached = config.data.name == "latents"  # then the autoencoder is for the previews alone
    clip_shape = model.video_shape if vae is None or cached else vae.clip_shape(model)
    say = functools.partial(print, flush=True)
    mirror = Mirror(workdir, copies=first_process, say=say)
    source = make_source(config.data, clip_shape, "train", mirror.folder / "bad_files.jsonl")
    held_out = make_source(config.data, clip_shape, "held_out", mirror.folder / "bad_files_held_out.jsonl")
    if isinstance(held_out, Latents):
        held_out = CachedClips(held_out, vae)
    if model.num_classes not in (1, source.num_classes):
        raise UserError(f"model.num_classes={model.num_classes}, but the data has {source.num_classes}: use that, or 1")
    options["autoencoder"] = autoencoder_of(source, vae)
    check_same_run(workdir, options)
    learning_rate = make_learning_rate(total_steps=config.total_steps, **config.learning_rate)
    optimizer = make_optimizer(learning_rate, **config.optimizer)
    draw_keys = jax.jit(lambda: jax.random.split(jax.random.key(config.seed), 3), out_shardings=replicated(mesh))
    init_key, train_key, encode_key = draw_keys()

    init = functools.partial(init_state, model, optimizer)
    like = jax.eval_shape(init, init_key)
    like = with_shardings(like, state_shardings(like, mesh))
    spread_model = model if config.mesh.fsdp == 1 else model.clone(gather=gather_whole(mesh, model.dtype))
    train_step = make_train_step(
        spread_model,
        diffusion,
        optimizer,
        ema_decay=config.ema_decay,
        grad_accum=config.grad_accum,
        frozen=config.optimizer.frozen,
        **config.loss,
    )
    train_step = shard_train_step(train_step, like, mesh)
    to_latents, weights = None, None  # what a batch goes through first, and the first argument of it
    if isinstance(source, Latents):
        to_latents, weights = draw_latents, source.scaling_factor
    elif vae is not None:
        to_latents = functools.partial(encode_batch, vae.model)
        weights = jax.tree.map(functools.partial(put_whole, sharding=replicated(mesh)), vae.params)
    if to_latents is not None:
        to_latents = jax.jit(
            to_latents,
            in_shardings=(replicated(mesh), batch_sharding(mesh), replicated(mesh)),
            out_shardings=batch_sharding(mesh),
        )

    # ------------------------------------------------------------------ state: fresh, or where the run was left
    shapes = {
        "video": jax.ShapeDtypeStruct((config.batch_size, *model.video_shape), np.float32),
        "labels": jax.ShapeDtypeStruct((config.batch_size,), np.int32),
    }
    batch_like = with_shardings(shapes, jax.tree.map(lambda _: batch_sharding(mesh), shapes))
    jax.eval_shape(train_step, like, batch_like, train_key)  # any mistake that is left shows before a file is written
    if config.init_from is not None and not (workdir / "config.json").is_file():
        start_from(config.init_from, like.params, fresh_names(config))
    if first_process:
        save_config(workdir, options)
    checkpoints = Checkpoints(
        workdir, every=config.checkpoint_every, keep=config.keep_checkpoints, keep_every=config.keep_every, say=say
    )
    state = checkpoints.restore(like)
    if state is None:
        state = jax.jit(init, out_shardings=state_shardings(like, mesh))(init_key)  # born where it lives
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
        put=functools.partial(shard_batch, mesh=mesh),
    )

    validate = make_validation(
        model,
        config.diffusion,
        held_out,
        num_clips=config.validation.num_clips,
        num_steps=config.validation.num_steps,
        seed=config.seed,
        vae=vae,
    )

    # ------------------------------------------------------------------ loop
    mirror.fetch("metrics.jsonl")
    device_kind = mesh.devices.flat[0].device_kind
    mfu = functools.partial(utilisation, model, config.batch_size, device_kind, mesh.size)
    with checkpoints, mirror, RunLog(mirror.folder, first_step, config.total_steps, not first_process, mfu) as log:
        trained = count_trained(state.params, config.optimizer.frozen)
        log.say(
            f"{trained / 1e6:.2f} M trained parameters, {len(source)} clips, {mesh.size} {device_kind} device(s) in "
            f"{jax.process_count()} process(es), step {first_step} to {last_step}"
        )
        before = None  # the metrics of the step before: to look at those of a step at once would be to wait for it
        for step in range(first_step + 1, last_step + 1):
            with watch.reading():
                batch = next(train_batches)
            if to_latents is not None:
                batch["video"] = to_latents(weights, batch["video"], jax.random.fold_in(encode_key, step))
            state, metrics = train_step(state, batch, train_key)
            if before is not None:
                report_skip(step - 1, before, config, len(source), checkpoints, log)
            before = metrics
            interrupted = interruption.requested(step)

            validated = {}
            if config.validation.every and step % config.validation.every == 0:
                ema_params = on_one_device(state.ema_params, mesh)
                validated = validate(ema_params) if first_process else {}
            if validated or step % config.log_every == 0 or step in (first_step + 1, last_step):
                values = {name: float(value) for name, value in metrics.items() if name != "skipped_in_a_row"}
                log.metrics(step, values | {"learning_rate": float(np.asarray(learning_rate(step - 1)))} | validated)
            if interrupted or step == last_step:
                checkpoints.save_and_wait(state)
            elif checkpoints.due(step):
                checkpoints.save(state)
                mirror.copy()
            if interrupted and step < last_step:
                raise RunStopped(f"interrupted; step {step} is saved, and the same command goes on", INTERRUPTED)
            if config.preview.every and (step % config.preview.every == 0 or step == last_step):
                folder = mirror.folder / "samples" / f"step_{step:07d}"
                ema_params = on_one_device(state.ema_params, mesh)
                if first_process:
                    preview(model, vae, ema_params, config, held_out, folder, stop=interruption)
                    log.say(f"samples of every task: {folder}")
        if before is not None:
            report_skip(last_step, before, config, len(source), checkpoints, log)
        log.say(f"saving held training up for {checkpoints.seconds_blocked:.2f} s")


def report_skip(step: int, metrics: dict, config: Any, num_clips: int, checkpoints: Checkpoints, log: RunLog) -> None:
    """Tells of a step whose update was left out, and its clips; raises RunStopped after MAX_SKIPPED in a row."""
    in_a_row = int(metrics["skipped_in_a_row"])
    if in_a_row == 0:
        return
    clips = clip_numbers(num_clips, config.seed, range((step - 1) * config.batch_size, step * config.batch_size))
    log.say(
        f"WARNING: step {step} is left out: loss {metrics['loss']:.4g}, gradient norm {metrics['grad_norm']:.4g}; "
        f"{int(metrics['skipped'])} left out in all, {in_a_row} in a row; clips {', '.join(map(str, clips))}"
    )
    if in_a_row >= MAX_SKIPPED:
        raise RunStopped(
            f"{in_a_row} steps in a row, the last {step}, had a loss or a gradient that is not finite; the last good "
            f"checkpoint is {checkpoints.newest()}"
        )


def start_state(state: TrainState, config: Any) -> TrainState:
    """A fresh state with the parameters of the checkpoint `init_from`, but for those named in `init_fresh`."""
    params = start_from(config.init_from, state.params, fresh_names(config))
    fresh = fresh_paths(state.params, fresh_names(config))
    print(f"parameters from {config.init_from}, fresh: {', '.join(fresh) or 'none'}", flush=True)
    # The EMA is a copy: the step donates its state, and a buffer cannot be given away twice.
    return TrainState(state.step, params, jax.tree.map(jnp.copy, params), state.opt_state, state.skipped)


def fresh_names(config: Any) -> list[str]:
    """The paths in `init_fresh`, which have commas between them."""
    return [name for name in (config.init_fresh or "").split(",") if name]


def recipe_name() -> str:
    """configs/sky.py:24gb is sky_24gb."""
    file, _, variant = config_flags.get_config_filename(flags.FLAGS["config"]).partition(":")
    return "_".join(filter(None, [Path(file).stem, variant]))


def check_same_run(workdir: epath.Path, options: dict) -> None:
    """Raises UserError where the working directory belongs to a run with another config."""
    if not (workdir / "config.json").is_file():
        return
    theirs, ours = _flatten(load_config(workdir)), _flatten(options)
    unknown = {"autoencoder"} - (theirs.keys() & ours.keys())  # to runs from before it was written, or as yet to this
    differing = sorted(
        key
        for key in (theirs.keys() | ours.keys()) - unknown
        if theirs.get(key) != ours.get(key) and not f"{key}.".startswith(tuple(f"{free}." for free in _FREE_KEYS))
    )
    if differing:
        shown = ", ".join(f"{key}={theirs.get(key)} (now {ours.get(key)})" for key in differing[:5])
        raise UserError(f"{workdir} belongs to a run with {shown}: choose another --workdir, or the same values")


def _flatten(tree: dict, prefix: str = "") -> dict:
    leaves = {}
    for key, value in tree.items():
        leaves |= _flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return leaves


def on_one_device(params: Any, mesh: Mesh) -> Any:
    """Parameters that are spread over all devices, whole on this process's first; every process must call it."""
    if mesh.shape["fsdp"] > 1:
        params = jax.jit(_same, out_shardings=replicated(mesh))(params)
    return jax.tree.map(lambda leaf: leaf.addressable_data(0), params)


def _same(tree: Any) -> Any:
    return tree


def preview(
    model: VDT,
    vae: LoadedAutoencoder | None,
    ema_params: Any,
    config: Any,
    held_out: Source,
    folder: Path,
    stop: Interruption,
) -> None:
    """Samples every task on the first held-out clips with the EMA weights; one GIF and one PNG a task and clip."""
    diffusion = respaced(config.diffusion, config.preview.num_steps, model.learn_sigma)
    numbers = range(config.preview.num_clips)
    batch = take(held_out, numbers)
    clean, labels = batch["video"], batch["labels"]
    for task in TASKS:
        if stop.asked:
            return
        drawn = task_masks(config.seed, numbers, task, model)
        keys = sample_keys(config.seed, numbers)
        samples, mask = generate_clips(model, ema_params, diffusion, clean, drawn, keys, vae=vae, labels=labels)
        for number in numbers:
            write_comparison(folder / f"{task}_{number}", clean[number], mask[number], [samples[number]])


if __name__ == "__main__":
    cli.run(main)
