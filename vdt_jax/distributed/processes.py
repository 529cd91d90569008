"""The processes of a run: start, agreement and interruption."""

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from vdt_jax.distributed.gather import PATIENCE, gather
from vdt_jax.distributed.watch import FIRST_READING, end_now, watch_others
from vdt_jax.errors import CANCELLED, INTERRUPTED, UserError
from vdt_jax.files import differing

GRACE = 27.0  # seconds from SIGTERM to the end: preempted machines get 30
_STEPPED = "vdt_jax/has_stepped/"
_GOOGLE = "0x1ae0"  # the PCI vendor
_NOTICE = "RECEIVED_PREEMPTION_NOTICE"  # jax's own, which has no public name


def start_processes(coordinator: str | None, num_processes: int | None, process_id: int | None) -> None:
    """Joins this process to the others of its run, if there are any; call it before any other use of jax.

    In SLURM steps of several tasks and on TPU virtual machines jax finds the processes. Elsewhere the three arguments
    are needed, or the environment variables JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES, JAX_PROCESS_ID. `coordinator`
    is host:port of process 0, reachable from the others. From here on this process ends when another one ends or hangs
    (`watch`).

    Raises:
      UserError: only some of the three, or a value that is not allowed.
      RunStopped: another process ended before all were there.
    """
    address = coordinator or os.environ.get("JAX_COORDINATOR_ADDRESS")
    count = _number(num_processes, "JAX_NUM_PROCESSES")
    number = _number(process_id, "JAX_PROCESS_ID")
    given = {"coordinator": address, "num_processes": count, "process_id": number}
    missing = [name for name, value in given.items() if value is None]
    if 0 < len(missing) < len(given):
        raise UserError(f"a run of several processes also needs {' and '.join(missing)}: name all three, or none")
    if missing and knows_its_place(os.environ):
        address, count, number = _place_from_jax()
    if address is None or count is None or number is None:
        return
    if not 0 <= number < count:
        raise UserError(f"process_id must be 0 to {count - 1} with num_processes={count}, got {number}")
    if count > 1:
        watch_others(number, gather(address, count, number))
        jax.distributed.initialize(address, count, number)


def _place_from_jax() -> tuple[str | None, int | None, int | None]:
    """The coordinator, the number of processes and the number of this one, as jax.distributed.initialize() finds them.

    It has no public function for it. The detection waits until the name of the coordinator's host can be resolved.
    """
    from jax._src.clusters import ClusterEnv

    found = ClusterEnv.auto_detect_unset_distributed_params(None, None, None, None, None, int(PATIENCE))
    return found[:3]


def knows_its_place(environment: Mapping[str, str], root: Path = Path("/")) -> bool:
    """Whether jax finds the other processes by itself: a SLURM step of several tasks, or a TPU virtual machine."""
    if int(environment.get("SLURM_STEP_NUM_TASKS", 1)) > 1:
        return True
    if environment.get("JAX_PLATFORMS", "tpu") != "tpu":
        return False
    return "," in environment.get("TPU_WORKER_HOSTNAMES", "") or has_tpu(root)


def has_tpu(root: Path = Path("/")) -> bool:
    """Whether the machine has a TPU: /dev/accel0 up to v4, later a VFIO group with a device of Google's."""
    if (root / "dev" / "accel0").exists():
        return True
    groups = (root / "sys" / "kernel" / "iommu_groups" / path.name for path in (root / "dev" / "vfio").glob("[0-9]*"))
    vendors = (path for group in groups for path in group.glob("devices/*/vendor"))
    return any(path.read_text().strip() == _GOOGLE for path in vendors)


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


@contextmanager
def listen(handle: Callable[[int], object]) -> Iterator[None]:
    """Calls `handle` with the number of each signal for which Python has a handler, from a thread.

    The main thread may be inside a compilation for minutes, where Python's handlers do not run: signals also go through
    a pipe.
    """
    reading, writing = os.pipe()
    os.set_blocking(writing, False)

    def read() -> None:
        while numbers := os.read(reading, 1):
            handle(numbers[0])
        os.close(reading)

    before = signal.set_wakeup_fd(writing)
    threading.Thread(target=read, daemon=True).start()
    try:
        yield
    finally:
        os.close(signal.set_wakeup_fd(before))


class SecondCtrlC:
    """Ends the process at the second Ctrl-C: `listen` calls it."""

    def __init__(self):
        self._pressed = False

    def __call__(self, number: int) -> None:
        if number == signal.SIGINT and self._pressed:
            end_now("interrupted twice: ended at once", CANCELLED)
        self._pressed |= number == signal.SIGINT


class Interruption:
    """Remembers Ctrl-C, and SIGTERM of preempted machines and schedulers, until the loop asks; a context manager.

    Before the first step the process ends at once with INTERRUPTED. Later `requested` returns True, and the process
    ends after GRACE seconds even if the loop has not, or at a second Ctrl-C. A signal to one of several processes ends
    all of them, and jax agrees on the step after which they save.
    """

    def __init__(self):
        self._asked = threading.Event()
        self._over = threading.Event()
        self._has_stepped = False
        self._second = SecondCtrlC()
        self._stack = ExitStack()

    def __enter__(self) -> "Interruption":
        self._stack.enter_context(listen(self._handle))
        numbers = [signal.SIGINT, signal.SIGTERM]
        if jax.process_count() > 1:  # SIGTERM is jax's own
            numbers.remove(signal.SIGTERM)
            threading.Thread(target=self._wait_for_preemption, daemon=True).start()
        for number in numbers:
            if (before := signal.getsignal(number)) != signal.SIG_IGN:  # as a shell does for background jobs
                signal.signal(number, lambda *_: None)
                self._stack.callback(signal.signal, number, before)
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._stack.close()

    @property
    def asked(self) -> bool:
        """Whether this process has been asked to stop."""
        return self._asked.is_set()

    def requested(self, step: int) -> bool:
        """Whether to save and stop after this step. All processes must call it after each step."""
        self._has_stepped = True
        return self.asked if jax.process_count() == 1 else multihost_utils.reached_preemption_sync_point(step)

    def _handle(self, number: int) -> None:
        self._second(number)
        if number not in (signal.SIGINT, signal.SIGTERM) or self.asked:
            return
        if jax.process_count() > 1:
            os.kill(os.getpid(), signal.SIGTERM)
        else:
            self._asked.set()
            threading.Thread(target=self._end_in_time, args=[lambda: self._has_stepped], daemon=True).start()

    def _wait_for_preemption(self) -> None:
        """Waits until jax reports a SIGTERM to any process."""
        while not self._over.wait(0.5):
            try:
                _store().key_value_try_get(_NOTICE)
            except jax.errors.JaxRuntimeError:  # there is no such key yet
                continue
            return self._end_in_time(self._any_has_stepped)

    def _any_has_stepped(self) -> bool:
        """Whether any process has done a step; waits at most 2 seconds for the others."""
        _store().key_value_set(f"{_STEPPED}{jax.process_index()}", str(self._has_stepped))
        for _ in range(20):
            values = [value for _, value in _store().key_value_dir_get(_STEPPED)]
            if len(values) == jax.process_count():
                break
            time.sleep(0.1)
        return "True" in values

    def _end_in_time(self, has_stepped: Callable[[], bool]) -> None:
        self._asked.set()
        reason = "before the first step"
        if has_stepped():
            if self._over.wait(GRACE):
                return
            reason = f"and not saved within {GRACE:.0f} s"
        end_now(f"interrupted {reason}: re-run the command to resume", INTERRUPTED)


def check_agreement(name: str, settings: Mapping[str, Any], ignore: Collection[str] = ()) -> None:
    """Raises UserError in a process that has other settings than process 0; all must call it, with the same name."""
    if jax.process_count() == 1:
        return
    if jax.process_index() == 0:
        _store().key_value_set(f"vdt_jax/{name}", json.dumps(settings))
        return
    theirs = json.loads(_store().blocking_key_value_get(f"vdt_jax/{name}", int(1000 * FIRST_READING)))
    if shown := differing(theirs, settings, ignore, now=f"process {jax.process_index()}:"):
        raise UserError(f"the processes were started with different values, {shown}: give all of them the same")


def _store() -> Any:
    """The key-value store of jax's coordination service, which has no public API yet."""
    from jax._src import distributed

    return distributed.global_state.client
