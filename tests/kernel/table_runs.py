"""Runs subcommands of the table (tests/syscall_table.py) under a backend: shared by its tests."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Dict, Set, Tuple

import pytest
from rootseal.leaf_table import Leaf
from running_daemon import Done, RunningDaemon
from syscall_table import (
    BESIDE,
    BOTH,
    BURST,
    EBPF,
    FANOTIFY,
    IN,
    PTRACE,
    WALK,
    Seen,
    Wanted,
    burst_text,
    wanted,
)

OPTIONS: Dict[str, tuple[str, ...]] = {
    FANOTIFY: ("--option=capture-mode=walk", "--option=fanotify=on"),
    PTRACE: ("--option=capture-mode=trace:ptrace",),
    BOTH: ("--option=capture-mode=trace:ebpf",),
    EBPF: ("--option=capture-mode=trace:ebpf", "--option=fanotify=off"),
    BESIDE: ("--option=capture-mode=trace:ptrace", "--option=fanotify=on"),
    WALK: ("--option=capture-mode=walk", "--option=fanotify=off"),
}


def make_root(directory: Path) -> Path:
    """What the fixture works on."""
    place = directory / "root"
    (place / "d").mkdir(parents=True)
    (place / "burst").mkdir()
    (place / "in").write_text(IN)
    for number in range(BURST):
        (place / "burst" / str(number)).write_text(burst_text(number))
    return place


def running_kernel() -> Tuple[int, int]:
    major, minor = os.uname().release.split(".")[:2]
    return int(major), int(minor)


def wanted_here(name: str, *backends: str) -> Wanted:
    """A row, unless this kernel does not have the call."""
    row = wanted(name, *backends)
    if running_kernel() < row.since:
        pytest.skip(f"optional: {name} came with kernel {row.since[0]}.{row.since[1]}")
    return row


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
