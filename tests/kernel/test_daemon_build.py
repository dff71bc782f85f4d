"""`rootseal daemon ensure` and a daemon of another build: after an update nothing old signs."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, Dict, Iterator, List

import pytest
from rootseal import wire
from rootseal.build_id import build_digest
from rootseal.wire import Frame, FrameType, Tag
from running_daemon import (
    GIVE_UP_SECONDS,
    REPO,
    RunningDaemon,
    is_alive,
    one_line,
    rootseal,
    running_daemon,
    until,
)

PACKAGE = REPO / "pants-plugins" / "rootseal"
HELD = "--option=fanotify=on"


@pytest.fixture
def old_program(tmp_path: Path) -> List[str]:
    """The command line of another build: a copy of the package with one more line."""
    copy = tmp_path / "old" / "rootseal"
    shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    with (copy / "__init__.py").open("a") as stream:
        stream.write("# another build\n")
    program = (
        f"import sys; sys.path.insert(0, {str(copy.parent)!r}); "
        "from rootseal.cli import main; sys.exit(main())"
    )
    return [sys.executable, "-c", program]


def place(directory: Path) -> List[str]:
    return [
        *("--socket", str(directory / "run" / "d.sock")),
        *("--state-dir", str(directory / "state")),
    ]


def ensure_with(program: List[str], directory: Path, *options: str) -> Dict[str, Any]:
    done = subprocess.run(
        [*program, "daemon", "ensure", "--json", *place(directory), *options],
        check=True,
        stdout=subprocess.PIPE,
        timeout=GIVE_UP_SECONDS,
    )
    found: Dict[str, Any] = json.loads(done.stdout)
    return found


def test_an_idle_daemon_of_another_build_is_replaced_with_its_options(
    tmp_path: Path, old_program: List[str]
) -> None:
    old = ensure_with(old_program, tmp_path, "--allow-uid", "4242")
    assert old["build"] != build_digest()
    try:
        assert ensure_with(old_program, tmp_path)["pid"] == old["pid"]
        done = rootseal("daemon", "ensure", "--json", *place(tmp_path))
        assert (done.returncode, done.stderr) == (0, "")
        new = json.loads(done.stdout)
        assert new["build"] == build_digest() and new["pid"] != old["pid"]
        assert new["options"] == old["options"] and "4242" in new["options"]
        until(lambda: not is_alive(old["pid"]), "the old daemon has ended")
    finally:
        rootseal("daemon", "stop", "--socket", old["socket"])


def test_the_state_of_a_replaced_daemon_is_kept_unless_another_is_named(
    tmp_path: Path, old_program: List[str]
) -> None:
    old = ensure_with(old_program, tmp_path)
    try:
        done = rootseal("daemon", "ensure", "--json", "--socket", old["socket"])
        assert (done.returncode, done.stderr) == (0, "")
        new = json.loads(done.stdout)
        assert new["pid"] != old["pid"]
        assert [new[name] for name in ("stateDirectory", "captureKeyId")] == [
            old[name] for name in ("stateDirectory", "captureKeyId")
        ]
        other = tmp_path / "other"
        ensure_with(old_program, tmp_path)
        named = ("--socket", old["socket"], "--state-dir", str(other))
        moved = json.loads(rootseal("daemon", "ensure", "--json", *named).stdout)
        assert moved["stateDirectory"] == str(other)
        assert moved["captureKeyId"] != old["captureKeyId"]
    finally:
        rootseal("daemon", "stop", "--socket", old["socket"])


def test_a_busy_daemon_of_another_build_is_an_error_that_says_what_to_do(
    tmp_path: Path, sandbox: Path, old_program: List[str]
) -> None:
    old = ensure_with(old_program, tmp_path)
    daemon = RunningDaemon(None, Path(old["socket"]), tmp_path / "state", tmp_path)  # type: ignore[arg-type]
    try:
        process = daemon.start(sandbox, ["/bin/cat"], HELD)
        until(lambda: daemon.status()["actions"]["running"], "the action runs")
        done = rootseal("daemon", "ensure", *place(tmp_path))
        assert done.returncode != 0 and done.stdout == ""
        assert "another build" in done.stderr and "/rootseal daemon stop --socket" in done.stderr
        assert len(done.stderr.splitlines()) == 1
        ended = daemon.end(process, sandbox / "the-record")
        assert ended.returncode == 0 and ended.record.exists()
    finally:
        rootseal("daemon", "stop", "--socket", old["socket"])


def test_a_launcher_gives_up_cleanly_when_its_daemon_is_replaced(
    tmp_path: Path, sandbox: Path
) -> None:
    with running_daemon(tmp_path) as daemon:
        process = daemon.start(sandbox, ["/bin/cat"], HELD)
        until(lambda: daemon.status()["actions"]["running"], "the action runs")
        assert "stopped" in rootseal("daemon", "stop", "--socket", str(daemon.socket)).stdout
        done = daemon.end(process, sandbox / "the-record")
    assert done.returncode == 125 and "build again" in one_line(done.stderr)


@contextlib.contextmanager
def answering(path: Path, answer: bytes) -> Iterator[None]:
    """A server that gives every client the same bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(path))
        listener.listen()

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    client, _ = listener.accept()
                    with client:
                        client.recv(1 << 16)
                        client.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


def test_a_daemon_of_another_protocol_is_named(tmp_path: Path) -> None:
    with answering(tmp_path / "run" / "d.sock", bytes((0, 0, 0, 0, 19, 2, 0, 0))):
        for command in ("ensure", "stop"):
            done = rootseal("daemon", command, *place(tmp_path))
            assert done.returncode != 0 and len(done.stderr.splitlines()) == 1
            assert f"`kill {os.getpid()}`" in done.stderr


def test_another_users_daemon_of_another_build_is_left_to_its_owner(tmp_path: Path) -> None:
    said = {"socket": "/s", "version": "9", "build": "00", "uid": 4242, "actions": {"running": 0}}
    frame = Frame(FrameType.STATUS_REPLY, ((Tag.JSON, json.dumps(said).encode()),))
    with answering(tmp_path / "run" / "d.sock", wire.encode(frame)):
        done = rootseal("daemon", "ensure", *place(tmp_path))
    assert done.returncode != 0 and "belongs to uid 4242" in done.stderr
    assert "/rootseal daemon ensure`" in done.stderr
