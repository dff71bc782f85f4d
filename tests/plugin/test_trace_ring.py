"""[rootseal].trace_ring reaches the daemon; one that runs with another size is never ignored."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any, Callable, Iterator, Mapping, Sequence

import pytest
from conftest import wrapping_engine
from pants.engine.internals.scheduler import ExecutionError
from pants.engine.process import FallibleProcessResult, Process
from rootseal.errors import Error

HELLO = Process(["/bin/echo", "hello"], description="say hello")
Daemon = Callable[..., Mapping[str, Any]]


@pytest.fixture
def place(tmp_path: Path) -> str:
    """Where the daemon of one test listens."""
    directory = tmp_path / "run"
    directory.mkdir(mode=0o700)
    return str(directory / "daemon.sock")


@pytest.fixture
def daemon(executable: str, place: str) -> Iterator[Daemon]:
    """Runs `rootseal daemon COMMAND` for that daemon, and ends it with the test."""

    def command(*arguments: str) -> Mapping[str, Any]:
        line = [executable, "daemon", *arguments, "--socket", place, "--json"]
        answer = json.loads(subprocess.run(line, check=True, capture_output=True).stdout)
        assert isinstance(answer, dict)
        return answer

    yield command
    command("stop")


def ring_with(executable: str, place: str, daemon: Daemon, *options: str) -> Mapping[str, Any]:
    """The status of the daemon after an action ran with these options."""
    engine = wrapping_engine(executable, place, *options)
    assert engine.request(FallibleProcessResult, [HELLO]).stdout == b"hello\n"
    status = daemon("status")
    if status["trace"]["loader"] is None:
        pytest.skip("optional: eBPF, " + status["trace"]["reason"])
    return status


def refusal(executable: str, place: str, options: Sequence[str]) -> str:
    engine = wrapping_engine(executable, place, *options)
    with pytest.raises(ExecutionError) as caught:
        engine.request(FallibleProcessResult, [HELLO])
    (error,) = caught.value.wrapped_exceptions
    assert isinstance(error, Error)
    return str(error)


def test_the_daemon_gets_it_and_an_idle_one_is_replaced(
    executable: str, place: str, daemon: Daemon
) -> None:
    first = ring_with(executable, place, daemon, "--rootseal-trace-ring=1M")
    assert first["trace"]["ringBytes"] == 1 << 20
    same = ring_with(executable, place, daemon, "--rootseal-trace-ring=1024K")
    assert same["pid"] == first["pid"]
    any_size = ring_with(executable, place, daemon)
    assert any_size["pid"] == first["pid"]
    other = ring_with(executable, place, daemon, "--rootseal-trace-ring=2M")
    assert other["trace"]["ringBytes"] == 1 << 21
    assert other["pid"] != first["pid"]


def test_a_busy_daemon_of_another_size_is_an_error_that_names_both(
    executable: str, place: str, daemon: Daemon
) -> None:
    ring_with(executable, place, daemon, "--rootseal-trace-ring=1M")
    command = [executable, "run", "--socket", place, "--", "/bin/sh", "-c", "echo; read line"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as busy:
        assert busy.stdout is not None and busy.stdin is not None
        busy.stdout.read(1)  # it runs
        message = refusal(executable, place, ["--rootseal-trace-ring=4M"])
        busy.communicate(b"\n")
    assert "--trace-ring 1048576" in message
    assert "not with --trace-ring 4194304, and 1 of its" in message
    assert "daemon stop" in message
    assert daemon("status")["trace"]["ringBytes"] == 1 << 20


def test_a_daemon_without_a_ring_serves_as_it_is(
    executable: str, place: str, daemon: Daemon
) -> None:
    """Where nobody may load programs into the kernel."""
    without = ["setpriv", "--bounding-set=-sys_admin,-bpf,-perfmon"] if os.geteuid() == 0 else []
    ensure = [*without, executable, "daemon", "ensure", "--socket", place]
    subprocess.run(ensure, check=True, capture_output=True)
    first = daemon("status")
    assert first["trace"]["loader"] is None
    options = ("--rootseal-trace-ring=1M",)
    engine = wrapping_engine(executable, place, *options)
    assert engine.request(FallibleProcessResult, [HELLO]).stdout == b"hello\n"
    assert daemon("status")["pid"] == first["pid"]


@pytest.mark.parametrize(
    ("size", "word"), [("3M", "power of two"), ("2G", "power of two"), ("many", "not 'many'")]
)
def test_a_size_that_cannot_be_starts_nothing(
    executable: str, place: str, size: str, word: str
) -> None:
    message = refusal(executable, place, [f"--rootseal-trace-ring={size}"])
    assert message.startswith("[rootseal].trace_ring ") and word in message
    assert not Path(place).exists()
