"""Bundles: one file with the root envelope and every action record (docs/formats.md, Bundle).

The reader keeps the index and one record in memory, whatever the size of the file. It checks form
only; `verify` decides what is true.
"""

from __future__ import annotations

import dataclasses
import os
import stat
import struct
from pathlib import Path
from types import TracebackType
from typing import Iterable, Iterator, NamedTuple, Optional, Sequence, Type, Union

from rootseal import envelope, files, merkle, record
from rootseal.errors import ConfigError, EncodingError

RECORD_COUNT_MAX = 1 << 20
ENGINE_INPUTS_BYTES_MAX = 1 << 28
MAGIC = b"RSBN"
_HEADER = MAGIC + b"\x01\x00\x00\x00"
_LENGTH = struct.Struct(">I")
_ENTRY = struct.Struct(">32s32sQQ")


class IndexEntry(NamedTuple):
    """Where a record is, and what its action leaf binds.

    Attributes:
        action_key: 32 bytes.
        envelope_sha256: SHA-256 of the record's envelope, 32 bytes.
        offset: First byte of the record, from the start of the file.
        length: Bytes of the record.
    """

    action_key: bytes
    envelope_sha256: bytes
    offset: int
    length: int


def action_leaf_hash(action_key: bytes, envelope_sha256: bytes) -> bytes:
    """RFC 6962 leaf hash of an action leaf (docs/formats.md, Leaves)."""
    return merkle.leaf_hash(b"A" + action_key + envelope_sha256)


class BundleReader:
    """An open bundle whose form is right. Use as a context manager.

    Attributes:
        root_envelope: DSSE envelope of the root statement, unverified.
        engine_inputs: Stored engine inputs table, unverified.
        record_count: Number of records.
    """

    def __init__(self, path: Union[str, Path]) -> None:
        """Open a bundle and check its form.

        Raises:
            ConfigError: The file cannot be opened, or is not a regular file.
            EncodingError: It is not a bundle: cut short, reordered, or with other bytes in it.
        """
        try:
            self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            raise ConfigError(f"cannot open the bundle {path}: {error.strerror}") from None
        try:
            self._read_head(path)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> BundleReader:
        """The reader itself."""
        return self

    def __exit__(
        self,
        kind: Optional[Type[BaseException]],
        value: Optional[BaseException],
        trace: Optional[TracebackType],
    ) -> None:
        """Close the file."""
        self.close()

    def close(self) -> None:
        """Close the file; may be called twice."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def entries(self) -> Iterator[IndexEntry]:
        """The index, in leaf order."""
        return (IndexEntry(*fields) for fields in _ENTRY.iter_unpack(self._index))

    def entry(self, leaf_index: int) -> IndexEntry:
        """One entry of the index, 0 <= leaf_index < record_count."""
        return IndexEntry(*_ENTRY.unpack_from(self._index, leaf_index * _ENTRY.size))

    def leaf_hashes(self) -> Iterator[bytes]:
        """Leaf hashes of the action tree, in order."""
        return (action_leaf_hash(item.action_key, item.envelope_sha256) for item in self.entries())

    def read_record(self, entry: IndexEntry) -> bytes:
        """The bytes of one record."""
        return self._read(entry.offset, entry.length)

    def _read_head(self, path: Union[str, Path]) -> None:
        status = os.fstat(self._descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise ConfigError(f"{path} is not a regular file")
        self._size = status.st_size
        if self._read(0, len(_HEADER)) != _HEADER:
            raise EncodingError("not a bundle of version 1")
        position = len(_HEADER)
        self.root_envelope = self._read_part(position, envelope.ENVELOPE_BYTES_MAX)
        position += _LENGTH.size + len(self.root_envelope)
        self.engine_inputs = self._read_part(position, ENGINE_INPUTS_BYTES_MAX)
        position += _LENGTH.size + len(self.engine_inputs)
        (self.record_count,) = _LENGTH.unpack(self._read(position, _LENGTH.size))
        position += _LENGTH.size
        if self.record_count > RECORD_COUNT_MAX:
            raise EncodingError(f"{self.record_count} records; at most {RECORD_COUNT_MAX} are read")
        self._index = self._read(position, self.record_count * _ENTRY.size)
        self._check_index(position + len(self._index))

    def _check_index(self, offset: int) -> None:
        previous = b""
        for entry in self.entries():
            leaf = entry.action_key + entry.envelope_sha256
            if leaf <= previous:
                raise EncodingError("records are not in leaf order, or one appears twice")
            if entry.length > record.RECORD_BYTES_MAX:
                raise EncodingError("a record is larger than any reader accepts")
            if entry.offset != offset:
                raise EncodingError("records are not back to back")
            previous, offset = leaf, offset + entry.length
        if offset != self._size:
            raise EncodingError("the bundle is cut short, or has bytes after its last record")

    def _read_part(self, position: int, maximum: int) -> bytes:
        (length,) = _LENGTH.unpack(self._read(position, _LENGTH.size))
        if length > maximum:
            raise EncodingError(f"a part has {length} bytes; at most {maximum} are accepted")
        return self._read(position + _LENGTH.size, length)

    def _read(self, offset: int, length: int) -> bytes:
        if offset + length > self._size:
            raise EncodingError("the bundle is cut short")
        pieces = []
        while length:
            piece = os.pread(self._descriptor, min(length, 1 << 30), offset)
            if not piece:
                raise EncodingError("the bundle became shorter while it was read")
            pieces.append(piece)
            offset, length = offset + len(piece), length - len(piece)
        return b"".join(pieces)


@dataclasses.dataclass(frozen=True, order=True)
class NewRecord:
    """A record about to be put in a bundle; the order is the order of the index."""

    action_key: bytes
    envelope_sha256: bytes
    length: int


def write_bundle(
    path: Union[str, Path],
    *,
    root_envelope: bytes,
    engine_inputs: bytes,
    index: Sequence[NewRecord],
    records: Iterable[bytes],
) -> None:
    """Write a bundle whole, or leave nothing.

    Args:
        path: The file; an older one is replaced at the end.
        root_envelope: DSSE envelope of the root statement.
        engine_inputs: Stored engine inputs table.
        index: The records in leaf order.
        records: Their bytes in the same order, one at a time.

    Raises:
        EncodingError: The records are not those of the index, or not in order.
        Error: The file cannot be written.
    """
    if len(index) > RECORD_COUNT_MAX:
        raise EncodingError(f"{len(index)} records; a bundle holds {RECORD_COUNT_MAX}")
    head = [_HEADER, _LENGTH.pack(len(root_envelope)), root_envelope]
    head += [_LENGTH.pack(len(engine_inputs)), engine_inputs, _LENGTH.pack(len(index))]
    offset = sum(len(part) for part in head) + len(index) * _ENTRY.size
    with files.complete_file(path) as stream:
        stream.write(b"".join(head))
        for item in index:
            stream.write(_ENTRY.pack(item.action_key, item.envelope_sha256, offset, item.length))
            offset += item.length
        remaining = iter(records)
        for item in index:
            data = next(remaining, b"")
            if len(data) != item.length:
                raise EncodingError("a record changed while the bundle was written")
            stream.write(data)
