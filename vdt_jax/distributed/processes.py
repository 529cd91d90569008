"""The processes of a run: start, agreement, interruption, and detection of a process that hangs."""

import ctypes
import json
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from typing import Any, NoReturn

import jax
import numpy as np
from jax.experimental import multihost_utils

from vdt_jax.distributed.gather import gather
from vdt_jax.errors import CANCELLED, INTERRUPTED, STOPPED, USER_ERROR, RunStopped, UserError
from vdt_jax.files import differing

GRACE = 27.0  # seconds from SIGTERM to the end: preempted machines get 30
SILENCE = 40.0  # seconds after which a process that says nothing is given up
READING = 45.0  # seconds that a process may read data for one batch while the others wait, ...
FIRST_READING = 600.0  # ... and for its first one
_BEAT = 3.0
_ALIVE = "vdt_jax/alive/"
_WORTH = "vdt_jax/worth_saving/"
_RESUME = "the run ends here, and the same command resumes it from its last checkpoint"
_handlers: list[Any] = []  # C keeps no reference
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
        gather(address, count, number)
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


@contextmanager
def listen(heard: Callable[[int], object]) -> Iterator[None]:
    """Calls `heard` with the number of each signal for which Python has a handler, from a thread.

    The main thread may be inside a compilation for minutes, where Python's handlers do not run: signals also go through
    a pipe.
    """
    reading, writing = os.pipe()
    os.set_blocking(writing, False)

    def read() -> None:
        while numbers := os.read(reading, 1):
            heard(numbers[0])
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
    """Turns SIGTERM, from preempted machines and schedulers, and Ctrl-C into a question of the loop; a context manager.

    Before the first step the process ends at once with INTERRUPTED. Later `requested` returns True, and the process
    ends after GRACE seconds even if the loop has not, or at a second Ctrl-C. A signal to one of several processes ends
    all of them, and jax agrees on the step after which they save.
    """

    def __init__(self):
        self._asked = threading.Event()
        self._over = threading.Event()
        self._worth_saving = False
        self._second = SecondCtrlC()
        self._stack = ExitStack()

    def __enter__(self) -> "Interruption":
        self._stack.enter_context(listen(self._heard))
        numbers = [signal.SIGINT, signal.SIGTERM]
        if jax.process_count() > 1:  # SIGTERM is jax's own
            numbers.remove(signal.SIGTERM)
            threading.Thread(target=self._hear, daemon=True).start()
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
        self._worth_saving = True
        return self.asked if jax.process_count() == 1 else multihost_utils.reached_preemption_sync_point(step)

    def _heard(self, number: int) -> None:
        self._second(number)
        if number not in (signal.SIGINT, signal.SIGTERM) or self.asked:
            return
        if jax.process_count() > 1:
            os.kill(os.getpid(), signal.SIGTERM)
        else:
            self._asked.set()
            threading.Thread(target=self._end_in_time, args=[lambda: self._worth_saving], daemon=True).start()

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
        end_now(f"interrupted {reason}: re-run the command to resume", INTERRUPTED)


class Watch:
    """Ends this process, and says why, where another hangs or ends; a context manager. Does nothing in a run of one.

    Collectives wait for ever for a process that was stopped, or that waits for its data; jax aborts after minutes where
    one was killed. Every process tells the others, through jax's coordination service and from a thread of its own,
    that it lives, for how long it has been reading data, and the error that it ends with. One that falls silent for
    SILENCE seconds, or reads for READING, is named, and the run ends.
    """

    def __init__(self):
        self._over = threading.Event()
        self._reading_since: float | None = None
        self._limit = FIRST_READING
        self._heard: dict[int, tuple[str, float]] = {}

    def __enter__(self) -> "Watch":
        if jax.process_count() > 1:
            now = time.monotonic()
            self._heard = {number: ("", now) for number in range(jax.process_count())}
            _before_abort(self._name_lost_coordinator)
            for work in (self._talk, self._look):
                threading.Thread(target=work, daemon=True).start()
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if not self._heard:
            return
        code = USER_ERROR if isinstance(error, UserError) else STOPPED
        if code == STOPPED and isinstance(error, (jax.errors.JaxRuntimeError, ValueError)):
            time.sleep(SILENCE + 2 * _BEAT)  # a collective fails so where a process is lost: `_look` says which
        self._over.set()
        if error is None or isinstance(error, RunStopped):  # all processes end
            self._say("done")
            return
        self._say(f"failed {code} {error or type(error).__name__}")
        if code == STOPPED:
            traceback.print_exception(error)
        if jax.process_index() == 0:
            time.sleep(2 * _BEAT)  # it keeps the others together
        end_now(str(error) or type(error).__name__, code)  # at a normal end jax waits for the others

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Around the reading of a batch."""
        self._reading_since = time.monotonic()
        yield
        self._reading_since, self._limit = None, READING

    def _say(self, text: str) -> None:
        with suppress(jax.errors.JaxRuntimeError):  # the service has ended
            _store().key_value_set(f"{_ALIVE}{jax.process_index()}", text, allow_overwrite=True)

    def _talk(self) -> None:
        """Says that this process lives, and hears from the others. It may hang: then the first process does."""
        count = 0
        while not self._over.is_set():
            count += 1
            since, limit = self._reading_since, self._limit
            late = since is not None and time.monotonic() - since > limit
            self._say(f"{count} {'reading' if late else 'well'}")
            with suppress(jax.errors.JaxRuntimeError):
                for key, value in _store().key_value_dir_get(_ALIVE):
                    number = int(key.rpartition("/")[2])
                    if self._heard[number][0] != value:
                        self._heard[number] = (value, time.monotonic())
            self._over.wait(_BEAT)

    def _look(self) -> None:
        while not self._over.wait(1):
            for number, (said, _) in self._heard.items():
                if said.startswith("failed ") and number != jax.process_index():
                    code, message = said.split(maxsplit=2)[1:]
                    end_now(f"process {number}: {message}", int(code))
            if lost := lost_process(self._heard, time.monotonic(), jax.process_index()):
                if jax.process_index() == 0:
                    time.sleep(2 * _BEAT)
                end_now(f"{lost}; {_RESUME}", STOPPED)

    def _name_lost_coordinator(self) -> None:
        """Before an abort: jax aborts at once where process 0 has ended."""
        from jax._src import distributed

        host, _, port = str(distributed.global_state.coordinator_address).rpartition(":")
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
        except OSError:
            end_now(f"process 0, which keeps the others together, has ended; {_RESUME}", STOPPED)


def _before_abort(call: Callable[[], None]) -> None:
    """Calls a function before the process aborts. Python's own handlers of SIGABRT never run: abort does not return."""

    handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(lambda _: call())
    _handlers.append(handler)
    ctypes.CDLL(None).signal(signal.SIGABRT, handler)


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


def end_now(message: str, code: int) -> NoReturn:
    """Ends the process from any thread, even if the main thread is in a call that does not return."""
    kind = "stopped:" if code in (INTERRUPTED, CANCELLED) else "error:"
    print(kind, " ".join(message.split()), file=sys.stderr, flush=True)
    os._exit(code)
