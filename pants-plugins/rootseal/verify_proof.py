"""Verification of a proof file: the proof, the public key, and nothing else."""

from __future__ import annotations

import dataclasses
from typing import Callable, Dict, List, Mapping, Optional, Sequence, Tuple

from rootseal import (
    canonical,
    digest,
    leaf_path,
    leaf_table,
    merkle,
    record_check,
    schema,
    verify,
)
from rootseal.bundle import action_leaf_hash
from rootseal.checks import Check, checking
from rootseal.errors import PolicyError, ProofError, StatementError
from rootseal.keys import PublicKey
from rootseal.leaf_table import Domain, Leaf
from rootseal.policy import Policy
from rootseal.predicate import ActionPredicate, TableReference
from rootseal.prove import PROOF_BYTES_MAX, PROOF_VERSION
from rootseal.verify import VerifiedRoot

Json = Mapping[str, object]
_HASHES_MAX = 64

_HASHES = schema.list_of(schema.digest_text, _HASHES_MAX)
_ENVELOPE = schema.anything  # its bytes are made canonical again and checked as an envelope
_LEAF = schema.object_of(
    {
        "leafIndex": schema.integer(),
        "inclusion": _HASHES,
        "leaf": schema.object_of(
            {
                "path": schema.path_text,
                "sha256": schema.digest_text,
                "size": schema.integer(),
                "mode": schema.integer(),
                "kind": schema.integer(),
                "source": schema.integer(),
            }
        ),
    }
)
_GAP = schema.object_of({"before": schema.nullable(_LEAF), "after": schema.nullable(_LEAF)})
_ACTION = schema.object_of(
    {"leafIndex": schema.integer(), "inclusion": _HASHES, "envelope": _ENVELOPE}
)
_HEAD: Mapping[str, schema.Shape] = {
    "version": schema.exactly(PROOF_VERSION),
    "kind": schema.text(64),
    "rootEnvelope": _ENVELOPE,
}
_SHAPES: Mapping[str, schema.Shape] = {
    "artifact": schema.object_of(
        {
            **_HEAD,
            "artifact": schema.object_of({"name": schema.text(8192), "sha256": schema.digest_text}),
        }
    ),
    "action": schema.object_of({**_HEAD, "action": _ACTION}),
    "material": schema.object_of({**_HEAD, "action": _ACTION, "leaf": _LEAF}),
    "product": schema.object_of({**_HEAD, "action": _ACTION, "leaf": _LEAF}),
    "absence": schema.object_of(
        {**_HEAD, "path": schema.path_text, "action": _ACTION, "gap": _GAP}
    ),
    "absence-in-build": schema.object_of(
        {
            **_HEAD,
            "path": schema.path_text,
            "actions": schema.list_of(
                schema.object_of({"envelope": _ENVELOPE, "gap": _GAP}), merkle.LEAF_COUNT_MAX
            ),
        }
    ),
}


@dataclasses.dataclass(frozen=True)
class ProvenFact:
    """What a proof shows.

    Attributes:
        kind: Kind of the proof, for example `material`.
        claim: One sentence.
        data: The facts of the sentence, for `--json`.
        root: The root statement it stands under.
    """

    kind: str
    claim: str
    data: Mapping[str, object]
    root: VerifiedRoot = dataclasses.field(repr=False)


def verify_proof(
    data: bytes,
    *,
    trusted: Sequence[PublicKey],
    capture_keys: Optional[Sequence[PublicKey]],
    policy: Policy,
) -> ProvenFact:
    """Verify a proof.

    The losses and the posture of the actions it leans on are judged as `verify` does: what an
    incomplete capture does not show may have happened all the same.

    Args:
        data: The proof file.
        trusted: Keys that may have signed the root; at least one.
        capture_keys: If given, only these capture keys are accepted.
        policy: What is demanded beyond being genuine.

    Raises:
        VerificationError: The first check that refuses, by name in `check`.
    """
    proof = _parse(data)
    root = verify.verify_root(
        _envelope_bytes(proof["rootEnvelope"]), trusted=trusted, capture_keys=capture_keys
    )
    kind = str(proof["kind"])
    claim, facts = _VERIFIERS[kind](proof, root, policy)
    return ProvenFact(kind, claim, facts, root)


def _parse(data: bytes) -> Dict[str, object]:
    with checking(Check.PROOF_FORMAT, ProofError):
        value = canonical.parse(data, bytes_max=PROOF_BYTES_MAX)
        if not isinstance(value, dict):
            raise ProofError("the proof is not an object")
        shape = _SHAPES.get(str(value.get("kind")))
        if shape is None:
            raise ProofError(f"unknown kind of proof {str(value.get('kind'))[:64]!r}")
        return schema.check(value, shape, "proof")


def _verify_artifact(proof: Json, root: VerifiedRoot, policy: Policy) -> Tuple[str, Json]:
    verify.check_root_alone(root.predicate, policy)
    named = schema.as_object(proof["artifact"])
    with checking(Check.PROOF, ProofError):
        if not any(
            item.name == named["name"] and item.sha256 == named["sha256"] for item in root.subjects
        ):
            raise ProofError(f"{named['name']} is not an artifact of this build")
    return f"{named['name']} (sha256 {named['sha256']}) is an artifact of this build", named


def _verify_action(proof: Json, root: VerifiedRoot, policy: Policy) -> Tuple[str, Json]:
    action = _included_action(proof, root, policy)
    key = action.action_key.hex()
    return f"action {key} is part of this build", {"actionKey": key}


def _verify_leaf(domain: Domain) -> Callable[..., Tuple[str, Json]]:
    word = {Domain.MATERIAL: "read", Domain.PRODUCT: "left behind"}[domain]

    def verifier(proof: Json, root: VerifiedRoot, policy: Policy) -> Tuple[str, Json]:
        action = _included_action(proof, root, policy)
        table = action.materials if domain is Domain.MATERIAL else action.products
        with checking(Check.PROOF, ProofError):
            _, leaf = _included_leaf(schema.as_object(proof["leaf"]), domain, table)
        path, key = canonical.path_text(leaf.path), action.action_key.hex()
        claim = f"action {key} {word} {path} (sha256 {leaf.digest.hex()})"
        facts = {"actionKey": key, "path": path, "sha256": leaf.digest.hex(), "size": leaf.size}
        return claim, facts

    return verifier


def _verify_absence(proof: Json, root: VerifiedRoot, policy: Policy) -> Tuple[str, Json]:
    action = _included_action(proof, root, policy)
    _check_gap(proof["gap"], action, str(proof["path"]))
    key = action.action_key.hex()
    claim = f"action {key} did not read {_recorded_as(str(proof['path']))}"
    return claim, {"actionKey": key, "path": proof["path"]}


def _verify_absence_in_build(proof: Json, root: VerifiedRoot, policy: Policy) -> Tuple[str, Json]:
    hashes: List[bytes] = []
    for number, value in enumerate(schema.as_list(proof["actions"])):
        item = schema.as_object(value)
        action, leaf_hash = _genuine_action(item["envelope"], root, policy, f"action {number}")
        _check_gap(item["gap"], action, str(proof["path"]))
        hashes.append(leaf_hash)
    with checking(Check.TREE, ProofError):
        if len(hashes) != root.predicate.tree_size:
            raise ProofError(
                f"the proof covers {len(hashes)} of {root.predicate.tree_size} actions"
            )
        if merkle.root_of_hashes(hashes) != root.predicate.tree_root:
            raise ProofError("the actions of the proof are not those of the signed tree")
    claim = (
        f"none of the {len(hashes)} actions of this build read {_recorded_as(str(proof['path']))}"
    )
    return claim, {"actions": len(hashes), "path": proof["path"]}


def _recorded_as(path_text: str) -> str:
    """What is absent, in words that say no more than the tables do."""
    where = "" if path_text.startswith("/") else " in its root"
    return (
        f"a file recorded as {path_text}{where} (paths are recorded after symbolic links were "
        "resolved)"
    )


def _included_action(proof: Json, root: VerifiedRoot, policy: Policy) -> ActionPredicate:
    item = schema.as_object(proof["action"])
    action, leaf_hash = _genuine_action(item["envelope"], root, policy, "the action")
    with checking(Check.TREE, ProofError):
        merkle.verify_inclusion(
            leaf_hash=leaf_hash,
            leaf_index=schema.as_integer(item["leafIndex"]),
            tree_size=root.predicate.tree_size,
            proof=_hashes(item["inclusion"]),
            root_hash=root.predicate.tree_root,
        )
    return action


def _genuine_action(
    value: object, root: VerifiedRoot, policy: Policy, about: str
) -> Tuple[ActionPredicate, bytes]:
    """An action whose envelope is genuine and complete, and its leaf hash."""
    data = _envelope_bytes(value)
    action, _ = record_check.verify_action_envelope(
        data, action_key=None, envelope_sha256=None, trusted=root.capture_keys, about=about
    )
    _, losses = record_check.read_counters(action, about=about)
    allow = not (policy.require_zero_losses or root.predicate.require_zero_drops)
    record_check.refuse_losses(action, losses, allow=allow, about=about)
    verify.check_record_posture(root.predicate, action.posture, about=about)
    record_check.check_witnesses(action, strict=root.predicate.strict, about=about)
    with checking(Check.POLICY, PolicyError, about=about):
        verify.check_policy(action.posture, policy)
    return action, action_leaf_hash(action.action_key, digest.sha256(data))


def _check_gap(value: object, action: ActionPredicate, path_text: str) -> None:
    gap, table = schema.as_object(value), action.materials
    about = f"action {action.action_key.hex()[:16]}"
    _, losses = record_check.read_counters(action, about=about)
    verify.check_absence(action.posture, losses, about=about)
    with checking(Check.PROOF, ProofError, about=about):
        path = leaf_path.recorded(canonical.path_bytes(path_text), record_check.action_root(action))
        before_index, after_index = -1, table.tree_size
        if gap["before"] is not None:
            before_index, before = _included_leaf(gap["before"], Domain.MATERIAL, table)
            if not before.path < path:
                raise ProofError("the leaf before the gap does not come before the path")
        if gap["after"] is not None:
            after_index, after = _included_leaf(gap["after"], Domain.MATERIAL, table)
            if not path < after.path:
                raise ProofError("the leaf after the gap does not come after the path")
        if after_index != before_index + 1:
            raise ProofError("the leaves around the gap are not neighbours")


def _included_leaf(value: object, domain: Domain, table: TableReference) -> Tuple[int, Leaf]:
    item = schema.as_object(value)
    fields, leaf_index = schema.as_object(item["leaf"]), schema.as_integer(item["leafIndex"])
    leaf = Leaf(
        canonical.path_bytes(str(fields["path"])),
        bytes.fromhex(str(fields["sha256"])),
        schema.as_integer(fields["size"]),
        schema.as_integer(fields["mode"]),
        schema.as_integer(fields["kind"]),
        schema.as_integer(fields["source"]),
    )
    leaf_table.check_leaf(leaf)
    merkle.verify_inclusion(
        leaf_hash=leaf_table.hash_leaf(domain, leaf),
        leaf_index=leaf_index,
        tree_size=table.tree_size,
        proof=_hashes(item["inclusion"]),
        root_hash=table.tree_root,
    )
    return leaf_index, leaf


def _hashes(value: object) -> Tuple[bytes, ...]:
    return tuple(bytes.fromhex(str(item)) for item in schema.as_list(value))


def _envelope_bytes(value: object) -> bytes:
    with checking(Check.PROOF_FORMAT, StatementError):
        return canonical.encode(value)


_VERIFIERS: Mapping[str, Callable[[Json, VerifiedRoot, Policy], Tuple[str, Json]]] = {
    "artifact": _verify_artifact,
    "action": _verify_action,
    "material": _verify_leaf(Domain.MATERIAL),
    "product": _verify_leaf(Domain.PRODUCT),
    "absence": _verify_absence,
    "absence-in-build": _verify_absence_in_build,
}
