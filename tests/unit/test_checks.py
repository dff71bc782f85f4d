"""Every check of verification has a case that fails there, and nowhere earlier."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any, Callable, Dict

import core_factory as factory
import pytest
from rootseal import canonical, cli_verify, digest, keys, leaf_table, prove, verify_proof
from rootseal.bundle import BundleReader, NewRecord, write_bundle
from rootseal.checks import Check
from rootseal.errors import VerificationError
from rootseal.leaf_table import Domain
from rootseal.observation import Posture
from rootseal.policy import Policy
from rootseal.predicate import StoredTables
from rootseal.record import encode_record, parse_record
from rootseal.record_check import check_record
from rootseal.verify import ArtifactDigest, verify_bundle, verify_root

CAPTURE = keys.generate("ed25519")
SIGNER = keys.generate("ecdsa-p256")
OTHER = keys.generate("ed25519")

Case = Callable[[Path], None]
CASES: Dict[Check, list[tuple[str, Case]]] = {check: [] for check in Check}


def case(check: Check) -> Callable[[Case], Case]:
    def add(function: Case) -> Case:
        CASES[check].append((function.__name__, function))
        return function

    return add


def run(
    path: Path,
    *,
    trusted: keys.KeyFileSigner = SIGNER,
    capture_keys: tuple[keys.PublicKey, ...] | None = None,
    artifacts: tuple[ArtifactDigest, ...] = (),
    policy: Policy = Policy(),  # noqa: B008  frozen
) -> None:
    with cli_verify.open_bundle(str(path)) as bundle:
        verify_bundle(
            bundle,
            trusted=[trusted.public_key],
            capture_keys=capture_keys,
            artifacts=artifacts,
            policy=policy,
        )


def forged(path: Path, **changes: Any) -> None:
    factory.forged_bundle(path, capture=CAPTURE, signer=SIGNER, **changes)


def three_records(second: bytes) -> list[bytes]:
    first, third = (factory.signed_record(CAPTURE, number) for number in (1, 3))
    return [first, second, third]


def second_record(path: Path, **changes: Any) -> None:
    """Verify a bundle whose second record was forged."""
    forged(path, records=three_records(factory.forged_record(CAPTURE, 2, **changes)))
    run(path)


def put(*place: object) -> Callable[[Any], None]:
    """A change: the last argument goes where the others lead."""
    *steps, last, value = place

    def change(document: Any) -> None:
        for step in steps:
            document = document[step]
        document[last] = value

    return change


def drop(*place: object) -> Callable[[Any], None]:
    *steps, last = place

    def change(document: Any) -> None:
        for step in steps:
            document = document[step]
        del document[last]

    return change


def test_the_forgers_do_not_break_what_they_do_not_change(tmp_path: Path) -> None:
    second_record(tmp_path / "b")


def test_a_strict_build_of_strict_actions_is_accepted(tmp_path: Path) -> None:
    def with_a_trace(found: Any) -> None:
        strict(found["capture"]["requested"])
        found["capture"]["backend"] = "fanotify+ebpf"

    made = [factory.forged_record(CAPTURE, number, change=with_a_trace) for number in (1, 2, 3)]
    forged(tmp_path / "b", records=made, change=lambda root: strict(root["policy"]))
    run(tmp_path / "b")


def test_every_check_has_a_case() -> None:
    assert [check.name for check, cases in CASES.items() if not cases] == []


# --- 1 to 7: the bundle and its root ----------------------------------------------------------


@case(Check.BUNDLE_FORMAT)
def swapped_leaf_order(path: Path) -> None:
    forged(path)
    data = bytearray(path.read_bytes())
    with BundleReader(path) as bundle:
        first, second = bundle.entry(0), bundle.entry(1)
        start = data.index(first.action_key)
    one, two = bytes(data[start : start + 64]), bytes(data[start + 80 : start + 144])
    data[start : start + 64], data[start + 80 : start + 144] = two, one
    assert second.action_key == two[:32]
    path.write_bytes(data)
    run(path)


@case(Check.BUNDLE_FORMAT)
def duplicate_leaves(path: Path) -> None:
    forged(path)
    data = bytearray(path.read_bytes())
    with BundleReader(path) as bundle:
        start = data.index(bundle.entry(0).action_key)
    data[start + 80 : start + 144] = data[start : start + 64]
    path.write_bytes(data)
    run(path)


@case(Check.BUNDLE_FORMAT)
def bytes_after_the_end(path: Path) -> None:
    forged(path)
    path.write_bytes(path.read_bytes() + b"\x00")
    run(path)


@case(Check.ROOT_ENVELOPE)
def root_envelope_with_spaces(path: Path) -> None:
    forged(path)
    replace_root(path, lambda text: text.replace(b'"payload":', b'"payload": '))
    run(path)


@case(Check.ROOT_ENVELOPE)
def root_envelope_of_another_payload_type(path: Path) -> None:
    forged(path)
    replace_root(path, lambda text: text.replace(b"vnd.in-toto+json", b"vnd.in-toto+jsox"))
    run(path)


@case(Check.ROOT_SIGNATURE)
def wrong_key(path: Path) -> None:
    forged(path)
    run(path, trusted=OTHER)


@case(Check.ROOT_SIGNATURE)
def keyid_of_another_key(path: Path) -> None:
    forged(path)
    other = OTHER.public_key.keyid.encode()
    replace_root(path, lambda text: text.replace(SIGNER.public_key.keyid.encode(), other))
    run(path, trusted=OTHER)


@case(Check.ROOT_SIGNATURE)
def signature_of_another_key_under_the_right_keyid(path: Path) -> None:
    factory.forged_bundle(path, capture=CAPTURE, signer=OTHER)
    ours, theirs = (key.public_key.keyid.encode() for key in (SIGNER, OTHER))
    replace_root(path, lambda text: text.replace(theirs, ours))
    run(path)


@case(Check.ROOT_SIGNATURE)
def right_signature_under_an_unknown_keyid(path: Path) -> None:
    forged(path)
    ours = SIGNER.public_key.keyid.encode()
    replace_root(path, lambda text: text.replace(ours, b"0" * 64))
    run(path)


@case(Check.ROOT_SIGNATURE)
def root_signed_by_the_capture_key(path: Path) -> None:
    """The daemon's key may sign records, and no build."""
    factory.forged_bundle(path, capture=CAPTURE, signer=CAPTURE)
    run(path)


@case(Check.ROOT_STATEMENT)
def record_in_the_place_of_the_root(path: Path) -> None:
    """A genuine statement of the right key, but of an action."""
    forged(path)
    wrong = parse_record(factory.signed_record(SIGNER, 1)).envelope
    replace_root(path, lambda text: wrong)
    run(path)


@case(Check.ROOT_STATEMENT)
def unknown_predicate_version(path: Path) -> None:
    change = put("predicateType", "https://rootseal.dev/build/v2")
    forged(path, change_statement=change)
    run(path)


@case(Check.ROOT_STATEMENT)
def unknown_field_in_the_root(path: Path) -> None:
    forged(path, change=put("extra", 1))
    run(path)


def strict(policy: Any, **weaker: object) -> None:
    policy.update({"hardening": "strict", "requireZeroDrops": True, **weaker})


@case(Check.ROOT_STATEMENT)
def strict_root_without_zero_drops(path: Path) -> None:
    forged(path, change=lambda root: strict(root["policy"], requireZeroDrops=False))
    run(path, policy=Policy(require_zero_losses=False))


@case(Check.ROOT_STATEMENT)
def strict_root_of_a_lower_posture(path: Path) -> None:
    forged(path, change=lambda root: strict(root["policy"], posture="observed"))
    run(path)


@case(Check.ROOT_STATEMENT)
def strict_root_of_a_weak_mode(path: Path) -> None:
    forged(path, change=lambda root: strict(root["policy"], captureMode="walk"))
    run(path)


@case(Check.ROOT_STATEMENT)
def root_of_an_unknown_hardening_level(path: Path) -> None:
    forged(path, change=put("policy", "hardening", "Strict"))
    run(path)


@case(Check.ROOT_STATEMENT)
def deeply_nested_root(path: Path) -> None:
    nested: object = 1
    for _ in range(59):  # with the statement around it just below the limit of the encoder
        nested = [nested]
    forged(path, change=put("vcs", nested))
    run(path)


@case(Check.ARTIFACTS)
def artifact_not_among_the_subjects(path: Path) -> None:
    forged(path)
    tampered = digest.sha256_hex(factory.ARTIFACT + b"!")
    run(path, artifacts=(ArtifactDigest("app.bin", tampered),))


@case(Check.TREE)
def size_changed(path: Path) -> None:
    forged(path, change=put("tree", "size", 4))
    run(path)


@case(Check.TREE)
def tree_of_another_build(path: Path) -> None:
    forged(path, change=put("tree", "root", digest.sha256_hex(b"another")))
    run(path)


@case(Check.TREE)
def record_dropped(path: Path) -> None:
    forged(path)
    replace_records(path, lambda items: items[:-1])
    run(path)


@case(Check.TREE)
def genuine_record_added(path: Path) -> None:
    forged(path)
    data = factory.signed_record(CAPTURE, 4)
    sha256 = digest.sha256(parse_record(data).envelope)
    new = NewRecord(factory.description(4).action_key, sha256, len(data))
    replace_records(path, lambda items: sorted([*items, (new, data)]))
    run(path)


@case(Check.TREE)
def envelopes_of_two_entries_exchanged(path: Path) -> None:
    forged(path)

    def change(items: list[tuple[NewRecord, bytes]]) -> list[tuple[NewRecord, bytes]]:
        (one, first), (two, second), *rest = items
        return [
            (NewRecord(one.action_key, two.envelope_sha256, two.length), second),
            (NewRecord(two.action_key, one.envelope_sha256, one.length), first),
            *rest,
        ]

    replace_records(path, change)
    run(path)


@case(Check.ENGINE_INPUTS)
def engine_inputs_swapped(path: Path) -> None:
    table = leaf_table.encode(Domain.ENGINE_INPUT, [factory.leaf(b"OTHER")])
    forged(path, engine_inputs=leaf_table.compress(table.raw))
    run(path)


# --- 8 to 16: the records ---------------------------------------------------------------------


@case(Check.RECORD_FORMAT)
def record_with_another_header(path: Path) -> None:
    data = factory.signed_record(CAPTURE, 2)
    forged(path, records=three_records(data))
    whole = path.read_bytes()
    path.write_bytes(whole.replace(data, b"RSAX" + data[4:]))
    run(path)


@case(Check.RECORD_ENVELOPE)
def record_envelope_not_in_the_tree(path: Path) -> None:
    """A genuine record of the same action and length, but not the one that was sealed."""
    ours = factory.signed_record(CAPTURE, 2)
    later = factory.description(2, started_at="2026-01-02T03:04:04Z")
    theirs = factory.signed_record(CAPTURE, 2, described=later)
    assert len(ours) == len(theirs)
    forged(path, records=three_records(ours))
    path.write_bytes(path.read_bytes().replace(ours, theirs))
    run(path)


@case(Check.RECORD_ENVELOPE)
def records_exchanged_behind_the_index(path: Path) -> None:
    forged(path)
    with BundleReader(path) as bundle:
        one, two = (bundle.read_record(bundle.entry(number)) for number in (0, 1))
    assert len(one) == len(two)
    path.write_bytes(path.read_bytes().replace(one + two, two + one))
    run(path)


@case(Check.RECORD_ENVELOPE)
def record_without_a_signature(path: Path) -> None:
    found = parse_record(factory.signed_record(CAPTURE, 2))
    document = json.loads(found.envelope)
    document["signatures"] = []
    forged(path, records=three_records(encode_record(canonical.encode(document), found.tables)))
    run(path)


@case(Check.RECORD_SIGNATURE)
def record_signed_by_an_unlisted_key(path: Path) -> None:
    forged(path, records=three_records(factory.signed_record(OTHER, 2)))
    run(path)


@case(Check.RECORD_SIGNATURE)
def capture_key_that_the_caller_does_not_accept(path: Path) -> None:
    forged(path)
    run(path, capture_keys=(OTHER.public_key,))


@case(Check.RECORD_SIGNATURE)
def record_of_another_key_under_a_listed_keyid(path: Path) -> None:
    found = parse_record(factory.signed_record(OTHER, 2))
    ours, theirs = (key.public_key.keyid.encode() for key in (CAPTURE, OTHER))
    data = encode_record(found.envelope.replace(theirs, ours), found.tables)
    forged(path, records=three_records(data))
    run(path)


@case(Check.RECORD_STATEMENT)
def root_in_the_place_of_a_record(path: Path) -> None:
    factory.forged_bundle(path, capture=CAPTURE, signer=CAPTURE)
    with BundleReader(path) as bundle:
        wrong = bundle.root_envelope
    found = parse_record(factory.signed_record(CAPTURE, 2))
    forged(path, records=three_records(encode_record(wrong, found.tables)))
    run(path)


@case(Check.RECORD_STATEMENT)
def unknown_field_in_a_record(path: Path) -> None:
    second_record(path, change=put("extra", 1))


@case(Check.RECORD_STATEMENT)
def unknown_field_deep_in_a_record(path: Path) -> None:
    second_record(path, change=put("capture", "host", "extra", "x"))


@case(Check.RECORD_STATEMENT)
def unknown_version_of_a_record(path: Path) -> None:
    second_record(path, change_statement=put("predicateType", "https://rootseal.dev/action/v2"))


@case(Check.RECORD_STATEMENT)
def counts_that_disagree(path: Path) -> None:
    second_record(path, change=put("summary", "materials", 1))


@case(Check.RECORD_STATEMENT)
def weaker_than_requested_without_a_reason(path: Path) -> None:
    def change(document: Any) -> None:
        document["capture"]["posture"] = {"requested": "sealed", "achieved": "held"}
        document["capture"]["fallbacks"] = []

    second_record(path, change=change)


@case(Check.RECORD_STATEMENT)
def strict_action_without_zero_drops(path: Path) -> None:
    change = put("capture", "requested", "hardening", "strict")
    second_record(path, change=change)


@case(Check.RECORD_STATEMENT)
def strict_action_without_fanotify(path: Path) -> None:
    second_record(path, change=lambda found: strict(found["capture"]["requested"], fanotify="off"))


@case(Check.RECORD_STATEMENT)
def strict_action_without_a_trace(path: Path) -> None:
    second_record(path, change=lambda found: strict(found["capture"]["requested"]))


@case(Check.RECORD_STATEMENT)
def strict_action_that_held_nobody(path: Path) -> None:
    observed = factory.observation(posture=Posture.OBSERVED)
    second_record(
        path, observed=observed, change=lambda found: strict(found["capture"]["requested"])
    )


@case(Check.RECORD_STATEMENT)
def action_of_an_unknown_hardening_level(path: Path) -> None:
    second_record(path, change=put("capture", "requested", "hardening", "none"))


@case(Check.RECORD_ACTION_KEY)
def record_of_another_action(path: Path) -> None:
    forged(path, records=three_records(factory.signed_record(CAPTURE, 4)))
    run(path)


@case(Check.RECORD_ACTION_KEY)
def subject_of_another_action(path: Path) -> None:
    second_record(path, change_statement=put("subject", 0, "name", "action:" + "0" * 64))


@case(Check.RECORD_TABLES)
def leaf_table_swapped(path: Path) -> None:
    other = leaf_table.encode(Domain.MATERIAL, [factory.leaf(b"other")])
    stored = leaf_table.compress(other.raw)
    second_record(path, change_tables=lambda t: dataclasses.replace(t, materials=stored))


@case(Check.RECORD_TABLES)
def products_in_the_place_of_materials(path: Path) -> None:
    """Both are what was signed for their places, but a product is not a material."""

    def swap(found: StoredTables) -> StoredTables:
        return StoredTables(found.products, found.products, found.opens)

    def change(document: Any) -> None:
        document["materials"] = document["products"]
        document["summary"]["materials"] = document["summary"]["products"]

    second_record(path, change=change, change_tables=swap)


@case(Check.RECORD_TABLES)
def root_of_another_table(path: Path) -> None:
    second_record(path, change=put("materials", "treeRoot", "0" * 64))


@case(Check.RECORD_TABLES)
def size_of_another_table(path: Path) -> None:
    def change(document: Any) -> None:
        document["products"]["treeSize"] = document["summary"]["products"] = 2

    second_record(path, change=change)


@case(Check.RECORD_TABLES)
def opens_of_a_process_that_does_not_exist(path: Path) -> None:
    def change(document: Any) -> None:
        document["processes"] = []
        document["summary"]["processes"] = 0

    second_record(path, change=change)


@case(Check.RECORD_COUNTERS)
def missing_counter(path: Path) -> None:
    second_record(path, change=drop("summary", "diagnostics", "unhashedOpensTotal"))


@case(Check.RECORD_COUNTERS)
def unknown_counter(path: Path) -> None:
    second_record(path, change=put("summary", "diagnostics", "somethingNew", 0))


@case(Check.RECORD_COUNTERS)
def loss_that_the_summary_hides(path: Path) -> None:
    second_record(path, change=put("summary", "diagnostics", "lateEvents", 1))


@case(Check.RECORD_LOSSES)
def loss(path: Path) -> None:
    observed = factory.observation(counts=factory.counters(lateEvents=1))
    second_record(path, observed=observed)


@case(Check.RECORD_LOSSES)
def loss_that_the_caller_accepts_but_the_build_did_not(path: Path) -> None:
    observed = factory.observation(counts=factory.counters(lateEvents=1))
    forged(path, records=three_records(factory.forged_record(CAPTURE, 2, observed=observed)))
    run(path, policy=Policy(require_zero_losses=False))


@case(Check.RECORD_POSTURE)
def action_weaker_than_the_builds_own_policy(path: Path) -> None:
    observed = factory.observation(posture=Posture.WALKED)
    second_record(path, observed=observed)


@case(Check.RECORD_POSTURE)
def sealed_action_that_hashed_a_material(path: Path) -> None:
    second_record(path, observed=factory.observation(posture=Posture.SEALED))


@case(Check.RECORD_POSTURE)
def action_without_a_trace_in_a_strict_build(path: Path) -> None:
    forged(path, change=lambda root: strict(root["policy"]))
    run(path)


@case(Check.RECORD_OUTPUTS)
def output_that_the_record_does_not_explain(path: Path) -> None:
    del path
    check_record(
        factory.signed_record(CAPTURE, 1),
        action_key=factory.description(1).action_key,
        trusted_public_keys=[CAPTURE.public_key],
        declared_outputs=[{"path": "out/a.o", "sha256": "0" * 64}],
    )


@case(Check.RECORD_OUTPUTS)
def exit_code_that_the_record_does_not_have(path: Path) -> None:
    del path
    check_record(
        factory.signed_record(CAPTURE, 1),
        action_key=factory.description(1).action_key,
        trusted_public_keys=[CAPTURE.public_key],
        declared_outputs=[],
        exit_code=1,
    )


# --- 18 to 20: what the root says of the records ----------------------------------------------


@case(Check.SUMMARY)
def counter_missing_in_the_root(path: Path) -> None:
    forged(path, change=drop("summary", "diagnostics", "lateEvents"))
    run(path)


@case(Check.SUMMARY)
def sum_that_is_not_the_actions(path: Path) -> None:
    forged(path, change=put("summary", "materials", 5))
    run(path)


@case(Check.SUMMARY)
def posture_stronger_than_the_weakest(path: Path) -> None:
    forged(path, change=put("summary", "posture", "sealed"))
    run(path)


@case(Check.SUMMARY)
def posture_weaker_than_the_weakest(path: Path) -> None:
    forged(path, change=put("summary", "posture", "observed"))
    run(path)


@case(Check.SUMMARY)
def posture_that_the_weakest_action_does_not_have(path: Path) -> None:
    walked = factory.forged_record(CAPTURE, 2, observed=factory.observation(posture=Posture.WALKED))
    forged(path, records=three_records(walked), change=put("policy", "posture", "walked"))
    run(path)


@case(Check.SUMMARY)
def sources_that_do_not_add_up(path: Path) -> None:
    forged(path, change=put("summary", "sources", "ran", 2))
    run(path)


@case(Check.TARGETS)
def range_beyond_the_tree(path: Path) -> None:
    forged(path, change=put("targets", 0, "actions", [[0, 4]]))
    run(path)


@case(Check.TARGETS)
def overlapping_ranges(path: Path) -> None:
    forged(path, change=put("targets", 0, "actions", [[0, 2], [1, 3]]))
    run(path)


@case(Check.TARGETS)
def empty_range(path: Path) -> None:
    forged(path, change=put("targets", 0, "actions", [[1, 1]]))
    run(path)


@case(Check.TARGETS)
def subject_that_no_target_made(path: Path) -> None:
    extra = {"name": "zzz", "digest": {"sha256": "0" * 64}}

    def change(document: Any) -> None:
        document["subject"].append(extra)

    forged(path, change_statement=change)
    run(path)


@case(Check.POLICY)
def posture_weaker_than_required(path: Path) -> None:
    forged(path)
    run(path, policy=Policy(required_posture=Posture.SEALED))


# --- 21 and 22: proofs ------------------------------------------------------------------------


def proof_of(path: Path) -> Any:
    forged(path)
    with BundleReader(path) as bundle:
        root = verify_root(bundle.root_envelope, trusted=[SIGNER.public_key], capture_keys=None)
        material = prove.prove_leaf(bundle, root, Domain.MATERIAL, b"src/a.c", action_key=None)
    return json.loads(prove.encode_proof(material))


def check_proof(value: object) -> None:
    verify_proof.verify_proof(
        canonical.encode(value),
        trusted=[SIGNER.public_key],
        capture_keys=None,
        policy=Policy(),
    )


@case(Check.PROOF_FORMAT)
def proof_of_an_unknown_kind(path: Path) -> None:
    check_proof({**proof_of(path), "kind": "wish"})


@case(Check.PROOF_FORMAT)
def proof_with_an_unknown_field(path: Path) -> None:
    check_proof({**proof_of(path), "extra": 1})


@case(Check.PROOF)
def proof_of_another_leaf(path: Path) -> None:
    proof = proof_of(path)
    proof["leaf"]["leaf"]["path"] = "src/b.c"
    check_proof(proof)


@case(Check.PROOF)
def proof_with_an_index_beyond_the_tree(path: Path) -> None:
    proof = proof_of(path)
    proof["leaf"]["leafIndex"] += 2
    check_proof(proof)


@pytest.mark.parametrize(
    ("check", "function"),
    [
        pytest.param(check, function, id=f"{check.name}-{name}")
        for check, cases in CASES.items()
        for name, function in cases
    ],
)
def test_it_is_refused_there(check: Check, function: Case, tmp_path: Path) -> None:
    with pytest.raises(VerificationError) as caught:
        function(tmp_path / "bundle")
    assert caught.value.check == check.name
    assert str(caught.value).startswith(check.label)
    assert "\n" not in str(caught.value)


def replace_records(
    path: Path,
    change: Callable[[list[tuple[NewRecord, bytes]]], list[tuple[NewRecord, bytes]]],
) -> None:
    """Write the bundle again with other records and the same root envelope."""
    with BundleReader(path) as reader:
        items = [
            (NewRecord(e.action_key, e.envelope_sha256, e.length), reader.read_record(e))
            for e in reader.entries()
        ]
        root, inputs = reader.root_envelope, reader.engine_inputs
    changed = change(items)
    write_bundle(
        path,
        root_envelope=root,
        engine_inputs=inputs,
        index=[entry for entry, _ in changed],
        records=[data for _, data in changed],
    )


def replace_root(path: Path, change: Callable[[bytes], bytes]) -> None:
    """Write the bundle again with another root envelope and the same records."""
    with BundleReader(path) as reader:
        entries = list(reader.entries())
        records = [reader.read_record(entry) for entry in entries]
        root, inputs = change(reader.root_envelope), reader.engine_inputs
    write_bundle(
        path,
        root_envelope=root,
        engine_inputs=inputs,
        index=[NewRecord(e.action_key, e.envelope_sha256, e.length) for e in entries],
        records=records,
    )
