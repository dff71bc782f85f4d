"""Leaf and opens tables: strict, reversible, and the same in Python and in the C core."""

from __future__ import annotations

import struct
import zlib
from typing import Callable, List, Tuple

import core_factory as factory
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rootseal import canonical, leaf_table, merkle, opens_table
from rootseal.errors import EncodingError
from rootseal.leaf_table import Domain, Leaf

PATHS = st.binary(min_size=1, max_size=30).filter(lambda path: b"\x00" not in path)
LEAVES = st.builds(
    Leaf,
    PATHS,
    st.binary(min_size=32, max_size=32),
    st.integers(0, 2**64 - 1),
    st.integers(0, 0o7777),
    st.integers(0, 2),
    st.integers(0, 8),
)

Verify = Callable[[bytes, Domain], Tuple[bytes, int]]


@pytest.fixture(params=["reference", "native"])
def verify(request: pytest.FixtureRequest) -> Verify:
    if request.param == "reference":
        return leaf_table.verify_reference
    if not leaf_table.uses_native():
        pytest.skip("the C core is not built; run `make build`")
    return leaf_table.verify


def table(*entries: bytes, count: int = -1, head: bytes = b"RSLT\x01M\x00\x00") -> bytes:
    return head + struct.pack(">I", len(entries) if count < 0 else count) + b"".join(entries)


def entry(
    path: bytes,
    *,
    shared: int = 0,
    size: bytes = b"\x01",
    mode: bytes = b"\xa4\x03",
    kind: int = 0,
    source: int = 0,
    digest: bytes = bytes(32),
) -> bytes:
    suffix = path[shared:]
    number = canonical.encode_uvarint
    head = number(shared) + number(len(suffix)) + suffix + size + mode
    return head + bytes((kind, source)) + digest


@given(st.lists(LEAVES, max_size=40), st.sampled_from(list(Domain)))
def test_tables_are_reversible_and_the_tree_is_that_of_the_leaves(
    leaves: List[Leaf], domain: Domain
) -> None:
    encoded = leaf_table.encode(domain, leaves)
    ordered = sorted(set(leaves))
    assert list(leaf_table.iter_leaves(encoded.raw, domain)) == ordered
    root = merkle.root_of_hashes(leaf_table.hash_leaf(domain, leaf) for leaf in ordered)
    assert (encoded.tree_root, encoded.tree_size) == (root, len(ordered))
    assert leaf_table.verify_reference(encoded.raw, domain) == (root, len(ordered))
    assert leaf_table.verify(encoded.raw, domain) == (root, len(ordered))
    assert leaf_table.decompress(leaf_table.compress(encoded.raw)) == encoded.raw


def test_the_leaf_is_laid_out_as_the_format_says() -> None:
    leaf = Leaf(b"a/b", bytes(range(32)), 258, 0o755, 1, 8)
    expected = b"M\x00\x00\x00\x03a/b" + bytes(range(32)) + b"\x00" * 6 + b"\x01\x02"
    expected += b"\x00\x00\x01\xed" + b"\x01\x08"
    assert leaf_table.leaf_bytes(Domain.MATERIAL, leaf) == expected


def test_same_content_at_two_paths_and_two_contents_at_one_path_are_two_leaves() -> None:
    leaves = [factory.leaf(b"a", b"x"), factory.leaf(b"b", b"x"), factory.leaf(b"a", b"y")]
    encoded = leaf_table.encode(Domain.PRODUCT, [*leaves, leaves[0]])
    assert encoded.tree_size == 3
    found = leaf_table.find(encoded.raw, Domain.PRODUCT, b"a")
    assert {leaf.digest for _, leaf in found} == {leaves[0].digest, leaves[2].digest}


def test_domains_are_separated() -> None:
    leaves = [factory.leaf(b"a")]
    roots = {leaf_table.encode(domain, leaves).tree_root for domain in Domain}
    assert len(roots) == len(Domain)


GOOD = table(entry(b"ab"), entry(b"abc", shared=2), entry(b"b"))


def test_the_hand_made_table_is_good(verify: Verify) -> None:
    leaves = list(leaf_table.iter_leaves(GOOD, Domain.MATERIAL))
    assert [leaf.path for leaf in leaves] == [b"ab", b"abc", b"b"]
    root = merkle.root_of_hashes(leaf_table.hash_leaf(Domain.MATERIAL, leaf) for leaf in leaves)
    assert verify(GOOD, Domain.MATERIAL) == (root, 3)


@pytest.mark.parametrize(
    "raw",
    [
        pytest.param(b"", id="empty"),
        pytest.param(GOOD[:-1], id="cut"),
        pytest.param(GOOD + b"\x00", id="bytes-after"),
        pytest.param(table(entry(b"a"), head=b"RSLX\x01M\x00\x00"), id="magic"),
        pytest.param(table(entry(b"a"), head=b"RSLT\x02M\x00\x00"), id="version"),
        pytest.param(table(entry(b"a"), head=b"RSLT\x01P\x00\x00"), id="domain"),
        pytest.param(table(entry(b"a"), head=b"RSLT\x01M\x00\x01"), id="reserved"),
        pytest.param(table(entry(b"a"), count=2), id="count-too-large"),
        pytest.param(table(entry(b"a"), count=0), id="count-too-small"),
        pytest.param(table(entry(b"a"), count=2**32 - 1), id="count-huge"),
        pytest.param(table(entry(b"a"), count=2**24 + 1), id="count-beyond-limit"),
        pytest.param(table(entry(b"a"), entry(b"a", shared=1)), id="duplicate-leaf"),
        pytest.param(table(entry(b"b"), entry(b"a")), id="swapped-order"),
        pytest.param(
            table(entry(b"a", digest=b"\x02" * 32), entry(b"a", shared=1, digest=b"\x01" * 32)),
            id="order-within-a-path",
        ),
        pytest.param(table(entry(b"ab"), entry(b"abc", shared=1)), id="shared-not-longest"),
        pytest.param(table(entry(b"ab"), entry(b"abc", shared=3)), id="shared-beyond-previous"),
        pytest.param(
            table(entry(b"abc"), entry(b"abc", shared=2)[:1] + b"\x00" + entry(b"")[2:]),
            id="shorter",
        ),
        pytest.param(table(entry(b"a", shared=1)), id="shared-in-the-first"),
        pytest.param(table(entry(b"")), id="empty-path"),
        pytest.param(table(entry(b"a" * 4097)), id="path-too-long"),
        pytest.param(table(entry(b"a\x00b")), id="nul-in-path"),
        pytest.param(table(entry(b"a", mode=b"\x80\x20")), id="mode-beyond-07777"),
        pytest.param(table(entry(b"a", kind=4)), id="unknown-kind"),
        pytest.param(table(entry(b"a", source=9)), id="unknown-source"),
        pytest.param(table(entry(b"a", size=b"\x81\x00")), id="uvarint-not-shortest"),
        pytest.param(table(entry(b"a", size=b"\xff" * 9 + b"\x02")), id="uvarint-beyond-64-bits"),
        pytest.param(table(entry(b"a", size=b"\xff" * 10 + b"\x01")), id="uvarint-11-bytes"),
    ],
)
def test_tables_that_break_a_rule_are_refused(raw: bytes, verify: Verify) -> None:
    with pytest.raises(EncodingError):
        verify(raw, Domain.MATERIAL)


def test_the_largest_values_are_accepted(verify: Verify) -> None:
    raw = table(
        entry(b"a" * 4096, size=b"\xff" * 9 + b"\x01", mode=b"\xff\x1f", kind=3, source=8),
        count=1,
    )
    (leaf,) = leaf_table.iter_leaves(raw, Domain.MATERIAL)
    assert (leaf.size, leaf.mode) == (2**64 - 1, 0o7777)
    assert verify(raw, Domain.MATERIAL)[1] == 1


def test_an_empty_table_has_the_empty_root(verify: Verify) -> None:
    raw = leaf_table.encode(Domain.PRODUCT, []).raw
    assert verify(raw, Domain.PRODUCT) == (merkle.EMPTY_ROOT, 0)


@given(st.binary(max_size=120))
def test_any_bytes_give_the_same_answer_in_both(data: bytes) -> None:
    assert _outcome(leaf_table.verify, data) == _outcome(leaf_table.verify_reference, data)


@given(st.lists(LEAVES, min_size=1, max_size=8), st.data())
def test_any_small_damage_gives_the_same_answer_in_both(
    leaves: List[Leaf], data: st.DataObject
) -> None:
    raw = bytearray(leaf_table.encode(Domain.MATERIAL, leaves).raw)
    for _ in range(data.draw(st.integers(1, 3))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    damaged = bytes(raw)
    assert _outcome(leaf_table.verify, damaged) == _outcome(leaf_table.verify_reference, damaged)


def _outcome(verify: Verify, data: bytes) -> object:
    """Root and size, or that it was refused (the words may differ)."""
    try:
        return verify(data, Domain.MATERIAL)
    except EncodingError:
        return None


@given(st.lists(LEAVES, max_size=20), PATHS)
def test_neighbours_of_an_absent_path(leaves: List[Leaf], path: bytes) -> None:
    raw = leaf_table.encode(Domain.MATERIAL, leaves).raw
    ordered = sorted(set(leaves))
    if any(leaf.path == path for leaf in leaves):
        with pytest.raises(EncodingError, match="in the table"):
            leaf_table.neighbours(raw, Domain.MATERIAL, path)
        return
    before, after = leaf_table.neighbours(raw, Domain.MATERIAL, path)
    smaller = [leaf for leaf in ordered if leaf.path < path]
    assert before == ((len(smaller) - 1, smaller[-1]) if smaller else None)
    larger = ordered[len(smaller) :]
    assert after == ((len(smaller), larger[0]) if larger else None)


@pytest.mark.parametrize(
    "leaf",
    [
        Leaf(b"", bytes(32), 0, 0, 0, 0),
        Leaf(b"a\x00", bytes(32), 0, 0, 0, 0),
        Leaf(b"a" * 4097, bytes(32), 0, 0, 0, 0),
        Leaf(b"a", bytes(31), 0, 0, 0, 0),
        Leaf(b"a", bytes(32), -1, 0, 0, 0),
        Leaf(b"a", bytes(32), 2**64, 0, 0, 0),
        Leaf(b"a", bytes(32), 0, 0o10000, 0, 0),
        Leaf(b"a", bytes(32), 0, 0, 4, 0),
        Leaf(b"a", bytes(32), 0, 0, 0, 9),
    ],
)
def test_leaves_that_the_format_cannot_hold_are_refused(leaf: Leaf) -> None:
    with pytest.raises(EncodingError):
        leaf_table.encode(Domain.MATERIAL, [leaf])


@pytest.mark.parametrize(
    "stored",
    [
        b"",
        b"not zlib",
        zlib.compress(GOOD)[:-1],
        zlib.compress(GOOD) + b"x",
        zlib.compress(GOOD) * 2,
    ],
)
def test_stored_tables_that_are_not_one_stream_are_refused(stored: bytes) -> None:
    with pytest.raises(EncodingError):
        leaf_table.decompress(stored)


def test_a_bomb_is_refused_at_the_limit() -> None:
    bomb = zlib.compress(bytes(1 << 20))
    with pytest.raises(EncodingError, match="expands to more"):
        leaf_table.decompress(bomb, bytes_max=1 << 16)
    assert len(leaf_table.decompress(bomb, bytes_max=1 << 20)) == 1 << 20


@given(st.lists(st.sets(st.integers(0, 999), max_size=20), max_size=10))
def test_opens_tables_are_reversible(opens: List[set[int]]) -> None:
    raw = opens_table.encode(opens)
    walk = opens_table.iter_processes(raw, process_count=len(opens), material_count=1000)
    assert [set(indices) for indices in walk] == opens
    total = sum(len(indices) for indices in opens)
    assert opens_table.verify(raw, process_count=len(opens), material_count=1000) == total


@pytest.mark.parametrize(
    "raw",
    [
        pytest.param(b"RSOT\x01\x00\x00\x00\x00\x00\x00", id="cut-header"),
        pytest.param(b"RSOX\x01\x00\x00\x00\x00\x00\x00\x01\x01\x00", id="magic"),
        pytest.param(b"RSOT\x02\x00\x00\x00\x00\x00\x00\x01\x01\x00", id="version"),
        pytest.param(b"RSOT\x01\x00\x00\x01\x00\x00\x00\x01\x01\x00", id="reserved"),
        pytest.param(b"RSOT\x01\x00\x00\x00\x00\x00\x00\x02\x01\x00\x00", id="other-count"),
        pytest.param(b"RSOT\x01\x00\x00\x00\x00\x00\x00\x01\x01", id="cut"),
        pytest.param(b"RSOT\x01\x00\x00\x00\x00\x00\x00\x01\x01\x00\x00", id="bytes-after"),
        pytest.param(b"RSOT\x01\x00\x00\x00\x00\x00\x00\x01\x02\x01\x00", id="index-twice"),
        pytest.param(b"RSOT\x01\x00\x00\x00\x00\x00\x00\x01\x01\x05", id="no-such-material"),
        pytest.param(b"RSOT\x01\x00\x00\x00\x00\x00\x00\x01\x06\x00\x01", id="count-too-large"),
        pytest.param(b"RSOT\x01\x00\x00\x00\x00\x00\x00\x01\x01\x80\x00", id="not-shortest"),
    ],
)
def test_opens_tables_that_break_a_rule_are_refused(raw: bytes) -> None:
    with pytest.raises(EncodingError):
        opens_table.verify(raw, process_count=1, material_count=5)


@given(st.binary(max_size=60), st.integers(0, 3))
def test_any_bytes_give_opens_or_the_one_error(data: bytes, process_count: int) -> None:
    try:
        opens_table.verify(data, process_count=process_count, material_count=5)
    except EncodingError:
        return
    walk = opens_table.iter_processes(data, process_count=process_count, material_count=5)
    assert opens_table.encode(list(walk)) == data
