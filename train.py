"""Train a VDT.

    python train.py --config=configs/moving_digits.py --workdir=runs/digits --config.batch_size=64

Re-run the command to resume, on one device or on many hosts (docs/scaling.md). The working directory holds the config,
checkpoints, metrics.jsonl, TensorBoard events and samples. Exit codes: 2 an error in the input, 3 the run cannot
continue, 75 it was interrupted (Ctrl-C, SIGTERM) and saved, 130 a second Ctrl-C.
"""

if __name__ == "__main__":
    from vdt_jax.errors import end_at_ctrl_c, end_at_sigterm

    end_at_ctrl_c()  # while the rest is imported
    end_at_sigterm()

import contextlib
import logging
from typing import Any

import jax
import numpy as np
from etils import epath

from vdt_jax import cli
from vdt_jax.checkpoints import save_config
from vdt_jax.checkpoints.manager import Checkpoints
from vdt_jax.distributed.processes import Interruption, check_agreement, start_processes
from vdt_jax.distributed.watch import Watch
from vdt_jax.errors import INTERRUPTED, RunStopped
from vdt_jax.files import Mirror, held, open_folder
from vdt_jax.options import build
from vdt_jax.training.config import RunOptions, TrainConfig
from vdt_jax.training.log import RunLog
from vdt_jax.training.memory import keep_freed_memory
from vdt_jax.training.run import PLACES, Run, check_same_run
from vdt_jax.training.step import Metrics
from vdt_jax.training.validation import Validation

cli.define_config()
cli.define_flags(RunOptions)
logger = logging.getLogger("vdt_jax.train")


def main(_: Any) -> None:
    config = build(TrainConfig, cli.values_of_config())
    options = cli.options_of_flags(RunOptions)
    cli.quiet_start()
    keep_freed_memory()
    start_processes(options.coordinator, options.num_processes, options.process_id)
    if jax.process_index() > 0:
        logging.getLogger("vdt_jax").setLevel(logging.WARNING)
    with Watch() as watch:
        path = options.workdir or f"runs/{cli.recipe_name()}"
        print(f"working directory: {path}", flush=True)
        workdir = open_folder(path)
        lock = held(workdir) if jax.process_index() == 0 else contextlib.nullcontext()
        with Interruption() as interruption, lock:
            train(config, workdir, options.stop_after, interruption, watch)


def train(
    config: TrainConfig, workdir: epath.Path, stop_after: int | None, interruption: Interruption, watch: Watch
) -> None:
    """Trains to the last step, or until an interruption.

    Args:
      workdir: local or in a bucket; its newest checkpoint, if any, is where training starts.
      stop_after: the last step, if it is below `total_steps` of the config.

    Raises:
      UserError: devices, data or working directory do not fit the config.
      RunStopped: the run was interrupted and saved, or it cannot continue.
    """
    mirror = Mirror(workdir, copies=jax.process_index() == 0)
    run = open_run(config, workdir, stop_after, mirror)
    every, keep = config.checkpoint_every, config.keep_checkpoints
    checkpoints = Checkpoints(workdir, every=every, keep=keep, keep_every=config.keep_every)
    state = checkpoints.restore(run.state_shapes) or run.first_state()
    first_step = int(state.step)
    last_step = min(config.total_steps, stop_after or config.total_steps)
    train_batches = run.batches(first_step)

    log = open_log(run, mirror, first_step)
    with checkpoints, mirror, log or contextlib.nullcontext():
        logger.info(f"{run}, step {first_step} to {last_step}")
        validation = Validation(run, mirror.folder / "samples", log, stop=lambda: interruption.asked)
        unread: Metrics | None = None  # metrics are read one step late, to avoid blocking on the device
        for step in range(first_step + 1, last_step + 1):
            with watch.reading():
                batch = next(train_batches)
            batch["video"] = run.encode(batch["video"], step)
            state, metrics = run.train_step(state, batch, run.train_key)
            if unread is not None:
                run.report_skipped(step - 1, unread, checkpoints.newest)
            unread = metrics
            interrupted = interruption.requested(step)

            measure, show = validation.metrics_due(step), validation.pictures_due(step, last_step)
            values = validation(state.ema_params, step, pictures=show) if measure else {}
            if log and (values or step % config.log_every == 0 or step in (first_step + 1, last_step)):
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
            run.report_skipped(last_step, unread, checkpoints.newest)
        logger.info(f"saving blocked training for {checkpoints.seconds_blocked:.2f} s")


def open_run(config: TrainConfig, workdir: epath.Path, stop_after: int | None, mirror: Mirror) -> Run:
    """The run of a working directory. Writes config.json, which describes the run from now on.

    Raises:
      UserError: devices, data or `init_from` do not fit the config, the working directory is of a different run, or
        the processes were started with different values.
    """
    check_same_run(workdir, config.as_json())
    check_agreement("config", config.as_json() | {"stop_after": stop_after}, ignore=PLACES)
    run = Run(config, mirror.folder)
    check_same_run(workdir, run.config_json)  # now with the hash of the autoencoder and the identity of the data
    check_agreement("data", run.config_json, ignore=PLACES)
    if not (workdir / "config.json").is_file():
        run.check_init_from()
    if jax.process_index() == 0:
        save_config(workdir, run.config_json)
    return run


def open_log(run: Run, mirror: Mirror, first_step: int) -> RunLog | None:
    """The log of the first process; the other processes have none."""
    for name in RunLog.CONTINUED:
        mirror.fetch(name)
    if jax.process_index() > 0:
        return None
    config = run.config
    return RunLog(mirror.folder, first_step, config.total_steps, run.utilisation, config.tracker, run.config_json)


if __name__ == "__main__":
    cli.run(main)
