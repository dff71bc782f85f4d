"""The digest cache between two daemons of one boot (docs/decisions/0009-digest-cache-file.md).

A file that is not exactly what this user's daemon wrote in this boot is ignored, with the reason:
then everything is hashed again.

    "RSDC" version(u8) 0 0 0 | boot id (16) | written at, ns (u64) | devices (u32) | entries (u64)
    | of each device: st_dev (u64), filesystem id (u64), type (u8 length, bytes)
    | entries, 80 bytes each as in native/capture/dcache.c | SHA-256 of all before

Numbers are little-endian, entries in the order of this machine.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import pathlib
import stat
import struct
import time
import uuid
from typing import Iterable, List, Optional, Protocol, Sequence, Set, Tuple

from rootseal._native import CACHE_ENTRY_BYTES

_HEAD = struct.Struct("<8s16sQIQ")
_MAGIC = b"RSDC\x02\0\0\0"
_BOOT_ID = pathlib.Path("/proc/sys/kernel/random/boot_id")
_MOUNTS = pathlib.Path("/proc/self/mountinfo")
FILESYSTEMS = ("ext4", "xfs", "btrfs")  # the only ones that dcache.c keeps
DEVICES_MAX = 4096
FILE_BYTES_MAX = 2**26 * CACHE_ENTRY_BYTES + 2**20  # RS_DCACHE_ENTRIES_MAX
Device = Tuple[int, int, bytes]  # st_dev, filesystem id, filesystem type


class Cache(Protocol):
    """What holds the digests: `_native.Engine`."""

    def cache_export(self) -> bytes:
        """All entries."""
        ...

    def cache_import(self, entries: bytes, devices: Sequence[int]) -> int:
        """Take the entries of these devices; how many."""
        ...


@dataclasses.dataclass(frozen=True)
class Loaded:
    """What became of a cache file.

    Attributes:
        entries: Digests taken over.
        dropped: Digests of filesystems that are not mounted as they were.
        reason: Why the file as a whole was ignored, or empty.
    """

    entries: int = 0
    dropped: int = 0
    reason: str = ""


class _Unusable(Exception):
    """Why a file is ignored."""


def save(path: pathlib.Path, cache: Cache) -> int:
    """Replace the file by what the cache holds now, at once or not at all; entries written.

    Raises:
        OSError: It cannot be written; the file is as it was.
    """
    entries = cache.cache_export()
    count = len(entries) // CACHE_ENTRY_BYTES
    devices = _mounted_devices()
    head = _HEAD.pack(_MAGIC, _boot_id(), time.time_ns(), len(devices), count)
    parts = [head, *(_device_bytes(device) for device in devices), entries]
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    with contextlib.suppress(FileNotFoundError):
        temporary.unlink()  # of a daemon with this pid that was killed while it wrote
    try:
        _write(temporary, parts)
        temporary.rename(path)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    _sync_directory(path.parent)
    return count


def _write(path: pathlib.Path, parts: Iterable[bytes]) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    checksum = hashlib.sha256()
    with os.fdopen(os.open(path, flags, 0o600), "wb") as file:
        for part in parts:
            checksum.update(part)
            file.write(part)
        file.write(checksum.digest())
        file.flush()
        os.fsync(file.fileno())


def _sync_directory(path: pathlib.Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def load(path: pathlib.Path, cache: Cache) -> Loaded:
    """Take over what an earlier daemon wrote, where it still means the same files."""
    try:
        data = _read(path)
        devices, entries = _parse(data)
    except FileNotFoundError:
        return Loaded(reason="there is none yet")
    except OSError as error:
        return Loaded(reason=f"it cannot be read: {error.strerror}")
    except _Unusable as error:
        return Loaded(reason=str(error))
    except MemoryError:
        return Loaded(reason="there is no memory for it")
    mounted = set(_mounted_devices())
    taken = cache.cache_import(entries, [device[0] for device in devices if device in mounted])
    return Loaded(entries=taken, dropped=len(entries) // CACHE_ENTRY_BYTES - taken)


def _read(path: pathlib.Path) -> bytes:
    """The bytes of a file that nobody else could have written."""
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    with os.fdopen(os.open(path, flags), "rb") as file:
        info = os.fstat(file.fileno())
        if not stat.S_ISREG(info.st_mode) or info.st_uid != os.geteuid() or info.st_nlink != 1:
            raise _Unusable("it is not a file of this user alone")
        if info.st_mode & 0o077:
            raise _Unusable("others may read or write it")
        if info.st_size > FILE_BYTES_MAX:
            raise _Unusable("it is larger than any cache")
        return file.read(info.st_size)  # not the bound: Python takes memory for what is asked for


def _parse(data: bytes) -> Tuple[List[Device], bytes]:
    if len(data) < _HEAD.size + 32 or hashlib.sha256(data[:-32]).digest() != data[-32:]:
        raise _Unusable("it is damaged (its checksum is wrong)")
    magic, boot_id, written_ns, device_count, count = _HEAD.unpack_from(data)
    if magic != _MAGIC:
        raise _Unusable("it is of another version")
    if boot_id != _boot_id():
        raise _Unusable("it is of another boot: inode numbers and times may mean other files")
    if written_ns > time.time_ns():
        raise _Unusable("the clock was set back since it was written")
    if device_count > DEVICES_MAX:
        raise _Unusable("it lists too many filesystems")
    devices, at = _devices(data, device_count)
    entries = data[at:-32]
    if len(entries) != count * CACHE_ENTRY_BYTES:
        raise _Unusable("it is damaged (its length is wrong)")
    return devices, entries


def _device_bytes(device: Device) -> bytes:
    number, identity, kind = device
    return struct.pack("<QQB", number, identity, len(kind)) + kind


def _devices(data: bytes, count: int) -> Tuple[List[Device], int]:
    devices, at = [], _HEAD.size
    try:
        for _ in range(count):
            number, identity, length = struct.unpack_from("<QQB", data, at)
            at += 17 + length
            devices.append((number, identity, data[at - length : at]))
    except struct.error:
        raise _Unusable("it is damaged (its list of filesystems is cut)") from None
    return devices, at


def _boot_id() -> bytes:
    return uuid.UUID(_BOOT_ID.read_text("ascii").strip()).bytes


def _mounted_devices() -> List[Device]:
    """The filesystems whose files are cached, as they are mounted now."""
    found: Set[Device] = set()
    for line in _MOUNTS.read_bytes().splitlines():
        fields, _, rest = line.partition(b" - ")
        kind = rest.split(b" ")[0]
        if kind.decode("ascii", "replace") not in FILESYSTEMS:
            continue
        point = fields.split(b" ")[4]
        device = _device_at(point, kind)
        if device is not None and len(found) < DEVICES_MAX:
            found.add(device)
    return sorted(found)


def _device_at(escaped: bytes, kind: bytes) -> Optional[Device]:
    """A mount point as mountinfo has it; None where it cannot be looked at."""
    for code, char in ((b"\\040", b" "), (b"\\011", b"\t"), (b"\\012", b"\n"), (b"\\134", b"\\")):
        escaped = escaped.replace(code, char)
    point = pathlib.Path(os.fsdecode(escaped))
    try:
        return point.stat().st_dev, os.statvfs(point).f_fsid, kind
    except OSError:
        return None
