"""The ptrace backend against the fixture: each system call is seen for what it is.

The driver is built with ASan and UBSan, so the tracer's own code is checked on the way.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Dict, Iterator, Optional, Set

import pytest
from ptrace_action import (
    SANITIZERS,
    Traced,
    build_driver,
    build_fixture,
    run_traced,
    sha256_text,
)
from rootseal.observation import DigestSource
from syscall_table import (
    BURST,
    IN,
    PTRACE,
    RACES,
    TABLE,
    X32,
    Seen,
    Wanted,
    burst_text,
    check,
    document_of,
    wanted,
)

NOBODY = 65534
USER_ONLY_77 = {"open_by_handle_at"}  # needs a capability


@pytest.fixture(scope="module")
def tools(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    directory = tmp_path_factory.mktemp("ptrace")
    build_driver(directory, *SANITIZERS)
    build_fixture(directory)
    yield directory


@pytest.fixture
def place(tmp_path: Path, tools: Path) -> Iterator[Path]:
    """A directory that an ordinary user can work in: below /tmp, with its own copy of the tools."""
    base = Path("/tmp") / f"rootseal-ptrace-{os.getpid()}-{tmp_path.name}"
    shutil.rmtree(base, ignore_errors=True)
    base.mkdir(mode=0o755)
    shutil.copy(tools / "trace_driver", base)
    shutil.copy(tools / "syscalls", base)
    fill(base / "root")
    yield base
    shutil.rmtree(base, ignore_errors=True)


def fill(root: Path) -> None:
    (root / "d").mkdir(parents=True)
    (root / "burst").mkdir()
    (root / "in").write_text(IN)
    for number in range(BURST):
        (root / "burst" / str(number)).write_text(burst_text(number))


def give(base: Path, uid: int) -> None:
    for path in (base, *base.rglob("*")):
        os.chown(path, uid, uid)


def run_fixture(base: Path, name: str, user: Optional[int] = None) -> Traced:
    root = base / "root"
    return run_traced(base / "trace_driver", root, str(base / "syscalls"), name, ".", user=user)


def seen_by(traced: Traced) -> Seen:
    """A traced run in the words of the table."""
    materials: Dict[str, Set[str]] = {}
    for leaf in traced.materials():
        assert leaf.source == DigestSource.PTRACE_OPEN_TIME
        if not leaf.path.startswith(b"/"):
            materials.setdefault(leaf.path.decode(), set()).add(leaf.digest.hex())
    products = {
        path.decode(): (leaf.digest.hex(), leaf.size, leaf.kind)
        for path, leaf in traced.products().items()
    }
    documents = [document_of(process) for process in traced.processes]
    return Seen(traced.code, traced.stderr, documents, traced.losses, materials, products)


def check_run(base: Path, name: str, row: Wanted, user: Optional[int] = None) -> None:
    check(seen_by(run_fixture(base, name, user)), row, str(base / "syscalls"), sha256_text)


@pytest.mark.parametrize("name", sorted(TABLE))
def test_call_is_seen(place: Path, name: str) -> None:
    check_run(place, name, wanted(name, PTRACE))


@pytest.mark.requires("gcc", "root")
@pytest.mark.parametrize("name", sorted(TABLE))
def test_call_is_seen_by_an_ordinary_user(place: Path, name: str) -> None:
    give(place, NOBODY)
    row = wanted(name, PTRACE)
    if name in USER_ONLY_77:
        row = Wanted(calls=row.calls, code=77)
    check_run(place, name, row, NOBODY)


def test_every_subcommand_has_a_row(place: Path) -> None:
    done = run_traced(place / "trace_driver", place / "root", str(place / "syscalls"), "--list")
    assert set(done.stdout.split()) - {X32, *RACES} == set(TABLE)


def test_burst_is_complete_100_times_of_100(place: Path) -> None:
    wanted = {
        f"burst/{number}".encode(): sha256_text(burst_text(number)) for number in range(BURST)
    }
    for _ in range(100):
        traced = run_fixture(place, "burst")
        found = {leaf.path: leaf.digest.hex() for leaf in traced.materials()}
        assert {path: found.get(path) for path in wanted} == wanted
        assert traced.losses == {}
