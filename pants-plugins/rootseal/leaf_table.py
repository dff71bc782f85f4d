"""Leaf tables: encode, check, walk, look up, and the tree over them (docs/formats.md).

`verify` uses the C core where it is built; `verify_reference` is the same in Python, and the
tests hold the two against each other.
"""

from __future__ import annotations

import enum
import hashlib
import importlib
import struct
import zlib
from typing import Iterable, Iterator, List, NamedTuple, Optional, Tuple, Union

from rootseal import canonical, merkle
from rootseal.errors import EncodingError
from rootseal.observation import DigestSource, LeafKind, LeafTable

PATH_BYTES_MAX = 4096
RAW_BYTES_MAX = 1 << 30
STORED_BYTES_MAX = 1 << 30
MODE_MAX = 0o7777
_MAGIC = b"RSLT"
_VERSION = 1
_HEADER = struct.Struct(">4sBBHI")
_TAIL = struct.Struct(">QIBB")
_LENGTH = struct.Struct(">I")
_ENTRY_BYTES_MIN = 1 + 1 + 1 + 1 + 1 + 1 + 32  # every uvarint one byte, an empty suffix
_SMALL_WINDOW_BITS = 12
_SMALL_BYTES = 1 << _SMALL_WINDOW_BITS
_COMPRESSION_LEVEL = 1  # digests do not compress; paths are already prefix-shared

try:
    _native: Optional[object] = importlib.import_module("rootseal._native")
except ImportError:
    _native = None


class Domain(enum.IntEnum):
    """What the leaves of a table are; the first byte of every leaf."""

    MATERIAL = ord("M")
    PRODUCT = ord("P")
    ENGINE_INPUT = ord("E")


class Leaf(NamedTuple):
    """One file. The order of the fields is the order of the leaves in a table.

    Attributes:
        path: Relative to the action's root where it is inside it, else absolute; no NUL.
        digest: SHA-256 of the content (of the target text for a symlink), 32 bytes.
        size: Size in bytes.
        mode: Permission bits, st_mode & 07777.
        kind: `observation.LeafKind`.
        source: `observation.DigestSource`.
    """

    path: bytes
    digest: bytes
    size: int
    mode: int
    kind: int
    source: int


def leaf_bytes(domain: int, leaf: Leaf) -> bytes:
    """The bytes that RFC 6962 hashes for a leaf."""
    path, digest, size, mode, kind, source = leaf
    tail = _TAIL.pack(size, mode, kind, source)
    return bytes((domain,)) + _LENGTH.pack(len(path)) + path + digest + tail


def hash_leaf(domain: int, leaf: Leaf) -> bytes:
    """RFC 6962 leaf hash of a leaf."""
    return merkle.leaf_hash(leaf_bytes(domain, leaf))


def check_leaf(leaf: Leaf) -> None:
    """Refuse a leaf that the format cannot hold.

    Raises:
        EncodingError: Says which field.
    """
    path, digest, size, mode, kind, source = leaf
    if not 1 <= len(path) <= PATH_BYTES_MAX or b"\x00" in path:
        raise EncodingError(f"leaf path is not 1 to {PATH_BYTES_MAX} bytes without NUL")
    if len(digest) != merkle.HASH_BYTES:
        raise EncodingError("leaf digest is not 32 bytes")
    if not 0 <= size <= canonical.UVARINT_MAX or not 0 <= mode <= MODE_MAX:
        raise EncodingError("leaf size or mode is out of range")
    if kind not in _KINDS or source not in _SOURCES:
        raise EncodingError("leaf kind or digest source is unknown")


_KINDS = frozenset(int(kind) for kind in LeafKind)
_SOURCES = frozenset(int(source) for source in DigestSource)


def encode(domain: Domain, leaves: Iterable[Leaf]) -> LeafTable:
    """Encode leaves in any order; equal leaves appear once.

    Raises:
        EncodingError: A leaf the format cannot hold, or too many of them.
    """
    ordered = sorted(set(leaves))
    if len(ordered) > merkle.LEAF_COUNT_MAX:
        raise EncodingError(f"{len(ordered)} leaves; a table holds {merkle.LEAF_COUNT_MAX}")
    out = bytearray(_HEADER.pack(_MAGIC, _VERSION, domain, 0, len(ordered)))
    previous = b""
    for leaf in ordered:
        check_leaf(leaf)
        out += _encode_entry(leaf, previous)
        previous = leaf.path
    if len(out) > RAW_BYTES_MAX:
        raise EncodingError(f"the table has {len(out)} bytes; at most {RAW_BYTES_MAX} fit")
    raw = bytes(out)
    if _native is not None:  # reads all of it again, and is still several times quicker
        return LeafTable(raw, *verify(raw, domain))
    hasher = merkle.TreeHasher()
    for leaf in ordered:
        hasher.add(hash_leaf(domain, leaf))
    return LeafTable(raw, hasher.root(), len(ordered))


def iter_leaves(raw: Union[bytes, memoryview], domain: Domain) -> Iterator[Leaf]:
    """Walk a table strictly: every rule of the format is checked on the way.

    A caller that stops early has checked only what it has seen.

    Raises:
        EncodingError: The bytes break a rule of the format.
    """
    data = bytes(raw)
    count = _check_header(data, domain)
    position, end = _HEADER.size, len(data)
    previous: Optional[Leaf] = None
    for _ in range(count):
        leaf, position = _decode_entry(
            data, position, end, b"" if previous is None else previous.path
        )
        if previous is not None and leaf <= previous:
            raise EncodingError("leaves are not in order, or one appears twice")
        yield leaf
        previous = leaf
    if position != end:
        raise EncodingError("bytes after the last leaf")


def verify(raw: bytes, domain: Domain) -> Tuple[bytes, int]:
    """Check a whole table and compute its tree.

    Returns:
        The RFC 6962 root and the number of leaves.

    Raises:
        EncodingError: The bytes break a rule of the format.
    """
    if _native is None:
        return verify_reference(raw, domain)
    root, count = _native.leaf_table_verify(raw, int(domain))  # type: ignore[attr-defined]
    return root, count


def uses_native() -> bool:
    """Whether `verify` runs in the C core."""
    return _native is not None


def verify_reference(raw: bytes, domain: Domain) -> Tuple[bytes, int]:
    """`verify` in Python, whatever is installed."""
    hasher = merkle.TreeHasher()
    sha256, pack, length, prefix = hashlib.sha256, _TAIL.pack, _LENGTH.pack, bytes((0, domain))
    for path, digest, size, mode, kind, source in iter_leaves(raw, domain):
        leaf = prefix + length(len(path)) + path + digest + pack(size, mode, kind, source)
        hasher.add(sha256(leaf).digest())
    return hasher.root(), hasher.tree_size


def leaf_count(raw: Union[bytes, memoryview], domain: Domain) -> int:
    """Number of leaves that the header states."""
    return _check_header(bytes(raw[: _HEADER.size]), domain, header_only=True)


def find(raw: bytes, domain: Domain, path: bytes) -> List[Tuple[int, Leaf]]:
    """Every leaf of a path, with its index; empty if the path is not in the table."""
    found = []
    for index, leaf in enumerate(iter_leaves(raw, domain)):
        if leaf.path == path:
            found.append((index, leaf))
    return found


def neighbours(
    raw: bytes, domain: Domain, path: bytes
) -> Tuple[Optional[Tuple[int, Leaf]], Optional[Tuple[int, Leaf]]]:
    """The leaves just before and just after where an absent path would stand.

    Returns:
        (index, leaf) of the last smaller and the first larger path; None at an end of the table.

    Raises:
        EncodingError: The path is in the table, or the table is malformed.
    """
    before: Optional[Tuple[int, Leaf]] = None
    after: Optional[Tuple[int, Leaf]] = None
    for index, leaf in enumerate(iter_leaves(raw, domain)):
        if leaf.path == path:
            raise EncodingError("the path is in the table, so its absence cannot be proved")
        if leaf.path < path:
            before = (index, leaf)
        elif after is None:
            after = (index, leaf)
    return before, after


def inclusion_proof(raw: bytes, domain: Domain, leaf_index: int) -> Tuple[bytes, ...]:
    """Inclusion proof of a leaf in the tree of its table."""
    hashes = (hash_leaf(domain, leaf) for leaf in iter_leaves(raw, domain))
    tree_size = leaf_count(raw, domain)
    return merkle.inclusion_proof(hashes, leaf_index=leaf_index, tree_size=tree_size)


def compress(raw: bytes) -> bytes:
    """The stored form of a table: one zlib stream."""
    if len(raw) > _SMALL_BYTES:
        return zlib.compress(raw, _COMPRESSION_LEVEL)
    # A window that fits: the usual one is 256 KiB of memory to take, touch and give back.
    stream = zlib.compressobj(_COMPRESSION_LEVEL, zlib.DEFLATED, _SMALL_WINDOW_BITS, 5)
    return stream.compress(raw) + stream.flush()


def decompress(stored: Union[bytes, memoryview], *, bytes_max: int = RAW_BYTES_MAX) -> bytes:
    """The table that a stored form holds.

    Raises:
        EncodingError: Not exactly one zlib stream, or it expands beyond `bytes_max`.
    """
    stream = zlib.decompressobj()
    try:
        raw = stream.decompress(stored, bytes_max + 1)
    except zlib.error as error:
        raise EncodingError(f"stored table is not zlib data: {error}") from None
    if len(raw) > bytes_max:
        raise EncodingError(f"stored table expands to more than {bytes_max} bytes")
    if not stream.eof or stream.unused_data or stream.unconsumed_tail:
        raise EncodingError("stored table is cut short, or has bytes after it")
    return raw


def _encode_entry(leaf: Leaf, previous: bytes) -> bytes:
    path, digest, size, mode, kind, source = leaf
    shared = _shared_prefix(previous, path)
    suffix = path[shared:]
    number = canonical.encode_uvarint
    # One byte each, nearly always.
    head = (
        bytes((shared, len(suffix))) if len(path) < 0x80 else number(shared) + number(len(suffix))
    )
    return head + suffix + number(size) + number(mode) + bytes((kind, source)) + digest


def _shared_prefix(left: bytes, right: bytes) -> int:
    limit = min(len(left), len(right))
    # As big numbers, because that is done in C: the highest bit that differs tells the byte.
    differs = int.from_bytes(left[:limit], "big") ^ int.from_bytes(right[:limit], "big")
    return limit - (differs.bit_length() + 7) // 8


def _check_header(data: bytes, domain: Domain, *, header_only: bool = False) -> int:
    if len(data) > RAW_BYTES_MAX:
        raise EncodingError(
            f"the table has {len(data)} bytes; at most {RAW_BYTES_MAX} are accepted"
        )
    if len(data) < _HEADER.size:
        raise EncodingError("the table is shorter than its header")
    magic, version, found_domain, zero, count = _HEADER.unpack_from(data)
    if magic != _MAGIC or version != _VERSION or zero != 0:
        raise EncodingError("not a leaf table of version 1")
    if found_domain != domain:
        raise EncodingError(f"table has domain {found_domain}, expected {int(domain)}")
    if count > merkle.LEAF_COUNT_MAX:
        raise EncodingError(f"{count} leaves; at most {merkle.LEAF_COUNT_MAX} are accepted")
    if not header_only and count * _ENTRY_BYTES_MIN > len(data) - _HEADER.size:
        raise EncodingError("the table is too short for its count")
    return int(count)


def _decode_entry(data: bytes, position: int, end: int, previous: bytes) -> Tuple[Leaf, int]:
    uvarint = canonical.decode_uvarint
    shared, position = _small(data, position) or uvarint(data, position)
    length, position = _small(data, position) or uvarint(data, position)
    if shared > len(previous) or not 1 <= shared + length <= PATH_BYTES_MAX:
        raise EncodingError("leaf path has an impossible length")
    suffix = data[position : position + length]
    if len(suffix) != length:
        raise EncodingError("the table is cut short")
    if shared < len(previous) and (not suffix or suffix[0] == previous[shared]):
        raise EncodingError("the shared prefix is not the longest one, or leaves are not in order")
    size, position = uvarint(data, position + length)
    mode, position = uvarint(data, position)
    if position + 34 > end:
        raise EncodingError("the table is cut short")
    kind, source, digest = data[position], data[position + 1], data[position + 2 : position + 34]
    if mode > MODE_MAX or kind not in _KINDS or source not in _SOURCES or b"\x00" in suffix:
        raise EncodingError("leaf has a mode, kind, source or path byte that the format excludes")
    return Leaf(previous[:shared] + suffix, digest, size, mode, kind, source), position + 34


def _small(data: bytes, position: int) -> Optional[Tuple[int, int]]:
    """The common case of a one-byte uvarint; None sends the caller to the full reader."""
    if position < len(data) and data[position] < 0x80:
        return data[position], position + 1
    return None
