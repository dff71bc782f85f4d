"""Files that come to the action already open."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from pathlib import Path
from typing import Sequence

import pytest
from capabilities import REPO
from rootseal import leaf_table
from rootseal.record import parse_record

LAUNCHER = REPO / "pants-plugins" / "rootseal" / "bin" / "rootseal-exec"
SECRET = "given, not opened\n"
SHA256 = hashlib.sha256(SECRET.encode()).hexdigest()


@pytest.fixture
def outside(arena) -> Path:
    """A readable directory with one file, outside the sandbox."""
    directory = arena.directory / "outside"
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(mode=0o755)
    (directory / "secret").write_text(SECRET)
    return directory


def launch(
    arena, fd: int, command: Sequence[str], *options: str
) -> subprocess.CompletedProcess[str]:
    """The launcher itself, with `fd` as the action's standard input."""
    argv = [str(LAUNCHER), "--action=" + "00" * 32, "--root=.", "--record=record"]
    argv += [f"--drop-to={arena.user.uid}:{arena.user.gid}", f"--socket={arena.socket}"]
    argv += ["--option=fanotify=on", *options, "--", *command]
    return subprocess.run(
        argv, cwd=arena.root, stdin=fd, capture_output=True, text=True, timeout=60
    )


def digests(arena) -> set[str]:
    """Digests of the materials in the record."""
    record = parse_record((arena.root / "record").read_bytes())
    raw = leaf_table.decompress(record.tables.materials)
    return {leaf.digest.hex() for leaf in leaf_table.iter_leaves(raw, leaf_table.Domain.MATERIAL)}


READ = ("/usr/bin/python3", "-c", "import os; assert os.read(0, 99)")
WRITE = ("/usr/bin/python3", "-c", "import os; os.write(0, b'x')")
READ_BELOW = ("cat", "/proc/self/fd/0/secret")
ZERO_DROPS = "--option=require-zero-drops=1"


@pytest.mark.parametrize("flags", [os.O_RDONLY, os.O_RDWR])
def test_a_file_that_is_inherited_open_is_a_material(arena, outside, flags) -> None:
    fd = os.open(outside / "secret", flags)
    (outside / "secret").chmod(0o644)
    done = launch(arena, fd, READ, ZERO_DROPS)
    assert (done.returncode, done.stderr) == (0, "")
    assert SHA256 in digests(arena)


@pytest.mark.parametrize("flags", [os.O_RDONLY | os.O_DIRECTORY, os.O_PATH])
def test_what_is_opened_below_an_inherited_directory_is_a_material(arena, outside, flags) -> None:
    fd = os.open(outside, flags)
    done = launch(arena, fd, READ_BELOW, ZERO_DROPS)
    assert (done.returncode, done.stderr) == (0, "")
    assert SHA256 in digests(arena)


def test_an_inherited_file_that_cannot_be_shown_is_counted(arena, outside) -> None:
    fd = os.open(outside / "secret", os.O_RDONLY)
    (outside / "secret").unlink()
    refused = launch(arena, fd, READ, ZERO_DROPS)
    assert refused.returncode == 125 and "unhashedOpensTotal 1" in refused.stderr
    assert not (arena.root / "record").exists()


def test_an_inherited_file_of_somebody_else_is_counted(arena, outside) -> None:
    fd = os.open(outside / "secret", os.O_RDONLY)
    (outside / "secret").chmod(0o600)
    refused = launch(arena, fd, READ, ZERO_DROPS)
    assert refused.returncode == 125 and "unhashedOpensTotal 1" in refused.stderr


def test_inherited_pipes_devices_and_files_to_write_are_no_loss(arena, outside) -> None:
    reading, writing = os.pipe()
    os.write(writing, b"x")
    fd = os.open(arena.root / "out", os.O_WRONLY | os.O_CREAT)
    for given, command in ((reading, READ), (fd, WRITE)):
        done = launch(arena, given, command, ZERO_DROPS)
        assert (done.returncode, done.stderr) == (0, "")
