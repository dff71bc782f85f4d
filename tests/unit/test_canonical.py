"""Canonical JSON, path text and uvarint."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rootseal import canonical
from rootseal.errors import EncodingError

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-canonical.INTEGER_MAX, canonical.INTEGER_MAX)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: (
        st.lists(inner) | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner)
    ),
    max_leaves=20,
)


@given(VALUES)
def test_what_is_encoded_is_parsed_back(value: object) -> None:
    data = canonical.encode(value)
    assert canonical.parse_canonical(data, bytes_max=len(data)) == value


@given(st.binary(max_size=200))
def test_any_bytes_give_a_value_or_the_one_error(data: bytes) -> None:
    try:
        value = canonical.parse_canonical(data, bytes_max=1000)
    except EncodingError:
        return
    assert canonical.encode(value) == data


@given(VALUES, st.integers(0, 3))
def test_another_encoding_of_the_same_value_is_refused(value: object, indent: int) -> None:
    data = json.dumps([value], indent=indent).encode()
    with pytest.raises(EncodingError, match="canonical"):
        canonical.parse_canonical(data, bytes_max=len(data))


@pytest.mark.parametrize(
    "data",
    [
        b'{"b":1,"a":2}',
        b'{"a":1, "b":2}',
        b'{"a":1,"a":1}',
        b"1.0",
        b"1e3",
        b"-0",
        b"01",
        b"NaN",
        b"Infinity",
        b"9007199254740992",
        b"9" * 5000,
        b'"\xc3\xa9"',  # an é that is not escaped
        b'"\\u00E9"',
        b'"\\/"',
        b'"\\ud800"',
        b'"\xff"',
        b"\xef\xbb\xbf1",
        b"1\n",
        b"",
        b"[1",
        b'"\t"',
        b"{1:2}",
        b"[" * 65 + b"]" * 65,
        b"[" * 100_000 + b"]" * 100_000,
        b'{"a":' * 100_000,
    ],
)
def test_bytes_that_are_not_canonical_are_refused(data: bytes) -> None:
    with pytest.raises(EncodingError):
        canonical.parse_canonical(data, bytes_max=1 << 20)


@pytest.mark.parametrize(
    "value", [1.5, 2**53, -(2**53), "\ud800", {"\udfff": 1}, {1: 2}, b"x", {1, 2}, object()]
)
def test_values_without_a_canonical_form_are_refused(value: object) -> None:
    with pytest.raises(EncodingError):
        canonical.encode(value)


def test_depth_is_bounded_when_encoding_too() -> None:
    value: object = 1
    for _ in range(canonical.DEPTH_MAX - 1):
        value = [value]
    canonical.encode(value)
    with pytest.raises(EncodingError, match="deeper"):
        canonical.encode([value])


def test_size_is_refused_before_parsing() -> None:
    with pytest.raises(EncodingError, match="at most 10"):
        canonical.parse(b'"%s"' % (b"x" * 9), bytes_max=10)
    with pytest.raises(EncodingError, match="more than"):
        canonical.parse(b"[" + b"," * canonical.NODE_COUNT_MAX + b"]", bytes_max=1 << 30)


@given(st.binary(max_size=300))
def test_path_text_is_reversible(path: bytes) -> None:
    text = canonical.path_text(path)
    assert canonical.path_bytes(text) == path
    assert json.loads(canonical.encode(text)) == text
    assert not any(ord(character) < 0x20 or ord(character) == 0x7F for character in text)


@given(st.text(max_size=50))
def test_no_two_texts_stand_for_one_path(text: str) -> None:
    try:
        path = canonical.path_bytes(text)
    except EncodingError:
        return
    assert canonical.path_text(path) == text


@pytest.mark.parametrize(
    ("path", "text"),
    [
        (b"a b", "a b"),
        (b"100%", "100%25"),
        (b"new\nline", "new%0Aline"),
        (b"\xff", "%FF"),
        (b"\xe2\x82", "%E2%82"),
        ("€".encode(), "€"),
        (b"\xed\xa0\x80", "%ED%A0%80"),  # a surrogate in UTF-8 is not valid UTF-8
    ],
)
def test_path_text_examples(path: bytes, text: str) -> None:
    assert canonical.path_text(path) == text


@pytest.mark.parametrize("text", ["%", "%4", "%41", "%0a", "%E2%82%AC", "%zz", "a\nb", "\udc80"])
def test_path_text_in_another_form_is_refused(text: str) -> None:
    with pytest.raises(EncodingError):
        canonical.path_bytes(text)


@given(st.integers(0, canonical.UVARINT_MAX))
def test_uvarint_is_reversible(value: int) -> None:
    data = canonical.encode_uvarint(value)
    assert canonical.decode_uvarint(b"x" + data, 1) == (value, len(data) + 1)


@pytest.mark.parametrize(
    "data", [b"", b"\x80", b"\x80\x00", b"\xff" * 9 + b"\x02", b"\xff" * 10, b"\x80" * 10 + b"\x01"]
)
def test_uvarint_in_another_form_is_refused(data: bytes) -> None:
    with pytest.raises(EncodingError):
        canonical.decode_uvarint(data, 0)


@pytest.mark.parametrize("value", [-1, 2**64])
def test_uvarint_out_of_range_is_refused(value: int) -> None:
    with pytest.raises(EncodingError):
        canonical.encode_uvarint(value)
