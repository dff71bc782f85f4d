"""Sealing: what it refuses, what it names, and what it leaves behind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Dict, Optional

import core_factory as factory
import pytest
from rootseal import canonical, digest, envelope, keys, seal, statement
from rootseal.bundle import BundleReader
from rootseal.errors import ConfigError, EncodingError, IncompleteError, VerificationError
from rootseal.manifest import MANIFEST_BYTES_MAX, parse_manifest, read_manifest
from rootseal.observation import Posture
from rootseal.verify import verify_root

CAPTURE = keys.generate("ed25519")
SIGNER = keys.generate("ed25519")
OTHER = keys.generate("ecdsa-p256")


def test_target_statements_are_signed_and_say_which_actions(tmp_path: Path) -> None:
    sealed = factory.seal_to(
        tmp_path / "b", capture=CAPTURE, signer=SIGNER, targets_dir=tmp_path / "targets"
    )
    assert sorted(sealed.targets) == ["//app:app", "//lib:lib"]
    data = sealed.targets["//lib:lib"].read_bytes()
    payload = envelope.verify(envelope.parse(data), [SIGNER.public_key])
    signed = statement.parse(payload, predicate_type=statement.TARGET_TYPE)
    content: Any = signed.predicate
    assert [subject.name for subject in signed.subjects] == ["lib/lib.a"]
    assert content["build"]["rootEnvelope"]["sha256"] == sealed.root_envelope_sha256
    assert content["build"]["tree"]["root"] == sealed.tree_root
    (action,) = content["actions"]
    assert action["actionKey"] == factory.description(1).action_key.hex()
    assert action["description"] == "Compile number 1"
    assert (action["posture"], action["losses"]) == ("held", [])


def test_a_missing_record_names_the_action_and_the_remedy(tmp_path: Path) -> None:
    records = [factory.signed_record(CAPTURE, number) for number in (1, 2)]
    with pytest.raises(IncompleteError) as caught:
        seal.seal(
            read_manifest(factory.manifest(records)),
            records=seal.RecordsInMemory({digest.sha256_hex(records[0]): records[0]}),
            trusted=[CAPTURE.public_key],
            signer=SIGNER,
            out=tmp_path / "b",
            targets_dir=None,
        )
    message = str(caught.value)
    assert factory.description(2).action_key.hex()[:16] in message
    assert "Compile number 2" in message
    assert "build again" in message
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("record", "check"),
    [
        (factory.signed_record(OTHER, 2), "RECORD_SIGNATURE"),
        (factory.signed_record(CAPTURE, 4), "RECORD_ACTION_KEY"),
        (
            factory.signed_record(
                CAPTURE,
                2,
                observed=factory.observation(counts=factory.counters(unhashedOpensTotal=1)),
            ),
            "RECORD_LOSSES",
        ),
        (
            factory.signed_record(CAPTURE, 2, observed=factory.observation(posture=Posture.WALKED)),
            "RECORD_POSTURE",
        ),
        (
            factory.signed_record(CAPTURE, 2, described=factory.description(2, exit_code=1)),
            "RECORD_OUTPUTS",
        ),
        (b"not a record", "RECORD_FORMAT"),
    ],
)
def test_records_that_may_not_count_are_refused(record: bytes, check: str, tmp_path: Path) -> None:
    records = [factory.signed_record(CAPTURE, 1), record]
    with pytest.raises(VerificationError) as caught:
        factory.seal_to(tmp_path / "b", capture=CAPTURE, signer=SIGNER, records=records)
    assert caught.value.check == check
    assert list(tmp_path.iterdir()) == []


def test_losses_are_sealed_only_where_the_build_allows_them(tmp_path: Path) -> None:
    observed = factory.observation(counts=factory.counters(lateEvents=2))
    records = [factory.signed_record(CAPTURE, number, observed=observed) for number in (1, 2)]
    policy = {**factory.manifest([])["policy"], "requireZeroDrops": False}  # type: ignore[dict-item]
    sealed = factory.seal_to(
        tmp_path / "b", capture=CAPTURE, signer=SIGNER, records=records, policy=policy
    )
    assert sealed.summary["losses"] == ["lateEvents"]
    assert sealed.summary["diagnostics"]["lateEvents"] == 4  # type: ignore[index]


def test_a_strict_build_is_not_sealed_over_an_action_without_a_trace(tmp_path: Path) -> None:
    records = [factory.signed_record(CAPTURE, number) for number in (1, 2)]
    policy = {**factory.manifest([])["policy"], "hardening": "strict", "posture": "held"}  # type: ignore[dict-item]
    with pytest.raises(VerificationError, match="captured by fanotify alone") as caught:
        factory.seal_to(
            tmp_path / "b", capture=CAPTURE, signer=SIGNER, records=records, policy=policy
        )
    assert caught.value.check == "RECORD_POSTURE"
    assert list(tmp_path.iterdir()) == []


class ChangingRecords:
    """Records whose bytes are different the second time they are read."""

    def __init__(self, record: bytes) -> None:
        self.record = record
        self.reads = 0

    def read(self, name: str) -> Optional[bytes]:
        del name
        self.reads += 1
        return self.record if self.reads == 1 else self.record[:-1] + b"\x00"


def test_a_record_that_changes_while_it_is_sealed_is_refused(tmp_path: Path) -> None:
    record = factory.signed_record(CAPTURE, 1)
    document = factory.manifest([record])
    with pytest.raises(EncodingError, match="changed"):
        seal.seal(
            read_manifest(document),
            records=ChangingRecords(record),
            trusted=[CAPTURE.public_key],
            signer=SIGNER,
            out=tmp_path / "b",
            targets_dir=None,
        )
    assert list(tmp_path.iterdir()) == []


def test_a_record_file_with_other_content_than_its_name_is_refused(tmp_path: Path) -> None:
    record = factory.signed_record(CAPTURE, 1)
    name = digest.sha256_hex(record)
    place = tmp_path / "records" / name[:2] / name
    place.parent.mkdir(parents=True)
    place.write_bytes(factory.signed_record(CAPTURE, 2))
    with pytest.raises(IncompleteError, match="other content"):
        seal.seal(
            read_manifest(factory.manifest([record])),
            records=seal.RecordDirectory(tmp_path / "records"),
            trusted=[CAPTURE.public_key],
            signer=SIGNER,
            out=tmp_path / "b",
            targets_dir=None,
        )


def test_the_same_record_counts_once(tmp_path: Path) -> None:
    record = factory.signed_record(CAPTURE, 1)
    document = factory.manifest([record])
    document["actions"] = [*document["actions"], *document["actions"]]  # type: ignore[misc]
    manifest = read_manifest(document)
    assert len(manifest.actions) == 1


def test_a_build_without_artifacts_has_its_tree_as_subject(tmp_path: Path) -> None:
    sealed = factory.seal_to(tmp_path / "b", capture=CAPTURE, signer=SIGNER, targets=[])
    with BundleReader(tmp_path / "b") as bundle:
        root = verify_root(bundle.root_envelope, trusted=[SIGNER.public_key], capture_keys=None)
    (subject,) = root.subjects
    assert (subject.name, subject.sha256) == ("run:run-1", sealed.tree_root)


POLICY: Dict[str, object] = dict(factory.manifest([])["policy"])  # type: ignore[call-overload]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 2}, "version"),
        ({"policy": {**POLICY, "hardening": "none"}}, "hardening is not one of off, standard"),
        ({"policy": {**POLICY, "hardening": "strict", "requireZeroDrops": False}}, "contradicts"),
        ({"policy": {**POLICY, "hardening": "strict", "posture": "observed"}}, "weaker than held"),
        ({"policy": {**POLICY, "hardening": "strict", "fanotify": "off"}}, "fanotify off"),
        ({"extra": 1}, "unknown field"),
        ({"actions": []}, "nothing to seal"),
        ({"captureKeys": ["x"]}, "not a PEM key file"),
        ({"vcs": {"system": "git", "commit": "xyz", "dirty": False}}, "hex"),
        ({"run": {"id": "a", "startedAt": "yesterday", "finishedAt": "now"}}, "time"),
        (
            {"targets": [{"address": "//a:a", "actions": ["0" * 64], "artifacts": []}]},
            "not among the actions",
        ),
        (
            {
                "targets": [
                    {"address": "//a:a", "actions": [], "artifacts": []},
                    {"address": "//a:a", "actions": [], "artifacts": []},
                ]
            },
            "twice",
        ),
        (
            {
                "targets": [
                    {
                        "address": f"//{name}:x",
                        "actions": [],
                        "artifacts": [{"name": "same", "sha256": name * 64, "size": 1}],
                    }
                    for name in "ab"
                ]
            },
            "two digests",
        ),
    ],
)
def test_manifests_that_are_wrong_are_one_clear_error(
    change: dict[str, object], message: str
) -> None:
    document = factory.manifest([factory.signed_record(CAPTURE, 1)], **change)
    with pytest.raises(ConfigError, match=message):
        parse_manifest(json.dumps(document).encode())


@pytest.mark.parametrize(
    "data", [b"", b"{", b"[1]", b"[" * 100_000, b'{"version":1.5}', b"\xff", b"null"]
)
def test_manifests_that_are_no_json_are_one_clear_error(data: bytes) -> None:
    with pytest.raises(ConfigError):
        parse_manifest(data)


def test_a_huge_manifest_is_refused_before_it_is_parsed() -> None:
    class Huge(bytes):
        def __len__(self) -> int:
            return MANIFEST_BYTES_MAX + 1

    with pytest.raises(ConfigError, match="at most"):
        parse_manifest(Huge())


def test_target_file_names_are_safe_and_unique() -> None:
    addresses = ["//a/b:c", "//a.b:c", "//A/b:c", "../../etc/x", "//" + "x" * 400, "//é:→", "///"]
    targets = [seal.ManifestTarget(address, (), ()) for address in addresses]
    names = seal.target_file_names(targets)
    assert len({name.lower() for name in names}) == len(addresses)
    assert all("/" not in name and not name.startswith(".") for name in names)
    assert all(len(name) < 200 for name in names)


def test_two_builds_of_the_same_records_have_the_same_root(tmp_path: Path) -> None:
    records = [factory.signed_record(CAPTURE, number) for number in (1, 2, 3)]
    first = factory.seal_to(tmp_path / "a", capture=CAPTURE, signer=SIGNER, records=records)
    second = factory.seal_to(tmp_path / "b", capture=CAPTURE, signer=SIGNER, records=records)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert first.tree_root == second.tree_root
    assert canonical.encode(dict(first.summary)) == canonical.encode(dict(second.summary))
