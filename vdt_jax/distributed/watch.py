"""Detection of processes of a run that end or hang: closed connections and missing heartbeats.

Collectives wait for ever for a process that was stopped, or that waits for its data; jax aborts after minutes, without
a name, where one was killed. So every process keeps its connection to process 0 (from `gather`) open and sends a
heartbeat every few seconds. The kernel closes the connections of a process that ends, however it ends, and the other
end is notified at once, whatever its main thread does. A process that hangs, or whose machine is lost, sends nothing.
"""

import ctypes
import os
import selectors
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, NoReturn

import jax

from vdt_jax.distributed.gather import COORDINATOR, RESUME, Calls
from vdt_jax.errors import CANCELLED, INTERRUPTED, STOPPED, USER_ERROR, RunStopped, UserError

SILENCE = 40.0  # seconds without a heartbeat after which a process counts as lost
READING = 45.0  # timeout in seconds for reading one batch, during which the other processes wait, ...
FIRST_READING = 600.0  # ... and for the first batch
_BEAT = 3.0  # seconds from one heartbeat to the next
_TURN = 1.0  # seconds from one check to the next
_FAREWELL = 1.0  # seconds that process 0 waits for the others to end: jax aborts them when its service ends
_DONE, _FAILED = "done", "failed"
_handlers: list[Any] = []  # C keeps no reference
_others: "list[Connections]" = []  # one in a run of several processes
_end_lock = threading.Lock()


class Connections:
    """The connections to the other processes, and a thread that reads them, writes to them and ends this process.

    A line is empty (a heartbeat), `done` (the sender ends normally), or `failed CODE MESSAGE`: the receiver ends
    with this code and message. Process 0 passes failures on to the others.
    """

    def __init__(self, me: int, calls: Calls):
        self.reading_limit = FIRST_READING
        self.reading_since: float | None = None
        self.clock = 0.0  # seconds that the thread has run: the time after SIGSTOP is not counted as silence of others
        self.me, self._calls = me, dict(calls)
        self._heard = dict.fromkeys(calls, 0.0)
        self._begun = dict.fromkeys(calls, b"")  # lines that have not ended
        self._done: set[int] = set()
        self._leaving = False
        self._lock = threading.Lock()
        for call in calls.values():
            call.setblocking(False)
        self.thread = threading.Thread(target=self._watch, daemon=True)
        self.thread.start()

    def say(self, text: str) -> None:
        """Sends a text as one line to the process or processes at the other ends."""
        line = f"{' '.join(text.split())}\n".encode()
        with self._lock:
            for call in self._calls.values():
                with suppress(OSError):  # the process has ended, or hangs: `_watch` detects it
                    call.sendall(line)

    def leave(self, text: str) -> None:
        """Sends a last line; process 0 then waits until the others have ended, at most _FAREWELL seconds."""
        self._leaving = True
        self.say(text)
        end = time.monotonic() + _FAREWELL
        while self.me == 0 and time.monotonic() < end and any(map(_open, self._calls.values())):
            time.sleep(0.05)

    def _watch(self) -> None:
        with selectors.DefaultSelector() as selector:
            for number, call in self._calls.items():
                selector.register(call, selectors.EVENT_READ, number)
            beat, before = -_BEAT, time.monotonic()
            while not self._leaving and selector.get_map():
                for key, _ in selector.select(_TURN):
                    if not self._read(key.data):
                        selector.unregister(key.fileobj)
                now = time.monotonic()
                self.clock += min(now - before, 2 * _TURN)
                before = now
                if self.clock - beat >= _BEAT:
                    beat = self.clock
                    self.say("")
                self._judge()

    def _read(self, number: int) -> bool:
        """Reads the new lines of a process; False where its connection is closed after it was `done`."""
        try:
            read = self._calls[number].recv(1 << 16)
        except BlockingIOError:
            return True
        except OSError:
            read = b""
        if not read:
            if number not in self._done:
                self._end(f"{_named(number)} has ended; {RESUME}")
            return False
        self._heard[number] = self.clock
        *lines, self._begun[number] = (self._begun[number] + read).split(b"\n")
        for line in lines:
            word, _, rest = line.decode("utf-8", "replace").partition(" ")
            if word == _DONE:
                self._done.add(number)
            elif word == _FAILED:
                code, _, message = rest.partition(" ")
                self._end(message, int(code))
        return True

    def _judge(self) -> None:
        if self.reading_since is not None and self.clock - self.reading_since > self.reading_limit:
            end_now(f"no data for a batch within {self.reading_limit:.0f} s; {RESUME}", STOPPED)
        for number, when in self._heard.items():
            if number not in self._done and self.clock - when > SILENCE:
                self._end(f"{_named(number)} has not been heard of for {SILENCE:.0f} s; {RESUME}")

    def _end(self, message: str, code: int = STOPPED) -> None:
        """Ends this process because of another one, which the message names."""
        with _ending():
            self.leave(f"{_FAILED} {code} {message}")
            _exit(message, code)


class Watch:
    """Reports the end of this process to the others, and limits how long it reads data; a context manager.

    Does nothing in a run of one process. Where another process ends with an error, this one ends with its message and
    exit code; where one is lost, with a line that names it and exit code 3. Both hold outside of this context, too.
    """

    def __enter__(self) -> "Watch":
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if not _others:
            return
        if error is None or isinstance(error, RunStopped):  # all processes end
            _others[0].say(_DONE)
            return
        code = USER_ERROR if isinstance(error, UserError) else STOPPED
        if code == STOPPED:
            if isinstance(error, (jax.errors.JaxRuntimeError, ValueError)):
                time.sleep(SILENCE + 2 * _BEAT)  # a collective fails so where a process is lost: its name comes first
            traceback.print_exception(error)
        end_now(str(error) or type(error).__name__, code)  # at a normal end jax waits for the others

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Around the reading of a batch."""
        if not _others:
            yield
            return
        _others[0].reading_since = _others[0].clock
        try:
            yield
        finally:
            _others[0].reading_since, _others[0].reading_limit = None, READING


def watch_others(me: int, calls: Calls) -> None:
    """Starts to watch the other processes, over the connections that `gather` returned."""
    _before_abort(lambda: time.sleep(10))  # jax aborts where process 0 has ended: its name comes first
    _others.append(Connections(me, calls))


def end_now(message: str, code: int) -> NoReturn:
    """Ends the process from any thread, even if the main thread is in a call that does not return."""
    with _ending():
        for others in _others:
            others.leave(_DONE if code == INTERRUPTED else f"{_FAILED} {code} process {others.me}: {message}")
        _exit(message, code)


@contextmanager
def _ending() -> Iterator[None]:
    """Lets the first thread alone end the process."""
    if not _end_lock.acquire(blocking=False):
        time.sleep(60)
    yield


def _exit(message: str, code: int) -> NoReturn:
    kind = "stopped:" if code in (INTERRUPTED, CANCELLED) else "error:"
    print(kind, " ".join(message.split()), file=sys.stderr, flush=True)
    os._exit(code)


def _open(call: socket.socket) -> bool:
    """Whether the process at the other end keeps the connection open; what it has sent is dropped."""
    try:
        return bool(call.recv(1 << 16))
    except BlockingIOError:
        return True
    except OSError:
        return False


def _named(number: int) -> str:
    return f"process {number}" if number else COORDINATOR


def _before_abort(call: Callable[[], None]) -> None:
    """Calls a function before the process aborts. Python's own handlers of SIGABRT never run: abort does not return."""
    handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(lambda _: call())
    _handlers.append(handler)
    ctypes.CDLL(None).signal(signal.SIGABRT, handler)
