"""Verification of one action record; used by the verifier, by `seal`, and by the daemon's CHECK.

Nothing in a record is believed before the signature over it was verified (checks 8 to 17 of
`checks.Check`).
"""

from __future__ import annotations

import dataclasses
from typing import Dict, Iterable, List, Mapping, Optional, Sequence, Tuple

from rootseal import (
    canonical,
    diagnostics,
    digest,
    envelope,
    hardening,
    leaf_table,
    opens_table,
    schema,
    statement,
)
from rootseal.action_check import ExpectedAction, check_action
from rootseal.checks import Check, checking
from rootseal.errors import (
    EncodingError,
    EnvelopeError,
    IncompleteError,
    PolicyError,
    ProofError,
    SignatureError,
    StatementError,
    VerificationError,
)
from rootseal.keys import PublicKey
from rootseal.leaf_table import Domain
from rootseal.observation import DigestSource, LeafKind, Posture
from rootseal.predicate import ActionPredicate, StoredTables, TableReference, read_action_predicate
from rootseal.record import ActionRecord, SignedRecord, parse_record
from rootseal.toolchain import TrustedTools, require_tools
from rootseal.toolchain_moves import moves_signed

_JUDGED_FIELDS = (
    *("cmd", "environ", "sandbox", "declaredOutputs", "exitcode", "signal"),
    *("capture", "descendantsKilled"),
)


@dataclasses.dataclass(frozen=True)
class VerifiedRecord:
    """An action record that passed every check up to its counters.

    Attributes:
        predicate: What it says.
        counters: Every counter.
        losses: The gating counters that are not zero.
        envelope_sha256: SHA-256 of the envelope, as the action leaf has it, 32 bytes.
        keyid: The capture key that signed it.
        record: Its parts.
    """

    predicate: ActionPredicate
    counters: Mapping[str, int]
    losses: Mapping[str, int]
    envelope_sha256: bytes
    keyid: str
    record: ActionRecord = dataclasses.field(repr=False)


def verify_record(
    data: bytes,
    *,
    action_key: bytes,
    envelope_sha256: Optional[bytes],
    trusted: Sequence[PublicKey],
    about: Optional[str] = None,
) -> VerifiedRecord:
    """Check that a record is genuine, whole, and of this action (checks 8 to 14).

    Losses and posture are the caller's to judge: `refuse_losses`, and the posture in the result.

    Args:
        data: The record.
        action_key: The action it must be of, 32 bytes.
        envelope_sha256: What the tree binds, or None where no tree binds the record yet.
        trusted: Capture keys that may have signed it.
        about: How errors name the action; by default by its key.

    Raises:
        VerificationError: The subclass and `check` say what failed.
    """
    about = about or f"action {action_key.hex()[:16]}"
    with checking(Check.RECORD_FORMAT, StatementError, about=about):
        parts = parse_record(data)
    predicate, keyid = verify_action_envelope(
        parts.envelope,
        action_key=action_key,
        envelope_sha256=envelope_sha256,
        trusted=trusted,
        about=about,
    )
    with checking(Check.RECORD_TABLES, ProofError, about=about):
        check_tables(predicate, parts.tables)
    check_seals(predicate, parts.tables, about=about)
    counters, losses = read_counters(predicate, about=about)
    found_sha256 = digest.sha256(parts.envelope)
    return VerifiedRecord(predicate, counters, losses, found_sha256, keyid, parts)


def check_seals(predicate: ActionPredicate, tables: StoredTables, *, about: str) -> None:
    """Part of check 16: an action of posture `sealed` read nothing but measured, sealed files."""
    if predicate.posture is not Posture.SEALED:
        return
    with checking(Check.RECORD_POSTURE, PolicyError, about=about):
        if predicate.materials.tree_size == 0:
            raise PolicyError("posture sealed, but no material was measured by fs-verity")
        materials = leaf_table.decompress(tables.materials)
        for leaf in leaf_table.iter_leaves(materials, Domain.MATERIAL):
            if leaf.source != DigestSource.FSVERITY_MEASURED:
                raise PolicyError(
                    f"posture sealed, but {canonical.path_text(leaf.path)} was not measured by "
                    "fs-verity"
                )


def action_root(predicate: ActionPredicate) -> bytes:
    """The signed `sandbox.root` of an action: what relative paths of its tables start from."""
    return canonical.path_bytes(str(schema.as_object(predicate.document["sandbox"])["root"]))


def check_tools(verified: VerifiedRecord, tools: Optional[TrustedTools], *, about: str) -> None:
    """Part of check 20: what was executed or mapped from outside is in a trusted toolchain.

    A capture that sees no execution cannot show that there was no other tool.
    """
    if tools is None:
        return
    with checking(Check.POLICY, PolicyError, about=about):
        if verified.predicate.posture.rank < Posture.OBSERVED.rank:
            raise PolicyError(
                f"posture {verified.predicate.posture.value} does not see what was executed, so "
                "no toolchain can be required; `rootseal doctor` on the build host says how to "
                "reach a stronger one"
            )
        materials = leaf_table.decompress(verified.record.tables.materials)
        moves = moves_signed(verified.predicate.document)
        require_tools(materials, action_root(verified.predicate), tools, moves, about="it")


def verify_action_envelope(
    data: bytes,
    *,
    action_key: Optional[bytes],
    envelope_sha256: Optional[bytes],
    trusted: Sequence[PublicKey],
    about: str,
) -> Tuple[ActionPredicate, str]:
    """Checks 9 to 12 on an action's envelope.

    Args:
        data: The envelope.
        action_key: The action it must be of, or None where the caller takes the key from it.
        envelope_sha256: What the tree binds, or None where the caller checks that otherwise.
        trusted: Capture keys that may have signed it.
        about: How errors name the action.

    Returns:
        Its predicate, and the id of the key that signed it.
    """
    with checking(Check.RECORD_ENVELOPE, EnvelopeError, about=about):
        if envelope_sha256 is not None and digest.sha256(data) != envelope_sha256:
            raise EnvelopeError("the envelope is not the one that the tree binds")
        found = envelope.parse(data)
    with checking(Check.RECORD_SIGNATURE, SignatureError, about=about):
        payload = envelope.verify(found, trusted)
    with checking(Check.RECORD_STATEMENT, StatementError, about=about):
        signed = statement.parse(payload, predicate_type=statement.ACTION_TYPE)
        predicate = read_action_predicate(signed.predicate)
    with checking(Check.RECORD_ACTION_KEY, StatementError, about=about):
        if action_key is not None and predicate.action_key != action_key:
            raise StatementError(f"the record is of action {predicate.action_key.hex()}")
        if signed.subjects != (statement.action_subject(predicate.action_key),):
            raise StatementError("the subject is not the action of the predicate")
    return predicate, found.keyid


def read_counters(
    predicate: ActionPredicate, *, about: str
) -> Tuple[Dict[str, int], Dict[str, int]]:
    """Check 14: every counter is there, and the stated losses follow from them."""
    with checking(Check.RECORD_COUNTERS, IncompleteError, about=about):
        counters = diagnostics.diagnostics_from_json(predicate.counters)
        losses = diagnostics.losses(counters)
        if tuple(sorted(losses)) != predicate.losses:
            raise IncompleteError("the stated losses are not the gating counters above zero")
        if counters["descendantsKilled"] != predicate.document["descendantsKilled"]:
            raise IncompleteError("descendantsKilled differs from its counter")
    return counters, losses


def check_witnesses(predicate: ActionPredicate, *, strict: bool, about: str) -> None:
    """Check 16: each action of a build that calls itself strict had two witnesses."""
    with checking(Check.RECORD_POSTURE, PolicyError, about=about):
        backend = str(schema.as_object(predicate.document["capture"])["backend"])
        if strict and not hardening.has_two_witnesses(backend):
            raise PolicyError(
                f"captured by {backend} alone, but the build's own hardening is strict: "
                "fanotify and a trace; build again with `--hardening strict`"
            )


def refuse_losses(
    predicate: ActionPredicate, losses: Mapping[str, int], *, allow: bool, about: str
) -> None:
    """Check 15: nothing was lost, unless the caller's policy accepts losses.

    A record that was itself captured under `requireZeroDrops` may never have any.
    """
    if predicate.require_zero_drops or not allow:
        refuse_any_loss(losses, about=about)


def refuse_any_loss(losses: Mapping[str, int], *, about: str) -> None:
    """Check 15 where no loss is accepted."""
    with checking(Check.RECORD_LOSSES, IncompleteError, about=about):
        if losses:
            text = ", ".join(f"{name} {value}" for name, value in sorted(losses.items()))
            remedy = diagnostics.BY_NAME[sorted(losses)[0]].remedy
            raise IncompleteError(
                f"the capture lost something: {text}. {remedy}", data=dict(losses)
            )


def refuse_unseen(losses: Mapping[str, int], what: str) -> None:
    """Nothing is shown not to have happened by a capture that lost something, accepted or not.

    Raises:
        PolicyError: There are losses; names them.
    """
    if losses:
        raise PolicyError(
            f"its capture lost something ({', '.join(sorted(losses))}), so it cannot show that "
            f"{what}",
            data=dict(losses),
        )


def check_tables(predicate: ActionPredicate, tables: StoredTables) -> None:
    """Check 13: the stored tables are the ones that the predicate binds, and well-formed.

    Raises:
        ProofError: A digest, root or size differs.
        EncodingError: A table breaks its format.
    """
    open_table(predicate.materials, tables.materials, Domain.MATERIAL)
    open_table(predicate.products, tables.products, Domain.PRODUCT)
    _check_stored("opens", tables.opens, predicate.opens_sha256, predicate.opens_size)
    raw = leaf_table.decompress(tables.opens, bytes_max=opens_table.RAW_BYTES_MAX)
    opens_table.verify(
        raw,
        process_count=predicate.process_count,
        material_count=predicate.materials.tree_size,
    )


def open_table(reference: TableReference, stored: bytes, domain: Domain) -> bytes:
    """The table that a signed reference binds, checked against it; returns it uncompressed.

    Raises:
        ProofError: The digest, root or size differs.
        EncodingError: The table breaks its format.
    """
    name = domain.name.lower()
    _check_stored(name, stored, reference.stored_sha256, reference.stored_size)
    raw = leaf_table.decompress(stored)
    root, size = leaf_table.verify(raw, domain)
    if size != reference.tree_size:
        raise ProofError(f"the {name} table has {size} leaves, signed are {reference.tree_size}")
    if root != reference.tree_root:
        raise ProofError(
            f"the {name} table has root {root.hex()}, signed is {reference.tree_root.hex()}",
            data={"calculated": root.hex(), "expected": reference.tree_root.hex()},
        )
    return raw


def check_record(
    record_bytes: bytes,
    *,
    action_key: bytes,
    trusted_public_keys: Sequence[PublicKey],
    declared_outputs: Iterable[Mapping[str, object]],
    expected: Optional[ExpectedAction] = None,
    exit_code: Optional[int] = None,
) -> VerifiedRecord:
    """Decide whether a cached result may count.

    Its record is genuine, of what was asked for, and explains the outputs.

    Args:
        record_bytes: The record that came with the result.
        action_key: The action that was asked for, 32 bytes.
        trusted_public_keys: Capture keys that the configuration trusts.
        declared_outputs: Every output of the result: `{"path": text, "sha256": hex}` for a file
            (with `size` if known), `{"path": text, "target": text}` for a symlink. Path and
            target are path text (docs/formats.md), the path relative to the action's root.
        expected: What the action key stands for; None only where nobody can know.
        exit_code: The result's exit code, if it is known: 128 + signal or -signal when killed.

    Raises:
        VerificationError: It may not count; says why.
    """
    verified = verify_record(
        record_bytes, action_key=action_key, envelope_sha256=None, trusted=trusted_public_keys
    )
    judge_record(verified, declared_outputs, expected, exit_code)
    return verified


def own_record(signed: SignedRecord, keyid: str) -> VerifiedRecord:
    """A record that this very process made and signed, so that nothing in it is to be verified.

    Only what `judge_record` asks of it is kept.
    """
    predicate = signed.predicate
    document = {name: predicate.document[name] for name in _JUDGED_FIELDS}
    counters, losses = read_counters(predicate, about="own record")
    tables = StoredTables(b"", signed.tables.products, b"")
    return VerifiedRecord(
        dataclasses.replace(predicate, document=document),
        counters,
        losses,
        b"",
        keyid,
        ActionRecord(b"", tables),
    )


def judge_record(
    verified: VerifiedRecord,
    declared_outputs: Iterable[Mapping[str, object]],
    expected: Optional[ExpectedAction],
    exit_code: Optional[int],
) -> None:
    """What `check_record` checks of a genuine record, with the same arguments.

    Raises:
        VerificationError: It may not count; says why.
    """
    about = f"action {verified.predicate.action_key.hex()[:16]}"
    refuse_losses(
        verified.predicate,
        verified.losses,
        allow=not verified.predicate.require_zero_drops,
        about=about,
    )
    if expected is not None:
        with checking(Check.RECORD_ACTION_KEY, PolicyError, about=about):
            check_action(verified.predicate, expected)
    with checking(Check.RECORD_OUTPUTS, PolicyError, about=about):
        if exit_code is not None:
            check_exit_code(verified.predicate, exit_code)
        _check_outputs(verified, declared_outputs)


def check_exit_code(predicate: ActionPredicate, exit_code: int) -> None:
    """Compare a result's exit code with the recorded one.

    Raises:
        PolicyError: They differ.
    """
    recorded, signal = predicate.document["exitcode"], predicate.document["signal"]
    if exit_code != recorded and (signal is None or exit_code != -int(str(signal))):
        raise PolicyError(f"the result's exit code is {exit_code}, the record says {recorded}")


def _check_outputs(
    verified: VerifiedRecord, declared_outputs: Iterable[Mapping[str, object]]
) -> None:
    missing = dict(_declared_output(item) for item in declared_outputs)
    raw = leaf_table.decompress(verified.record.tables.products)
    for leaf in leaf_table.iter_leaves(raw, Domain.PRODUCT):
        wanted = missing.get(leaf.path)
        if wanted is None:
            continue
        wanted_digest, size, is_symlink = wanted
        if leaf.digest == wanted_digest and (leaf.kind == LeafKind.SYMLINK) == is_symlink:
            if size is not None and size != leaf.size:
                raise PolicyError(
                    f"output {canonical.path_text(leaf.path)} has another size than the record says"
                )
            del missing[leaf.path]
    if missing:
        names: List[str] = sorted(canonical.path_text(path) for path in missing)
        raise PolicyError(
            f"{len(names)} outputs of the result are not products of the record: {names[0]}, …",
            data={"outputs": names[:100]},
        )


def _declared_output(item: Mapping[str, object]) -> Tuple[bytes, Tuple[bytes, Optional[int], bool]]:
    if set(item) - {"path", "sha256", "size", "target"}:
        raise EncodingError("a declared output has an unknown field")
    path, target, size = item.get("path"), item.get("target"), item.get("size")
    if not isinstance(path, str) or ("sha256" in item) == ("target" in item):
        raise EncodingError("a declared output needs a path and either sha256 or target")
    if isinstance(target, str):
        return canonical.path_bytes(path), (digest.sha256(canonical.path_bytes(target)), None, True)
    if size is not None and type(size) is not int:
        raise EncodingError("the size of a declared output is not an integer")
    return canonical.path_bytes(path), (digest.digest_from_hex(item.get("sha256")), size, False)


def _check_stored(name: str, stored: bytes, sha256: str, size: int) -> None:
    if len(stored) != size or digest.sha256_hex(stored) != sha256:
        raise ProofError(f"the {name} table is not the one that was signed")


__all__ = ["VerificationError", "VerifiedRecord", "check_record", "refuse_losses", "verify_record"]
