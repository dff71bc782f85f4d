"""Few descriptors, few fanotify groups: actions wait, none fails because of us."""

from __future__ import annotations

import contextlib
import os
import pty
import resource
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Iterator, List

import pytest
from running_daemon import (
    GIVE_UP_SECONDS,
    RunningDaemon,
    command,
    one_line,
    running_daemon,
    until,
)

pytestmark = pytest.mark.requires("root", "fanotify", "launcher", "core")
HELD = "--option=fanotify=on"
GROUPS = Path("/proc/sys/fs/fanotify/max_user_groups")
HOG = """
import ctypes, time
libc, taken = ctypes.CDLL(None, use_errno=True), 0
while libc.fanotify_init(0x4, 0) >= 0:
    taken += 1
print(taken, ctypes.get_errno(), flush=True)
while True:  # what other daemons of this user give back meanwhile
    if libc.fanotify_init(0x4, 0) < 0:
        time.sleep(0.001)
"""


def shell(text: str) -> List[str]:
    return ["/bin/sh", "-c", text]


def few(limit: int) -> List[str]:
    """Starts a program with so many descriptors, and no way to have more."""
    return ["prlimit", f"--nofile={limit}:{limit}"]


def at_once(daemon: RunningDaemon, place: Path, count: int, threads: int, script: str) -> None:
    """Many actions; each one succeeds, is held, and loses nothing."""

    def one(number: int) -> None:
        sandbox = place / f"s{number}"
        (sandbox / "deep" / "er" / "still").mkdir(parents=True)
        for name in range(8):
            (sandbox / f"in{name}").write_text(f"{number} {name}")
        done = daemon.run(sandbox, shell(script), HELD)
        assert "not permitted" not in done.stderr and "Too many" not in done.stderr, done.stderr
        assert (done.returncode, done.stderr) == (0, "")
        assert done.verified().losses == {}
        assert done.verified().predicate.posture.value == "held"
        assert {b"in%d" % name for name in range(8)} < set(done.materials())
        assert set(done.products()) == {b"out", b"deep/er/still/out"}

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(one, range(count)))


MANY_OPENS = "for n in 1 2 3 4 5 6; do cat in? | head -c 99 > out; cp out deep/er/still/out; done"


@pytest.mark.parametrize("limit", [144, 256])
def test_a_low_hard_limit_of_open_files_fails_no_action(tmp_path: Path, limit: int) -> None:
    with running_daemon(tmp_path, prefix=few(limit)) as daemon:
        said = daemon.status()["descriptors"]
        assert said["limit"] == limit
        assert said["held"] + said["reservedForEvents"] < limit
        assert 1 <= said["actions"] == daemon.status()["slots"]
        at_once(daemon, tmp_path, 36, 12, MANY_OPENS)
        assert daemon.counts()["recorded"] == 36
        log = daemon.log.read_text()
        assert "descriptors" not in log and "Too many open files" not in log


def test_a_hard_limit_too_low_for_one_action_is_refused_at_the_start(tmp_path: Path) -> None:
    place = ("--socket", str(tmp_path / "d.sock"), "--state-dir", str(tmp_path / "state"))
    done = subprocess.run(
        [*few(64), *command("daemon", "run", *place)],
        capture_output=True,
        text=True,
        timeout=GIVE_UP_SECONDS,
    )
    assert done.returncode == 2
    last = done.stderr.splitlines()[-1]
    assert "hard limit of 64 open files is too low" in last and "daemon ensure" in last
    started = subprocess.run(
        [*few(64), *command("daemon", "ensure", *place)],
        capture_output=True,
        text=True,
        timeout=GIVE_UP_SECONDS,
    )
    assert started.returncode != 0 and "hard limit of 64 open files" in started.stderr


def test_the_daemon_raises_its_soft_limit(tmp_path: Path) -> None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    with running_daemon(tmp_path, prefix=["prlimit", "--nofile=100:"]) as daemon:
        assert daemon.status()["descriptors"]["limit"] == hard


def test_a_deep_tree_takes_no_descriptor_from_the_events(tmp_path: Path, sandbox: Path) -> None:
    deep = (
        "i=0; while [ $i -lt 300 ]; do mkdir d && cd d || exit 9; i=$((i+1)); done; echo > bottom"
    )
    with running_daemon(tmp_path, prefix=few(256)) as daemon:
        done = daemon.run(sandbox, shell(deep), HELD)
        assert done.returncode == 0 and done.verified().losses["handlerErrors"] >= 1
        at_once(daemon, tmp_path, 4, 4, MANY_OPENS)


# --- fanotify groups ------------------------------------------------------------------------


@contextlib.contextmanager
def hog() -> Iterator[subprocess.Popen[str]]:
    """Another program of this user that holds every fanotify group, and takes what is freed."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOG],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        taken, error = process.stdout.readline().split()
        assert int(taken) > 0 and int(error) == 24, "EMFILE"
        yield process
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait(GIVE_UP_SECONDS)


def test_an_action_waits_while_another_program_holds_all_groups(
    tmp_path: Path, sandbox: Path
) -> None:
    with running_daemon(tmp_path) as daemon:
        with hog():
            process = daemon.start(sandbox, shell("echo x > out"), HELD)
            until(lambda: daemon.status()["groupsAwaited"] == 1, "it waits for a group")
            assert process.poll() is None and not (sandbox / "out").exists()
        done = daemon.end(process, sandbox / "the-record")
        assert (done.returncode, done.stderr) == (0, "")
        assert set(done.products()) == {b"out"} and done.verified().losses == {}
        assert daemon.status()["groupsAwaited"] == 0


def test_a_daemon_that_starts_while_all_groups_are_taken_uses_them_later(
    tmp_path: Path, sandbox: Path
) -> None:
    with contextlib.ExitStack() as stack:
        with hog():
            daemon = stack.enter_context(running_daemon(tmp_path))
            assert daemon.status()["backend"] == "fanotify"
        assert daemon.run(sandbox, ["true"], HELD).returncode == 0


def test_waiting_for_a_group_ends_with_an_error_or_with_the_launcher(
    tmp_path: Path, sandbox: Path
) -> None:
    with running_daemon(tmp_path, "--group-wait", "0") as daemon, hog():
        done = daemon.run(sandbox, ["touch", "ran"], HELD)
        assert done.returncode == 125 and not (sandbox / "ran").exists()
        text = one_line(done.stderr)
        assert "none became free in 0 seconds (--group-wait)" in text and "sysctl" in text
    with running_daemon(tmp_path) as daemon, hog():
        process = daemon.start(sandbox, ["touch", "ran"], HELD)
        until(lambda: daemon.status()["groupsAwaited"] == 1, "it waits for a group")
        process.kill()
        until(lambda: daemon.status()["actions"]["running"] == 0, "the daemon gives it up")
        assert not (sandbox / "ran").exists()
        process.communicate()


def test_fewer_groups_than_actions_while_the_daemon_runs(tmp_path: Path) -> None:
    before = GROUPS.read_text()
    with running_daemon(tmp_path) as daemon:
        at_once(daemon, tmp_path, 1, 1, MANY_OPENS)
        (tmp_path / "s0").rename(tmp_path / "first")
        try:
            GROUPS.write_text("2")
            assert daemon.status()["slots"] == 1
            at_once(daemon, tmp_path, 8, 8, MANY_OPENS)
        finally:
            GROUPS.write_text(before)
        assert daemon.status()["slots"] > 1 or int(before) < 4


def test_rootseal_run_on_a_terminal_says_what_it_waits_for(tmp_path: Path, sandbox: Path) -> None:
    ours, theirs = pty.openpty()
    with running_daemon(tmp_path) as daemon, contextlib.ExitStack() as stack:
        stack.callback(os.close, ours)
        with hog():
            run = command("run", "--socket", str(daemon.socket), "--fanotify=on", "--", "true")
            process = subprocess.Popen(
                run,
                cwd=sandbox,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=theirs,
                env={**os.environ, "TERM": "xterm"},
            )
            os.close(theirs)
            shown = b""
            while b"waiting for a fanotify group" not in shown:
                try:
                    shown += os.read(ours, 4096)
                except OSError:
                    pytest.fail(f"it ended before: {shown.decode()}")
            assert process.poll() is None
        with contextlib.suppress(OSError):  # EIO: nobody has the terminal open any more
            while os.read(ours, 4096):
                pass
        process.communicate(timeout=GIVE_UP_SECONDS)
        assert process.returncode == 0
