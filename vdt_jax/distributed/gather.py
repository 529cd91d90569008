"""How the processes of a run find each other before jax connects them: jax's own wait is silent, and ends in an abort.

Process 0 listens at the coordinator's address until every other process has connected and sent its number, then lets
all of them continue; jax's service takes over the address. The connections stay open, and `watch` reads them.
"""

import json
import os
import selectors
import socket
import time
from contextlib import ExitStack, suppress

from vdt_jax.errors import RunStopped, UserError

PATIENCE = 300.0  # seconds that the processes wait for each other
RESUME = "the run ends here, and the same command resumes it from its last checkpoint"
COORDINATOR = "process 0, which runs the coordination service,"
_WAIT, _GO, _REFUSED, _LOST = "wait", "go", "refused: ", "lost: "
_LONGEST = 4096  # bytes of a message

Sockets = dict[int, socket.socket]  # by the number of the process at the other end


def gather(address: str, count: int, number: int) -> Sockets:
    """Returns when all processes have been started.

    Args:
      address: host:port of process 0.
      count: number of processes, at least 2.
      number: of this one, from 0.

    Returns:
      The open connections of this process: process 0 has one to each other process, the others have one to process 0.

    Raises:
      UserError: the address cannot be used, a process does not come in time, or the processes do not agree.
      RunStopped: a process has ended while it waited for the others.
    """
    host, _, text = address.rpartition(":")
    port = int(text) if text.isdecimal() and len(text) < 6 else 0
    if not host or not 0 < port < 65536:
        raise UserError(f"coordinator must be host:port with a port from 1 to 65535, as in host:8476, got {address}")
    end = time.monotonic() + PATIENCE
    if number > 0:
        return {0: _connect(address, host.strip("[]"), port, json.dumps([number, count]), end)}
    sockets: Sockets = {}
    with ExitStack() as stack, _listening(address, port) as server:
        print(f"waiting at {address} for process {_listed(set(range(1, count)))}", flush=True)
        try:
            _accept_all(server, address, count, sockets, stack, end)
        except (UserError, RunStopped) as error:
            _answer(sockets, f"{_LOST if isinstance(error, RunStopped) else _REFUSED}{error}")
            raise
        _answer(sockets, _GO)
        stack.pop_all()
    return sockets


def _listening(address: str, port: int) -> socket.socket:
    try:
        family = socket.AF_INET6 if (both := socket.has_dualstack_ipv6()) else socket.AF_INET
        return socket.create_server(("", port), family=family, dualstack_ipv6=both)
    except OSError as error:
        reason = os.strerror(error.errno or 0)
        raise UserError(f"coordinator {address} cannot be opened ({reason}): choose another port") from None


def _accept_all(
    server: socket.socket, address: str, count: int, sockets: Sockets, stack: ExitStack, end: float
) -> None:
    """Fills in `sockets`; raises where a connected process ends, or does not agree with this process."""
    with selectors.DefaultSelector() as selector:
        selector.register(server, selectors.EVENT_READ)
        while missing := set(range(1, count)) - sockets.keys():
            ready = [key for key, _ in selector.select(max(end - time.monotonic(), 0))]
            if not ready:
                raise UserError(
                    f"no connection to {address} from process {_listed(missing)} within {PATIENCE:.0f} s: "
                    "start all processes with the same coordinator"
                )
            if ended := {key.data for key in ready} - {None}:  # a connected process sends nothing before it is answered
                raise RunStopped(
                    f"process {_listed(ended)} has ended before process {_listed(missing)} connected; {RESUME}"
                )
            connection = stack.enter_context(server.accept()[0])
            connection.settimeout(5)
            try:
                number, their_count = map(int, json.loads(_line(connection)))
            except (OSError, ValueError, TypeError):
                connection.close()
                continue  # not a process of ours
            _answer({number: connection}, _WAIT)
            if problem := _disagreement(number, their_count, count, missing):
                sockets[-1] = connection
                raise UserError(problem)
            sockets[number] = connection
            selector.register(connection, selectors.EVENT_READ, number)


def _disagreement(number: int, their_count: int, count: int, missing: set[int]) -> str | None:
    if their_count != count:
        return f"process {number} was started with num_processes={their_count}, process 0 with {count}"
    return None if number in missing else f"process {number} was started twice"


def _connect(address: str, host: str, port: int, place: str, end: float) -> socket.socket:
    waiting = False
    while True:
        try:
            with ExitStack() as stack:
                connection = stack.enter_context(socket.create_connection((host, port), timeout=5))
                connection.sendall(f"{place}\n".encode())
                if _line(connection) == _WAIT:
                    connection.settimeout(PATIENCE + 5)  # process 0, which has started, gives up before
                    _wait_for_others(connection)
                    stack.pop_all()
                    return connection
            reason = "another program answers there"
        except OSError as error:
            reason = error.strerror or error
        if not waiting:
            print(f"waiting for {address}", flush=True)
            waiting = True
        if time.monotonic() > end:
            wait = f"cannot be reached within {PATIENCE:.0f} s ({reason})"
            raise UserError(f"coordinator {address} {wait}: is process 0 running there, and the port open?")
        time.sleep(0.5)


def _wait_for_others(connection: socket.socket) -> None:
    answer = ""
    with suppress(ConnectionError):
        answer = _line(connection)
    if answer.startswith(_REFUSED):
        raise UserError(answer.removeprefix(_REFUSED))
    if answer != _GO:
        raise RunStopped(answer.removeprefix(_LOST) or f"{COORDINATOR} has ended; {RESUME}")


def _answer(sockets: Sockets, text: str) -> None:
    for connection in sockets.values():
        with suppress(OSError):
            connection.sendall(f"{text}\n".encode())


def _line(connection: socket.socket) -> str:
    """The next line, byte by byte: what follows is read by others."""
    line = b""
    while len(line) < _LONGEST and not line.endswith(b"\n") and (byte := connection.recv(1)):
        line += byte
    return line.decode("utf-8", "replace").strip()


def _listed(numbers: set[int]) -> str:
    return ", ".join(map(str, sorted(numbers)[:5])) + (" and others" if len(numbers) > 5 else "")
