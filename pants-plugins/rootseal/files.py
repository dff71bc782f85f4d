"""Files that are complete the moment they have their name, and bounded reads."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import secrets
from pathlib import Path
from typing import BinaryIO, Iterator, Tuple, Union

from rootseal.errors import ConfigError, Error

_STATFS_BYTES_MAX = 256  # struct statfs, which begins with the type, is 120


@contextlib.contextmanager
def complete_file(path: Union[str, Path], *, mode: int = 0o644) -> Iterator[BinaryIO]:
    """A stream whose bytes become the file `path` when the block ends without an error.

    The bytes go to a file without a name (where the filesystem has that; else to a temporary name
    in the same directory), are synced, and only then get theirs. Whatever goes wrong (disk full, an
    exception in the block, kill -9), nothing half-written is left and an older file of that name
    stays as it was.

    Raises:
        Error: The file cannot be written; says why.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name[:200]}.{secrets.token_hex(8)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, named = _create(temporary)
    except OSError as error:
        raise Error(f"cannot write {path}: {error.strerror}") from None
    try:
        with os.fdopen(descriptor, "wb") as stream:
            yield stream
            stream.flush()
            os.fchmod(stream.fileno(), mode)
            os.fsync(stream.fileno())
            if not named:
                _give_name(stream.fileno(), temporary)
        temporary.replace(path)
        sync_directory(path.parent)
    except OSError as error:
        raise Error(f"cannot write {path}: {error.strerror}") from None
    finally:
        temporary.unlink(missing_ok=True)


def _create(temporary: Path) -> Tuple[int, bool]:
    """A new file to write, and whether it has the temporary name already."""
    try:
        flags = os.O_WRONLY | os.O_TMPFILE | os.O_CLOEXEC
        if Path("/proc/self/fd").exists():
            return os.open(temporary.parent, flags, 0o600), False
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EISDIR):
            raise
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    return os.open(temporary, flags, 0o600), True


def _give_name(descriptor: int, name: Path) -> None:
    # With a descriptor os.link calls linkat(2) and follows the link; without, it would not.
    os.link(f"/proc/self/fd/{descriptor}", name, src_dir_fd=descriptor)


def sync_directory(path: Path) -> None:
    """Make the names in a directory durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_bounded(path: Union[str, Path], *, bytes_max: int, what: str) -> bytes:
    """Read a whole file that may not be larger than `bytes_max`.

    Raises:
        ConfigError: It cannot be read, or is too large; `what` names it in the message.
    """
    try:
        with Path(path).open("rb") as stream:
            data = stream.read(bytes_max + 1)
    except OSError as error:
        raise ConfigError(f"cannot read {what} {path}: {error.strerror}") from None
    if len(data) > bytes_max:
        raise ConfigError(f"{what} {path} is larger than {bytes_max} bytes")
    return data


def filesystem_magic(descriptor: int) -> int:
    """Type of an open file's filesystem, a number of linux/magic.h.

    Raises:
        OSError: Who serves the file does not say.

    Source:
        statfs(2).
    """
    found = ctypes.create_string_buffer(_STATFS_BYTES_MAX)
    if ctypes.CDLL(None, use_errno=True).fstatfs(descriptor, found):
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
    return ctypes.c_long.from_buffer(found).value
