"""The processes of a run: start, agreement, interruption, and detection of a process that hangs."""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from vdt_jax.errors import INTERRUPTED, STOPPED, UserError

GRACE = 27.0  # seconds from SIGTERM to the end: preempted machines get 30
SILENCE = 40.0  # seconds after which a process that says nothing is given up
READING = 45.0  # seconds that a process may read data for one batch while the others wait, ...
FIRST_READING = 600.0  # ... and for its first one
_BEAT = 3.0
_ALIVE = "vdt_jax/alive/"
_WORTH = "vdt_jax/worth_saving/"
_NOTICE = "RECEIVED_PREEMPTION_NOTICE"  # jax's own, which has no public name


def start_processes(coordinator: str | None, num_processes: int | None, process_id: int | None) -> None:
    """Joins this process to the others of its run, if there are any; call it before any other use of jax.

    In SLURM steps of several tasks and on TPU virtual machines jax finds the processes. Elsewhere the three arguments
    are needed, or the environment variables JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES, JAX_PROCESS_ID. `coordinator`
    is host:port of process 0, reachable from the others.

    Raises:
      UserError: only some of the three, or a value that is not allowed.
    """
    address = coordinator or os.environ.get("JAX_COORDINATOR_ADDRESS")
    count = _number(num_processes, "JAX_NUM_PROCESSES")
    number = _number(process_id, "JAX_PROCESS_ID")
    if address is not None and count is not None and number is not None:
        if not 0 <= number < count:
            raise UserError(f"process_id must be 0 to {count - 1} with num_processes={count}, got {number}")
        if not address.rpartition(":")[2].isdigit():
            raise UserError(f"coordinator must be host:port, as in {address}:8476, got {address}")
        jax.distributed.initialize(address, count, number)
        return
    given = {"coordinator": address, "num_processes": count, "process_id": number}
    missing = [name for name, value in given.items() if value is None]
    if len(missing) < len(given):
        raise UserError(f"a run of several processes also needs {' and '.join(missing)}: name all three, or none")
    if knows_its_place(os.environ):
        jax.distributed.initialize()


def knows_its_place(environment: Mapping[str, str]) -> bool:
    """Whether jax finds the other processes by itself: a SLURM step of several tasks, or a TPU virtual machine."""
    if int(environment.get("SLURM_STEP_NUM_TASKS", 1)) > 1:
        return True
    if environment.get("JAX_PLATFORMS", "tpu") != "tpu":
        return False
    return "," in environment.get("TPU_WORKER_HOSTNAMES", "") or os.path.exists("/dev/accel0")  # noqa: PTH110


def _number(value: int | None, variable: str) -> int | None:
    text = os.environ.get(variable)
    if value is not None or text is None:
        return value
    if not text.isdigit():
        raise UserError(f"{variable} must be an integer, got {text}")
    return int(text)


def any_process(flag: bool) -> bool:
    """Whether the flag is set in any process; all must call it at the same time."""
    if jax.process_count() == 1:
        return flag
    return bool(np.any(multihost_utils.process_allgather(np.array(flag))))


def from_first_process(ask: Callable[[], int]) -> int:
    """What `ask` returns in the first process, where alone it is called; all must call this at the same time."""
    if jax.process_count() == 1:
        return ask()
    return int(multihost_utils.broadcast_one_to_all(np.int32(ask() if jax.process_index() == 0 else 0)))


class Interruption:
    """Turns SIGTERM, sent by preempted machines and schedulers, into a question of the loop; a context manager.

    Before the first step the process ends at once with INTERRUPTED. Later `requested` returns True, and the process
    ends after GRACE seconds even if the loop has not. A signal to one of several processes ends all of them, and jax
    agrees on the step after which they save.
    """

    def __init__(self):
        self._asked = threading.Event()
        self._over = threading.Event()
        self._worth_saving = False

    def __enter__(self) -> "Interruption":
        if jax.process_count() > 1:  # the signal is jax's own
            threading.Thread(target=self._hear, daemon=True).start()
        else:
            # The main thread may be inside a compilation for minutes, where Python's handlers do not run: the signal
            # also goes through a pipe, to a thread.
            reading, writing = os.pipe()
            os.set_blocking(writing, False)
            self._before = signal.signal(signal.SIGTERM, lambda *_: None)
            self._pipe_before = signal.set_wakeup_fd(writing)
            threading.Thread(target=self._listen, args=(reading,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        if jax.process_count() == 1:
            signal.signal(signal.SIGTERM, self._before)
            os.close(signal.set_wakeup_fd(self._pipe_before))

    @property
    def asked(self) -> bool:
        """Whether this process has been asked to stop."""
        return self._asked.is_set()

    def requested(self, step: int) -> bool:
        """Whether to save and stop after this step. All processes must call it after each step."""
        self._worth_saving = True
        return self.asked if jax.process_count() == 1 else multihost_utils.reached_preemption_sync_point(step)

    def _listen(self, reading: int) -> None:
        while numbers := os.read(reading, 1):
            if numbers[0] == signal.SIGTERM:
                return self._end_in_time(lambda: self._worth_saving)
        os.close(reading)

    def _hear(self) -> None:
        """Waits until jax reports a SIGTERM to any process."""
        while not self._over.wait(0.5):
            try:
                _store().key_value_try_get(_NOTICE)
            except jax.errors.JaxRuntimeError:  # there is no such key yet
                continue
            return self._end_in_time(self._worth_saving_to_any)

    def _worth_saving_to_any(self) -> bool:
        """Whether any process has done a step; waits at most 2 seconds for the others."""
        _store().key_value_set(f"{_WORTH}{jax.process_index()}", str(self._worth_saving))
        for _ in range(20):
            said = [value for _, value in _store().key_value_dir_get(_WORTH)]
            if len(said) == jax.process_count():
                break
            time.sleep(0.1)
        return "True" in said

    def _end_in_time(self, worth_saving: Callable[[], bool]) -> None:
        self._asked.set()
        reason = "before the first step"
        if worth_saving():
            if self._over.wait(GRACE):
                return
            reason = f"and not saved within {GRACE:.0f} s"
        if jax.process_index() == 0:
            time.sleep(0.3)  # the last to go: it keeps the others together
        _end(f"interrupted {reason}: re-run the command to resume", INTERRUPTED)


class Watch:
    """Ends this process, and says why, where another of the run hangs; a context manager. Nothing in a run of one.

    Collectives wait for ever for a process that was stopped, or that waits for its data. Every process tells the
    others, through jax's coordination service and from a thread of its own, that it lives and for how long it has been
    reading data. One that falls silent for SILENCE seconds, or reads for READING, is named, and the run ends.
    """

    def __init__(self, end: Callable[[str, int], object] | None = None):
        self._end = end or _end
        self._over = threading.Event()
        self._reading_since: float | None = None
        self._limit = FIRST_READING
        self._heard: dict[int, tuple[str, float]] = {}

    def __enter__(self) -> "Watch":
        if jax.process_count() > 1:
            now = time.monotonic()
            self._heard = {number: ("", now) for number in range(jax.process_count())}
            for work in (self._talk, self._look):
                threading.Thread(target=work, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        if self._heard:
            _store().key_value_set(f"{_ALIVE}{jax.process_index()}", "done", allow_overwrite=True)

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Around the reading of a batch."""
        self._reading_since = time.monotonic()
        yield
        self._reading_since, self._limit = None, READING

    def _talk(self) -> None:
        """Says that this process lives, and hears from the others. It may hang: then the first process does."""
        count = 0
        while not self._over.is_set():
            count += 1
            since, limit = self._reading_since, self._limit
            late = since is not None and time.monotonic() - since > limit
            _store().key_value_set(
                f"{_ALIVE}{jax.process_index()}", f"{count} {'reading' if late else 'well'}", allow_overwrite=True
            )
            for key, value in _store().key_value_dir_get(_ALIVE):
                number = int(key.rpartition("/")[2])
                if self._heard[number][0] != value:
                    self._heard[number] = (value, time.monotonic())
            self._over.wait(_BEAT)

    def _look(self) -> None:
        while not self._over.wait(1):
            if lost := lost_process(self._heard, time.monotonic(), jax.process_index()):
                self._end(f"{lost}; the run ends here, and the same command goes on from its last checkpoint", STOPPED)
                return


def lost_process(heard: Mapping[int, tuple[str, float]], now: float, me: int) -> str | None:
    """Which process hangs, and how, from what each said last and when; None if none does."""
    if now - heard[me][1] > SILENCE:  # not even one's own words come back
        return f"process 0, which keeps the others together, has not answered for {SILENCE:.0f} s"
    for number, (said, when) in heard.items():
        if said.endswith("reading"):
            return f"process {number} has waited for its data for more than {READING:.0f} s"
        if said != "done" and now - when > SILENCE:
            return f"process {number} has not been heard of for {SILENCE:.0f} s"
    return None


def _store() -> Any:
    """The key-value store of jax's coordination service, which has no public API yet."""
    from jax._src import distributed

    return distributed.global_state.client


def _end(message: str, code: int) -> None:
    """Ends the process from any thread, even if the main thread is in a call that does not return."""
    print("error:" if code == STOPPED else "stopped:", message, file=sys.stderr, flush=True)
    os._exit(code)
