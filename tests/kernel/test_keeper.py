"""A daemon that dies while an open waits for it: nobody goes on unseen (rootseal/keeper.py)."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
from pathlib import Path
from typing import Any, List

import pytest
from rootseal.keeper import kill_round
from running_daemon import (
    GIVE_UP_SECONDS,
    RunningDaemon,
    is_alive,
    one_line,
    running_daemon,
    until,
)

HELD = "--option=fanotify=on"
OPENAT = {"x86_64": "257", "aarch64": "56"}[os.uname().machine]
READS_ON_COMMAND = (
    "import os, sys\n"
    "print(os.getpid(), flush=True)\n"
    "sys.stdin.readline()\n"
    "open('secret').read()\n"
    "os.mkdir('went-on')\n"  # opens nothing, so nothing else would hold it
)


@pytest.fixture
def sandbox(tmp_path: Path) -> Path:
    place = tmp_path / "sandbox"
    place.mkdir()
    (place / "secret").write_text("secret")
    return place


def keeper_of(daemon: RunningDaemon) -> int:
    """Process id of the daemon's keeper, found among its children."""
    for task in Path(f"/proc/{daemon.process.pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            if b"keeper.py" in Path(f"/proc/{child}/cmdline").read_bytes():
                return int(child)
    raise AssertionError("the daemon has no keeper")


def is_opening(pid: int) -> bool:
    """Whether a process waits in open."""
    return Path(f"/proc/{pid}/syscall").read_text().split()[0] == OPENAT


def start_reader(daemon: RunningDaemon, sandbox: Path) -> Any:
    """An action that reads on command; with its process id."""
    process = daemon.start(sandbox, ["/usr/bin/python3", "-c", READS_ON_COMMAND], HELD)
    return process, int(process.stdout.readline())


def command(process: Any) -> None:
    process.stdin.write(b"go\n")
    process.stdin.flush()


def stopped(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


def stop(pid: int) -> None:
    os.kill(pid, signal.SIGSTOP)
    until(lambda: stopped(pid), f"{pid} is stopped")


def test_an_open_that_waits_when_the_daemon_is_killed_never_goes_on(
    tmp_path: Path, sandbox: Path
) -> None:
    with running_daemon(tmp_path) as daemon:
        process, action = start_reader(daemon, sandbox)
        keeper = keeper_of(daemon)
        stop(daemon.process.pid)
        command(process)
        until(lambda: is_opening(action), "the action waits in open")
        stop(process.pid)  # the slowest launcher that there can be
        daemon.kill()
        # Whoever dies holds nothing any more; the keeper alone keeps the action where it is.
        for _ in range(100):
            assert is_opening(action) and not (sandbox / "went-on").exists()
            os.sched_yield()
        os.kill(process.pid, signal.SIGCONT)
        done = daemon.end(process, sandbox / "the-record")
    assert done.returncode == 125 and "went away" in one_line(done.stderr)
    assert not (sandbox / "went-on").exists() and not done.record.exists()
    until(lambda: not is_alive(action), "the action is dead")
    until(lambda: not is_alive(keeper), "the keeper has ended")


def test_a_keeper_that_has_read_nothing_yet_holds_all_the_same(
    tmp_path: Path, sandbox: Path
) -> None:
    with running_daemon(tmp_path) as daemon:
        keeper = keeper_of(daemon)
        stop(keeper)  # the slowest keeper that there can be: the group is in its queue only
        process, action = start_reader(daemon, sandbox)
        stop(daemon.process.pid)
        command(process)
        until(lambda: is_opening(action), "the action waits in open")
        stop(process.pid)
        daemon.kill()
        for _ in range(100):
            assert is_opening(action) and not (sandbox / "went-on").exists()
            os.sched_yield()
        os.kill(process.pid, signal.SIGCONT)
        done = daemon.end(process, sandbox / "the-record")
        os.kill(keeper, signal.SIGCONT)
    assert done.returncode == 125 and not (sandbox / "went-on").exists()
    until(lambda: not is_alive(keeper), "the keeper has ended")


def test_without_a_keeper_the_kernel_would_let_it_go_on(tmp_path: Path, sandbox: Path) -> None:
    """Shows that the test above tests something: with the keeper killed too, the action goes on."""
    with running_daemon(tmp_path) as daemon:
        process, action = start_reader(daemon, sandbox)
        keeper = keeper_of(daemon)
        stop(daemon.process.pid)
        command(process)
        until(lambda: is_opening(action), "the action waits in open")
        stop(process.pid)
        os.kill(keeper, signal.SIGKILL)
        daemon.kill()
        until(lambda: (sandbox / "went-on").exists(), "the action goes on")
        os.kill(process.pid, signal.SIGCONT)
        done = daemon.end(process, sandbox / "the-record")
    assert done.returncode in (0, 125) and not done.record.exists()


def test_a_daemon_and_a_launcher_that_are_killed_leave_no_action_and_no_keeper(
    tmp_path: Path, sandbox: Path
) -> None:
    with running_daemon(tmp_path) as daemon:
        process, action = start_reader(daemon, sandbox)
        keeper = keeper_of(daemon)
        stop(daemon.process.pid)
        command(process)
        until(lambda: is_opening(action), "the action waits in open")
        daemon.kill()
        process.kill()
        process.communicate()
        until(lambda: not is_alive(action), "the action is dead")
        until(lambda: not is_alive(keeper), "the keeper has ended")
    assert not (sandbox / "went-on").exists()


FORKS_A_READER = """
import os, sys
if os.fork() == 0:
    os.setsid()
    print(os.getpid(), flush=True)
    sys.stdin.readline()
    open("secret").read()
    os.mkdir("went-on")
os.wait()
"""


def test_a_daemon_and_a_launcher_that_are_killed_leave_no_descendant(
    tmp_path: Path, sandbox: Path
) -> None:
    """The action's own process dies with its launcher; who descends from it dies by the keeper."""
    with running_daemon(tmp_path) as daemon:
        process = daemon.start(sandbox, ["/usr/bin/python3", "-c", FORKS_A_READER], HELD)
        descendant = int(process.stdout.readline())
        keeper = keeper_of(daemon)
        stop(daemon.process.pid)
        command(process)
        until(lambda: is_opening(descendant), "the descendant waits in open")
        stop(process.pid)  # or it would kill them itself
        daemon.kill()
        process.kill()
        process.communicate()
        until(lambda: not is_alive(descendant), "the descendant is dead")
        until(lambda: not is_alive(keeper), "the keeper has ended")
    assert not (sandbox / "went-on").exists()


def test_a_keeper_without_descriptors_goes_on_holding(tmp_path: Path, sandbox: Path) -> None:
    """It cannot look who is left: so nobody goes on, and when it can it ends them."""
    with running_daemon(tmp_path) as daemon:
        process = daemon.start(sandbox, ["/usr/bin/python3", "-c", FORKS_A_READER], HELD)
        descendant = int(process.stdout.readline())
        keeper = keeper_of(daemon)
        stop(daemon.process.pid)
        command(process)
        until(lambda: is_opening(descendant), "the descendant waits in open")
        before = resource.prlimit(keeper, resource.RLIMIT_NOFILE)
        resource.prlimit(keeper, resource.RLIMIT_NOFILE, (3, before[1]))  # poll needs some
        stop(process.pid)  # or it would kill them itself
        daemon.kill()
        process.kill()
        process.wait(GIVE_UP_SECONDS)
        for _ in range(100):
            assert is_opening(descendant) and is_alive(keeper)
            os.sched_yield()
        resource.prlimit(keeper, resource.RLIMIT_NOFILE, before)
        until(lambda: not is_alive(descendant), "the descendant is dead")
        until(lambda: not is_alive(keeper), "the keeper has ended")
        process.communicate()
    assert not (sandbox / "went-on").exists()


def test_only_what_is_in_the_namespace_or_surely_known_is_killed() -> None:
    """Not for a process id that has come to mean another process, nor for having looked in."""
    inside = subprocess.Popen(["unshare", "-m", "sleep", "9999"])
    outside = subprocess.Popen(["sleep", "9999"])
    own = Path("/proc/self/ns/mnt").stat().st_ino
    until(lambda: Path(f"/proc/{inside.pid}/ns/mnt").stat().st_ino != own, "it is in its namespace")
    namespace = os.open(f"/proc/{inside.pid}/ns/mnt", os.O_RDONLY)
    try:
        assert kill_round(namespace, [(outside.pid, 1)]) == {inside.pid}
        assert inside.wait(GIVE_UP_SECONDS) == -signal.SIGKILL
        assert outside.poll() is None
        start = int(Path(f"/proc/{outside.pid}/stat").read_text().rpartition(")")[2].split()[19])
        assert kill_round(namespace, [(outside.pid, 1), (outside.pid, start)]) == set()
        assert kill_round(namespace, [(outside.pid, 0)]) == {outside.pid}
        assert outside.wait(GIVE_UP_SECONDS) == -signal.SIGKILL
    finally:
        os.close(namespace)
        for process in (inside, outside):
            process.kill()
            process.wait()


def test_a_stopped_daemon_lets_no_open_go_on_before_the_launcher_has_killed(
    tmp_path: Path, sandbox: Path
) -> None:
    with running_daemon(tmp_path) as daemon:
        process, action = start_reader(daemon, sandbox)
        stop(process.pid)
        assert daemon.terminate() == 0
        command(process)
        until(lambda: is_opening(action), "the action waits in open")
        os.kill(process.pid, signal.SIGCONT)
        done = daemon.end(process, sandbox / "the-record")
    assert done.returncode == 125
    assert not (sandbox / "went-on").exists() and not done.record.exists()


def test_a_killed_keeper_is_replaced_before_the_next_action(tmp_path: Path, sandbox: Path) -> None:
    with running_daemon(tmp_path) as daemon:
        first = keeper_of(daemon)
        os.kill(first, signal.SIGKILL)
        until(lambda: not is_alive(first), "the keeper is dead")
        assert daemon.run(sandbox, ["/bin/true"], HELD).returncode == 0
        assert keeper_of(daemon) != first


def test_the_keeper_gives_every_group_back(tmp_path: Path, sandbox: Path) -> None:
    with running_daemon(tmp_path) as daemon:
        keeper = keeper_of(daemon)

        def descriptors() -> List[str]:
            return os.listdir(f"/proc/{keeper}/fd")  # noqa: PTH208 - names are enough

        before = len(descriptors())
        for _ in range(5):
            assert daemon.run(sandbox, ["/bin/true"], HELD).returncode == 0
        until(lambda: len(descriptors()) == before, "every group is given back")
