"""Filesystems whose times are whole seconds: there an equal state proves little."""

from __future__ import annotations

import hashlib
import os
import sys
import time
from pathlib import Path
from typing import Iterator

import pytest
from coarse_times import ATTEMPTS, await_a_new_second, coarse_filesystem, times
from fanotify_action import Lab, build_fixture

pytestmark = pytest.mark.requires("root", "fanotify", "gcc", "core", "loop")

READ_TWICE = (
    "import os, sys, time\n"
    "held = os.open(sys.argv[1], os.O_RDONLY)\n"
    "open('ready', 'w').close()\n"
    "while not os.path.exists('go'): time.sleep(0.001)\n"
    "sys.stdout.write(os.read(held, 100).decode())\n"
)


@pytest.fixture
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    found = Lab(build_fixture(tmp_path_factory.mktemp("fixture")), digest_cache_entries=1024)
    yield found
    found.engine.close()


@pytest.fixture
def coarse(tmp_path: Path) -> Iterator[Path]:
    with coarse_filesystem(tmp_path) as place:
        yield place


def sha256(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def test_a_file_rewritten_within_a_second_has_the_digest_of_what_was_read(
    lab: Lab, coarse: Path, root: Path
) -> None:
    path = coarse / "material"
    for _ in range(ATTEMPTS):
        await_a_new_second()
        path.write_bytes(b"first")
        before = times(path)
        time.sleep(0.1)  # longer than a tick
        lab.do(root, "read", path)
        path.write_bytes(b"other")
        seen = lab.do(root, "read", path)
        if times(path) == before:
            assert [leaf.digest for leaf in seen.material(os.fsencode(path))] == [sha256(b"other")]
            return
    pytest.fail("no attempt was done within a second")


def test_a_change_after_the_hash_within_a_second_is_found_at_the_end(
    lab: Lab, coarse: Path, root: Path
) -> None:
    path = coarse / "material"
    for attempt in range(ATTEMPTS):
        place = root / str(attempt)
        place.mkdir()
        await_a_new_second()
        path.write_bytes(b"first")
        before = times(path)
        action = lab.start(place, [sys.executable, "-c", READ_TWICE, path])
        while not (place / "ready").exists():
            time.sleep(0.001)
        path.write_bytes(b"other")
        (place / "go").touch()
        seen = action.finish()
        if times(path) == before:
            assert seen.counters["mutatedAfterOpen"] == 1
            return
    pytest.fail("no attempt was done within a second")
