"""The ledger of fanotify and ptrace: every file of the trace in one of its places."""

from __future__ import annotations

import os
import struct
from typing import Dict

from rootseal.capture.ptrace_beside import compare
from rootseal.capture.ptrace_stream import FILE_ANONYMOUS, FILE_BORN, Count, FileFields, Loss

DEVICE = 8 << 32 | 1


def file(inode: int, flags: int = 0) -> FileFields:
    return (bytes(32), 1, 0o644, 0, flags, DEVICE, inode)


def counted(**values: int) -> Dict[int, int]:
    found = {int(item): 0 for kind in (Loss, Count) for item in kind}
    for name, value in values.items():
        found[int(getattr(Loss, name, None) or getattr(Count, name))] = value
    return found


def pair(inode: int) -> bytes:
    return struct.pack("=QQ", os.makedev(8, 1), inode)


def test_each_place() -> None:
    files = [file(1), file(1), file(2, FILE_BORN), file(3, FILE_ANONYMOUS), file(4), file(5)]
    ledger = compare(
        files,
        counted(
            EXCLUDED_IRREGULAR=10,
            EXCLUDED_PATH_ONLY=20,
            EXCLUDED_PSEUDO=30,
            EXCLUDED_ANONYMOUS=40,
            EXCLUDED_WRITE_ONLY=50,
            GONE=1,
            DENIED=2,
            PATH=3,
            INTERPRETER=4,
        ),
        pair(1) + pair(4) + pair(99),
    )
    assert ledger.hashed == 2
    assert ledger.excluded == {
        "notRegular": 10,
        "noContent": 20,
        "pseudoFilesystem": 30,
        "memoryFile": 41,
        "created": 1,
        "writeOnly": 50,
    }
    assert ledger.unhashed == {"noDigest": 1, "unresolved": 10}
    assert ledger.files == 2 + 152 + 11


def test_a_created_file_that_was_hashed_is_hashed() -> None:
    ledger = compare([file(1, FILE_BORN), file(1)], counted(), pair(1))
    assert (ledger.hashed, ledger.excluded["created"], ledger.unhashed["noDigest"]) == (1, 0, 0)
