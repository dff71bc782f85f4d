"""Strict shapes of JSON documents: every field present, no unknown field, every length bounded.

A shape is a function that takes a value and where it stands, and raises `StatementError`, whose
message begins with that place. Shapes are data, so a document's fields read like its reference.
Containers give their items no place, and put it before the message if there is one: large
documents are checked often, and nearly always they are right.
"""

from __future__ import annotations

import re
from typing import Callable, Dict, List, Mapping, Optional, Sequence

from rootseal import canonical
from rootseal.errors import EncodingError, StatementError

Shape = Callable[[object, str], None]

TEXT_CHARACTERS_MAX = 1 << 20
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,9})?Z")
_HEX_DIGEST = re.compile(r"[0-9a-f]{64}")
_HEX = re.compile(r"[0-9a-f]{1,128}")


def check(value: object, shape: Shape, where: str) -> Dict[str, object]:
    """Check a document whose top is an object, and return it as one.

    Raises:
        StatementError: Names the first field that is wrong.
    """
    shape(value, where)
    return as_object(value)


def as_object(value: object) -> Dict[str, object]:
    """A value already checked to be an object, for the type checker."""
    if not isinstance(value, dict):
        raise StatementError("expected an object")
    return value


def as_list(value: object) -> List[object]:
    """A value already checked to be a list, for the type checker."""
    if not isinstance(value, list):
        raise StatementError("expected a list")
    return value


def as_integer(value: object) -> int:
    """A value already checked to be an integer, for the type checker."""
    if type(value) is not int:
        raise StatementError("expected an integer")
    return value


def text(maximum: int = TEXT_CHARACTERS_MAX) -> Shape:
    """Text of at most `maximum` characters."""

    def shape(value: object, where: str) -> None:
        if not isinstance(value, str) or len(value) > maximum:
            raise StatementError(f"{where} is not text of at most {maximum} characters")

    return shape


def integer(maximum: int = canonical.INTEGER_MAX, minimum: int = 0) -> Shape:
    """An integer in a closed range."""

    def shape(value: object, where: str) -> None:
        if type(value) is not int or not minimum <= value <= maximum:
            raise StatementError(f"{where} is not an integer from {minimum} to {maximum}")

    return shape


def exactly(expected: object) -> Shape:
    """One value and no other."""

    def shape(value: object, where: str) -> None:
        if type(value) is not type(expected) or value != expected:
            raise StatementError(f"{where} is not {expected!r}")

    return shape


def one_of(choices: Sequence[str]) -> Shape:
    """One of a closed set of words."""

    def shape(value: object, where: str) -> None:
        if not isinstance(value, str) or value not in choices:
            raise StatementError(f"{where} is not one of {', '.join(choices)}")

    return shape


def nullable(inner: Shape) -> Shape:
    """Null, or what `inner` accepts."""

    def shape(value: object, where: str) -> None:
        if value is not None:
            inner(value, where)

    return shape


def list_of(inner: Shape, maximum: int) -> Shape:
    """A list of at most `maximum` items."""

    def shape(value: object, where: str) -> None:
        if not isinstance(value, list) or len(value) > maximum:
            raise StatementError(f"{where} is not a list of at most {maximum} items")
        right = 0
        try:
            for item in value:
                inner(item, "")
                right += 1
        except StatementError as error:
            raise StatementError(f"{where}[{right}]{error}") from None

    return shape


def object_of(fields: Mapping[str, Shape], *, group: Optional[Mapping[str, Shape]] = None) -> Shape:
    """An object with exactly these fields; those of `group` are there all together or not."""
    known = {**fields, **(group or {})}

    def shape(value: object, where: str) -> None:
        if not isinstance(value, dict):
            raise StatementError(f"{where} is not an object")
        wanted = fields
        if value.keys() != fields.keys():
            wanted = known
            if value.keys() != known.keys():
                raise StatementError(f"{where} {_wrong_field(value, fields, group or {})}")
        try:
            for name, inner in wanted.items():
                inner(value[name], "")
        except StatementError as error:
            raise StatementError(f"{where}.{name}{error}") from None

    return shape


def _wrong_field(
    value: Mapping[str, object], fields: Mapping[str, Shape], group: Mapping[str, Shape]
) -> str:
    for name in value:
        if name not in fields and name not in group:
            return f"has the unknown field {name!r}"
    wanted = {**fields, **group} if any(name in value for name in group) else fields
    return f"lacks the field {next(name for name in wanted if name not in value)}"


def map_of(inner: Shape, maximum: int) -> Shape:
    """An object with free names, at most `maximum` of them."""

    def shape(value: object, where: str) -> None:
        if not isinstance(value, dict) or len(value) > maximum:
            raise StatementError(f"{where} is not an object of at most {maximum} fields")
        name = ""
        try:
            for name in value:
                inner(value[name], "")
        except StatementError as error:
            raise StatementError(f"{where}.{name}{error}") from None

    return shape


def anything(value: object, where: str) -> None:
    """Any value; the caller checks it by other means."""


def boolean(value: object, where: str) -> None:
    """True or false."""
    if not isinstance(value, bool):
        raise StatementError(f"{where} is not true or false")


def digest_text(value: object, where: str) -> None:
    """A SHA-256 digest as 64 lower-case hex digits."""
    if not isinstance(value, str) or not _HEX_DIGEST.fullmatch(value):
        raise StatementError(f"{where} is not 64 lower-case hex digits")


def hex_text(value: object, where: str) -> None:
    """1 to 128 lower-case hex digits."""
    if not isinstance(value, str) or not _HEX.fullmatch(value):
        raise StatementError(f"{where} is not lower-case hex")


def time_text(value: object, where: str) -> None:
    """RFC 3339 time in UTC, with `Z`."""
    if not isinstance(value, str) or not _TIME.fullmatch(value):
        raise StatementError(f"{where} is not a time such as 2026-01-02T03:04:05Z")


def path_text(value: object, where: str) -> None:
    """Path text in its one form (docs/formats.md, Paths)."""
    if not isinstance(value, str) or len(value) > TEXT_CHARACTERS_MAX:
        raise StatementError(f"{where} is not path text")
    try:
        canonical.path_bytes(value)
    except EncodingError as error:
        raise StatementError(f"{where}: {error}") from None
