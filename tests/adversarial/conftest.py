"""A private daemon, and hostile actions run under it as a user without privileges.

Each test writes a program, runs it as an action and looks at what the signed bundle says of it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any, Iterator, Sequence

import pytest
from threads_at_rest import wait_for_rest
from throwaway_user import UnprivilegedUser

TIMEOUT_SECONDS = 120


@dataclasses.dataclass(frozen=True)
class Captured:
    """What one hostile action came to.

    Attributes:
        code: Exit status of `rootseal run`.
        stderr: What was printed.
        action: The action in the bundle, expanded; empty if nothing was signed.
    """

    code: int
    stderr: str
    action: dict[str, Any]

    def materials(self) -> dict[str, set[str]]:
        """Digests of the materials by path."""
        return by_path(self.action["materialFiles"])

    def products(self) -> dict[str, set[str]]:
        """Digests of the products by path."""
        return by_path(self.action["productFiles"])

    def counter(self, name: str) -> int:
        """One counter."""
        return int(self.action["summary"]["diagnostics"][name])


def by_path(files: Sequence[dict[str, str]]) -> dict[str, set[str]]:
    """Digests by path: one path may have had several contents."""
    found: dict[str, set[str]] = {}
    for item in files:
        found.setdefault(item["path"], set()).add(item["sha256"])
    return found


class Arena:
    """A daemon of our own and a directory of the user that attacks."""

    def __init__(self, directory: Path, user: UnprivilegedUser, command: Sequence[str]) -> None:
        self.directory, self.user, self.command = directory, user, list(command)
        self.root = directory / "sandbox"
        self.socket = directory / "private" / "daemon.sock"
        self.key = directory / "private" / "key"
        self.bundle = directory / "private" / "bundle"
        self.daemon = 0  # its process

    def wait_for_rest(self) -> None:
        """Until the daemon has handled what was queued."""
        wait_for_rest(self.daemon)

    def rootseal(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run the command line as root; the action itself runs as the user."""
        return subprocess.run(
            [*self.command, *arguments],
            cwd=self.root,
            env={**os.environ, **environment},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_SECONDS,
        )

    def attack(self, program: str, *options: str) -> Captured:
        """Run a Python program as an action of the user."""
        return self.captured(
            *self._run(program, options), SUDO_UID=str(self.user.uid), SUDO_GID=str(self.user.gid)
        )

    def attack_as_root(self, program: str, *options: str) -> Captured:
        """Run a Python program as an action of root, who may do more."""
        return self.captured(*self._run(program, options), SUDO_UID="0", SUDO_GID="0")

    def _run(self, program: str, options: Sequence[str]) -> Sequence[str]:
        script = self.directory / "attack.py"
        script.write_text(program)
        sealed = ("--out", str(self.bundle), "--key", str(self.key))
        command = ("--", "/usr/bin/python3", str(script))
        return ("run", "--socket", str(self.socket), *sealed, *options, *command)

    def captured(self, *arguments: str, **environment: str) -> Captured:
        """Run `rootseal run` and read the bundle that it leaves."""
        self.bundle.unlink(missing_ok=True)
        done = self.rootseal(*arguments, **environment)
        if not self.bundle.exists():
            return Captured(done.returncode, done.stderr, {})
        shown = self.rootseal("show", str(self.bundle), "--expand", "--json")
        assert shown.returncode == 0, shown.stderr
        return Captured(done.returncode, done.stderr, json.loads(shown.stdout)["actions"][0])

    def all_materials(self, captured: Captured) -> set[str]:
        """Digests of all materials, whatever their paths."""
        return set().union(*captured.materials().values())

    def write(self, name: str, text: str) -> Path:
        """A file in the sandbox that belongs to the user."""
        path = self.root / name
        path.write_text(text)
        os.chown(path, self.user.uid, self.user.gid)
        return path


@pytest.fixture(scope="session")
def hostile_user(unprivileged_user: UnprivilegedUser) -> UnprivilegedUser:
    """Who the actions run as."""
    return unprivileged_user


@pytest.fixture(scope="session")
def daemon_of_arena(
    hostile_user: UnprivilegedUser, rootseal_command: Sequence[str]
) -> Iterator[Arena]:
    """A running daemon; its directory outlives every test."""
    directory = Path(tempfile.mkdtemp(prefix="rootseal-arena-", dir="/var/tmp"))
    directory.chmod(0o755)
    arena = Arena(directory, hostile_user, rootseal_command)
    (directory / "private").mkdir(mode=0o755)
    arena.root.mkdir()
    made = arena.rootseal("keygen", str(arena.key))
    assert made.returncode == 0, made.stderr
    try:
        with running_daemon(arena):
            yield arena
    finally:
        shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture
def arena(daemon_of_arena: Arena) -> Arena:
    """A running daemon and an empty sandbox."""
    arena = daemon_of_arena
    shutil.rmtree(arena.root)
    arena.root.mkdir()
    os.chown(arena.root, arena.user.uid, arena.user.gid)
    return arena


@contextlib.contextmanager
def running_daemon(arena: Arena, *options: str) -> Iterator[subprocess.Popen[bytes]]:
    """A daemon at the arena's socket that serves the user."""
    argv = [*arena.command, "daemon", "run", "--socket", str(arena.socket), *options]
    argv += ["--state-dir", str(arena.directory / "private" / "state")]
    argv += ["--allow-uid", str(arena.user.uid)]
    with (
        (arena.directory / "private" / "log").open("wb") as log,
        subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log) as daemon,
    ):
        try:
            wait_for(arena, daemon)
            arena.daemon = daemon.pid
            yield daemon
        finally:
            daemon.terminate()
            daemon.wait(timeout=TIMEOUT_SECONDS)


def wait_for(arena: Arena, daemon: subprocess.Popen[bytes]) -> None:
    """Until the daemon answers; `ensure` waits for one that is starting."""
    while arena.rootseal("daemon", "status", "--socket", str(arena.socket)).returncode != 0:
        if daemon.poll() is not None:
            pytest.fail((arena.directory / "private" / "log").read_text(), pytrace=False)
