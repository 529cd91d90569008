"""How processes find each other, here threads: who is missing, who disagrees, and who is not one of them."""

import contextlib
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from vdt_jax.distributed import gather as module
from vdt_jax.distributed.gather import COORDINATOR, RESUME, gather
from vdt_jax.errors import RunStopped, UserError


@pytest.fixture
def address():
    with socket.socket() as listening:
        listening.bind(("localhost", 0))
        return f"localhost:{listening.getsockname()[1]}"


def outcomes(address, *places):
    """For each (count, number), started together: the processes that it is connected to, or its error."""

    def start(place):
        try:
            sockets = gather(address, *place)
        except (UserError, RunStopped) as error:
            return str(error)
        for connection in sockets.values():
            connection.close()
        return set(sockets)

    with ThreadPoolExecutor(len(places)) as pool:
        return list(pool.map(start, places))


def test_all_go_on_when_all_are_there(address, capsys):
    assert outcomes(address, (3, 2), (3, 0), (3, 1)) == [{0}, {1, 2}, {0}]
    assert f"waiting at {address} for process 1, 2\n" in capsys.readouterr().out


def test_the_first_may_come_last(address, capsys):
    late = threading.Timer(0.5, outcomes, (address, (2, 0)))
    late.start()
    assert outcomes(address, (2, 1)) == [{0}]
    late.join()
    assert capsys.readouterr().out.startswith(f"waiting for {address}\n")


@pytest.mark.parametrize(
    ("places", "message"),
    [
        ([(2, 0), (3, 1)], "process 1 was started with num_processes=3, process 0 with 2"),
        ([(3, 0), (3, 1), (3, 1)], "process 1 was started twice"),
    ],
)
def test_processes_that_disagree_say_so(address, places, message):
    assert outcomes(address, *places) == [message] * len(places)


def test_who_does_not_come_is_named(address, monkeypatch):
    monkeypatch.setattr(module, "PATIENCE", 1.0)
    message = f"no connection to {address} from process 2 within 1 s: start all processes with the same coordinator"
    assert outcomes(address, (3, 0), (3, 1)) == [message] * 2
    (alone,) = outcomes(address, (3, 1))
    assert alone.startswith(f"coordinator {address} cannot be reached within 1 s (")
    assert alone.endswith("): is process 0 running there, and the port open?")


def test_who_ends_while_it_waits_is_named(address):
    def come(place):
        while True:
            with contextlib.suppress(ConnectionError):
                call = socket.create_connection(address.split(":"))
                call.sendall(place)
                assert call.recv(9) == b"wait\n"
                return call

    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(outcomes, address, (4, 0))
        with come(b"[2, 4]\n") as waits:
            come(b"[1, 4]\n").close()
            message = f"process 1 has ended before process 3 connected; {RESUME}"
            assert first.result() == [message]
            assert message in waits.recv(200).decode()


def test_the_end_of_the_first_is_noticed_while_the_others_wait(address):
    with socket.create_server(("localhost", int(address.split(":")[1]))) as server, ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(outcomes, address, (3, 1))
        with server.accept()[0] as call:
            call.sendall(b"wait\n")
            call.recv(99)
        assert waiting.result() == [f"{COORDINATOR} has ended; {RESUME}"]


def test_who_is_not_one_of_them_is_ignored(address):
    def scan():
        for said in (b"", b"GET / HTTP/1.1\n", b"7\n", b"[[], 2]\n", b"\xff\xfe\n"):
            with socket.create_connection(address.split(":")) as call:
                call.sendall(said)

    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(outcomes, address, (2, 0))
        time.sleep(0.3)
        scan()
        assert outcomes(address, (2, 1)) == [{0}] and first.result() == [{1}]


@pytest.mark.parametrize("wrong", ["host", "host:", ":80", "host:0", "host:65536", "host:99999999", "host:http"])
def test_an_address_that_cannot_be(wrong):
    with pytest.raises(UserError, match=f"coordinator must be host:port with a port .* got {wrong}$"):
        gather(wrong, 2, 0)


def test_an_address_that_is_taken(address):
    with socket.create_server(("localhost", int(address.split(":")[1]))), pytest.raises(UserError) as error:
        gather(address, 2, 0)
    assert str(error.value) == f"coordinator {address} cannot be opened (Address already in use): choose another port"
