"""Several users of one daemon: none of them takes all of its places from the others."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import subprocess
from pathlib import Path
from typing import Any, Iterator, List

import pytest
from rootseal import wire
from rootseal.wire import Tag
from running_daemon import (
    GIVE_UP_SECONDS,
    RunningDaemon,
    place_of_users,
    running_daemon,
    until,
)
from threads_at_rest import wait_for_rest

pytestmark = pytest.mark.requires("root", "fanotify", "launcher", "core")
FIRST, SECOND = 64101, 64102  # uids that nobody has
ALLOWED = ("--allow-uid", str(FIRST), "--allow-uid", str(SECOND))


@pytest.fixture
def place() -> Iterator[Path]:
    with place_of_users() as path:
        yield path


@contextlib.contextmanager
def crowd(daemon: RunningDaemon, uid: int, number: int, refused: int) -> Iterator[None]:
    """So many silent clients of a user; so many of them have been told that the daemon is busy.

    Who has got an answer before is no client any more.
    """
    wait_for_rest(daemon.process.pid)
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
        silent = [socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) for _ in range(number)]
        for sock in silent:
            sock.connect(str(daemon.socket))
        for _ in range(refused):
            (told, *_), _, _ = select.select(silent, [], [])
            frame = wire.read_frame(told, payload_bytes_max=wire.PAYLOAD_BYTES_MAX)
            os.write(write_end, frame.text(Tag.CODE).encode() + b" ")
            silent.remove(told)
        os.write(write_end, b"all")
        signal.pause()
    try:
        answers = b""
        while not answers.endswith(b"all"):
            answers += os.read(read_end, 4096)
        assert answers == b"Busy " * refused + b"all"
        yield
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        for end in (read_end, write_end):
            os.close(end)


def asks(daemon: RunningDaemon, uid: int) -> str:
    """What a user is answered who asks for the status: `STATUS_REPLY`, or the code of an error."""
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
        try:
            wire.status(str(daemon.socket))
            os.write(write_end, b"served")
        except wire.DaemonError as error:
            os.write(write_end, error.code.encode())
        os._exit(0)
    os.close(write_end)
    answer = os.read(read_end, 100).decode()
    os.close(read_end)
    os.waitpid(child, 0)
    return answer


def test_one_user_leaves_connections_to_the_others(place: Path) -> None:
    with running_daemon(place, "--clients", "8", *ALLOWED) as daemon:
        with crowd(daemon, FIRST, 7, refused=3):  # he holds 4, and 4 are free
            assert asks(daemon, FIRST) == "Busy"
            assert asks(daemon, SECOND) == "served"
            assert asks(daemon, 0) == "served"
        until(lambda: asks(daemon, FIRST) == "served", "his places come back")


def test_where_one_user_alone_is_served_he_may_take_all(place: Path) -> None:
    alone = ("--clients", "8", "--allow-uid", str(FIRST))
    with running_daemon(place, *alone) as daemon, crowd(daemon, FIRST, 9, refused=1):
        assert asks(daemon, 0) == "Busy"


def start(daemon: RunningDaemon, place: Path, uid: int, name: str, line: str) -> Any:
    """An action of a user in a directory of his own."""
    sandbox = place / name
    sandbox.mkdir()
    os.chown(sandbox, uid, uid)

    def popen(words: List[str], **more: Any) -> subprocess.Popen[bytes]:
        words[0] = str(place / "rootseal-exec")
        return subprocess.Popen(words, user=uid, group=uid, extra_groups=[], **more)

    return daemon.start(sandbox, ["/bin/sh", "-c", line], popen=popen)


def test_one_user_leaves_places_for_actions_to_the_others(place: Path) -> None:
    with running_daemon(place, "--slots", "4", *ALLOWED) as daemon:
        many = [start(daemon, place, FIRST, f"first{n}", "read line") for n in range(4)]
        waiting = {"running": 4, "queued": 2}
        until(lambda: daemon.status()["actions"] == waiting, "two of them wait")
        other = start(daemon, place, SECOND, "second", "exit 7")
        assert other.wait(GIVE_UP_SECONDS) == 7
        until(lambda: daemon.status()["actions"] == waiting, "they wait still")
        for action in many:
            action.communicate(b"\n", timeout=GIVE_UP_SECONDS)
        assert [action.returncode for action in many] == [0] * 4
