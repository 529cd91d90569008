"""Train a VDT.

    python train.py --config=configs/moving_digits.py --workdir=runs/digits --config.batch_size=64

Re-run the command to resume, on one device or on many hosts (docs/scaling.md). The working directory holds the config,
checkpoints, metrics.jsonl, TensorBoard events and samples. Exit codes: 2 an error in the input, 3 the run cannot
continue, 75 it was interrupted and saved.
"""

import functools
import logging
from typing import Any

import jax
import numpy as np

from vdt_jax import cli
from vdt_jax.checkpoints import Checkpoints, save_config
from vdt_jax.data.pipeline import batches
from vdt_jax.distributed.mesh import shard_batch
from vdt_jax.distributed.processes import Interruption, Watch, start_processes
from vdt_jax.errors import INTERRUPTED, RunStopped
from vdt_jax.files import Mirror, open_folder
from vdt_jax.models.flops import utilisation
from vdt_jax.options import build
from vdt_jax.progress import RunLog
from vdt_jax.training.config import RunOptions, TrainConfig
from vdt_jax.training.optimizer import count_trained
from vdt_jax.training.resume import check_init_from, check_same_run, first_state
from vdt_jax.training.setup import set_up
from vdt_jax.training.skipped import report_skipped
from vdt_jax.training.step import Metrics
from vdt_jax.training.validation import Validation

cli.define_config()
cli.define_flags(RunOptions)
logger = logging.getLogger("vdt_jax.train")


def main(_: Any) -> None:
    config = build(TrainConfig, cli.values_of_config())
    options = cli.options_of_flags(RunOptions)
    cli.quiet_start()
    start_processes(options.coordinator, options.num_processes, options.process_id)
    if jax.process_index() > 0:
        logging.getLogger("vdt_jax").setLevel(logging.WARNING)
    with Interruption() as interruption, Watch() as watch:
        train(config, options.workdir or f"runs/{cli.recipe_name()}", options.stop_after, interruption, watch)


def train(config: TrainConfig, path: str, stop_after: int | None, interruption: Interruption, watch: Watch) -> None:
    print(f"working directory: {path}", flush=True)
    first_process = jax.process_index() == 0

    # ------------------------------------------------------------------ model, data, optimizer, step
    workdir = open_folder(path)
    check_same_run(workdir, config.as_json())
    mirror = Mirror(workdir, copies=first_process, say=logger.info)
    run = set_up(config, mirror.folder)
    check_same_run(workdir, run.config_json)
    validation = Validation(run, mirror.folder / "samples", stop=lambda: interruption.asked)

    # ------------------------------------------------------------------ state: fresh, or the newest checkpoint
    if not (workdir / "config.json").is_file():
        check_init_from(run)
    if first_process:
        save_config(workdir, run.config_json)
    checkpoints = Checkpoints(
        workdir, every=config.checkpoint_every, keep=config.keep_checkpoints, keep_every=config.keep_every
    )
    state = checkpoints.restore(run.state) or first_state(run)
    first_step = int(state.step)
    last_step = min(config.total_steps, stop_after or config.total_steps)
    train_batches = batches(
        run.source,
        batch_size=config.batch_size,
        seed=config.seed,
        first_step=first_step,
        host=jax.process_index(),
        num_hosts=jax.process_count(),
        num_threads=config.data_threads,
        put=functools.partial(shard_batch, mesh=run.mesh),
    )

    # ------------------------------------------------------------------ loop
    mirror.fetch("metrics.jsonl")
    device_kind = run.mesh.devices.flat[0].device_kind
    mfu = functools.partial(utilisation, run.model, config.batch_size, device_kind, run.mesh.size)
    with checkpoints, mirror, RunLog(mirror.folder, first_step, config.total_steps, not first_process, mfu) as log:
        logger.info(
            f"{count_trained(state.params, config.optimizer.frozen) / 1e6:.2f} M trained parameters, "
            f"{len(run.source)} clips, {run.mesh.size} {device_kind} device(s) in {jax.process_count()} process(es), "
            f"step {first_step} to {last_step}"
        )
        unread: Metrics | None = None  # of the step before: to read those of a step at once would wait for it
        for step in range(first_step + 1, last_step + 1):
            with watch.reading():
                batch = next(train_batches)
            batch["video"] = run.encode(batch["video"], step)
            state, metrics = run.train_step(state, batch, run.train_key)
            if unread is not None:
                report_skipped(run, step - 1, unread, checkpoints)
            unread = metrics
            interrupted = interruption.requested(step)

            measure, show = validation.metrics_due(step), validation.pictures_due(step, last_step)
            values = validation(state.ema_params, step, pictures=show) if measure else {}
            if values or step % config.log_every == 0 or step in (first_step + 1, last_step):
                scalars = {name: float(value) for name, value in metrics.items() if name != "skipped_in_a_row"}
                scalars["learning_rate"] = float(np.asarray(run.learning_rate(step - 1)))
                log.metrics(step, scalars | values)
            if interrupted or step == last_step:
                checkpoints.save_and_wait(state)
            elif checkpoints.due(step):
                checkpoints.save(state)
                mirror.copy()
            if interrupted and step < last_step:
                raise RunStopped(f"interrupted; step {step} is saved: re-run the command to resume", INTERRUPTED)
            if show and not measure:
                validation(state.ema_params, step, metrics=False, pictures=True)
        if unread is not None:
            report_skipped(run, last_step, unread, checkpoints)
        logger.info(f"saving blocked training for {checkpoints.seconds_blocked:.2f} s")


if __name__ == "__main__":
    cli.run(main)
