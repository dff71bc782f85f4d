"""The launcher and the helper of aarch64, cross-compiled and run by qemu's user mode.

qemu's user mode has no seccomp and no ptrace, so the daemon here walks; what it has not emulated
in every version is PR_SET_CHILD_SUBREAPER, which is therefore set outside (it survives exec).
"""

from __future__ import annotations

import ctypes
import shutil
import signal
import socket
import subprocess
from pathlib import Path
from typing import Any, List, Sequence

import pytest
from running_daemon import REPO, Done, RunningDaemon, one_line

pytestmark = pytest.mark.requires("launcher", "core")
COMPILER, EMULATOR = "aarch64-linux-gnu-gcc", "qemu-aarch64-static"
PACKAGES = {COMPILER: "gcc-aarch64-linux-gnu", EMULATOR: "qemu-user-static"}
WALKED = "--option=capture-mode=walk"
PR_SET_CHILD_SUBREAPER = 36
ALREADY_A_SUBREAPER = """
int __real_prctl(int option, unsigned long a, unsigned long b, unsigned long c, unsigned long d);
int __wrap_prctl(int option, unsigned long a, unsigned long b, unsigned long c, unsigned long d);
int __wrap_prctl(int option, unsigned long a, unsigned long b, unsigned long c, unsigned long d)
{
	return option == 36 ? 0 : __real_prctl(option, a, b, c, d);
}
"""


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with rootseal-exec and rootseal-scope for aarch64."""
    for name, package in PACKAGES.items():
        if shutil.which(name) is None:
            pytest.skip(f"optional: {name} is missing (apt-get install {package})")
    place = tmp_path_factory.mktemp("aarch64")
    shim = place / "shim.c"
    shim.write_text(ALREADY_A_SUBREAPER)
    make = ["make", "-s", "-C", str(REPO / "native"), "aarch64", f"AARCH64={place}"]
    extra = f"AARCH64_EXTRA={shim} -Wl,--wrap=prctl"
    done = subprocess.run([*make, extra], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return place


def become_subreaper() -> None:
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def emulated(programs: Path) -> Any:
    """Starts the launcher of aarch64 in place of this machine's."""

    def popen(words: List[str], **options: Any) -> subprocess.Popen[bytes]:
        argv = [EMULATOR, str(programs / "rootseal-exec"), *words[1:]]
        return subprocess.Popen(argv, preexec_fn=become_subreaper, **options)

    return popen


def run(
    daemon: RunningDaemon, sandbox: Path, programs: Path, argv: Sequence[str], *options: str
) -> Done:
    return daemon.run(sandbox, argv, WALKED, *options, popen=emulated(programs))


def test_an_action_is_recorded(daemon: RunningDaemon, sandbox: Path, programs: Path) -> None:
    (sandbox / "in").write_text("in")
    script = ["/bin/sh", "-c", "cat in > out; echo hi; exit 3"]
    done = run(daemon, sandbox, programs, script, "--output-file=out")
    assert (done.returncode, done.stdout, done.stderr) == (3, b"hi\n", "")
    assert done.field("exitcode") == 3 and done.field("cmd") == script
    assert b"in" in done.materials() and b"out" in done.products()
    assert [path.name for path in sandbox.iterdir() if path.name.startswith(".")] == []


def test_a_missing_command_is_127(daemon: RunningDaemon, sandbox: Path, programs: Path) -> None:
    done = run(daemon, sandbox, programs, ["no-such-command"])
    assert done.returncode == 127 and done.field("exitcode") == 127
    assert "No such file" in one_line(done.stderr)


def test_descendants_are_ended(daemon: RunningDaemon, sandbox: Path, programs: Path) -> None:
    script = ["/bin/sh", "-c", "sleep 9999 > /dev/null 2>&1 & exit 5"]
    done = run(daemon, sandbox, programs, script, "--descendants=kill:0")
    assert (done.returncode, done.field("descendantsKilled")) == (5, 1)


def test_a_signal_reaches_the_action(daemon: RunningDaemon, sandbox: Path, programs: Path) -> None:
    script = 'trap "exit 7" TERM; echo ready; while :; do sleep 0.1; done'
    process = daemon.start(sandbox, ["/bin/sh", "-c", script], WALKED, popen=emulated(programs))
    assert process.stdout.readline() == b"ready\n"
    process.send_signal(signal.SIGTERM)
    assert daemon.end(process, sandbox / "the-record").returncode == 7


def test_without_a_daemon_nothing_runs(tmp_path: Path, sandbox: Path, programs: Path) -> None:
    nobody = RunningDaemon(None, tmp_path / "none", tmp_path, tmp_path)  # type: ignore[arg-type]
    process = nobody.start(sandbox, ["touch", "ran"], WALKED, popen=emulated(programs))
    _, err = process.communicate()
    assert process.returncode == 125 and b"rootseal daemon ensure" in err
    assert not (sandbox / "ran").exists()


def helper(programs: Path, *argv: str, **options: Any) -> subprocess.CompletedProcess[bytes]:
    words = [EMULATOR, str(programs / "rootseal-scope"), *argv]
    return subprocess.run(words, capture_output=True, **options)


def test_the_helper_by_hand_is_refused(programs: Path) -> None:
    done = helper(programs)
    assert done.returncode == 125 and done.stderr.startswith(b"rootseal-scope: usage: ")


@pytest.mark.requires("root")
def test_the_helper_starts_nothing_without_its_guard(programs: Path) -> None:
    """qemu has no seccomp(2): a kernel without it ends the same way."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        number = theirs.fileno()
        done = helper(programs, str(number), "/bin/echo", "ran", pass_fds=[number])
    assert (done.returncode, done.stdout) == (125, b"")
    assert b"seccomp filters are not available" in done.stderr


def test_sha256_of_the_launcher(programs: Path) -> None:
    native = REPO / "native" / "launcher"
    sources = [REPO / "tests" / "native" / "sha256_test.c", *sorted(native.glob("sha256*.c"))]
    program = programs / "sha256_test"
    flags = ["-std=gnu11", "-D_GNU_SOURCE", "-O2", "-static", f"-I{REPO}"]
    subprocess.run([COMPILER, *flags, *map(str, sources), "-o", str(program)], check=True)
    done = subprocess.run([EMULATOR, str(program)], capture_output=True)
    assert done.returncode == 0 and b"sha256_test: ok" in done.stdout, done.stderr


def test_filter_numbers_are_those_of_the_headers(programs: Path) -> None:
    """The column of aarch64 in trace_calls.h, and the guard's numbers."""
    table = (REPO / "native" / "launcher" / "trace_calls.h").read_text().splitlines()
    rows = [line[8:-1].split(", ") for line in table if line.startswith("RS_CALL(")]
    wanted = [(row[0], row[4]) for row in rows]
    guard = ("clone", "unshare", "setns", "mount")
    wanted += [(name, f"GUARD_NATIVE_{name.upper()}") for name in guard]
    checks = "".join(
        f'#ifdef SYS_{name}\n_Static_assert(SYS_{name} == {number}, "{name}");\n#endif\n'
        for name, number in wanted
    )
    source = programs / "numbers.c"
    source.write_text(f'#include "native/guard_filter.h"\n#include <sys/syscall.h>\n{checks}')
    argv = [COMPILER, "-std=gnu11", f"-I{REPO}", "-fsyntax-only", str(source)]
    done = subprocess.run(argv, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(rows) > 60
