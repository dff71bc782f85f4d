"""What Rootseal relies on of a kernel, asked of the kernel itself by bare system calls.

In the kernel lab ROOTSEAL_LAB_EXPECTS names what this row is there for (tests/lab/lab_rows.py): it
must be so. Elsewhere each test runs where the kernel can do it. None of Rootseal's own code is used
here, so a failure says that a kernel differs, not that Rootseal does.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import hashlib
import os
import struct
import threading
from pathlib import Path
from typing import Iterator

import pytest

EXPECTS = frozenset(filter(None, os.environ.get("ROOTSEAL_LAB_EXPECTS", "").split(",")))
SECURITY = Path("/sys/kernel/security")
LIBC = ctypes.CDLL(None, use_errno=True)
RELEASE = tuple(int(number) for number in os.uname().release.split(".")[:2])

# linux/fanotify.h, linux/fsverity.h
FAN_CLASS_CONTENT, FAN_CLOEXEC, FAN_NONBLOCK, FAN_UNLIMITED = 0x4, 0x1, 0x2, 0x10 | 0x20
FAN_MARK_ADD, FAN_OPEN_PERM, FAN_CLOSE_WRITE, FAN_ALLOW = 0x1, 0x10000, 0x8, 1
FAN_CLASS_PRE_CONTENT, FAN_PRE_ACCESS = 0x8, 0x100000  # 6.14
FAN_MARK_IGNORE_SURV = 0x400 | 0x40  # FAN_MARK_IGNORE | FAN_MARK_IGNORED_SURV_MODIFY, 6.0
EVENT = struct.Struct("=IBBHQii")
FS_IOC_ENABLE_VERITY, FS_IOC_MEASURE_VERITY, SHA256 = 0x40806685, 0xC0046686, 1


def only_if_expected(name: str) -> None:
    """Skip unless this row of the lab is there for the capability."""
    if name not in EXPECTS:
        pytest.skip(f"optional: this row is not here for {name}")


def test_bpf_is_an_active_lsm() -> None:
    only_if_expected("bpf-lsm")
    assert "bpf" in (SECURITY / "lsm").read_text("ascii").strip().split(",")


def test_bpf_is_not_an_active_lsm() -> None:
    only_if_expected("no-bpf-lsm")
    assert "bpf" not in (SECURITY / "lsm").read_text("ascii").strip().split(",")


def test_kernel_has_btf() -> None:
    only_if_expected("btf")
    assert Path("/sys/kernel/btf/vmlinux").read_bytes()[:2] == b"\x9f\xeb"


def test_ima_measures() -> None:
    only_if_expected("ima")
    assert int((SECURITY / "ima/runtime_measurements_count").read_text("ascii")) > 1
    assert b"boot_aggregate" in (SECURITY / "ima/ascii_runtime_measurements").read_bytes()


def test_temporary_files_are_on_the_filesystem_of_the_row(tmp_path: Path) -> None:
    wanted = os.environ.get("ROOTSEAL_LAB_FILESYSTEM")
    if wanted is None:
        pytest.skip("optional: only for the kernel lab")
    types = {}
    for line in Path("/proc/self/mountinfo").read_text("utf-8").splitlines():
        before, _, after = line.partition(" - ")
        types[before.split()[2]] = after.split()[0]
    device = tmp_path.stat().st_dev
    found = types.get(f"{os.major(device)}:{os.minor(device)}", "btrfs")  # has numbers of its own
    assert found == wanted


# --- fanotify -------------------------------------------------------------------------------


@pytest.fixture
def group() -> Iterator[int]:
    flags = FAN_CLASS_CONTENT | FAN_CLOEXEC | FAN_NONBLOCK | FAN_UNLIMITED
    fd = LIBC.fanotify_init(flags, os.O_RDONLY | os.O_CLOEXEC)
    assert fd >= 0, os.strerror(ctypes.get_errno())
    yield fd
    os.close(fd)


def mark(group: int, flags: int, mask: int, path: Path) -> None:
    code = LIBC.fanotify_mark(group, flags, ctypes.c_uint64(mask), -100, os.fsencode(path))
    assert code == 0, os.strerror(ctypes.get_errno())


def answer_events(group: int) -> list[tuple[int, bytes]]:
    """Read what is there, allow it, and return (mask, content digest) of each event."""
    seen = []
    try:
        data = os.read(group, 1 << 16)
    except BlockingIOError:
        return []
    for offset in range(0, len(data), EVENT.size):
        length, _, _, _, mask, fd, _ = EVENT.unpack_from(data, offset)
        assert length == EVENT.size
        digest = hashlib.sha256(os.pread(fd, 1 << 20, 0)).digest()
        if mask & FAN_OPEN_PERM:
            os.write(group, struct.pack("=iI", fd, FAN_ALLOW))
        os.close(fd)
        seen.append((mask, digest))
    return seen


def open_in_thread(path: Path) -> threading.Thread:
    thread = threading.Thread(target=lambda: path.read_bytes(), daemon=True)
    thread.start()
    return thread


def wait_for_events(group: int, thread: threading.Thread) -> list[tuple[int, bytes]]:
    """Answer until the opener is through."""
    seen = []
    while thread.is_alive():
        seen += answer_events(group)
        thread.join(0.001)
    return seen + answer_events(group)


def test_opener_waits_until_the_content_is_hashed(group: int, tmp_path: Path) -> None:
    path = tmp_path / "material"
    path.write_bytes(b"content")
    mark(group, FAN_MARK_ADD, FAN_OPEN_PERM, path)
    thread = open_in_thread(path)
    thread.join(0.05)
    assert thread.is_alive(), "the open did not wait for the answer"
    assert wait_for_events(group, thread) == [(FAN_OPEN_PERM, hashlib.sha256(b"content").digest())]


def test_closing_the_group_lets_the_opener_go(tmp_path: Path) -> None:
    """A dead handler fails open: why the launcher must notice the daemon's death."""
    flags = FAN_CLASS_CONTENT | FAN_CLOEXEC | FAN_NONBLOCK
    fd = LIBC.fanotify_init(flags, os.O_RDONLY | os.O_CLOEXEC)
    path = tmp_path / "material"
    path.write_bytes(b"content")
    mark(fd, FAN_MARK_ADD, FAN_OPEN_PERM, path)
    thread = open_in_thread(path)
    thread.join(0.05)
    assert thread.is_alive()
    os.close(fd)
    thread.join(300)
    assert not thread.is_alive()


def test_close_after_write_comes_with_the_final_content(group: int, tmp_path: Path) -> None:
    path = tmp_path / "product"
    path.write_bytes(b"")
    mark(group, FAN_MARK_ADD, FAN_CLOSE_WRITE, path)
    path.write_bytes(b"built")
    assert answer_events(group) == [(FAN_CLOSE_WRITE, hashlib.sha256(b"built").digest())]


def test_ignore_mark_silences_an_inode_that_nobody_writes(group: int, tmp_path: Path) -> None:
    path = tmp_path / "material"
    path.write_bytes(b"content")
    mark(group, FAN_MARK_ADD, FAN_OPEN_PERM, path)
    flags, mask = FAN_MARK_ADD | FAN_MARK_IGNORE_SURV, ctypes.c_uint64(FAN_OPEN_PERM)
    code = LIBC.fanotify_mark(group, flags, mask, -100, os.fsencode(path))
    if code and RELEASE < (6, 0) and ctypes.get_errno() == errno.EINVAL:  # stable 5.10 has them
        pytest.skip("optional: no ignore marks on this kernel, so hash once is off")
    assert code == 0, os.strerror(ctypes.get_errno())
    thread = open_in_thread(path)
    assert wait_for_events(group, thread) == []


def test_pre_access_events_are_there_from_6_14_on(tmp_path: Path) -> None:
    """What compares a file again at mmap(2); elsewhere the stability pass has to do."""
    path = tmp_path / "material"
    path.write_bytes(b"content")
    fd = LIBC.fanotify_init(FAN_CLASS_PRE_CONTENT | FAN_CLOEXEC | FAN_NONBLOCK, os.O_RDONLY)
    assert fd >= 0, os.strerror(ctypes.get_errno())
    mask = ctypes.c_uint64(FAN_PRE_ACCESS)
    code = LIBC.fanotify_mark(fd, FAN_MARK_ADD, mask, -100, os.fsencode(path))
    found = ctypes.get_errno() if code else 0
    os.close(fd)
    if RELEASE < (6, 14):
        assert found == errno.EINVAL
    elif found == errno.EOPNOTSUPP:
        pytest.skip("optional: the filesystem of the temporary files has no such events")
    else:
        assert found == 0


# --- fs-verity ------------------------------------------------------------------------------


def enable_verity(path: Path) -> int:
    """0 or errno."""
    argument = struct.pack("=IIIIQIIQ11Q", 1, SHA256, 4096, 0, 0, 0, 0, 0, *[0] * 11)
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.ioctl(fd, FS_IOC_ENABLE_VERITY, argument)
    except OSError as error:
        return error.errno or -1
    finally:
        os.close(fd)
    return 0


def test_filesystem_has_no_fs_verity(tmp_path: Path) -> None:
    only_if_expected("no-fs-verity")
    path = tmp_path / "product"
    path.write_bytes(b"built")
    assert enable_verity(path) in (errno.ENOTTY, errno.EOPNOTSUPP)


def test_sealed_file_refuses_writers_and_is_measured(tmp_path: Path) -> None:
    only_if_expected("fs-verity")
    path = tmp_path / "product"
    path.write_bytes(b"built")
    assert enable_verity(path) == 0
    with pytest.raises(PermissionError):
        path.open("r+b")
    with path.open("rb") as file:
        answer = fcntl.ioctl(file, FS_IOC_MEASURE_VERITY, struct.pack("=HH32x", 0, 32))
    algorithm, size, digest = struct.unpack("=HH32s", answer)
    assert (algorithm, size) == (SHA256, 32)
    tree = hashlib.sha256(b"built".ljust(4096, b"\0")).digest()
    descriptor = struct.pack("=BBBBIQ64s32s144s", 1, 1, 12, 0, 0, 5, tree, b"", b"")
    assert digest == hashlib.sha256(descriptor).digest()


def test_open_writer_prevents_sealing(tmp_path: Path) -> None:
    only_if_expected("fs-verity")
    path = tmp_path / "product"
    path.write_bytes(b"built")
    with path.open("r+b"):
        assert enable_verity(path) == errno.ETXTBSY
    assert enable_verity(path) == 0
    assert enable_verity(path) == errno.EEXIST
