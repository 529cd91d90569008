"""The checkpoints of a run: saved asynchronously, the newest kept, restored where they are whole."""

import contextlib
import logging
import os
import sys
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from vdt_jax.checkpoints.manifest import MANIFEST, all_steps, damage, finished_steps, mark_damaged, write_manifest
from vdt_jax.distributed.mesh import path_name
from vdt_jax.distributed.processes import any_process, from_first_process
from vdt_jax.errors import MISTAKES, RunStopped, UserError
from vdt_jax.files import open_folder, writing

logger = logging.getLogger(__name__)
MAX_FAILED_SAVES = 5  # in a row; then the run stops
State = TypeVar("State", bound=Any)  # a flax dataclass: step, params, ema_params, opt_state, skipped
TRIES = 10  # a failed save is retried after each tenth of the interval between checkpoints


class Checkpoints:
    """The checkpoints of one run; a context manager that waits for the last save.

    `save` copies the state to the host and returns; another thread writes files, hashes and manifest and removes old
    steps. All hosts must call the methods in the same order.

    Orbax's CheckpointManager is not used: it removes old steps as soon as its own files are written, before the
    manifest, so that a failed save could cost the last good checkpoint.

    Args:
      every, keep, keep_every: see `checkpoint_every`, `keep_checkpoints` and `keep_every` of TrainConfig.
    """

    def __init__(self, workdir: str | os.PathLike, *, every: int = 1, keep: int = 3, keep_every: int | None = None):
        self.folder = open_folder(workdir) / "checkpoints"
        self._every, self._keep, self._keep_every = every, keep, keep_every
        self._orbax = _checkpointer()
        self._thread = ThreadPoolExecutor(1, "checkpoints")
        self._saving: Future | None = None
        self._failed, self._failures = False, 0  # whether the last save failed; how many in a row before it
        self.seconds_blocked = 0.0  # how long `save` blocked the training thread
        if jax.process_index() == 0:
            with writing(self.folder):
                self.folder.mkdir(parents=True, exist_ok=True)
                self._remove_leftovers()

    def __enter__(self) -> "Checkpoints":
        self._unraisable = sys.unraisablehook
        sys.unraisablehook = self._on_unraisable
        return self

    def __exit__(self, *_: object) -> None:
        self.wait()
        self._thread.shutdown()
        self._orbax.close()
        sys.unraisablehook = self._unraisable

    def _on_unraisable(self, error: Any) -> None:
        """Hides TensorStore's error about a write that ends after its save has failed; that failure has been logged."""
        late = isinstance(error.exc_value, RuntimeError) and str(error.exc_value) == "Event loop is closed"
        if not (late and error.object is None):
            self._unraisable(error)

    def due(self, step: int) -> bool:
        """Whether to save this step: every N-th, and sooner where the last save failed."""
        if step % self._every == 0:
            return True
        busy = self._saving is not None and not self._saving.done()
        return step % max(1, self._every // TRIES) == 0 and any_process(self._failed and not busy)

    def save(self, state: Any) -> None:
        """Starts to write the state; a finished checkpoint of the step is not written again.

        RunStopped: too many saves in a row have failed, or something in the state is not finite; it is not written.
        """
        step = int(state.step)  # waits for the step that is being computed; not counted as time of the save
        start = time.monotonic()
        self.wait()
        self._failures = self._failures + 1 if any_process(self._failed) else 0
        if self._failures >= MAX_FAILED_SAVES:
            raise RunStopped(f"{self._failures} saves in a row failed; the last good checkpoint is {self.newest()}")
        self._failed = False
        if not (self.folder / str(step) / MANIFEST).exists():
            if bad := not_finite(state):
                last = f"the last good checkpoint is {self.newest()}"
                raise RunStopped(f"{bad} is not finite after step {step}, which is not saved; {last}")
            try:
                self._orbax.save(self.folder / str(step), args=_args(ocp.args.StandardSave, state), force=True)
            except Exception as error:  # of disks and networks, of many kinds
                self._fail(step, error)
            else:
                self._saving = self._thread.submit(self._finish, step)
        self.seconds_blocked += time.monotonic() - start

    def save_and_wait(self, state: Any) -> None:
        """Writes the state, with retries, and waits. Raises RunStopped as `save` does."""
        self.save(state)
        self.wait()
        if any_process(self._failed):
            time.sleep(1)
            self.save_and_wait(state)

    def wait(self) -> None:
        """Waits until the last save is finished, or has failed, which is logged."""
        if self._saving is not None:
            self._saving.result()
            self._saving = None

    def restore(self, like: State) -> State | None:
        """The newest good state, on the devices of `like` (arrays, or shapes with shardings); None if there is none."""
        step = from_first_process(self._newest_good)
        if step < 0:
            return None
        try:
            restored = self._orbax.restore(self.folder / str(step), args=_args(ocp.args.StandardRestore, like))
        except ValueError as error:
            reason = str(error).splitlines()[0]
            raise UserError(
                f"{self.folder / str(step)} does not hold the state of this config ({reason}): choose another --workdir"
            ) from None
        return like.replace(ema_params=restored["ema_params"], **restored["training"])

    def newest(self) -> str:
        """The newest finished checkpoint, for messages."""
        steps = finished_steps(self.folder)
        return str(self.folder / str(steps[-1])) if steps else "none"

    def _newest_good(self) -> int:
        """The step of the newest good checkpoint, or -1; damaged ones are renamed."""
        finished = finished_steps(self.folder)
        for step in reversed(all_steps(self.folder)):
            folder = self.folder / str(step)
            if step not in finished:
                logger.warning(f"checkpoint {folder} has no {MANIFEST}: it is not finished, and is skipped")
            elif reason := damage(folder, step):
                logger.warning(f"checkpoint {folder} is damaged ({reason}): moved to {mark_damaged(folder, reason)}")
            else:
                return step
        return -1

    def _finish(self, step: int) -> None:
        """In the other thread: waits for Orbax, then writes the manifest and removes old steps."""
        try:
            self._orbax.wait_until_finished()
            write_manifest(self.folder / str(step), step, jax.process_index(), jax.process_count())
            if jax.process_index() == 0:
                self._remove_old()
        except Exception as error:  # of any kind: training continues, and older checkpoints are whole
            self._fail(step, error)

    def _fail(self, step: int, error: Exception) -> None:
        """After a save that failed; raises the error again if it is a mistake in the code."""
        if isinstance(error, MISTAKES):
            raise error
        self._failed = True
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        failures = self._failures + 1
        then = "the save is retried" if failures < MAX_FAILED_SAVES else "the run stops"
        logger.warning(
            f"saving step {step} failed ({failures} of {MAX_FAILED_SAVES} in a row): {reason}. "
            f"The last good checkpoint is {self.newest()}; {then}."
        )
        self._orbax = _checkpointer()
        if jax.process_index() == 0:
            with contextlib.suppress(OSError):  # the folder cannot be written, or is a file
                (self.folder / str(step)).rmtree(missing_ok=True)  # room for the next try
                self._remove_leftovers()

    def _remove_old(self) -> None:
        finished = finished_steps(self.folder)
        kept = finished[-self._keep :]
        if self._keep_every:
            kept += [step for step in finished if step % self._keep_every == 0]
        for step in all_steps(self.folder):
            if step not in kept and step < max(finished, default=0):
                # The manifest first: after a kill here the rest is unfinished, not damaged.
                (self.folder / str(step) / MANIFEST).unlink(missing_ok=True)
                (self.folder / str(step)).rmtree()

    def _remove_leftovers(self) -> None:
        """Removes what Orbax had begun to write when a process ended."""
        for path in self.folder.glob("*.orbax-checkpoint-tmp*"):
            path.rmtree(missing_ok=True)


def not_finite(state: Any) -> str | None:
    """The path of a leaf with a value that is not finite, or None."""
    leaves = [(path, leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(state) if leaf.dtype != jnp.int32]
    finite = _are_finite([leaf for _, leaf in leaves])
    return next((path_name(path) for (path, _), good in zip(leaves, finite, strict=True) if not good), None)


@jax.jit
def _are_finite(leaves: list[jax.Array]) -> list[jax.Array]:
    return [jnp.isfinite(leaf).all() for leaf in leaves]


def _checkpointer() -> ocp.AsyncCheckpointer:
    parts: Any = {name: ocp.StandardCheckpointHandler() for name in ("training", "ema_params")}
    return ocp.AsyncCheckpointer(ocp.CompositeCheckpointHandler(**parts))


def _args(of_part: Callable[[Any], Any], state: Any) -> Any:
    """The two parts of a checkpoint, as Orbax takes them."""
    training = {name: getattr(state, name) for name in ("step", "params", "opt_state", "skipped")}
    return ocp.args.Composite(training=of_part(training), ema_params=of_part(state.ema_params))
