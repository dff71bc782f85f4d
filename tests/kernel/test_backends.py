"""Every subcommand of the fixture under every backend: one table says what each must see.

The same materials and products under fanotify, ptrace, eBPF and fanotify with either, through
daemon and launcher; a walk as far as it sees. Differences have a row in docs/backends.md.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Iterable, List

import pytest
from running_daemon import RunningDaemon
from syscall_table import BACKENDS, BOTH, EBPF, HELD, TABLE, Wanted, check, wanted
from table_runs import (
    make_root,
    run_daemon,
    seen_in,
    sha256_text,
    wanted_here,
)
from trace_action import build_syscalls

NEEDS = ("root", "fanotify", "launcher", "core", "gcc")
pytestmark = pytest.mark.requires(*NEEDS)
BURSTS = 100


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_syscalls(tmp_path_factory.mktemp("bin"))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return make_root(tmp_path)


def each(backends: Iterable[str]) -> List[Any]:
    """Backends as parameters, those with eBPF where it loads: a kernel may have all others."""
    traced = pytest.mark.requires(*NEEDS, "ebpf")
    return [pytest.param(b, marks=traced if b in (EBPF, BOTH) else ()) for b in backends]


@pytest.mark.parametrize("name", sorted(TABLE))
@pytest.mark.parametrize("backend", each(BACKENDS))
def test_call_is_seen(
    daemon: RunningDaemon,
    program: Path,
    root: Path,
    backend: str,
    name: str,
) -> None:
    done = run_daemon(daemon, backend, root, str(program), name, ".")
    check(seen_in(done), wanted_here(name, backend), str(program), sha256_text)


@pytest.mark.parametrize("backend", each(HELD))
def test_burst_is_complete_every_time(
    daemon: RunningDaemon, program: Path, root: Path, backend: str
) -> None:
    """Every backend that claims `held`: 200 small files with their digests, 100 times."""
    row: Wanted = wanted("burst", backend)
    for _ in range(BURSTS):
        done = run_daemon(daemon, backend, root, str(program), "burst", ".")
        assert done.field("capture", "posture", "achieved") == "held"
        check(seen_in(done), row, str(program), sha256_text)
        done.record.unlink()
