"""Opens tables: which process was seen to open which material (docs/formats.md, Opens table)."""

from __future__ import annotations

import struct
from typing import Iterable, Iterator, List, Sequence, Tuple

from rootseal import canonical
from rootseal.errors import EncodingError

RAW_BYTES_MAX = 1 << 30
PROCESS_COUNT_MAX = 1 << 20
_HEADER = struct.Struct(">4sB3sI")
_MAGIC = b"RSOT"
_VERSION = 1


def encode(opens: Sequence[Iterable[int]]) -> bytes:
    """Encode, for each process of the process table, the indices of the materials it opened."""
    if len(opens) > PROCESS_COUNT_MAX:
        raise EncodingError(f"{len(opens)} processes; at most {PROCESS_COUNT_MAX} fit")
    out = bytearray(_HEADER.pack(_MAGIC, _VERSION, bytes(3), len(opens)))
    for indices in opens:
        ordered = sorted(set(indices))
        out += canonical.encode_uvarint(len(ordered))
        previous = 0
        for index in ordered:
            out += canonical.encode_uvarint(index - previous)
            previous = index
    return bytes(out)


def extend(raw: bytes, count: int) -> bytes:
    """A table with `count` more processes at its end, which opened nothing.

    Raises:
        EncodingError: The table is not one, or too many processes.
    """
    if len(raw) < _HEADER.size:
        raise EncodingError("the opens table has an impossible length")
    magic, version, zeros, before = _HEADER.unpack_from(raw)
    if before + count > PROCESS_COUNT_MAX:
        raise EncodingError(f"{before + count} processes; at most {PROCESS_COUNT_MAX} fit")
    header = _HEADER.pack(magic, version, zeros, before + count)
    return header + raw[_HEADER.size :] + canonical.encode_uvarint(0) * count


def iter_processes(raw: bytes, *, process_count: int, material_count: int) -> Iterator[List[int]]:
    """Walk a table strictly, one process at a time.

    Args:
        raw: The table, not compressed.
        process_count: Entries of the process table, which the header must equal.
        material_count: Leaves of the materials table, which every index must be below.

    Raises:
        EncodingError: The bytes break a rule of the format.
    """
    _check_header(raw, process_count)
    position = _HEADER.size
    for _ in range(process_count):
        count, position = canonical.decode_uvarint(raw, position)
        if count > material_count:
            raise EncodingError("a process opens more materials than there are")
        indices, position = _read_indices(raw, position, count)
        if indices and indices[-1] >= material_count:
            raise EncodingError("the opens table names a material that does not exist")
        yield indices
    if position != len(raw):
        raise EncodingError("bytes after the end of the opens table")


def verify(raw: bytes, *, process_count: int, material_count: int) -> int:
    """Check a whole table; returns the number of opens in it."""
    walk = iter_processes(raw, process_count=process_count, material_count=material_count)
    return sum(len(indices) for indices in walk)


def _check_header(raw: bytes, process_count: int) -> None:
    if not _HEADER.size <= len(raw) <= RAW_BYTES_MAX:
        raise EncodingError("the opens table has an impossible length")
    magic, version, zeros, count = _HEADER.unpack_from(raw)
    if magic != _MAGIC or version != _VERSION or zeros != bytes(3):
        raise EncodingError("not an opens table of version 1")
    if count != process_count or count > PROCESS_COUNT_MAX:
        raise EncodingError(
            f"the opens table has {count} processes, the process table {process_count}"
        )


def _read_indices(raw: bytes, position: int, count: int) -> Tuple[List[int], int]:
    indices: List[int] = []
    index, end = 0, len(raw)
    for number in range(count):
        if position < end and raw[position] < 0x80:  # the common case of one byte
            step, position = raw[position], position + 1
        else:
            step, position = canonical.decode_uvarint(raw, position)
        if step == 0 and number > 0:
            raise EncodingError("material indices are not in order, or one appears twice")
        index += step
        indices.append(index)
    return indices, position
