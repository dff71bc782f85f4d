"""The sealer that real Pants starts with its goals: used by the run, and left by none."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Callable

import pytest
from pants_repo import PantsRepo, short_key

WAITING = "seal --arguments-on-stdin"


class LoggedSealer:
    """The `rootseal` executable, with a note of each start: its process and its arguments."""

    def __init__(self, repo: PantsRepo) -> None:
        self.log = repo.home / "starts"
        path = repo.home / "logged-rootseal"
        script = f'#!/bin/sh\necho "$$ $*" >> "{self.log}"\nexec "{repo.rootseal}" "$@"\n'
        path.write_text(script, "utf-8")
        path.chmod(0o755)
        repo.options["PANTS_ROOTSEAL_EXECUTABLE"] = str(path)

    def seals(self) -> list[tuple[int, str]]:
        """Process and arguments of each `rootseal seal`."""
        if not self.log.exists():
            return []
        pairs = [line.split(" ", 1) for line in self.log.read_text("utf-8").splitlines()]
        return [(int(pid), words) for pid, words in pairs if words.startswith("seal")]

    def all_are_gone(self) -> bool:
        return not any(Path(f"/proc/{pid}").exists() for pid, _ in self.seals())


@pytest.fixture
def sealer(repo: PantsRepo) -> LoggedSealer:
    return LoggedSealer(repo)


def test_each_run_of_one_pantsd_seals_with_its_own_and_leaves_none(
    repo: PantsRepo, sealer: LoggedSealer
) -> None:
    repo.run("package", "::").succeeded()
    repo.verify()
    repo.run("attest", "::").succeeded()  # runs the goal `package` inside
    repo.verify()
    assert [words for _, words in sealer.seals()] == [WAITING] * 2
    assert sealer.all_are_gone()

    repo.command("keygen", str(repo.home / "other.key")).succeeded()
    repo.run(f"--rootseal-key={repo.home / 'other.key'}", "package", "::").succeeded()
    bundle = str(repo.dist / "rootseal" / "build.rootseal")
    repo.command("verify", bundle, "--key", str(repo.home / "other.pub")).succeeded()

    wrong = repo.run(f"--rootseal-key={short_key(repo)}", "package", "::").failed()
    assert "Nothing was attested: `rootseal seal` refused this build: rootseal: " in wrong.output
    assert "short.key is not a readable PEM private key" in wrong.output
    assert [words for _, words in sealer.seals()] == [WAITING] * 4
    assert sealer.all_are_gone()


def test_goals_that_seal_nothing_leave_none(repo: PantsRepo, sealer: LoggedSealer) -> None:
    repo.run("roots").succeeded()
    repo.run("--no-rootseal-enabled", "package", "::").succeeded()
    assert sealer.seals() == []
    build = (repo.root / "BUILD").read_text("utf-8")
    repo.write({"BUILD": build.replace("cat twice.txt left.txt", "exit 1; cat left.txt")})
    repo.run("package", "::").failed()
    repo.run("attest", "::").failed()
    assert len(sealer.seals()) <= 2  # one of them may have been killed before its first line
    assert sealer.all_are_gone()


@pytest.mark.parametrize("options", [(), ("--no-pantsd",)])
def test_a_cancelled_goal_leaves_none(
    repo: PantsRepo, sealer: LoggedSealer, options: tuple[str, ...]
) -> None:
    with slow_run(repo, *options) as client:
        wait_for(lambda: bool(sealer.seals()) and any(repo.home.glob("sandboxes/*/started")))
        assert not sealer.all_are_gone()  # it waits
        client.send_signal(signal.SIGINT)
        assert client.wait(60) != 0
    wait_for(sealer.all_are_gone)


def test_pantsd_that_is_killed_leaves_none(repo: PantsRepo, sealer: LoggedSealer) -> None:
    with slow_run(repo) as client:
        wait_for(lambda: bool(sealer.seals()) and any(repo.home.glob("sandboxes/*/started")))
        (pid,) = (int(path.read_text("utf-8")) for path in (repo.home / "pids").rglob("pid"))
        os.kill(pid, signal.SIGKILL)
        client.kill()
    wait_for(sealer.all_are_gone)


def slow_run(repo: PantsRepo, *options: str) -> subprocess.Popen[bytes]:
    """A run of Pants whose last action takes ten minutes."""
    build = (repo.root / "BUILD").read_text("utf-8")
    slow = build.replace("cat twice.txt left.txt", "touch started; sleep 600; cat left.txt")
    repo.write({"BUILD": slow.replace('tools=["cat", "mkdir"]', 'tools=["cat", "sleep", "touch"]')})
    (repo.home / "sandboxes").mkdir()
    return subprocess.Popen(
        [str(repo.pants), *options, "package", "::"],
        cwd=repo.root,
        env=repo.environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def wait_for(happened: Callable[[], bool]) -> None:
    for _ in range(6000):
        if happened():
            return
        time.sleep(0.02)
    pytest.fail("it did not happen within two minutes")
