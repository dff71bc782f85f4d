"""RFC 6962 Merkle trees over SHA-256: roots, inclusion proofs and their verification.

Everything streams: a root or a proof over n leaves needs O(log n) memory. Pure functions.
"""

from __future__ import annotations

import hashlib
from typing import Iterable, List, Sequence, Tuple

from rootseal.errors import ProofError

HASH_BYTES = 32
LEAF_COUNT_MAX = 2**24
EMPTY_ROOT = hashlib.sha256(b"").digest()


def leaf_hash(leaf: bytes) -> bytes:
    """Hash of a leaf; the 0x00 separates leaves from nodes (RFC 6962 section 2.1)."""
    return hashlib.sha256(b"\x00" + leaf).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """Hash of an inner node (RFC 6962 section 2.1)."""
    return hashlib.sha256(b"\x01" + left + right).digest()


class TreeHasher:
    """Root of a tree whose leaf hashes come one at a time.

    The stack holds the roots of the perfect subtrees that the binary form of the size names.
    """

    def __init__(self) -> None:
        self._stack: List[bytes] = []
        self.tree_size = 0

    def add(self, hashed_leaf: bytes) -> None:
        """Append one leaf hash (32 bytes)."""
        count, node, stack = self.tree_size, hashed_leaf, self._stack
        while count & 1:
            node = hashlib.sha256(b"\x01" + stack.pop() + node).digest()
            count >>= 1
        stack.append(node)
        self.tree_size += 1

    def root(self) -> bytes:
        """Root over the leaves so far; more may be added afterwards."""
        if not self._stack:
            return EMPTY_ROOT
        node = self._stack[-1]
        for left in reversed(self._stack[:-1]):
            node = node_hash(left, node)
        return node


def root_of_hashes(hashed_leaves: Iterable[bytes]) -> bytes:
    """Root of the tree with these leaf hashes, in this order."""
    hasher = TreeHasher()
    for hashed in hashed_leaves:
        hasher.add(hashed)
    return hasher.root()


def inclusion_proof(
    hashed_leaves: Iterable[bytes], *, leaf_index: int, tree_size: int
) -> Tuple[bytes, ...]:
    """Sibling hashes from the leaf up, made in one pass over the leaf hashes.

    Args:
        hashed_leaves: All leaf hashes of the tree, in order.
        leaf_index: Position of the leaf, 0 <= leaf_index < tree_size.
        tree_size: Number of leaves that `hashed_leaves` gives.

    Raises:
        ProofError: Index out of range, or another number of leaves.

    Source:
        RFC 6962 section 2.1.1.
    """
    _check_position(leaf_index, tree_size)
    ranges = _sibling_ranges(leaf_index, tree_size)
    hashers = [(start, end, TreeHasher()) for start, end in sorted(ranges)]
    position, current = 0, 0
    for hashed in hashed_leaves:
        if current < len(hashers) and position == hashers[current][1]:
            current += 1
        if current < len(hashers) and position >= hashers[current][0]:
            hashers[current][2].add(hashed)
        position += 1
    if position != tree_size:
        raise ProofError(f"the tree has {position} leaves, not {tree_size}")
    roots = {(start, end): hasher.root() for start, end, hasher in hashers}
    return tuple(roots[item] for item in ranges)


def verify_inclusion(
    *,
    leaf_hash: bytes,
    leaf_index: int,
    tree_size: int,
    proof: Sequence[bytes],
    root_hash: bytes,
) -> None:
    """Check that a leaf is in the tree with the given root.

    Args:
        leaf_hash: RFC 6962 leaf hash, 32 bytes (not the leaf itself).
        leaf_index: Position of the leaf, 0 <= leaf_index < tree_size.
        tree_size: Number of leaves, 1 <= tree_size <= LEAF_COUNT_MAX.
        proof: Sibling hashes from the leaf up; index and size fix its exact length.
        root_hash: The trusted root, 32 bytes.

    Raises:
        ProofError: An argument out of range, a wrong length, or another root.

    Source:
        RFC 6962 section 2.1.1; the order of the steps is RFC 9162 section 2.1.3.2.
    """
    _check_position(leaf_index, tree_size)
    expected_length = len(_sibling_ranges(leaf_index, tree_size))
    if len(proof) != expected_length:
        raise ProofError(f"proof has {len(proof)} hashes; this position needs {expected_length}")
    if any(len(item) != HASH_BYTES for item in (leaf_hash, root_hash, *proof)):
        raise ProofError(f"a hash of the proof is not {HASH_BYTES} bytes long")
    node, index, last = leaf_hash, leaf_index, tree_size - 1
    for sibling in proof:
        if index & 1 or index == last:
            node = node_hash(sibling, node)
            while not index & 1 and index != 0:
                index, last = index >> 1, last >> 1
        else:
            node = node_hash(node, sibling)
        index, last = index >> 1, last >> 1
    if node != root_hash:
        raise ProofError(
            f"proof leads to root {node.hex()}, expected {root_hash.hex()}",
            data={"calculated": node.hex(), "expected": root_hash.hex()},
        )


def _check_position(leaf_index: int, tree_size: int) -> None:
    if not 1 <= tree_size <= LEAF_COUNT_MAX:
        raise ProofError(f"tree size {tree_size} is not in 1..{LEAF_COUNT_MAX}")
    if not 0 <= leaf_index < tree_size:
        raise ProofError(f"leaf index {leaf_index} is not below the tree size {tree_size}")


def _sibling_ranges(leaf_index: int, tree_size: int) -> List[Tuple[int, int]]:
    """Half-open leaf ranges of the proof's subtrees, from the leaf up (RFC 6962 PATH)."""
    ranges = []
    start, end = 0, tree_size
    while end - start > 1:
        split = start + (1 << (end - start - 1).bit_length() - 1)
        if leaf_index < split:
            ranges.append((split, end))
            end = split
        else:
            ranges.append((start, split))
            start = split
    ranges.reverse()
    return ranges
