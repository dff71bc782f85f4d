"""Every subcommand of the fixture under every backend: one table says what each must see.

The same materials and products under fanotify, ptrace and fanotify with eBPF, through daemon and
launcher; what eBPF alone sees, without a daemon. Differences have a row in docs/backends.md.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
from pathlib import Path
from typing import Dict, Iterator, Set, Tuple

import pytest
from rootseal.capture.ebpf import EbpfTracer
from rootseal.leaf_table import Leaf
from running_daemon import Done, RunningDaemon
from syscall_table import (
    BACKENDS,
    BESIDE,
    BOTH,
    BURST,
    EBPF,
    FANOTIFY,
    IN,
    PTRACE,
    TABLE,
    Seen,
    Wanted,
    burst_text,
    check,
    document_of,
    wanted,
)
from trace_action import TraceLab, build_syscalls, build_trace_fixture, info_bytes

pytestmark = pytest.mark.requires("root", "fanotify", "ebpf", "launcher", "core", "gcc")
OPTIONS: Dict[str, tuple[str, ...]] = {
    FANOTIFY: ("--option=capture-mode=walk", "--option=fanotify=on"),
    PTRACE: ("--option=capture-mode=trace:ptrace",),
    BOTH: ("--option=capture-mode=trace:ebpf",),
    BESIDE: ("--option=capture-mode=trace:ptrace", "--option=fanotify=on"),
}
BURSTS = 100


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_syscalls(tmp_path_factory.mktemp("bin"))


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TraceLab]:
    with contextlib.closing(EbpfTracer()) as tracer:
        yield TraceLab(build_trace_fixture(tmp_path_factory.mktemp("enter")), tracer)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """What the fixture works on."""
    place = tmp_path / "root"
    (place / "d").mkdir(parents=True)
    (place / "burst").mkdir()
    (place / "in").write_text(IN)
    for number in range(BURST):
        (place / "burst" / str(number)).write_text(burst_text(number))
    return place


def running_kernel() -> Tuple[int, int]:
    major, minor = os.uname().release.split(".")[:2]
    return int(major), int(minor)


def sha256_text(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def exit_code(returncode: int) -> int:
    return returncode if returncode >= 0 else 128 - returncode


def named(leaves: Dict[bytes, Leaf]) -> Dict[str, Leaf]:
    return {path.decode(): leaf for path, leaf in leaves.items() if not path.startswith(b"/")}


def seen_in(done: Done) -> Seen:
    """A recorded action in the words of the table."""
    assert done.record.exists(), done.stderr
    materials: Dict[str, Set[str]] = {
        path: {leaf.digest.hex()} for path, leaf in named(done.materials()).items()
    }
    products = {
        path: (leaf.digest.hex(), leaf.size, leaf.kind)
        for path, leaf in named(done.products()).items()
    }
    losses = done.verified().losses
    code = exit_code(done.returncode)
    return Seen(code, done.stderr, done.field("processes"), losses, materials, products)


def run_daemon(daemon: RunningDaemon, backend: str, root: Path, *argv: str) -> Done:
    record = root.parent / "record"
    done = daemon.run(root, argv, *OPTIONS[backend], record=record)
    if done.record.exists():
        assert done.field("capture", "backend") == backend
    return done


def run_lab(lab: TraceLab, root: Path, *argv: str) -> Seen:
    """eBPF alone: which files were opened, it does not hash them."""
    before = {
        path: (path.stat(), sha256_text(path.read_text()))
        for path in [root / "in", *(root / "burst").iterdir()]
    }
    traced = lab.run(root, argv)
    code = exit_code(traced.exit_code)
    pairs = traced.pairs()
    materials = {
        str(path.relative_to(root)): {digest}
        for path, (info, digest) in before.items()
        if info_bytes(info) in pairs
    }
    documents = [document_of(process) for process in traced.processes]
    return Seen(code, "", documents, traced.losses(), materials, None)


@pytest.mark.parametrize("name", sorted(TABLE))
@pytest.mark.parametrize("backend", BACKENDS)
def test_call_is_seen(
    daemon: RunningDaemon, lab: TraceLab, program: Path, root: Path, backend: str, name: str
) -> None:
    argv = (str(program), name, ".")
    row = wanted(name, backend)
    if running_kernel() < row.since:
        pytest.skip(f"optional: {name} came with kernel {row.since[0]}.{row.since[1]}")
    if backend == EBPF:
        seen = run_lab(lab, root, *argv)
        if name == "io_uring_openat" and lab.tracer.used.opens == "lsm/file_open":
            row = dataclasses.replace(row, materials=TABLE[name].materials)
    else:
        seen = seen_in(run_daemon(daemon, backend, root, *argv))
    check(seen, row, str(program), sha256_text)


@pytest.mark.parametrize("backend", sorted(set(BACKENDS) - {EBPF}))
def test_burst_is_complete_every_time(
    daemon: RunningDaemon, program: Path, root: Path, backend: str
) -> None:
    """Every backend but eBPF alone claims `held`: 200 small files with their digests, 100 times."""
    row: Wanted = wanted("burst", backend)
    for _ in range(BURSTS):
        done = run_daemon(daemon, backend, root, str(program), "burst", ".")
        assert done.field("capture", "posture", "achieved") == "held"
        check(seen_in(done), row, str(program), sha256_text)
        done.record.unlink()
