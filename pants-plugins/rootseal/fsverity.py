"""fs-verity: seal a file, measure a sealed file, and the same digest calculated in plain Python.

A sealed file is read-only for ever, and the kernel checks every page it reads against a Merkle
tree whose root is part of the file's measurement: other content is an I/O error, not other data.
Measuring costs the same for any size. SHA-256, blocks of 4,096 bytes, no salt: one parameter set,
so a file has one digest everywhere. Standard library only; nothing here needs the C core.

Source: Documentation/filesystems/fsverity.rst of the kernel; include/uapi/linux/fsverity.h.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import fcntl
import os
import secrets
import shutil
import stat
import struct
import sys
from pathlib import Path
from typing import BinaryIO, Dict, Iterator, List, Optional, Union

from rootseal import digest, files
from rootseal.errors import BackendUnavailable, CaptureError, NativeError

BLOCK_BYTES = 4096
ALGORITHM_SHA256 = 1
_READ_BYTES = 256 * BLOCK_BYTES
_VERSION = 1
_LOG2_BLOCK_BYTES = 12

_ENABLE = 0x40806685  # FS_IOC_ENABLE_VERITY
_MEASURE = 0xC0046686  # FS_IOC_MEASURE_VERITY
_GET_FLAGS = 0x80086601  # FS_IOC_GETFLAGS
_VERITY_FLAG = 0x00100000  # FS_VERITY_FL
_ENABLE_ARGUMENT = struct.pack(
    "=IIIIQIIQ88x", _VERSION, ALGORITHM_SHA256, BLOCK_BYTES, 0, 0, 0, 0, 0
)
_MEASUREMENT = struct.Struct(f"=HH{digest.DIGEST_BYTES}s")
_DESCRIPTOR = struct.Struct("<BBBBIQ64s32s144s")

_FUSE_MAGIC = 0x65735546  # linux/magic.h

_UNSUPPORTED = (errno.ENOTTY, errno.EOPNOTSUPP, errno.ENOSYS)
_WHY: Dict[int, str] = {
    errno.ETXTBSY: "a process has it open for writing; wait until it is closed",
    errno.EPERM: "it is append-only or immutable; run `chattr -a -i` on it",
    errno.EACCES: "no permission to write it; run as its owner",
    errno.EROFS: "its filesystem is read-only",
    errno.ENOSPC: "its filesystem is full",
    errno.EDQUOT: "the quota is used up",
    errno.EFBIG: "it is larger than fs-verity can hold",
}


@dataclasses.dataclass(frozen=True)
class Measurement:
    """What a sealed file is, as the kernel says and as it reads.

    Attributes:
        fsverity: fs-verity digest, 32 bytes.
        sha256: SHA-256 of the content, 32 bytes, read after the file was sealed.
        size: Bytes.
    """

    fsverity: bytes
    sha256: bytes
    size: int


class _Level:
    """One level of the Merkle tree: hashes that do not fill a block yet."""

    def __init__(self) -> None:
        self.pending = bytearray()
        self.count = 0


class Calculator:
    """The fs-verity digest of content that comes in pieces; memory grows with log(size) only."""

    def __init__(self) -> None:
        self._levels: List[_Level] = []
        self._tail = bytearray()
        self._size = 0

    def update(self, data: bytes) -> None:
        """Add content."""
        self._size += len(data)
        self._tail += data
        whole = len(self._tail) - len(self._tail) % BLOCK_BYTES
        for start in range(0, whole, BLOCK_BYTES):
            self._push(0, digest.sha256(bytes(self._tail[start : start + BLOCK_BYTES])))
        del self._tail[:whole]

    def digest(self) -> bytes:
        """The digest, 32 bytes; nothing may be added afterwards."""
        if self._tail:
            self._push(0, digest.sha256(bytes(self._tail.ljust(BLOCK_BYTES, b"\0"))))
            self._tail.clear()
        descriptor = _DESCRIPTOR.pack(
            _VERSION, ALGORITHM_SHA256, _LOG2_BLOCK_BYTES, 0, 0, self._size, self._root(), b"", b""
        )
        return digest.sha256(descriptor)

    def _push(self, depth: int, hash_: bytes) -> None:
        if depth == len(self._levels):
            self._levels.append(_Level())
        level = self._levels[depth]
        level.pending += hash_
        level.count += 1
        if len(level.pending) == BLOCK_BYTES:
            self._push(depth + 1, digest.sha256(bytes(level.pending)))
            level.pending.clear()

    def _root(self) -> bytes:
        """Root hash: that of the only block; zeros for an empty file."""
        depth = 0
        while depth < len(self._levels):
            level = self._levels[depth]
            if level.count == 1:
                return bytes(level.pending)
            if level.pending:
                self._push(depth + 1, digest.sha256(bytes(level.pending.ljust(BLOCK_BYTES, b"\0"))))
                level.pending.clear()
            depth += 1
        return bytes(digest.DIGEST_BYTES)


def calculate(stream: BinaryIO) -> bytes:
    """The fs-verity digest that the rest of a stream would have as a sealed file, 32 bytes."""
    calculator = Calculator()
    while True:
        chunk = stream.read(_READ_BYTES)
        if not chunk:
            return calculator.digest()
        calculator.update(chunk)


def is_sealed(descriptor: int) -> bool:
    """Whether an open file is sealed (false where the filesystem has no such flag)."""
    try:
        answer = fcntl.ioctl(descriptor, _GET_FLAGS, bytes(8))
    except OSError as error:
        if error.errno in _UNSUPPORTED:
            return False
        raise _native("FS_IOC_GETFLAGS", error, f"fd {descriptor}") from None
    return bool(int.from_bytes(answer[:4], sys.byteorder) & _VERITY_FLAG)


def is_served_by_a_process(descriptor: int) -> bool:
    """Whether a file is of FUSE: its server answers the calls below, and may say what it likes."""
    try:
        return files.filesystem_magic(descriptor) == _FUSE_MAGIC
    except OSError:
        return True  # the server is asked for this too; a filesystem of the kernel's does not fail


def measure(descriptor: int, *, where: str) -> bytes:
    """The fs-verity digest of an open sealed file, as the kernel holds it, 32 bytes.

    Args:
        descriptor: The open file.
        where: Its name, for messages.

    Raises:
        CaptureError: It is not sealed, or with another hash than SHA-256.
    """
    found = _measurement(descriptor, where)
    if found is None:
        raise CaptureError(f"{where} is not sealed with fs-verity")
    return found


def _measurement(descriptor: int, where: str) -> Optional[bytes]:
    """The digest; None for what this kernel does not hold sealed."""
    if is_served_by_a_process(descriptor):
        return None
    try:
        answer = fcntl.ioctl(descriptor, _MEASURE, _MEASUREMENT.pack(0, 32, b""))
    except OSError as error:
        if error.errno == errno.ENODATA or error.errno in _UNSUPPORTED:
            return None
        if error.errno == errno.EOVERFLOW:
            raise CaptureError(f"{where} is sealed with a longer hash than SHA-256") from None
        raise _native("FS_IOC_MEASURE_VERITY", error, where) from None
    algorithm, size, found = _MEASUREMENT.unpack(answer)
    if algorithm != ALGORITHM_SHA256 or size != digest.DIGEST_BYTES:
        raise CaptureError(f"{where} is sealed with hash algorithm {algorithm}, not SHA-256")
    return bytes(found)


def enable(descriptor: int, *, where: str) -> bool:
    """Seal an open file (opened for reading only); one that is sealed already stays as it is.

    Returns:
        False if it was sealed already, with whatever parameters.

    Raises:
        BackendUnavailable: The kernel or the filesystem has no fs-verity.
        CaptureError: It could not be sealed; says why and what to do.
    """
    if is_served_by_a_process(descriptor):
        raise unavailable(where)
    try:
        _enable(descriptor)
    except OSError as error:
        if error.errno == errno.EEXIST:
            return False
        if error.errno in _UNSUPPORTED:
            raise unavailable(where) from None
        if error.errno in _WHY:
            why = _WHY[error.errno]
            raise CaptureError(f"{where} cannot be sealed with fs-verity: {why}") from None
        raise _native("FS_IOC_ENABLE_VERITY", error, where) from None
    return True


def _enable(descriptor: int) -> None:
    """The call itself; the kernel asks for write permission, so a read-only file gets it for it."""
    try:
        fcntl.ioctl(descriptor, _ENABLE, _ENABLE_ARGUMENT)
        return
    except OSError as error:
        mode = stat.S_IMODE(os.fstat(descriptor).st_mode)
        if error.errno != errno.EACCES or mode & stat.S_IWUSR:
            raise
        try:
            os.fchmod(descriptor, mode | stat.S_IWUSR)
        except PermissionError:  # not the owner
            raise error from None
    try:
        fcntl.ioctl(descriptor, _ENABLE, _ENABLE_ARGUMENT)
    finally:
        os.fchmod(descriptor, mode)


def unavailable(where: str) -> BackendUnavailable:
    """The error for a file on a filesystem that cannot seal."""
    return BackendUnavailable(
        "fs-verity",
        f"the filesystem or the kernel of {where} cannot seal files",
        "Use btrfs, or ext4 after `tune2fs -O verity DEVICE`, on a kernel with "
        "CONFIG_FS_VERITY; or use --fsverity auto.",
    )


def seal_file(path: Union[str, Path], *, other_names: bool = False) -> Measurement:
    """Seal a file, measure it, and read it once more: now nobody can change what is read.

    The SHA-256 is taken after sealing, so it belongs to the content that is sealed; the caller
    compares it with what was built.

    Args:
        path: The file.
        other_names: Whether one with several hard links is sealed too, under each of its names.

    Raises:
        BackendUnavailable: The kernel or the filesystem has no fs-verity.
        CaptureError: It is not a regular file, has other names, could not be sealed, or was sealed
            before with other parameters.
    """
    name = os.fspath(path)
    with _opened(name) as stream:
        if not other_names:
            _refuse_other_names(stream.fileno(), name)
        is_ours = enable(stream.fileno(), where=name)
        measured = measure(stream.fileno(), where=name)
        if not is_ours:
            _require_parameters(stream, measured, name)
        sha256, size = digest.sha256_file(stream)
    return Measurement(measured, sha256, size)


def _require_parameters(stream: BinaryIO, measured: bytes, where: str) -> None:
    """Of a file that somebody else sealed: its digest must be the one that our parameters give.

    Leaves the stream at its beginning.
    """
    if calculate(stream) != measured:
        raise CaptureError(
            f"{where} is sealed already, but not with SHA-256 over {BLOCK_BYTES}-byte blocks "
            "without salt; copy it, or seal it so"
        )
    stream.seek(0)


def _refuse_other_names(descriptor: int, where: str) -> None:
    """A seal is the file's, not the name's: it would hold, for ever, under names of others too.

    What is sealed already, or is where nothing can be sealed, is for the kernel to answer.
    """
    links = os.fstat(descriptor).st_nlink
    if links > 1 and _has_verity(descriptor) and not is_sealed(descriptor):
        raise CaptureError(
            f"{where} is not sealed: it has other names (hard links), {links} in all, which a seal "
            "would make read-only for ever too; copy it"
        )


def check_sealed(path: Union[str, Path], *, expected: bytes, size: int) -> bool:
    """Measure a file again if it is sealed here.

    The size is compared too: btrfs lets a sealed file be truncated by path (seen on 6.1), and the
    measurement of the inode in memory then stays as it was.

    Args:
        path: The file.
        expected: The fs-verity digest it was sealed with, 32 bytes.
        size: Its size in bytes when it was sealed.

    Returns:
        False if it is not sealed here (a copy is not), so that only its content can be compared.

    Raises:
        CaptureError: It is sealed and is another file, or cannot be opened.
    """
    name = os.fspath(path)
    with _opened(name) as stream:
        found = _measurement(stream.fileno(), name)
        if found is None:  # overlayfs shows the flag of a sealed layer, and measures nothing
            return False
        found_size = os.fstat(stream.fileno()).st_size
    if found != expected or found_size != size:
        raise CaptureError(
            f"{name} is sealed with fs-verity digest {found.hex()} and has {found_size} bytes; "
            f"signed are {expected.hex()} and {size} bytes"
        )
    return True


def unseal(path: Union[str, Path]) -> bool:
    """Replace a sealed file by a copy that can be written (a seal itself cannot be taken off).

    Build tools that write their outputs in place (Pants does) need this before they build again.

    Returns:
        Whether it was sealed; a file that is not sealed, or not there, stays as it is.

    Raises:
        CaptureError: The copy cannot be made.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name[:200]}.{secrets.token_hex(8)}")
    try:
        if not stat.S_ISREG(path.lstat().st_mode):
            return False
        with _opened(os.fspath(path)) as stream:
            if not is_sealed(stream.fileno()):
                return False
            _copy(stream, temporary)
        temporary.replace(path)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise CaptureError(f"cannot replace the sealed {path}: {error.strerror}") from None
    finally:
        temporary.unlink(missing_ok=True)
    return True


def unseal_below(directory: Union[str, Path]) -> int:
    """Replace every sealed file below a directory by a copy that can be written.

    Symbolic links are not followed.

    Returns:
        How many there were.

    Raises:
        CaptureError: A copy cannot be made.
    """
    if not can_seal(directory):
        return 0
    places = (Path(top, name) for top, _, names in os.walk(directory) for name in names)
    return sum(unseal(path) for path in places)


def _copy(stream: BinaryIO, target: Path) -> None:
    """Copy a file with its owner, mode and times."""
    status = os.fstat(stream.fileno())
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    with os.fdopen(os.open(target, flags, 0o600), "wb") as copy:
        shutil.copyfileobj(stream, copy, _READ_BYTES)
        copy.flush()
        if (status.st_uid, status.st_gid) != (os.geteuid(), os.getegid()):
            os.fchown(copy.fileno(), status.st_uid, status.st_gid)
        os.fchmod(copy.fileno(), stat.S_IMODE(status.st_mode))
        os.utime(copy.fileno(), ns=(status.st_atime_ns, status.st_mtime_ns))


def can_seal(place: Union[str, bytes, Path]) -> bool:
    """Whether a directory or regular file is on a filesystem with fs-verity; writes nothing.

    A filesystem that has it answers for what is not sealed that there is no measurement; any other
    does not know the question, and of FUSE no answer counts.
    """
    try:
        mode = os.stat(place).st_mode  # noqa: PTH116 - a path may be bytes
        if not stat.S_ISDIR(mode) and not stat.S_ISREG(mode):
            return False
        descriptor = os.open(place, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return _has_verity(descriptor)
    finally:
        os.close(descriptor)


def _has_verity(descriptor: int) -> bool:
    """Whether an open file or directory is on a filesystem with fs-verity."""
    if is_served_by_a_process(descriptor):
        return False
    try:
        fcntl.ioctl(descriptor, _MEASURE, _MEASUREMENT.pack(0, 32, b""))
    except OSError as error:
        return error.errno == errno.ENODATA
    return True


def available(directory: Union[str, Path]) -> bool:
    """Whether files in a directory can be sealed, found by sealing a small one.

    Raises:
        CaptureError: It cannot be found out (no permission to write there, or a full disk).
    """
    path = Path(directory) / f".rootseal-verity-{secrets.token_hex(8)}"
    try:
        path.write_bytes(b"\0")
        seal_file(path)
    except BackendUnavailable:
        return False
    except OSError as error:
        raise CaptureError(f"cannot try fs-verity in {directory}: {error.strerror}") from None
    finally:
        path.unlink(missing_ok=True)
    return True


@contextlib.contextmanager
def _opened(name: str) -> Iterator[BinaryIO]:
    """A regular file opened for reading, not through a symlink in its last component."""
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        descriptor = os.open(name, flags)
    except OSError as error:
        raise CaptureError(f"cannot open {name} to seal it: {error.strerror}") from None
    with os.fdopen(descriptor, "rb", buffering=0) as stream:
        yield stream


def _native(operation: str, error: OSError, where: str) -> NativeError:
    text = f"{operation} on {where} failed: {error.strerror}"
    return NativeError(operation, error.errno or 0, text)
