"""How the processes of a run find each other before jax connects them: jax's own wait is silent, and ends in an abort.

Process 0 listens at the coordinator's address until every other process has called and given its place, then lets all
of them go on; jax's service takes over the address.
"""

import contextlib
import json
import os
import socket
import time

from vdt_jax.errors import UserError

PATIENCE = 300.0  # seconds that the processes wait for each other
_GO, _REFUSED = "go", "refused: "
_LONGEST = 4096  # characters of a message


def gather(address: str, count: int, number: int) -> None:
    """Returns when all processes have been started.

    Args:
      address: host:port of process 0.
      count: number of processes.
      number: of this one, from 0.

    Raises:
      UserError: the address cannot be used, a process does not come in time, or the processes do not agree.
    """
    host, _, text = address.rpartition(":")
    port = int(text) if text.isdecimal() and len(text) < 6 else 0
    if not host or not 0 < port < 65536:
        raise UserError(f"coordinator must be host:port with a port from 1 to 65535, as in host:8476, got {address}")
    end = time.monotonic() + PATIENCE
    if number == 0:
        _wait_for_calls(address, port, count, end)
    else:
        _call(address, host.strip("[]"), port, json.dumps([number, count]), end)


def _wait_for_calls(address: str, port: int, count: int, end: float) -> None:
    missing = set(range(1, count))
    with contextlib.ExitStack() as stack:
        try:
            family = socket.AF_INET6 if (both := socket.has_dualstack_ipv6()) else socket.AF_INET
            server = stack.enter_context(socket.create_server(("", port), family=family, dualstack_ipv6=both))
        except OSError as error:
            reason = os.strerror(error.errno or 0)
            raise UserError(f"coordinator {address} cannot be opened ({reason}): choose another port") from None
        print(f"waiting at {address} for process {_listed(missing)}", flush=True)
        calls = []
        while missing:
            server.settimeout(max(end - time.monotonic(), 0.001))
            try:
                call = stack.enter_context(server.accept()[0])
                call.settimeout(5)
                number, their_count = json.loads(_line(call))
            except TimeoutError:
                if time.monotonic() < end:
                    continue  # a caller that says nothing
                wait = f"not come to {address} within {PATIENCE:.0f} s: start all with the same coordinator"
                raise UserError(f"process {_listed(missing)} has {wait}") from None
            except (OSError, ValueError, TypeError):
                continue  # not a process of ours
            calls.append(call)
            problem = None
            if their_count != count:
                problem = f"process {number} was started with num_processes={their_count}, process 0 with {count}"
            elif number not in missing:
                problem = f"process {number} was started twice"
            if problem:
                _answer(calls, _REFUSED + problem)
                raise UserError(problem)
            missing.remove(number)
        _answer(calls, _GO)


def _call(address: str, host: str, port: int, place: str, end: float) -> None:
    waiting = False
    while True:
        try:
            with socket.create_connection((host, port), timeout=5) as call:
                call.sendall(f"{place}\n".encode())
                call.settimeout(max(end - time.monotonic(), 1))
                answer = _line(call)
            if answer == _GO:
                return
            if answer.startswith(_REFUSED):
                raise UserError(answer.removeprefix(_REFUSED))
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


def _answer(calls: list[socket.socket], text: str) -> None:
    for call in calls:
        with contextlib.suppress(OSError):
            call.sendall(f"{text}\n".encode())


def _line(call: socket.socket) -> str:
    with call.makefile(encoding="utf-8", errors="replace") as file:
        return file.readline(_LONGEST).strip()


def _listed(numbers: set[int]) -> str:
    return ", ".join(map(str, sorted(numbers)[:5])) + (" and others" if len(numbers) > 5 else "")
