"""How a process learns that another one has ended or hangs; the connections are socket pairs within this process."""

import contextlib
import itertools
import socket
import threading
import time

import jax
import pytest

from vdt_jax.distributed import watch
from vdt_jax.distributed.watch import Connections, Watch, end_now
from vdt_jax.errors import INTERRUPTED, STOPPED, USER_ERROR, RunStopped, UserError

pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # of `ends`


class Ends(list):
    """What this process would have printed and exited with."""

    def wait(self):
        for _ in range(2000):
            if self:
                break
            time.sleep(0.01)
        return self


class FirstAlone:
    """The lock of `_ending`; a second thread ends here, since what it would end a minute later is the test process."""

    def __init__(self):
        self._lock = threading.Lock()

    def acquire(self, blocking):
        if not self._lock.acquire(blocking):
            raise SystemExit
        return True


@pytest.fixture
def ends(monkeypatch):
    """Records ends in place of ending, and makes everything some hundred times as quick."""
    found = Ends()

    def exit(message, code):
        found.append((message.partition(";")[0], code))
        raise SystemExit

    changes = {"_exit": exit, "_HEARTBEAT": 0.05, "_INTERVAL": 0.05, "FIRST_READING": 0.1, "_LAST_WAIT": 0.1}
    for name, value in changes.items():
        monkeypatch.setattr(watch, name, value)
    monkeypatch.setattr(watch, "_end_lock", FirstAlone())
    monkeypatch.setattr(watch, "_others", [])
    return found


@pytest.fixture
def connected(ends):
    """connected(me, *others): registers the connections of this process; the other ends, by number."""
    with contextlib.ExitStack() as stack:

        def connect(me, *others):
            pairs = {number: socket.socketpair() for number in others}
            for call in itertools.chain(*pairs.values()):
                stack.enter_context(call)
            watch._others.append(Connections(me, {number: ours for number, (ours, _) in pairs.items()}))
            return {number: theirs for number, (_, theirs) in pairs.items()}

        yield connect
        for connections in watch._others:
            connections._closing = True
            connections.thread.join()


def lines(connection):
    """What arrived, without heartbeats."""
    connection.settimeout(10)
    with connection.makefile() as file:
        return next(line for line in file if line.strip()).strip()


@pytest.mark.parametrize(("me", "other", "name"), [(0, 1, "process 1"), (1, 0, watch.COORDINATOR)])
def test_a_process_that_ends_is_named(connected, ends, me, other, name):
    connected(me, other)[other].close()
    assert ends.wait() == [(f"{name} has ended", STOPPED)]


def test_a_silent_process_is_named(connected, ends, monkeypatch):
    monkeypatch.setattr(watch, "SILENCE", 0.5)
    connected(1, 0)
    assert ends.wait() == [(f"{watch.COORDINATOR} has sent nothing for 0 s", STOPPED)]


def test_no_running_process_counts_as_lost_even_after_a_long_stop(connected, ends, monkeypatch):
    """As after SIGSTOP or a suspended machine: the clock of the machine jumps."""
    monkeypatch.setattr(watch, "SILENCE", 1.0)
    there = Connections(1, {0: connected(0, 1)[1]})
    before, real = watch._others[0].clock, time.monotonic
    monkeypatch.setattr(watch.time, "monotonic", lambda: real() + 1000)
    while watch._others[0].clock < before + 1.5:
        time.sleep(0.01)
    assert ends == []
    there._closing = True
    there.thread.join()


def test_one_process_passes_failures_on(connected, ends):
    others = connected(0, 1, 2)
    others[1].sendall(b"\nfailed 2 process 1: no ")
    others[1].sendall(b"such file\n")
    assert ends.wait() == [("process 1: no such file", USER_ERROR)]
    assert lines(others[2]) == "failed 2 process 1: no such file"


def test_a_process_that_is_done_may_go(connected, ends):
    others = connected(0, 1, 2)
    for number in (1, 2):
        others[number].sendall(b"done\n")
        others[number].close()
    watch._others[0].thread.join()
    assert ends == []


def test_waiting_for_data_ends_in_time(connected, ends):
    there = connected(1, 0)[0]
    with Watch() as guard, guard.reading():
        assert ends.wait() == [("no data for a batch within 0 s", STOPPED)]
    assert lines(there).startswith("failed 3 process 1: no data for a batch")


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (None, "done"),
        (RunStopped("interrupted", INTERRUPTED), "done"),
        (UserError("no such file"), "failed 2 process 1: no such file"),
        (OSError("a\n b"), "failed 3 process 1: a b"),
    ],
)
def test_how_a_process_ends_is_told_to_the_others(connected, ends, error, said, capsys):
    there = connected(1, 0)[0]
    with contextlib.suppress(SystemExit, RunStopped), Watch():
        if error:
            raise error
    assert lines(there) == said
    assert ends == ([] if said == "done" else [(str(error), int(said.split()[1]))])
    assert ("Traceback" in capsys.readouterr().err) == isinstance(error, OSError)


@pytest.mark.parametrize(
    ("error", "waits"),
    [
        (ValueError("a mistake of ours"), False),
        (ValueError("UNKNOWN: Gloo all-reduce failed: connection closed by peer"), True),
        (jax.errors.JaxRuntimeError("UNKNOWN: Gloo all-reduce failed: connection closed by peer"), True),
    ],
)
def test_only_a_failed_collective_waits_for_the_name_of_a_lost_process(connected, ends, monkeypatch, error, waits):
    connected(1, 0)
    slept, sleep = [], time.sleep
    monkeypatch.setattr(watch.time, "sleep", lambda seconds: slept.append(seconds) if seconds > 10 else sleep(seconds))
    with contextlib.suppress(SystemExit), Watch():
        raise error
    assert bool(slept) == waits and ends == [(str(error), STOPPED)]


def test_an_interrupted_process_is_no_failure(connected, ends):
    there = connected(1, 0)[0]
    with contextlib.suppress(SystemExit):
        end_now("interrupted", INTERRUPTED)
    assert lines(there) == "done" and ends == [("interrupted", INTERRUPTED)]
