"""Programs of every kind under every backend: static, of musl, of 32 bits: none is missed."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from programs import KINDS, build_program, check_copy
from running_daemon import RunningDaemon
from syscall_table import BACKENDS, BOTH, EBPF, FANOTIFY, IN, WALK
from table_runs import make_root, run_daemon, sha256_text

NEEDS = ("root", "fanotify", "launcher", "core", "gcc")
pytestmark = pytest.mark.requires(*NEEDS)
SEEING = [
    pytest.param(name, marks=pytest.mark.requires(*NEEDS, "ebpf") if name in (EBPF, BOTH) else ())
    for name in BACKENDS
    if name != WALK
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("backend", SEEING)
def test_program_is_captured(
    daemon: RunningDaemon, tmp_path: Path, backend: str, kind: str
) -> None:
    program = build_program(tmp_path, kind)
    done = run_daemon(daemon, backend, make_root(tmp_path), str(program))
    check_copy(done, program, kind)


@pytest.mark.parametrize("backend", [item for item in SEEING if "ptrace" not in str(item)])
def test_a_tracer_inside_works_where_nobody_else_traces(
    daemon: RunningDaemon, tmp_path: Path, backend: str
) -> None:
    """Under ptrace it is refused: tests/native/test_ptrace_programs.py."""
    strace = shutil.which("strace")
    if strace is None:
        pytest.skip("optional: no strace")
    argv = [strace, "-f", "-o", "/dev/null", "/bin/cat", "in"]
    done = run_daemon(daemon, backend, make_root(tmp_path), *argv)
    assert (done.returncode, done.stdout.decode()) == (0, IN), done.stderr
    assert done.verified().losses == {}
    assert done.materials()[b"in"].digest.hex() == sha256_text(IN)
    assert "cat" in {process["comm"] for process in done.field("processes")}
    calls = [one["syscall"] for p in done.field("processes") for one in p.get("syscallEvents", ())]
    assert ("ptrace" in calls) == (backend != FANOTIFY)
