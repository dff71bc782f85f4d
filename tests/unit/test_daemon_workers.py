"""The daemon's threads: as many as there are clients, some to spare, and never none."""

from __future__ import annotations

import socket
import threading
from pathlib import Path
from typing import Iterator, List

import pytest
from rootseal import daemon_peer
from rootseal.daemon_workers import SPARE_MAX, SPARE_MIN, Workers

GIVE_UP_SECONDS = 60.0


@pytest.fixture
def listener(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.bind(str(tmp_path / "s"))
        sock.listen(128)
        yield sock


def connect(listener: socket.socket) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.settimeout(GIVE_UP_SECONDS)
    sock.connect(listener.getsockname())
    return sock


def echo(sock: socket.socket) -> None:
    with sock:
        sock.sendall(sock.recv(1))


def ended(sock: socket.socket) -> bool:
    return sock.recv(1) == b""


def test_every_client_has_a_thread_however_many_come(listener: socket.socket) -> None:
    workers = Workers(listener, echo)
    clients = [connect(listener) for _ in range(SPARE_MAX + SPARE_MIN + 5)]
    for client in reversed(clients):  # the last first: nobody waits for anybody
        client.sendall(b"x")
        assert client.recv(1) == b"x" and ended(client)
        client.close()
    workers.stop()


def test_nobody_connects_after_the_stop_and_the_threads_end(listener: socket.socket) -> None:
    before = set(threading.enumerate())
    workers = Workers(listener, echo)
    mine = [thread for thread in threading.enumerate() if thread not in before]
    assert len(mine) == SPARE_MIN
    workers.stop()
    with pytest.raises(ConnectionRefusedError):
        connect(listener)
    for thread in mine:
        thread.join(GIVE_UP_SECONDS)
        assert not thread.is_alive()


def test_a_thread_that_kept_a_clients_identity_serves_nobody_else(
    listener: socket.socket,
) -> None:
    served: List[threading.Thread] = []

    def serve(sock: socket.socket) -> None:
        served.append(threading.current_thread())
        daemon_peer._thread.foreign = (
            True  # as a change of identity that cannot be undone leaves it
        )
        echo(sock)

    workers = Workers(listener, serve)
    for _ in range(5):
        with connect(listener) as client:
            client.sendall(b"x")
            assert client.recv(1) == b"x" and ended(client)
    workers.stop()
    assert len(set(served)) == 5
    for thread in served:
        thread.join(GIVE_UP_SECONDS)
        assert not thread.is_alive()
