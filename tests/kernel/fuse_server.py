"""A FUSE filesystem with one file, `material`, spoken in the kernel's own protocol.

Usage: python fuse_server.py MOUNTPOINT [UID [BYTES [BACKING [LOG]]]]. Only that user (root) may
look at it. A read gets at most BYTES, past the page cache; 0: all that it asks for. With the file
BACKING the content is what that holds just now, of the same size, and statfs(2) is answered; else
it fails. Once BACKING is removed, nobody is told what state the file has. With LOG the third open
is answered half a second late, and others are served meanwhile.
Of fs-verity it lies: each file is sealed, with the digest LIE.
Writes one line to stdout once it is mounted, and serves until it is killed. Needs root, no library
and no package.

Source: include/uapi/linux/fuse.h.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import struct
import sys
import threading
from pathlib import Path
from typing import Callable, Dict, Tuple

CONTENT = b"served by a process\n"
ROOT, MATERIAL = 1, 2
NODES = {ROOT: (stat.S_IFDIR | 0o755, 0), MATERIAL: (stat.S_IFREG | 0o755, len(CONTENT))}
LIE = b"\1" * 32
LOOKUP, FORGET, GETATTR, OPEN, READ, RELEASE, FLUSH = 1, 2, 3, 14, 15, 18, 25
STATFS, INIT, OPENDIR, READDIR, RELEASEDIR, INTERRUPT, BATCH_FORGET = 17, 26, 27, 28, 29, 36, 42
IOCTL, GET_FLAGS, MEASURE, ENABLE = 39, 0x80086601, 0xC0046686, 0x40806685
SILENT = (FORGET, INTERRUPT, BATCH_FORGET)
FOPEN_DIRECT_IO = 1
READ_BYTES_MAX = int("".join(sys.argv[3:4]) or 0)  # 0: whatever is asked for
BACKING = Path(sys.argv[4]) if "".join(sys.argv[4:5]) else None
LOG = Path(sys.argv[5]) if len(sys.argv) > 5 else None
LATE, LATE_SECONDS = 3, 0.5
REQUEST_BYTES_MAX = 1 << 20
_IN = struct.Struct("<IIQQIIIHH")
_OUT = struct.Struct("<IiQ")
_ATTRIBUTES = struct.Struct("<QQQQQQIIIIIIIIII")


def attributes(node: int) -> bytes:
    """struct fuse_attr."""
    mode, size = NODES[node]
    return _ATTRIBUTES.pack(node, size, 1, 0, 0, 0, 0, 0, 0, mode, 1, 0, 0, 0, 4096, 0)


def init(_: int, body: bytes) -> bytes:
    """Agree on the version, and on nothing optional."""
    major, minor = struct.unpack_from("<II", body)
    return struct.pack("<IIIIHHIIHHI28x", major, min(minor, 31), 0, 0, 16, 12, 4096, 1, 0, 0, 0)


def lookup(node: int, body: bytes) -> bytes:
    """The one name that there is."""
    if node != ROOT or body.rstrip(b"\0") != b"material":
        raise OSError(errno.ENOENT, "")
    return struct.pack("<QQQQII", MATERIAL, 0, 1, 1, 0, 0) + attributes(MATERIAL)


def get_attributes(node: int, _: bytes) -> bytes:
    """stat(2)."""
    if BACKING and not BACKING.exists():
        raise OSError(errno.EIO, "")
    return struct.pack("<QII", 1, 0, 0) + attributes(node)


def read(_: int, body: bytes) -> bytes:
    """The content, from an offset on."""
    _, offset, size = struct.unpack_from("<QQI", body)
    content = BACKING.read_bytes() if BACKING else CONTENT
    return content[offset : offset + min(size, READ_BYTES_MAX or size)]


def statfs(_: int, body: bytes) -> bytes:
    """struct fuse_kstatfs."""
    if BACKING is None:
        raise OSError(errno.ENOSYS, "")
    return struct.pack("<QQQQQIIII24x", 1, 0, 0, 2, 0, 4096, 255, 4096, 0)


def handle(_: int, body: bytes) -> bytes:
    """An open file; all are the same."""
    return struct.pack("<QII", 0, FOPEN_DIRECT_IO if READ_BYTES_MAX else 0, 0)


def ioctl(_: int, body: bytes) -> bytes:
    """Those of fs-verity, which newer kernels hand on (6.10)."""
    _, _, command, _, _, size = struct.unpack_from("<QIIQII", body)
    data = {
        GET_FLAGS: (0x00100000).to_bytes(8, "little"),  # FS_VERITY_FL
        MEASURE: struct.pack("<HH32s", 1, len(LIE), LIE),
        ENABLE: b"",
    }
    if command not in data:
        raise OSError(errno.ENOTTY, "")
    return struct.pack("<iIII", 0, 0, 0, 0) + data[command][:size]


def nothing(_: int, body: bytes) -> bytes:
    """Done."""
    return b""


def unreadable(_: int, body: bytes) -> bytes:
    """The directory cannot be listed."""
    raise OSError(errno.EIO, "")


ANSWERS: Dict[int, Callable[[int, bytes], bytes]] = {
    INIT: init,
    LOOKUP: lookup,
    GETATTR: get_attributes,
    OPEN: handle,
    OPENDIR: handle,
    READ: read,
    STATFS: statfs,
    READDIR: unreadable,
    IOCTL: ioctl,
    RELEASE: nothing,
    RELEASEDIR: nothing,
    FLUSH: nothing,
}


def answer(request: bytes) -> Tuple[int, bytes]:
    """What to write for a request: its operation, and the reply."""
    _, operation, unique, node, *_ = _IN.unpack_from(request)
    error, body = 0, b""
    try:
        body = ANSWERS[operation](node, request[_IN.size :])
    except KeyError:
        error = -errno.ENOSYS
    except OSError as failed:
        error = -(failed.errno or errno.EIO)
    return operation, _OUT.pack(_OUT.size + len(body), error, unique) + body


class Log:
    """Tells of opens and releases, and makes one open late.

    Lines: `open`, `release`, and `answered` for the late one.
    """

    def __init__(self, path: Path) -> None:
        self._stream = path.open("a", buffering=1, encoding="ascii")
        self._opens = 0

    def is_late(self, operation: int) -> bool:
        """Write down a request; whether its answer is to be late."""
        if operation not in (OPEN, RELEASE):
            return False
        self._stream.write("open\n" if operation == OPEN else "release\n")
        self._opens += operation == OPEN
        return operation == OPEN and self._opens == LATE

    def answer_late(self, device: int, reply: bytes) -> None:
        """In a while."""

        def answer_now() -> None:
            self._stream.write("answered\n")
            os.write(device, reply)

        threading.Timer(LATE_SECONDS, answer_now).start()


def main() -> None:
    """Mount and serve."""
    log = Log(LOG) if LOG else None
    device = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    owner = sys.argv[2] if len(sys.argv) > 2 else "0"
    options = f"fd={device},rootmode=40000,user_id={owner},group_id={owner}"
    library = ctypes.CDLL(None, use_errno=True)
    if library.mount(b"rootseal-test", os.fsencode(sys.argv[1]), b"fuse", 0, options.encode()):
        sys.exit(f"mount: {os.strerror(ctypes.get_errno())}")
    print("mounted", flush=True)
    while True:
        try:
            operation, reply = answer(os.read(device, REQUEST_BYTES_MAX))
        except OSError as error:
            if error.errno == errno.ENODEV:  # unmounted
                return
            raise
        if log is not None and log.is_late(operation):
            log.answer_late(device, reply)
        elif operation not in SILENT:
            os.write(device, reply)


if __name__ == "__main__":
    main()
