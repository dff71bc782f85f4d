"""A BPF hash map of a running process, filled to its last entry for as long as a block runs."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import struct
from pathlib import Path
from typing import Iterator

from running_daemon import RunningDaemon

_BPF = {"x86_64": 321, "aarch64": 280}
_UPDATE, _DELETE, _MAP_BY_ID, _INFO = 2, 3, 14, 15
_NO_SUCH_PROCESS = 1 << 30  # keys from here on: no process id reaches them
_LIBC = ctypes.CDLL(None, use_errno=True)


def bpf(command: int, attributes: bytes) -> int:
    """bpf(2); what it returns."""
    buffer = ctypes.create_string_buffer(attributes, len(attributes))
    result = _LIBC.syscall(_BPF[os.uname().machine], command, buffer, len(attributes))
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return int(result)


def name_of(descriptor: int) -> bytes:
    """The name of a map: struct bpf_map_info."""
    info = ctypes.create_string_buffer(64)
    bpf(_INFO, struct.pack("<IIQ", descriptor, len(info), ctypes.addressof(info)))
    return info.raw[24:40].rstrip(b"\0")


def map_of(daemon: RunningDaemon, name: bytes) -> int:
    """A descriptor of the daemon's map with this name."""
    for item in Path(f"/proc/{daemon.process.pid}/fdinfo").iterdir():
        found = re.search(r"^map_id:\s+(\d+)$", item.read_text(), re.MULTILINE)
        if found is None:
            continue
        descriptor = bpf(_MAP_BY_ID, struct.pack("<III", int(found[1]), 0, 0))
        if name_of(descriptor) == name:
            return descriptor
        os.close(descriptor)
    raise AssertionError(f"the daemon has no map {name!r}")


@contextlib.contextmanager
def filled(descriptor: int) -> Iterator[None]:
    """Entries for keys that nobody has, until no more fits; closes the descriptor at the end."""
    key, value = ctypes.c_uint32(), ctypes.create_string_buffer(256)
    # struct of BPF_MAP_UPDATE_ELEM: map, key, value, flags
    at = (ctypes.addressof(key), ctypes.addressof(value))
    entry = struct.pack("<IxxxxQQQ", descriptor, *at, 0)
    count = 0
    try:
        with contextlib.suppress(OSError):
            while True:
                key.value = _NO_SUCH_PROCESS + count
                bpf(_UPDATE, entry)
                count += 1
        yield
    finally:
        for number in range(count):
            key.value = _NO_SUCH_PROCESS + number
            bpf(_DELETE, entry[:16])
        os.close(descriptor)
