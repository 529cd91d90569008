"""Detection of processes of a run that end or hang: closed connections and missing heartbeats.

A collective waits for ever for a process that is suspended (SIGSTOP) or waits for its data. If a process was killed,
jax aborts only after minutes, and its message does not name the process. So every process keeps its connection to
process 0 (from `gather`) open and sends a heartbeat every few seconds. The kernel closes the connections of a process
that ends, however it ends, and the other end is notified at once, whatever its main thread does. A process that hangs,
or whose machine is lost, sends nothing.
"""

import ctypes
import os
import re
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

from vdt_jax.distributed.gather import COORDINATOR, RESUME, Sockets
from vdt_jax.errors import CANCELLED, INTERRUPTED, STOPPED, USER_ERROR, RunStopped, UserError

SILENCE = 40.0  # seconds without a heartbeat after which a process counts as lost
READING = 45.0  # timeout in seconds for reading one batch, during which the other processes wait, ...
FIRST_READING = 600.0  # ... and for the first batch
_HEARTBEAT = 3.0  # seconds from one heartbeat to the next
_INTERVAL = 1.0  # seconds from one check to the next
_LAST_WAIT = 1.0  # seconds that process 0 waits for the others to end: when it ends, jax aborts them
_DONE, _FAILED = "done", "failed"
_handlers: list[Any] = []  # keeps the callbacks alive: C code holds no reference to them
_others: "list[Connections]" = []  # of this process; empty in a run of one process
_end_lock = threading.Lock()


class Connections:
    """The connections to the other processes, and a thread that reads them, writes to them and ends this process.

    A line is empty (a heartbeat), `done` (the sender ends normally), or `failed CODE MESSAGE`: the receiver ends
    with this code and message. Process 0 passes failures on to the others.
    """

    def __init__(self, me: int, sockets: Sockets):
        self.reading_limit = FIRST_READING
        self.reading_since: float | None = None
        self.clock = 0.0  # seconds that the thread has run; time in which the process is suspended does not count
        self.me, self._sockets = me, dict(sockets)
        self._last_read = dict.fromkeys(sockets, 0.0)  # on `clock`
        self._incomplete = dict.fromkeys(sockets, b"")  # the beginning of a line whose end has not arrived
        self._done: set[int] = set()
        self._closing = False
        self._lock = threading.Lock()
        for connection in sockets.values():
            connection.setblocking(False)
        self.thread = threading.Thread(target=self._watch, daemon=True)
        self.thread.start()

    def send_line(self, text: str) -> None:
        """Sends a text as one line to the process or processes at the other ends."""
        line = f"{' '.join(text.split())}\n".encode()
        with self._lock:
            for connection in self._sockets.values():
                with suppress(OSError):  # the process has ended, or hangs: `_watch` detects it
                    connection.sendall(line)

    def send_last_line(self, text: str) -> None:
        """Sends a last line; process 0 then waits until the others have ended, at most _LAST_WAIT seconds."""
        self._closing = True
        self.send_line(text)
        end = time.monotonic() + _LAST_WAIT
        while self.me == 0 and time.monotonic() < end and any(map(_is_open, self._sockets.values())):
            time.sleep(0.05)

    def _watch(self) -> None:
        with selectors.DefaultSelector() as selector:
            for number, connection in self._sockets.items():
                selector.register(connection, selectors.EVENT_READ, number)
            sent, before = -_HEARTBEAT, time.monotonic()
            while not self._closing and selector.get_map():
                for key, _ in selector.select(_INTERVAL):
                    if not self._read(key.data):
                        selector.unregister(key.fileobj)
                now = time.monotonic()
                self.clock += min(now - before, 2 * _INTERVAL)
                before = now
                if self.clock - sent >= _HEARTBEAT:
                    sent = self.clock
                    self.send_line("")
                self._check_limits()

    def _read(self, number: int) -> bool:
        """Reads the new lines of a process; False where its connection is closed after it was `done`."""
        try:
            read = self._sockets[number].recv(1 << 16)
        except BlockingIOError:
            return True
        except OSError:
            read = b""
        if not read:
            if number not in self._done:
                self._end(f"{_name_of(number)} has ended; {RESUME}")
            return False
        self._last_read[number] = self.clock
        *lines, self._incomplete[number] = (self._incomplete[number] + read).split(b"\n")
        for line in lines:
            word, _, rest = line.decode("utf-8", "replace").partition(" ")
            if word == _DONE:
                self._done.add(number)
            elif word == _FAILED:
                code, _, message = rest.partition(" ")
                self._end(message, int(code))
        return True

    def _check_limits(self) -> None:
        if self.reading_since is not None and self.clock - self.reading_since > self.reading_limit:
            end_now(f"no data for a batch within {self.reading_limit:.0f} s; {RESUME}", STOPPED)
        for number, when in self._last_read.items():
            if number not in self._done and self.clock - when > SILENCE:
                self._end(f"{_name_of(number)} has sent nothing for {SILENCE:.0f} s; {RESUME}")

    def _end(self, message: str, code: int = STOPPED) -> None:
        """Ends this process because of another one, which the message names."""
        with _ending():
            self.send_last_line(f"{_FAILED} {code} {message}")
            _exit(message, code)


class Watch:
    """Reports the end of this process to the others, and limits how long it reads data; a context manager.

    Does nothing in a run of one process. If another process ends with an error, this one ends with that
    message and exit code; if one is lost, with a line that names it and exit code 3. Both also hold outside of `with`.
    """

    def __enter__(self) -> "Watch":
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if not _others:
            return
        if error is None or isinstance(error, RunStopped):  # every process ends by itself
            _others[0].send_line(_DONE)
            return
        code = USER_ERROR if isinstance(error, UserError) else STOPPED
        if code == STOPPED:
            if _is_of_jax(error):  # as from a collective when a process is lost: wait until `_watch` has named it
                time.sleep(SILENCE + 2 * _HEARTBEAT)
            traceback.print_exception(error)
        end_now(str(error) or type(error).__name__, code)  # a normal exit would wait for the others

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Limits the time for reading a batch; a context manager."""
        if not _others:
            yield
            return
        _others[0].reading_since = _others[0].clock
        try:
            yield
        finally:
            _others[0].reading_since, _others[0].reading_limit = None, READING


def watch_others(me: int, sockets: Sockets) -> None:
    """Starts to watch the other processes, over the connections that `gather` returned."""
    _before_abort(lambda: time.sleep(10))  # so that `_watch` names process 0 before jax aborts
    _others.append(Connections(me, sockets))


def end_now(message: str, code: int) -> NoReturn:
    """Ends the process from any thread, even if the main thread is in a call that does not return."""
    with _ending():
        for others in _others:
            others.send_last_line(_DONE if code == INTERRUPTED else f"{_FAILED} {code} process {others.me}: {message}")
        _exit(message, code)


def _is_of_jax(error: BaseException) -> bool:
    """Whether a compiled program, a transfer or a collective failed: the text then begins with a status code of XLA."""
    is_status = isinstance(error, ValueError) and re.match(r"[A-Z_]+: ", str(error))
    return isinstance(error, jax.errors.JaxRuntimeError) or bool(is_status)


@contextmanager
def _ending() -> Iterator[None]:
    """Lets only the first thread that enters end the process."""
    if not _end_lock.acquire(blocking=False):
        time.sleep(60)
    yield


def _exit(message: str, code: int) -> NoReturn:
    kind = "stopped:" if code in (INTERRUPTED, CANCELLED) else "error:"
    print(kind, " ".join(message.split()), file=sys.stderr, flush=True)
    os._exit(code)


def _is_open(connection: socket.socket) -> bool:
    """Whether the process at the other end keeps the connection open; what it sent is dropped."""
    try:
        return bool(connection.recv(1 << 16))
    except BlockingIOError:
        return True
    except OSError:
        return False


def _name_of(number: int) -> str:
    return f"process {number}" if number else COORDINATOR


def _before_abort(call: Callable[[], None]) -> None:
    """Calls a function before the process aborts. Python's own handlers of SIGABRT never run: abort does not return."""
    handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(lambda _: call())
    _handlers.append(handler)
    ctypes.CDLL(None).signal(signal.SIGABRT, handler)
