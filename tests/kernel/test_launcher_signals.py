"""Signals at awkward moments: the launcher behaves as the action alone would, and loses none."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from running_daemon import RunningDaemon, is_alive, until

pytestmark = pytest.mark.requires("root", "fanotify", "launcher", "core")
HELD = "--option=fanotify=on"
TRACED = "--option=capture-mode=trace:ptrace"
PRINTS_AND_WAITS = "echo $$; read line; exit 9"
LEAVES_A_DESCENDANT = "sleep 9999 > /dev/null 2>&1 & echo $! > pid; echo $$; read line; exit 3"


def state(pid: int) -> str:
    """One letter: R, S, T, Z, …"""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def is_stopped(pid: int) -> bool:
    """Stopped by a signal; in a tracer's hands a group stop shows as `t`."""
    return state(pid) in "Tt"


def start(daemon: RunningDaemon, sandbox: Path, script: str, *options: str, **more: Any) -> Any:
    """A running shell script under the launcher, and the shell's process id."""
    process = daemon.start(sandbox, ["/bin/sh", "-c", script], *options, **more)
    return process, int(process.stdout.readline())


@pytest.mark.parametrize("mode", [HELD, TRACED])
def test_a_signal_that_comes_while_the_action_ends_is_not_lost(
    daemon: RunningDaemon, sandbox: Path, mode: str
) -> None:
    process, action = start(daemon, sandbox, LEAVES_A_DESCENDANT, mode, "--descendants=wait")
    os.kill(process.pid, signal.SIGSTOP)  # it learns of both at once
    until(lambda: state(process.pid) == "T", "the launcher is stopped")
    process.stdin.write(b"\n")
    process.stdin.flush()
    # A tracee stops on its way out until its tracer comes; what it is by then, it is dying.
    dying = "Zt" if mode == TRACED else "Z"
    until(lambda: state(action) in dying, "the action's process is ending")
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGCONT)
    done = daemon.end(process, sandbox / "the-record")
    assert done.returncode == 3 and done.record.exists()
    assert not is_alive(int((sandbox / "pid").read_text()))


@pytest.mark.parametrize("mode", [HELD, TRACED])
def test_a_stop_by_process_id_is_the_actions_and_is_seen_by_the_parent(
    daemon: RunningDaemon, sandbox: Path, mode: str
) -> None:
    process, action = start(daemon, sandbox, PRINTS_AND_WAITS, mode, preexec_fn=os.setpgrp)
    process.send_signal(signal.SIGTSTP)
    _, status = os.waitpid(process.pid, os.WUNTRACED)
    assert os.WIFSTOPPED(status) and os.WSTOPSIG(status) == signal.SIGTSTP
    assert is_stopped(action)
    process.send_signal(signal.SIGCONT)
    until(lambda: not is_stopped(action) and not is_stopped(process.pid), "both go on")
    done = daemon.end(process, sandbox / "the-record", b"\n")
    assert done.returncode == 9 and done.record.exists()


@pytest.mark.parametrize("mode", [HELD, TRACED])
def test_a_stopped_group_goes_on_where_it_was(
    daemon: RunningDaemon, sandbox: Path, mode: str
) -> None:
    process, action = start(daemon, sandbox, PRINTS_AND_WAITS, mode, preexec_fn=os.setpgrp)
    assert os.getpgid(action) == process.pid
    os.killpg(process.pid, signal.SIGSTOP)
    until(lambda: is_stopped(action) and is_stopped(process.pid), "both are stopped")
    os.killpg(process.pid, signal.SIGCONT)
    done = daemon.end(process, sandbox / "the-record", b"\n")
    assert done.returncode == 9 and done.record.exists()


def test_a_stopped_launcher_ends_as_the_action_did(daemon: RunningDaemon, sandbox: Path) -> None:
    """SIGSTOP cannot be caught: it stops the launcher alone, and nothing is lost."""
    process, action = start(daemon, sandbox, PRINTS_AND_WAITS, HELD)
    process.send_signal(signal.SIGSTOP)
    until(lambda: state(process.pid) == "T", "the launcher is stopped")
    process.stdin.write(b"\n")
    process.stdin.flush()
    until(lambda: state(action) == "Z", "the action has ended")
    process.send_signal(signal.SIGCONT)
    done = daemon.end(process, sandbox / "the-record")
    assert done.returncode == 9 and done.record.exists()


@pytest.mark.parametrize("mode", [HELD, TRACED])
def test_an_action_that_stops_itself_is_continued_by_whoever_stopped_it(
    daemon: RunningDaemon, sandbox: Path, mode: str
) -> None:
    """The launcher does not stop with it: a SIGCONT to the action alone would leave it behind."""
    script = (
        "import os, signal; print(os.getpid(), flush=True); os.kill(os.getpid(), signal.SIGSTOP)"
    )
    process = daemon.start(sandbox, [sys.executable, "-c", script], mode)
    action = int(process.stdout.readline())
    until(lambda: is_stopped(action), "the action is stopped")
    os.kill(action, signal.SIGCONT)
    done = daemon.end(process, sandbox / "the-record")
    assert done.returncode == 0 and done.record.exists()


def test_without_the_launcher_the_parent_sees_the_same_stop(sandbox: Path) -> None:
    """What the tests above compare with."""
    script = ["/bin/sh", "-c", PRINTS_AND_WAITS]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(script, preexec_fn=os.setpgrp, **pipes) as process:  # type: ignore[call-overload]
        process.stdout.readline()
        process.send_signal(signal.SIGTSTP)
        _, status = os.waitpid(process.pid, os.WUNTRACED)
        assert os.WIFSTOPPED(status) and os.WSTOPSIG(status) == signal.SIGTSTP
        process.send_signal(signal.SIGCONT)
        process.communicate(b"\n")
    assert process.returncode == 9
