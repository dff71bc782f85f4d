"""The digest cache between two daemons: what is taken over, and what is not believed."""

from __future__ import annotations

import hashlib
import os
import struct
import subprocess
from pathlib import Path
from typing import Callable, Dict, Iterator

import pytest
from running_daemon import RunningDaemon, running_daemon

pytestmark = pytest.mark.requires("root", "fanotify", "launcher", "core")

FILES = 40
HEAD_BYTES = 8 + 16 + 8 + 4 + 8


@pytest.fixture
def sandbox(tmp_path: Path) -> Path:
    place = tmp_path / "sandbox"
    place.mkdir()
    for number in range(FILES):
        (place / f"f{number}").write_bytes(b"%d" % number * 100)
        os.utime(place / f"f{number}", ns=(1, 1))
    return place


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    (tmp_path / "daemon").mkdir()
    return tmp_path / "daemon"


@pytest.fixture
def cache_file(directory: Path, sandbox: Path) -> Iterator[Path]:
    """What a first daemon left behind; removed again, for the disk's sake."""
    with running_daemon(directory) as daemon:
        read_all(daemon, sandbox)
        read_all(daemon, sandbox)  # by now each file is older than a tick
        entries = daemon.status()["digestCache"]["entries"]
        if not entries:
            pytest.skip("the files here are on a filesystem whose digests are not cached")
        assert daemon.terminate() == 0
    yield directory / "state" / "digest-cache"


def read_all(daemon: RunningDaemon, sandbox: Path) -> Dict[str, int]:
    """The counters of an action that reads every file."""
    done = daemon.run(sandbox, ["/bin/sh", "-c", "cat f* > /dev/null"])
    assert done.returncode == 0, done.stderr
    counters: Dict[str, int] = done.field("summary", "diagnostics")
    for number in range(FILES):
        expected = hashlib.sha256((sandbox / f"f{number}").read_bytes()).digest()
        assert done.materials()[b"f%d" % number].digest == expected
    return counters


def seal_again(data: bytes) -> bytes:
    """With a right checksum, so that what is checked is what was changed."""
    return data[:-32] + hashlib.sha256(data[:-32]).digest()


def test_the_next_daemon_hashes_nothing_again(
    directory: Path, sandbox: Path, cache_file: Path
) -> None:
    info = cache_file.stat()
    assert (info.st_mode & 0o7777, info.st_uid, info.st_nlink) == (0o600, 0, 1)
    assert [path.name for path in cache_file.parent.iterdir() if "tmp" in path.name] == []
    with running_daemon(directory) as daemon:
        status = daemon.status()["digestCache"]
        assert (status["reason"], status["dropped"]) == ("", 0)
        assert status["loaded"] >= FILES
        assert read_all(daemon, sandbox)["digestCacheHits"] >= FILES


def test_a_small_machine_takes_memory_for_what_is_there(
    directory: Path, sandbox: Path, cache_file: Path
) -> None:
    """Not for the largest cache that there could be: 5 GiB, which it has not."""
    with running_daemon(directory, prefix=("prlimit", f"--as={3 << 30}")) as daemon:
        status = daemon.status()["digestCache"]
        assert (status["reason"], status["loaded"] >= FILES) == ("", True)


def test_a_file_changed_between_the_daemons_is_hashed_again(
    directory: Path, sandbox: Path, cache_file: Path
) -> None:
    file = sandbox / "f7"
    before = file.stat()
    file.write_bytes(b"9" * before.st_size)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    (sandbox / "f8").rename(sandbox / "f9")
    (sandbox / "f8").write_bytes(b"another inode")
    with running_daemon(directory) as daemon:
        assert read_all(daemon, sandbox)["digestCacheHits"] >= FILES - 3


def test_a_killed_daemon_leaves_the_file_as_it_was(
    directory: Path, sandbox: Path, cache_file: Path
) -> None:
    before = cache_file.read_bytes()
    with running_daemon(directory) as daemon:
        (sandbox / "f1").write_bytes(b"changed")
        read_all(daemon, sandbox)
        daemon.kill()
    assert cache_file.read_bytes() == before
    with running_daemon(directory) as daemon:
        assert daemon.status()["digestCache"]["loaded"] >= FILES
        read_all(daemon, sandbox)


def flip_a_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


def another_boot(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(seal_again(data[:8] + bytes(16) + data[24:]))


def from_the_future(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(seal_again(data[:24] + struct.pack("<Q", 2**63) + data[32:]))


def another_version(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(seal_again(data[:4] + b"\x09" + data[5:]))


def a_count_too_many(path: Path) -> None:
    data = path.read_bytes()
    (count,) = struct.unpack_from("<Q", data, HEAD_BYTES - 8)
    head = data[: HEAD_BYTES - 8] + struct.pack("<Q", count + 1)
    path.write_bytes(seal_again(head + data[HEAD_BYTES:]))


def a_cut_list(path: Path) -> None:
    data = path.read_bytes()
    head = data[: HEAD_BYTES - 12] + struct.pack("<IQ", 4096, 0)
    path.write_bytes(seal_again(head + bytes(32)))


def of_somebody_else(path: Path) -> None:
    os.chown(path, 12345, 12345)


def readable_by_all(path: Path) -> None:
    path.chmod(0o644)


def a_second_link(path: Path) -> None:
    os.link(path, path.with_name("other"))


def a_symlink(path: Path) -> None:
    path.rename(path.with_name("real"))
    path.symlink_to("real")


def a_fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path, 0o600)


@pytest.mark.parametrize(
    ("damage", "word"),
    [
        (flip_a_byte, "checksum"),
        (cut, "checksum"),
        (another_boot, "another boot"),
        (from_the_future, "clock"),
        (another_version, "version"),
        (a_count_too_many, "length"),
        (a_cut_list, "cut"),
        (of_somebody_else, "this user"),
        (readable_by_all, "others"),
        (a_second_link, "this user"),
        (a_symlink, "cannot be read"),
        (a_fifo, "this user"),
    ],
)
def test_what_is_not_exactly_ours_is_ignored_and_said(
    directory: Path, cache_file: Path, damage: Callable[[Path], None], word: str
) -> None:
    damage(cache_file)
    with running_daemon(directory) as daemon:
        status = daemon.status()["digestCache"]
        assert (status["loaded"], status["entries"]) == (0, 0)
        assert word in status["reason"]
        assert word in daemon.log.read_text()


def test_digests_of_a_filesystem_that_is_not_mounted_as_before_are_dropped(
    directory: Path, sandbox: Path, cache_file: Path
) -> None:
    data = bytearray(cache_file.read_bytes())
    (devices,) = struct.unpack_from("<I", data, HEAD_BYTES - 12)
    at = HEAD_BYTES
    for _ in range(devices):
        data[at + 8] ^= 1  # another filesystem id
        at += 17 + data[at + 16]
    cache_file.write_bytes(seal_again(bytes(data)))
    with running_daemon(directory) as daemon:
        status = daemon.status()["digestCache"]
        assert (status["loaded"], status["reason"]) == (0, "")
        assert status["dropped"] >= FILES
        read_all(daemon, sandbox)


def test_a_full_disk_costs_the_cache_only(directory: Path, sandbox: Path) -> None:
    state = directory / "state"
    state.mkdir(mode=0o755)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=32k,mode=755", "none", state], check=True)
    try:
        with running_daemon(directory) as daemon:
            read_all(daemon, sandbox)
            read_all(daemon, sandbox)
            (state / "filler").write_bytes(bytes(4096))
            with (state / "filler").open("ab", buffering=0) as file:
                try:
                    while file.write(bytes(4096)):
                        pass
                except OSError:
                    pass  # full now
            assert daemon.terminate() == 0
            assert not (state / "digest-cache").exists()
            assert "cannot keep the digest cache" in daemon.log.read_text()
        assert [path.name for path in state.iterdir() if "tmp" in path.name] == []
    finally:
        subprocess.run(["umount", state], check=True)
