"""Proofs: small JSON files that show one fact of a bundle to someone who has only the public key.

A proof embeds the signed envelopes it leans on. `make_*` take an open bundle that `verify_root`
accepted; `verify_proof` (in verify_proof.py) needs nothing but the proof and the key.
"""

from __future__ import annotations

import json
from typing import Dict, List, Optional, Sequence, Tuple

from rootseal import canonical, leaf_path, leaf_table, merkle, record, record_check
from rootseal.bundle import BundleReader, IndexEntry
from rootseal.checks import Check, checking
from rootseal.errors import EncodingError, PolicyError, ProofError, StatementError
from rootseal.leaf_table import Domain, Leaf
from rootseal.predicate import ActionPredicate
from rootseal.verify import ArtifactDigest, VerifiedRoot, match_artifacts

PROOF_BYTES_MAX = 256 * 1024 * 1024
PROOF_VERSION = 1
Json = Dict[str, object]


def prove_artifact(bundle: BundleReader, root: VerifiedRoot, artifact: ArtifactDigest) -> Json:
    """Show that a file is an artifact of the build."""
    ((_, name),) = match_artifacts(root.subjects, [artifact])
    return {**_head(bundle, "artifact"), "artifact": {"name": name, "sha256": artifact.sha256}}


def prove_action(bundle: BundleReader, root: VerifiedRoot, action_key: bytes) -> Json:
    """Show that an action is in the build, and what its record says."""
    _check_tree(bundle, root)
    leaf_index, entry = find_action(bundle, action_key)
    return {**_head(bundle, "action"), "action": _action(bundle, root, leaf_index, entry)}


def prove_leaf(
    bundle: BundleReader,
    root: VerifiedRoot,
    domain: Domain,
    path: bytes,
    *,
    action_key: Optional[bytes],
) -> Json:
    """Show that an action read (material) or left behind (product) a path.

    Args:
        bundle: The bundle.
        root: Its verified root.
        domain: `Domain.MATERIAL` or `Domain.PRODUCT`.
        path: The path as tables hold it: relative inside the action's root, else absolute.
        action_key: The action, or None for the first action (in leaf order) with this path.

    Raises:
        ProofError: No such action has this path.
    """
    _check_tree(bundle, root)
    for leaf_index, entry in _actions(bundle, action_key):
        raw = _open_table(bundle, root, entry, domain)
        found = leaf_table.find(raw, domain, path)
        if found:
            return {
                **_head(bundle, domain.name.lower()),
                "action": _action(bundle, root, leaf_index, entry),
                "leaf": _leaf(raw, domain, *found[0]),
            }
    with checking(Check.PROOF, ProofError):
        raise ProofError(
            f"no such action has the {domain.name.lower()} {canonical.path_text(path)}; "
            "`rootseal show --expand` lists them (paths in the sandbox are relative)"
        )


def prove_absence(
    bundle: BundleReader, root: VerifiedRoot, path: bytes, *, action_key: Optional[bytes]
) -> Json:
    """Show that an action, or no action at all, read a path.

    Args:
        bundle: The bundle.
        root: Its verified root.
        path: Absolute, or relative to the action's root; spelled as the capture records it, after
            symbolic links were resolved. An absolute path is looked up relative in every action
            whose root it is below.
        action_key: One action, or None for all actions of the build.

    Raises:
        ProofError: The path was read (names the action), or is one that no table can hold.
    """
    _check_tree(bundle, root)
    text = canonical.path_text(path)
    with checking(Check.PROOF, ProofError):
        leaf_path.check(path)
    if action_key is not None:
        leaf_index, entry = find_action(bundle, action_key)
        return {
            **_head(bundle, "absence"),
            "path": text,
            "action": _action(bundle, root, leaf_index, entry),
            "gap": _gap(bundle, root, entry, path),
        }
    actions: List[Json] = []
    size = 0
    for entry in bundle.entries():
        envelope_bytes = _read_record(bundle, entry).envelope
        gap = _gap(bundle, root, entry, path)
        actions.append({"envelope": json.loads(envelope_bytes), "gap": gap})
        size += len(envelope_bytes)
        if size > PROOF_BYTES_MAX // 2:
            raise PolicyError("the proof over all actions would be too large; name one (--action)")
    return {**_head(bundle, "absence-in-build"), "path": text, "actions": actions}


def encode_proof(proof: Json) -> bytes:
    """The bytes of a proof file."""
    data = canonical.encode(proof) + b"\n"
    if len(data) > PROOF_BYTES_MAX:
        raise PolicyError(f"the proof has {len(data)} bytes; at most {PROOF_BYTES_MAX} are read")
    return data


def find_action(bundle: BundleReader, action_key: bytes) -> Tuple[int, IndexEntry]:
    """Leaf index and entry of an action.

    Raises:
        ProofError: The bundle has no such action.
    """
    for leaf_index, entry in enumerate(bundle.entries()):
        if entry.action_key == action_key:
            return leaf_index, entry
    with checking(Check.PROOF, ProofError):
        raise ProofError(f"the bundle has no action {action_key.hex()}; `rootseal show` lists them")


def leaf_document(leaf: Leaf) -> Json:
    """A leaf as JSON."""
    return {
        "path": canonical.path_text(leaf.path),
        "sha256": leaf.digest.hex(),
        "size": leaf.size,
        "mode": leaf.mode,
        "kind": int(leaf.kind),
        "source": int(leaf.source),
    }


def _head(bundle: BundleReader, kind: str) -> Json:
    return {
        "version": PROOF_VERSION,
        "kind": kind,
        "rootEnvelope": json.loads(bundle.root_envelope),  # canonical, so this loses nothing
    }


def _check_tree(bundle: BundleReader, root: VerifiedRoot) -> None:
    with checking(Check.TREE, ProofError):
        if bundle.record_count != root.predicate.tree_size:
            raise ProofError("the bundle does not have as many records as its signed tree")
        if merkle.root_of_hashes(bundle.leaf_hashes()) != root.predicate.tree_root:
            raise ProofError("the tree of the records does not have the signed root")


def _actions(bundle: BundleReader, action_key: Optional[bytes]) -> Sequence[Tuple[int, IndexEntry]]:
    if action_key is not None:
        return [find_action(bundle, action_key)]
    return list(enumerate(bundle.entries()))


def _read_record(bundle: BundleReader, entry: IndexEntry) -> record.ActionRecord:
    about = f"action {entry.action_key.hex()[:16]}"
    with checking(Check.RECORD_FORMAT, StatementError, about=about):
        return record.parse_record(bundle.read_record(entry))


def _open_table(
    bundle: BundleReader, root: VerifiedRoot, entry: IndexEntry, domain: Domain
) -> bytes:
    return _open_action(bundle, root, entry, domain)[1]


def _open_action(
    bundle: BundleReader, root: VerifiedRoot, entry: IndexEntry, domain: Domain
) -> Tuple[ActionPredicate, bytes]:
    about = f"action {entry.action_key.hex()[:16]}"
    parts = _read_record(bundle, entry)
    predicate, _ = record_check.verify_action_envelope(
        parts.envelope,
        action_key=entry.action_key,
        envelope_sha256=entry.envelope_sha256,
        trusted=root.capture_keys,
        about=about,
    )
    with checking(Check.RECORD_TABLES, ProofError, about=about):
        reference, stored = predicate.materials, parts.tables.materials
        if domain is Domain.PRODUCT:
            reference, stored = predicate.products, parts.tables.products
        return predicate, record_check.open_table(reference, stored, domain)


def _action(bundle: BundleReader, root: VerifiedRoot, leaf_index: int, entry: IndexEntry) -> Json:
    proof = merkle.inclusion_proof(
        bundle.leaf_hashes(), leaf_index=leaf_index, tree_size=root.predicate.tree_size
    )
    return {
        "leafIndex": leaf_index,
        "inclusion": [item.hex() for item in proof],
        "envelope": json.loads(_read_record(bundle, entry).envelope),
    }


def _leaf(raw: bytes, domain: Domain, leaf_index: int, leaf: Leaf) -> Json:
    proof = leaf_table.inclusion_proof(raw, domain, leaf_index)
    return {
        "leafIndex": leaf_index,
        "inclusion": [item.hex() for item in proof],
        "leaf": leaf_document(leaf),
    }


def _gap(bundle: BundleReader, root: VerifiedRoot, entry: IndexEntry, path: bytes) -> Json:
    """The neighbours between which an absent path would stand."""
    predicate, raw = _open_action(bundle, root, entry, Domain.MATERIAL)
    with checking(Check.PROOF, ProofError, about=f"action {entry.action_key.hex()[:16]}"):
        recorded = leaf_path.recorded(path, record_check.action_root(predicate))
        try:
            before, after = leaf_table.neighbours(raw, Domain.MATERIAL, recorded)
        except EncodingError:
            raise ProofError(f"the action did read {canonical.path_text(path)}") from None
    return {
        "before": None if before is None else _leaf(raw, Domain.MATERIAL, *before),
        "after": None if after is None else _leaf(raw, Domain.MATERIAL, *after),
    }
