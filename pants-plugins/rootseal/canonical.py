"""Canonical JSON, path text and uvarint: the encodings that every signed byte goes through.

Standard library only, because the Pants plugin imports it too. docs/formats.md is the contract.
"""

from __future__ import annotations

import json
import re
from typing import Dict, Iterable, List, NoReturn, Tuple, Union

from rootseal.errors import EncodingError

DEPTH_MAX = 64
INTEGER_MAX = 2**53 - 1
NODE_COUNT_MAX = 2**23  # bounds the memory that a parsed document can take
UVARINT_BYTES_MAX = 10
UVARINT_MAX = 2**64 - 1

_INTEGER_DIGITS_MAX = len(str(-INTEGER_MAX))
_NEEDS_ESCAPE = re.compile("[\x00-\x1f%\x7f\udc80-\udcff]")
_ESCAPED = re.compile(rb"%(..?)?", re.DOTALL)
_HEX_PAIR = re.compile(rb"[0-9A-F]{2}")


def encode(value: object) -> bytes:
    """Encode a JSON value in the one form that canonical JSON allows.

    Raises:
        EncodingError: A float, an integer of 2^53 or more, a lone surrogate, a key that is not
            text, any other type, or nesting deeper than `DEPTH_MAX`.
    """
    _check_value(value, 1)
    return _dump(value)


def parse(data: bytes, *, bytes_max: int) -> object:
    """Parse strict JSON that need not be canonical (files people may have edited).

    Args:
        data: The document.
        bytes_max: Longest document the caller accepts, checked before anything is parsed.

    Raises:
        EncodingError: Not UTF-8, not JSON, too long, too deep, a float or a duplicate key.
    """
    if len(data) > bytes_max:
        raise EncodingError(f"the document has {len(data)} bytes; at most {bytes_max} are accepted")
    if data.count(b",") + data.count(b"[") + data.count(b"{") > NODE_COUNT_MAX:
        raise EncodingError(f"the document has more than {NODE_COUNT_MAX} values")
    try:
        value = json.loads(
            data.decode("utf-8"),
            object_pairs_hook=_object_without_duplicates,
            parse_float=_refuse_number,
            parse_constant=_refuse_number,
            parse_int=_parse_integer,
        )
    except RecursionError:
        raise EncodingError(f"JSON is nested deeper than {DEPTH_MAX} levels") from None
    except ValueError as error:
        raise EncodingError(f"not valid JSON: {error}") from None
    _check_value(value, 1)
    return value


def parse_canonical(data: bytes, *, bytes_max: int) -> object:
    """Parse JSON and refuse it unless it is byte for byte what `encode` gives.

    Raises:
        EncodingError: As for `parse`, or the bytes are another encoding of the same value.
    """
    value = parse(data, bytes_max=bytes_max)
    if _dump(value) != data:  # `parse` has checked the value
        raise EncodingError("JSON is not in canonical form")
    return value


def path_text(path: bytes) -> str:
    """Text of a path (or any kernel bytes) that JSON can hold; `path_bytes` is the way back."""
    text = path.decode("utf-8", "surrogateescape")
    return _NEEDS_ESCAPE.sub(_escape_character, text)


def path_bytes(text: str) -> bytes:
    """The bytes whose `path_text` is `text`.

    Raises:
        EncodingError: No bytes have this text: a bad escape, or an escape where none is needed.
    """
    if text.isascii() and _NEEDS_ESCAPE.search(text) is None:
        return text.encode("ascii")  # most paths: nothing in them is or needs an escape
    try:
        path = _ESCAPED.sub(_unescape, text.encode("utf-8"))
    except UnicodeEncodeError:
        raise EncodingError("path text holds a lone surrogate") from None
    if path_text(path) != text:
        raise EncodingError("path text is not in its canonical form (see docs/formats.md, Paths)")
    return path


def encode_uvarint(value: int) -> bytes:
    """Unsigned LEB128 in its shortest form, for 0 <= value < 2^64."""
    if not 0 <= value <= UVARINT_MAX:
        raise EncodingError(f"{value} does not fit a uvarint")
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def decode_uvarint(data: Union[bytes, memoryview], position: int) -> Tuple[int, int]:
    """Read one uvarint.

    Returns:
        The value and the position after it.

    Raises:
        EncodingError: Cut short, longer than ten bytes, over 2^64, or not the shortest form.
    """
    value = 0
    for count in range(UVARINT_BYTES_MAX):
        if position + count >= len(data):
            raise EncodingError("uvarint is cut short")
        byte = data[position + count]
        value |= (byte & 0x7F) << (7 * count)
        if byte < 0x80:
            if (byte == 0 and count > 0) or value > UVARINT_MAX:
                raise EncodingError("uvarint is not in its shortest form, or over 2^64")
            return value, position + count + 1
    raise EncodingError("uvarint is longer than ten bytes")


def _dump(value: object) -> bytes:
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return text.encode("ascii")


def _check_value(value: object, depth: int) -> None:
    if depth > DEPTH_MAX:
        raise EncodingError(f"JSON is nested deeper than {DEPTH_MAX} levels")
    if isinstance(value, dict):
        for key in value:
            if type(key) is not str:
                raise EncodingError("JSON object key is not text")
            _check_text(key)
        _check_items(value.values(), depth + 1)
    elif isinstance(value, (list, tuple)):
        _check_items(value, depth + 1)
    else:
        _check_items((value,), depth)


def _check_items(items: Iterable[object], depth: int) -> None:
    """The items of one container: nearly all of a document, so without a call for each."""
    for item in items:
        kind = type(item)
        if kind is str:
            if not item.isascii():  # type: ignore[attr-defined]
                _check_text(item)  # type: ignore[arg-type]
        elif kind is int:
            if not -INTEGER_MAX <= item <= INTEGER_MAX:  # type: ignore[operator]
                raise EncodingError("JSON integer is 2^53 or more")
        elif isinstance(item, (dict, list, tuple)):
            _check_value(item, depth)
        elif item is not None and kind is not bool:
            raise EncodingError(f"{kind.__name__} has no canonical JSON form")
        if depth > DEPTH_MAX:
            raise EncodingError(f"JSON is nested deeper than {DEPTH_MAX} levels")


def _check_text(text: str) -> None:
    if text.isascii():
        return
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise EncodingError("JSON text holds a lone surrogate") from None


def _object_without_duplicates(pairs: List[Tuple[str, object]]) -> Dict[str, object]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise EncodingError("JSON object has a duplicate key")
    return result


def _refuse_number(text: str) -> NoReturn:
    raise EncodingError(f"JSON number {text[:32]} is not an integer")


def _parse_integer(text: str) -> int:
    if len(text) > _INTEGER_DIGITS_MAX:
        raise EncodingError("JSON integer is 2^53 or more")
    return int(text)


def _escape_character(match: re.Match[str]) -> str:
    code = ord(match.group())
    return f"%{code & 0xFF:02X}"  # surrogateescape maps byte XX to U+DCXX


def _unescape(match: re.Match[bytes]) -> bytes:
    pair = match.group(1) or b""
    if not _HEX_PAIR.fullmatch(pair):
        raise EncodingError("path text has a % that is not followed by two upper-case hex digits")
    return bytes([int(pair, 16)])
