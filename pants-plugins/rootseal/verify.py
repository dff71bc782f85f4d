"""Verification of a bundle: fail-closed, offline, one record in memory at a time.

The numbered blocks are the members of `Check`, in order; docs/verification.md explains each.
Nothing of the producer's side is imported here.
"""

from __future__ import annotations

import dataclasses
from typing import Callable, Dict, List, Mapping, Optional, Sequence, Tuple

from rootseal import (
    build_predicate,
    diagnostics,
    envelope,
    merkle,
    policy_check,
    record_check,
    schema,
    statement,
)
from rootseal.build_predicate import BuildPredicate, Totals
from rootseal.bundle import BundleReader, IndexEntry
from rootseal.checks import Check, checking
from rootseal.errors import (
    ConfigError,
    EnvelopeError,
    IncompleteError,
    PolicyError,
    ProofError,
    SignatureError,
    StatementError,
)
from rootseal.keys import PublicKey
from rootseal.leaf_table import Domain
from rootseal.observation import Posture
from rootseal.policy import Policy
from rootseal.statement import Subject

Progress = Callable[[int, int], None]


@dataclasses.dataclass(frozen=True)
class ArtifactDigest:
    """A file the caller holds in hand: where it is, and its SHA-256 in hex."""

    path: str
    sha256: str


@dataclasses.dataclass(frozen=True)
class VerifiedRoot:
    """A root statement whose signature and form are right.

    Attributes:
        predicate: The root predicate.
        subjects: The subjects, as signed.
        keyid: The key that signed it.
        capture_keys: Capture keys that records may be signed by: those of the predicate, and
            where the caller named some, only those of them.
    """

    predicate: BuildPredicate
    subjects: Tuple[Subject, ...]
    keyid: str
    capture_keys: Tuple[PublicKey, ...]


@dataclasses.dataclass(frozen=True)
class VerifiedBuild:
    """A bundle that passed every check.

    Attributes:
        root: Its root statement.
        artifacts: Each artifact that was given, with the name it has in the subjects.
        posture: The weakest posture of its actions.
        losses: Gating counters that are not zero (empty unless the policy accepts losses).
        failed: Key and exit code of each action that ended with another code than 0, in the order
            of the tree; a genuine record of a failure is genuine.
    """

    root: VerifiedRoot
    artifacts: Tuple[Tuple[str, str], ...]
    posture: Posture
    losses: Mapping[str, int]
    failed: Tuple[Tuple[str, int], ...] = ()


def verify_bundle(
    bundle: BundleReader,
    *,
    trusted: Sequence[PublicKey],
    capture_keys: Optional[Sequence[PublicKey]],
    artifacts: Sequence[ArtifactDigest],
    policy: Policy,
    progress: Optional[Progress] = None,
) -> VerifiedBuild:
    """Verify everything in a bundle (checks 2 to 20; opening it was check 1).

    Args:
        bundle: An open bundle.
        trusted: Keys that may have signed the root; at least one.
        capture_keys: If given, only these capture keys are accepted, and only where the signed
            root lists them too.
        artifacts: Files that must be subjects of the root.
        policy: What is demanded beyond being genuine.
        progress: Called with (records done, records in all).

    Raises:
        VerificationError: The first check that refuses, by name in `check`.
    """
    root = verify_root(bundle.root_envelope, trusted=trusted, capture_keys=capture_keys)
    matched = match_artifacts(root.subjects, artifacts)  # 5
    _check_tree(bundle, root.predicate)  # 6
    with checking(Check.ENGINE_INPUTS, ProofError):  # 7
        record_check.open_table(
            root.predicate.engine_inputs, bundle.engine_inputs, Domain.ENGINE_INPUT
        )
    totals = Totals()
    failed: List[Tuple[str, int]] = []
    for number, entry in enumerate(bundle.entries()):  # 8 to 16
        exit_code = _verify_entry(bundle, entry, root, policy, totals)
        if exit_code != 0:
            failed.append((entry.action_key.hex(), exit_code))
        if progress is not None:
            progress(number + 1, bundle.record_count)
    totals.add_seals(root.predicate.seals)
    check_summary(root.predicate, totals)  # 18
    check_targets(root)  # 19
    posture = root_posture(root.predicate)
    check_policy(posture, policy)  # 20
    policy_check.check_policy_signer(root.keyid, policy)
    policy_check.check_policy_targets(root.predicate.targets, policy)
    losses = diagnostics.losses(totals.diagnostics)
    return VerifiedBuild(root, matched, posture, losses, tuple(failed))


def verify_root(
    data: bytes, *, trusted: Sequence[PublicKey], capture_keys: Optional[Sequence[PublicKey]]
) -> VerifiedRoot:
    """Checks 2 to 4 on the root envelope."""
    if not trusted:
        raise ConfigError("no key to verify with; give the public key of the signer (--key)")
    with checking(Check.ROOT_ENVELOPE, EnvelopeError):
        found = envelope.parse(data)
    with checking(Check.ROOT_SIGNATURE, SignatureError):
        payload = envelope.verify(found, trusted)
    with checking(Check.ROOT_STATEMENT, StatementError):
        signed = statement.parse(payload, predicate_type=statement.BUILD_TYPE)
        predicate = build_predicate.read_build_predicate(signed.predicate)
    allowed = predicate.capture_keys
    if capture_keys is not None:
        ids = {key.keyid for key in capture_keys}
        allowed = tuple(key for key in allowed if key.keyid in ids)
    return VerifiedRoot(predicate, signed.subjects, found.keyid, allowed)


def read_root_unverified(data: bytes) -> VerifiedRoot:
    """Read a root envelope without asking who signed it, to show or to prove from it.

    What is made from the result proves nothing by itself: whoever receives a proof verifies the
    signature. The type is that of a verified root so that the same code can look at both.
    """
    with checking(Check.ROOT_ENVELOPE, EnvelopeError):
        found = envelope.parse(data)
    with checking(Check.ROOT_STATEMENT, StatementError):
        signed = statement.parse(found.payload, predicate_type=statement.BUILD_TYPE)
        predicate = build_predicate.read_build_predicate(signed.predicate)
    return VerifiedRoot(predicate, signed.subjects, found.keyid, predicate.capture_keys)


def match_artifacts(
    subjects: Sequence[Subject], artifacts: Sequence[ArtifactDigest]
) -> Tuple[Tuple[str, str], ...]:
    """Check 5: every artifact in hand is a subject, by digest."""
    names: Dict[str, str] = {subject.sha256: subject.name for subject in reversed(subjects)}
    with checking(Check.ARTIFACTS, PolicyError):
        for item in artifacts:
            if item.sha256 not in names:
                raise PolicyError(
                    f"{item.path} (sha256 {item.sha256}) is not an artifact of this build",
                    data={"path": item.path, "sha256": item.sha256},
                )
    return tuple((item.path, names[item.sha256]) for item in artifacts)


def check_summary(predicate: BuildPredicate, totals: Totals) -> None:
    """Check 18: the signed summary is the sum of the actions, its posture the weakest."""
    with checking(Check.SUMMARY, IncompleteError):
        diagnostics.diagnostics_from_json(predicate.summary["diagnostics"])
        sources = schema.as_object(predicate.summary["sources"])
        if sum(schema.as_integer(count) for count in sources.values()) != totals.actions:
            raise IncompleteError("summary.sources does not add up to the number of actions")
        expected = totals.summary(len(predicate.targets))
        for name, value in expected.items():
            if predicate.summary[name] != value:
                raise IncompleteError(
                    f"summary.{name} is not what the actions give",
                    data={"signed": predicate.summary[name], "calculated": value},
                )


def check_targets(root: VerifiedRoot) -> None:
    """Check 19: targets name existing actions, and their artifacts are the subjects."""
    with checking(Check.TARGETS, StatementError):
        addresses = [target.address for target in root.predicate.targets]
        if addresses != sorted(set(addresses)):
            raise StatementError("targets are not in order of address, or one appears twice")
        for target in root.predicate.targets:
            _check_ranges(target, root.predicate.tree_size)
        expected = build_predicate.build_subjects(
            root.predicate.targets,
            run_id=root.predicate.run_id,
            tree_root=root.predicate.tree_root,
        )
        if root.subjects != expected:
            raise StatementError("the subjects are not the artifacts of the targets")
        _check_seals(root)


def _check_seals(root: VerifiedRoot) -> None:
    """Part of check 19: sealed files are artifacts, and all of them where the policy said so."""
    sealed = {name for name, _ in root.predicate.seals.digests}
    artifacts = {item.name for target in root.predicate.targets for item in target.artifacts}
    if not sealed <= artifacts:
        raise StatementError(f"{min(sealed - artifacts)!r} is sealed, but is not an artifact")
    if root.predicate.fsverity == "on" and sealed != artifacts:
        raise StatementError(
            f"{min(artifacts - sealed)!r} is not sealed, though the build's policy demands it"
        )


def root_posture(predicate: BuildPredicate) -> Posture:
    """Posture that a root predicate states; `check_summary` compares it with the actions'."""
    return Posture(predicate.summary["posture"])


def check_policy(posture: Posture, policy: Policy) -> None:
    """Check 20: the posture is at least the one required."""
    with checking(Check.POLICY, PolicyError):
        required = policy.required_posture
        if required is not None and posture.rank < required.rank:
            raise PolicyError(
                f"posture {posture.value} is weaker than the required {required.value}; "
                "`rootseal doctor` on the build host says how to reach it",
                data={"required": required.value, "achieved": posture.value},
            )


def check_record_posture(root: BuildPredicate, achieved: Posture, *, about: str) -> None:
    """Check 16: no action is weaker than the posture the build itself demanded."""
    with checking(Check.RECORD_POSTURE, PolicyError, about=about):
        if achieved.rank < root.required_posture.rank:
            raise PolicyError(
                f"posture {achieved.value} is weaker than the {root.required_posture.value} "
                "that the build's own policy demands"
            )


def check_absence(achieved: Posture, losses: Mapping[str, int], *, about: str) -> None:
    """Check 20 for absence: a capture that misses reads cannot show that there was none."""
    with checking(Check.POLICY, PolicyError, about=about):
        if achieved.rank < Posture.OBSERVED.rank:
            raise PolicyError(
                f"posture {achieved.value} does not see reads, so it cannot show that a path was "
                "not read; `rootseal doctor` on the build host says how to reach a stronger one"
            )
        record_check.refuse_unseen(losses, "a path was not read")


def check_root_alone(predicate: BuildPredicate, policy: Policy) -> None:
    """Checks 18, 15, 16 and 20 where only the root is there: what it says of its own actions."""
    with checking(Check.SUMMARY, IncompleteError):
        losses = diagnostics.losses(
            diagnostics.diagnostics_from_json(predicate.summary["diagnostics"])
        )
        if predicate.summary["losses"] != sorted(losses):
            raise IncompleteError("summary.losses is not the gating counters above zero")
    if policy.require_zero_losses or predicate.require_zero_drops:
        record_check.refuse_any_loss(losses, about="the build")
    posture = root_posture(predicate)
    check_record_posture(predicate, posture, about="the build")
    check_policy(posture, policy)


def _check_tree(bundle: BundleReader, predicate: BuildPredicate) -> None:
    with checking(Check.TREE, ProofError):
        if bundle.record_count != predicate.tree_size:
            raise ProofError(
                f"{bundle.record_count} records, but the signed tree has {predicate.tree_size}"
            )
        root = merkle.root_of_hashes(bundle.leaf_hashes())
        if root != predicate.tree_root:
            raise ProofError(
                f"the tree has root {root.hex()}, signed is {predicate.tree_root.hex()}",
                data={"calculated": root.hex(), "expected": predicate.tree_root.hex()},
            )


def _verify_entry(
    bundle: BundleReader, entry: IndexEntry, root: VerifiedRoot, policy: Policy, totals: Totals
) -> int:
    """Checks 8 to 16, and 20 as far as it is about one action; returns the action's exit code."""
    about = f"action {entry.action_key.hex()[:16]}"
    with checking(Check.RECORD_FORMAT, StatementError, about=about):
        data = bundle.read_record(entry)
    verified = record_check.verify_record(
        data,
        action_key=entry.action_key,
        envelope_sha256=entry.envelope_sha256,
        trusted=root.capture_keys,
        about=about,
    )
    allow = not (policy.require_zero_losses or root.predicate.require_zero_drops)
    record_check.refuse_losses(verified.predicate, verified.losses, allow=allow, about=about)
    check_record_posture(root.predicate, verified.predicate.posture, about=about)
    record_check.check_witnesses(verified.predicate, strict=root.predicate.strict, about=about)
    record_check.check_tools(verified, policy.tools, about=about)
    policy_check.check_policy_action(verified, policy, about=about)
    totals.add(verified.predicate, verified.counters)
    return schema.as_integer(verified.predicate.document["exitcode"])


def _check_ranges(target: build_predicate.Target, tree_size: int) -> None:
    position = -1  # ranges that touch would not be the fewest, so they are refused too
    for start, end in target.ranges:
        if not position < start < end <= tree_size:
            raise StatementError(
                f"target {target.address!r} names actions {start} to {end}; there are {tree_size}"
            )
        position = end


__all__ = [
    "ArtifactDigest",
    "Check",
    "VerifiedBuild",
    "VerifiedRoot",
    "verify_bundle",
    "verify_root",
]
