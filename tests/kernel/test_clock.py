"""The clock is set back while an action runs: what happened after that has earlier times.

Only on a machine of its own, whose clock is nobody else's: those of the lab.
"""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path
from typing import Iterator

import pytest
from running_daemon import RunningDaemon, one_line

pytestmark = pytest.mark.requires("root", "fanotify", "launcher", "core")
OPTIONS = {
    "fanotify": ("--option=capture-mode=walk", "--option=fanotify=on"),
    "ptrace": ("--option=capture-mode=trace:ptrace",),
}
ZERO = "--option=require-zero-drops=1"
SET_BACK_SECONDS = 3600
PROGRAM = """
import os, sys
text = open('in').read() + open('other').read()
open('out', 'w').write(text)
print('ready', flush=True)
sys.stdin.readline()
os.truncate('cut', 3)
open('made', 'w').write('made')
text = open('made').read() + open('late').read()
open('after', 'w').write(text)
"""
PRODUCTS = {b"out": "inother", b"cut": "cut", b"made": "made", b"after": "madelate"}


@pytest.fixture
def set_back() -> Iterator[None]:
    """Leave to set the clock, which goes on afterwards as if nobody had."""
    if not os.environ.get("ROOTSEAL_LAB_EMULATED"):
        pytest.skip("optional: sets the clock, so only on a machine of its own (`make lab`)")
    offset = time.time() - time.monotonic()
    yield
    time.clock_settime(time.CLOCK_REALTIME, time.monotonic() + offset)


@pytest.fixture
def inputs(sandbox: Path) -> Path:
    for name in ("in", "other", "late", "cut here", "kept"):
        (sandbox / name.split()[0]).write_text(name)
    return sandbox


@pytest.mark.parametrize("backend", OPTIONS)
def test_all_is_there_though_the_clock_is_set_back(
    daemon: RunningDaemon, inputs: Path, set_back: None, backend: str
) -> None:
    action = ["/usr/bin/python3", "-c", PROGRAM]
    process = daemon.start(inputs, action, *OPTIONS[backend], ZERO)
    assert process.stdout.readline() == b"ready\n"
    time.clock_settime(time.CLOCK_REALTIME, time.time() - SET_BACK_SECONDS)
    done = daemon.end(process, inputs / "the-record", b"go\n")
    assert done.returncode == 0, done.stderr
    assert (inputs / "after").stat().st_mtime < (inputs / "out").stat().st_mtime
    assert done.verified().losses == {}
    found = {path: leaf.digest for path, leaf in done.products().items()}
    assert found == {p: hashlib.sha256(t.encode()).digest() for p, t in PRODUCTS.items()}
    assert {b"in", b"other", b"late"} <= set(done.materials())


def test_among_many_files_none_is_missed(
    daemon: RunningDaemon, inputs: Path, set_back: None
) -> None:
    """Of so many only the names are known from before: at worst each of them is a product."""
    for number in range(3000):
        (inputs / f"other{number}").write_text("other")
    action = ["/usr/bin/python3", "-c", PROGRAM]
    process = daemon.start(inputs, action, *OPTIONS["fanotify"], ZERO)
    assert process.stdout.readline() == b"ready\n"
    time.clock_settime(time.CLOCK_REALTIME, time.time() - SET_BACK_SECONDS)
    done = daemon.end(process, inputs / "the-record", b"go\n")
    assert done.returncode == 0, done.stderr
    found = {path: leaf.digest for path, leaf in done.products().items() if path in PRODUCTS}
    assert found == {p: hashlib.sha256(t.encode()).digest() for p, t in PRODUCTS.items()}


@pytest.mark.parametrize("backend", OPTIONS)
def test_a_file_that_others_change_after_that_is_gated(
    daemon: RunningDaemon, inputs: Path, set_back: None, backend: str
) -> None:
    """Its change time is earlier than the action then."""
    action = ["/usr/bin/python3", "-c", PROGRAM]
    process = daemon.start(inputs, action, *OPTIONS[backend], ZERO)
    assert process.stdout.readline() == b"ready\n"
    time.clock_settime(time.CLOCK_REALTIME, time.time() - SET_BACK_SECONDS)
    with (inputs / "other").open("r+") as file:
        file.write("OTHER")
    done = daemon.end(process, inputs / "the-record", b"go\n")
    assert done.returncode == 125
    assert "mutatedAfterOpen 1" in one_line(done.stderr)
    assert not done.record.exists()
