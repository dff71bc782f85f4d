"""SHA-256 digests as bytes and as text. Standard library only."""

from __future__ import annotations

import hashlib
import re
from typing import BinaryIO, Tuple, Union

from rootseal.errors import EncodingError

DIGEST_BYTES = 32
_CHUNK_BYTES = 1 << 20
_HEX = re.compile(r"[0-9a-f]{64}")


def sha256(data: Union[bytes, memoryview]) -> bytes:
    """SHA-256 of bytes, 32 bytes."""
    return hashlib.sha256(data).digest()


def sha256_hex(data: Union[bytes, memoryview]) -> str:
    """SHA-256 of bytes, 64 lower-case hex digits."""
    return hashlib.sha256(data).hexdigest()


def sha256_file(stream: BinaryIO) -> Tuple[bytes, int]:
    """SHA-256 and size in bytes of what is left of a stream, read in bounded pieces."""
    state, size = hashlib.sha256(), 0
    while True:
        chunk = stream.read(_CHUNK_BYTES)
        if not chunk:
            return state.digest(), size
        state.update(chunk)
        size += len(chunk)


def digest_from_hex(text: object) -> bytes:
    """The digest that 64 lower-case hex digits stand for.

    Raises:
        EncodingError: Not text, another length, upper case, or not hex.
    """
    if not isinstance(text, str) or not _HEX.fullmatch(text):
        raise EncodingError("not a SHA-256 digest (64 lower-case hex digits)")
    return bytes.fromhex(text)
