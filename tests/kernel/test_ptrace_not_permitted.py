"""Where ptrace is refused: an error before the action starts, or a step down that says why.

Refused to the launcher alone (a container, a tracer around the build), or to the daemon too.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path
from typing import Iterator, List, Sequence, Tuple

import pytest
from refused_calls import refusing
from running_daemon import LAUNCHER, Done, RunningDaemon, command, one_line, running_daemon

pytestmark = pytest.mark.requires("root", "launcher")
PTRACE = "--option=capture-mode=trace:ptrace"
AUTO = "--option=capture-mode=auto"
YAMA = Path("/proc/sys/kernel/yama/ptrace_scope")
AROUND: List[Tuple[Sequence[str], str, str]] = [
    (refusing("ptrace"), "the ptrace call is not permitted", "--cap-add SYS_PTRACE"),
    (refusing("seccomp"), "a seccomp filter cannot be installed", "seccomp profile"),
    (("strace", "-f", "-o", "/dev/null"), "another program traces", "without strace"),
]
around = pytest.mark.parametrize(
    ("prefix", "reason", "remedy"), AROUND, ids=["no-ptrace", "no-seccomp", "traced"]
)


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningDaemon]:
    """One that may trace, and would: there is no fanotify."""
    with running_daemon(tmp_path_factory.mktemp("daemon"), "--no-fanotify") as found:
        yield found


def run(daemon: RunningDaemon, sandbox: Path, prefix: Sequence[str], option: str) -> Done:
    """An action whose launcher runs behind a prefix; it makes the file `ran`."""
    if prefix[0] == "strace" and shutil.which("strace") is None:
        pytest.skip("optional: no strace")

    def behind(argv: Sequence[str], **options: object) -> subprocess.Popen[bytes]:
        return subprocess.Popen([*prefix, *argv], **options)  # type: ignore[call-overload,no-any-return]

    return daemon.run(sandbox, ["touch", "ran"], option, popen=behind)


@around
def test_what_was_asked_for_fails_before_the_action_starts(
    daemon: RunningDaemon, sandbox: Path, prefix: Sequence[str], reason: str, remedy: str
) -> None:
    done = run(daemon, sandbox, prefix, PTRACE)
    line = one_line(done.stderr)
    assert done.returncode == 125 and reason in line and remedy in line
    assert not (sandbox / "ran").exists() and not done.record.exists()


@around
def test_auto_steps_down_and_says_why(
    daemon: RunningDaemon, sandbox: Path, prefix: Sequence[str], reason: str, remedy: str
) -> None:
    done = run(daemon, sandbox, prefix, AUTO)
    assert done.returncode == 0, done.stderr
    first, second = done.field("capture", "fallbacks")
    assert first["from"] == "fanotify" and second["from"] == "ptrace"
    assert reason in second["reason"]
    assert first["to"] == second["to"] == done.field("capture", "backend") != "ptrace"


def test_ignored_signals_of_children_refuse_nothing(daemon: RunningDaemon, sandbox: Path) -> None:
    """The launcher tries it on a child, whose end it must see all the same."""
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        process = daemon.start(sandbox, ["grep", "SigIgn", "/proc/self/status"], AUTO)
    finally:
        signal.signal(signal.SIGCHLD, before)
    done = daemon.end(process, sandbox / "the-record")
    assert done.field("capture", "backend") == "ptrace"
    assert int(done.stdout.split()[1], 16) >> (signal.SIGCHLD - 1) & 1  # as its caller wanted


def test_daemon_that_may_not_trace_says_so_of_each_action(tmp_path: Path, sandbox: Path) -> None:
    with running_daemon(tmp_path, "--no-fanotify", prefix=refusing("ptrace")) as daemon:
        stepped = run(daemon, sandbox, ["/usr/bin/env"], AUTO)
        assert stepped.field("capture", "backend") != "ptrace"
        assert "ptrace call" in stepped.field("capture", "fallbacks")[1]["reason"]
        (sandbox / "ran").unlink()
        refused = run(daemon, sandbox, ["/usr/bin/env"], PTRACE)
    assert refused.returncode == 125 and "SYS_PTRACE" in one_line(refused.stderr)
    assert not (sandbox / "ran").exists()


def test_doctor_says_what_to_do() -> None:
    argv = [*refusing("ptrace"), *command("doctor")]
    text = subprocess.run(argv, capture_output=True, text=True, check=False).stdout
    found = subprocess.run([*argv, "--json"], capture_output=True, text=True, check=False).stdout
    (finding,) = [one for one in json.loads(found)["findings"] if one["name"] == "ptrace"]
    assert not finding["good"] and "the ptrace call is not permitted" in finding["found"]
    assert "--cap-add SYS_PTRACE" in finding["remedy"] and finding["remedy"] in text


@pytest.fixture
def only_root_may_trace() -> Iterator[None]:
    """kernel.yama.ptrace_scope=2, on a machine of its own."""
    if not os.environ.get("ROOTSEAL_LAB_EMULATED"):
        pytest.skip("optional: sets a sysctl of the machine, so only in `make lab`")
    if not YAMA.exists():
        pytest.skip("optional: this kernel runs without Yama")
    before = YAMA.read_text()
    YAMA.write_text("2")
    yield
    YAMA.write_text(before)


def test_user_whom_yama_refuses_is_not_taken_for_root(only_root_may_trace: None) -> None:
    """The daemon is root's and may trace; the launcher is nobody's and may not."""
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        place.chmod(0o755)
        launcher = shutil.copy(LAUNCHER, place)
        sandbox = place / "sandbox"
        sandbox.mkdir()
        os.chown(sandbox, 65534, 65534)

        def as_nobody(argv: Sequence[str], **options: object) -> subprocess.Popen[bytes]:
            words = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", launcher]
            return subprocess.Popen([*words, *argv[1:]], **options)  # type: ignore[call-overload,no-any-return]

        with running_daemon(place, "--no-fanotify", "--allow-uid", "65534") as daemon:
            stepped = daemon.run(sandbox, ["touch", "ran"], AUTO, popen=as_nobody)
            assert stepped.returncode == 0, stepped.stderr
            assert "ptrace_scope=2" in stepped.field("capture", "fallbacks")[1]["reason"]
            (sandbox / "ran").unlink()
            refused = daemon.run(sandbox, ["touch", "ran"], PTRACE, popen=as_nobody)
    assert refused.returncode == 125
    assert "sudo sysctl kernel.yama.ptrace_scope=1" in one_line(refused.stderr)
