"""Fixtures with Pants' RuleRunner: a real engine, the real launcher, a real daemon."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any, Iterator

import pytest
from pants.engine.fs import Digest, DigestEntries
from pants.engine.process import FallibleProcessResult, Process
from pants.testutil.rule_runner import QueryRule, RuleRunner
from rootseal_pants import hook, setup_rules, wrap_get

REPO = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def executable() -> str:
    """The `rootseal` executable of this checkout."""
    path = os.environ.get("ROOTSEAL_EXECUTABLE", str(REPO / ".venv" / "bin" / "rootseal"))
    if not os.access(path, os.X_OK):
        pytest.skip(f"{path} is not there; run `make build`")
    return path


@pytest.fixture(scope="session")
def daemon_socket(executable: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Where the daemon of these tests listens; it is started on demand, and ended with them."""
    directory = tmp_path_factory.mktemp("run")
    directory.chmod(0o700)
    socket = str(directory / "daemon.sock")
    yield socket
    subprocess.run([executable, "daemon", "stop", "--socket", socket], check=True)


def daemon_status(executable: str, socket: str) -> dict[str, Any]:
    """What the daemon at this socket says of itself, started if need be."""
    command = [executable, "daemon", "ensure", "--json", "--socket", socket]
    answer = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    assert isinstance(answer, dict)
    return answer


def wrapping_engine(executable: str, daemon_socket: str, *options: str) -> RuleRunner:
    """An engine whose processes are wrapped."""
    hook.install(wrap_get)
    rules: list[Any] = [
        *setup_rules.rules(),
        *wrap_get.rules(),
        QueryRule(FallibleProcessResult, [Process]),
        QueryRule(DigestEntries, [Digest]),
    ]
    runner = RuleRunner(rules=rules)
    runner.set_options(
        [
            f"--rootseal-executable={executable}",
            f"--rootseal-daemon-socket={daemon_socket}",
            *options,
        ]
    )
    return runner


@pytest.fixture(scope="module")
def wrapped(executable: str, daemon_socket: str) -> RuleRunner:
    """An engine whose processes are wrapped, with the daemon of these tests."""
    return wrapping_engine(executable, daemon_socket)
