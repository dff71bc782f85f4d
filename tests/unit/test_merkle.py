"""RFC 6962 trees, held against a second, recursive implementation that follows the RFC's text."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import List, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rootseal import merkle
from rootseal.errors import ProofError

VECTORS = json.loads(
    (Path(__file__).resolve().parents[1] / "data" / "merkle_vectors.json").read_text("utf-8")
)


def oracle_root(leaves: Sequence[bytes]) -> bytes:
    """MTH of RFC 6962 section 2.1."""
    if not leaves:
        return hashlib.sha256(b"").digest()
    if len(leaves) == 1:
        return hashlib.sha256(b"\x00" + leaves[0]).digest()
    k = largest_power_below(len(leaves))
    return hashlib.sha256(b"\x01" + oracle_root(leaves[:k]) + oracle_root(leaves[k:])).digest()


def oracle_path(index: int, leaves: Sequence[bytes]) -> List[bytes]:
    """PATH of RFC 6962 section 2.1.1."""
    if len(leaves) == 1:
        return []
    k = largest_power_below(len(leaves))
    if index < k:
        return [*oracle_path(index, leaves[:k]), oracle_root(leaves[k:])]
    return [*oracle_path(index - k, leaves[k:]), oracle_root(leaves[:k])]


def largest_power_below(n: int) -> int:
    k = 1
    while k * 2 < n:
        k *= 2
    return k


def leaves_of(size: int) -> List[bytes]:
    return [b"leaf %d" % number for number in range(size)]


def hashes_of(leaves: Sequence[bytes]) -> List[bytes]:
    return [merkle.leaf_hash(leaf) for leaf in leaves]


@pytest.mark.parametrize("vector", VECTORS["roots"], ids=lambda item: str(len(item["leaves"])))
def test_roots_of_the_certificate_transparency_vectors(vector: dict[str, object]) -> None:
    leaves = [bytes.fromhex(item) for item in vector["leaves"]]  # type: ignore[attr-defined]
    assert merkle.root_of_hashes(hashes_of(leaves)).hex() == vector["root"]


@pytest.mark.parametrize("size", range(70))
def test_every_root_and_proof_equals_the_oracle(size: int) -> None:
    leaves = leaves_of(size)
    hashes = hashes_of(leaves)
    root = oracle_root(leaves)
    assert merkle.root_of_hashes(hashes) == root
    for index in range(size):
        proof = merkle.inclusion_proof(hashes, leaf_index=index, tree_size=size)
        assert list(proof) == oracle_path(index, leaves)
        merkle.verify_inclusion(
            leaf_hash=hashes[index],
            leaf_index=index,
            tree_size=size,
            proof=proof,
            root_hash=root,
        )


@given(st.integers(1, 300), st.data())
def test_a_proof_is_good_for_one_position_of_one_tree_only(size: int, data: st.DataObject) -> None:
    index = data.draw(st.integers(0, size - 1))
    hashes = hashes_of(leaves_of(size))
    root = merkle.root_of_hashes(hashes)
    proof = merkle.inclusion_proof(iter(hashes), leaf_index=index, tree_size=size)
    other_index = data.draw(st.integers(-2, size + 2).filter(lambda value: value != index))
    other_size = data.draw(st.integers(0, size * 2).filter(lambda value: value != size))
    good = {
        "leaf_hash": hashes[index],
        "leaf_index": index,
        "tree_size": size,
        "proof": proof,
        "root_hash": root,
    }
    for change in (
        {"leaf_index": other_index},
        {"leaf_hash": hashes[index][::-1]},
        {"root_hash": root[::-1]},
        {"proof": (*proof, root)},
        {"proof": proof[:-1]} if proof else {"proof": (root,)},
        {"leaf_hash": hashes[index][:31]},
        {"root_hash": root + b"\x00"},
    ):
        with pytest.raises(ProofError):
            merkle.verify_inclusion(**{**good, **change})  # type: ignore[arg-type]
    changed_size = {**good, "tree_size": other_size}
    try:
        merkle.verify_inclusion(**changed_size)  # type: ignore[arg-type]
    except ProofError:
        return
    # RFC 6962 proofs do not bind the size: some sizes share a path. The signed size does that.
    assert len(oracle_path(index, leaves_of(other_size))) == len(proof)


@pytest.mark.parametrize("fault", VECTORS["faults"], ids=lambda item: item["name"])
def test_named_faults_are_refused(fault: dict[str, object]) -> None:
    with pytest.raises(ProofError, match=str(fault["message"])):
        merkle.verify_inclusion(
            leaf_hash=bytes.fromhex(str(fault["leafHash"])),
            leaf_index=int(str(fault["leafIndex"])),
            tree_size=int(str(fault["treeSize"])),
            proof=[bytes.fromhex(item) for item in fault["proof"]],  # type: ignore[attr-defined]
            root_hash=bytes.fromhex(str(fault["root"])),
        )


def test_a_node_cannot_pass_for_a_leaf() -> None:
    """Second preimage: the two children of a node, taken as a leaf's bytes, hash differently."""
    hashes = hashes_of(leaves_of(4))
    root = merkle.root_of_hashes(hashes)
    forged = merkle.leaf_hash(hashes[0] + hashes[1])
    with pytest.raises(ProofError):
        merkle.verify_inclusion(
            leaf_hash=forged,
            leaf_index=0,
            tree_size=2,
            proof=[merkle.node_hash(hashes[2], hashes[3])],
            root_hash=root,
        )


@pytest.mark.parametrize(("count", "claimed"), [(3, 4), (5, 4), (0, 1)])
def test_a_proof_over_another_number_of_leaves_is_refused(count: int, claimed: int) -> None:
    with pytest.raises(ProofError, match="leaves"):
        merkle.inclusion_proof(hashes_of(leaves_of(count)), leaf_index=0, tree_size=claimed)


def test_sizes_beyond_the_limit_are_refused() -> None:
    with pytest.raises(ProofError, match="tree size"):
        merkle.inclusion_proof([], leaf_index=0, tree_size=merkle.LEAF_COUNT_MAX + 1)
