"""Programs of every kind under every backend: static, of musl, of 32 bits: none is missed."""

from __future__ import annotations

from pathlib import Path

import pytest
from programs import KINDS, build_program, check_copy
from running_daemon import RunningDaemon
from syscall_table import BACKENDS, BOTH, EBPF, WALK
from table_runs import make_root, run_daemon

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
