"""The C core's leaf tables and Merkle roots against the Python reference."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rootseal import leaf_table, merkle
from rootseal.errors import EncodingError
from rootseal.leaf_table import Domain, Leaf

_native = pytest.importorskip("rootseal._native", reason="the C core is not built; `make build`")

paths = st.binary(min_size=1, max_size=40).filter(lambda path: b"\0" not in path)
leaves = st.builds(
    Leaf,
    path=paths,
    digest=st.binary(min_size=32, max_size=32),
    size=st.integers(0, 2**64 - 1),
    mode=st.integers(0, 0o7777),
    kind=st.integers(0, 2),
    source=st.integers(0, 8),
)


@given(st.lists(st.binary(min_size=32, max_size=32), max_size=70))
def test_merkle_root_is_the_reference(hashes: list[bytes]) -> None:
    hasher = merkle.TreeHasher()
    for leaf_hash in hashes:
        hasher.add(leaf_hash)
    assert _native.merkle_root_of_hashes(b"".join(hashes)) == hasher.root()


@given(st.lists(leaves, max_size=20))
def test_a_table_verifies_like_the_reference(items: list[Leaf]) -> None:
    table = leaf_table.encode(Domain.MATERIAL, sorted(set(items)))
    assert _native.leaf_table_verify(table.raw, ord("M")) == (table.tree_root, table.tree_size)
    with pytest.raises(EncodingError):
        _native.leaf_table_verify(table.raw, ord("P"))


def outcome(check: object, raw: bytes) -> object:
    try:
        return check(raw)  # type: ignore[operator]
    except EncodingError:
        return "refused"


@settings(max_examples=60)
@given(st.lists(leaves, min_size=1, max_size=3), st.integers(0, 10**6), st.integers(1, 255))
def test_both_refuse_the_same_changes(items: list[Leaf], place: int, flip: int) -> None:
    raw = bytearray(leaf_table.encode(Domain.MATERIAL, sorted(set(items))).raw)
    raw[place % len(raw)] ^= flip
    changed = bytes(raw)
    native = outcome(lambda data: _native.leaf_table_verify(data, ord("M")), changed)
    assert native == outcome(
        lambda data: leaf_table.verify_reference(data, Domain.MATERIAL), changed
    )


@given(st.binary(max_size=200))
def test_garbage_is_refused_alike(data: bytes) -> None:
    raw = b"RSLT\x01M\0\0" + data
    native = outcome(lambda value: _native.leaf_table_verify(value, ord("M")), raw)
    assert native == outcome(lambda value: leaf_table.verify_reference(value, Domain.MATERIAL), raw)


def test_truncation_at_every_length() -> None:
    items = [
        Leaf(b"a/%d" % n, hashlib.sha256(b"%d" % n).digest(), n, 0o644, 0, 0) for n in range(5)
    ]
    raw = leaf_table.encode(Domain.MATERIAL, items).raw
    for length in range(len(raw)):
        with pytest.raises(EncodingError):
            _native.leaf_table_verify(raw[:length], ord("M"))


def test_hashes_of_a_wrong_length() -> None:
    with pytest.raises(EncodingError):
        _native.merkle_root_of_hashes(b"x" * 33)
