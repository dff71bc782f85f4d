"""Action records: a signed envelope and the three tables it binds (docs/formats.md)."""

from __future__ import annotations

import dataclasses
import struct
from typing import Tuple

from rootseal import envelope, leaf_table, predicate, statement
from rootseal.errors import EncodingError
from rootseal.keys import Signer
from rootseal.observation import Observation
from rootseal.predicate import ActionDescription, ActionPredicate, StoredTables

RECORD_BYTES_MAX = 512 * 1024 * 1024
MAGIC = b"RSAR"
_HEADER = MAGIC + b"\x01\x00\x00\x00"
_LENGTH = struct.Struct(">I")


@dataclasses.dataclass(frozen=True)
class ActionRecord:
    """The parts of a record; nothing about them has been verified.

    Attributes:
        envelope: DSSE envelope, canonical JSON.
        tables: The stored (compressed) tables.
    """

    envelope: bytes = dataclasses.field(repr=False)
    tables: StoredTables = dataclasses.field(repr=False)


def encode_record(envelope_bytes: bytes, tables: StoredTables) -> bytes:
    """Put a record together.

    Raises:
        EncodingError: The record would be larger than any reader accepts.
    """
    parts = [_HEADER]
    for part in (envelope_bytes, tables.materials, tables.products, tables.opens):
        parts += [_LENGTH.pack(len(part)), part]
    data = b"".join(parts)
    if len(data) > RECORD_BYTES_MAX:
        raise EncodingError(f"the record has {len(data)} bytes; at most {RECORD_BYTES_MAX} fit")
    return data


def parse_record(data: bytes) -> ActionRecord:
    """Take a record apart.

    Raises:
        EncodingError: Not a record, cut short, or bytes after it.
    """
    if len(data) > RECORD_BYTES_MAX:
        raise EncodingError(
            f"the record has {len(data)} bytes; at most {RECORD_BYTES_MAX} are accepted"
        )
    if data[: len(_HEADER)] != _HEADER:
        raise EncodingError("not an action record of version 1")
    position = len(_HEADER)
    envelope_bytes, position = _take(data, position, envelope.ENVELOPE_BYTES_MAX)
    materials, position = _take(data, position, leaf_table.STORED_BYTES_MAX)
    products, position = _take(data, position, leaf_table.STORED_BYTES_MAX)
    opens, position = _take(data, position, leaf_table.STORED_BYTES_MAX)
    if position != len(data):
        raise EncodingError("bytes after the end of the record")
    return ActionRecord(envelope_bytes, StoredTables(materials, products, opens))


@dataclasses.dataclass(frozen=True)
class SignedRecord:
    """A record that was just made: its bytes, and what they are made of."""

    data: bytes
    predicate: ActionPredicate
    tables: StoredTables


def sign_record(
    observation: Observation, description: ActionDescription, signer: Signer
) -> SignedRecord:
    """Everything from an observation to the bytes of its signed record.

    Raises:
        EncodingError: Something does not fit its format.
        SignatureError: The signer does not sign.
    """
    tables = predicate.store_tables(observation)
    content = predicate.build_action_predicate(observation, description, tables)
    subject = statement.action_subject(description.action_key)
    signed = statement.encode([subject], statement.ACTION_TYPE, content.document)
    return SignedRecord(encode_record(envelope.sign(signed, signer), tables), content, tables)


def _take(data: bytes, position: int, maximum: int) -> Tuple[bytes, int]:
    if position + _LENGTH.size > len(data):
        raise EncodingError("the record is cut short")
    (length,) = _LENGTH.unpack_from(data, position)
    if length > maximum:
        raise EncodingError(
            f"a part of the record has {length} bytes; at most {maximum} are accepted"
        )
    start = position + _LENGTH.size
    if start + length > len(data):
        raise EncodingError("the record is cut short")
    return data[start : start + length], start + length
