"""Counters that verification refuses, one by one: in an action, in the root, and in their sum."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Dict, Optional

import core_factory as factory
import pytest
from rootseal import canonical, cli_verify, diagnostics, envelope, keys
from rootseal.bundle import BundleReader, NewRecord, write_bundle
from rootseal.checks import Check
from rootseal.errors import VerificationError
from rootseal.policy import Policy
from rootseal.record import encode_record, parse_record
from rootseal.verify import verify_bundle

SIGNER, CAPTURE = keys.generate("ecdsa-p256"), keys.generate("ed25519")
ABSENT = object()
MALFORMED = {
    "absent": ABSENT,
    "null": None,
    "negative": -1,
    "true": True,
    "false": False,
    "text": "0",
    "list": [0],
}
NUMBERS = {
    "too large": b"9007199254740992",
    "a float": b"0.0",
    "an exponent": b"0e0",
    "a minus": b"-0",
    "a zero before": b"00",
}
LOSSES_ALLOWED = Policy(require_zero_losses=False)


def change_counter(name: str, value: object) -> Any:
    def change(document: Dict[str, Any]) -> None:
        counters = document["summary"]["diagnostics"]
        if value is ABSENT:
            del counters[name]
        else:
            counters[name] = value

    return change


def refused(path: Path, check: Check, match: Optional[str] = None) -> None:
    """Verification refuses the bundle by this check, whatever the policy says of losses."""
    for demanded in (Policy(), LOSSES_ALLOWED):
        with (
            pytest.raises(VerificationError, match=match) as caught,
            cli_verify.open_bundle(str(path)) as bundle,
        ):
            verify_bundle(
                bundle,
                trusted=[SIGNER.public_key],
                capture_keys=None,
                artifacts=(),
                policy=demanded,
            )
        assert caught.value.check == check.name, caught.value


def with_second(path: Path, record: bytes) -> Path:
    """A bundle whose second record is this one."""
    first, third = (factory.signed_record(CAPTURE, number) for number in (1, 3))
    records = [first, record, third]
    factory.forged_bundle(path, capture=CAPTURE, signer=SIGNER, records=records)
    return path


@pytest.mark.parametrize("value", MALFORMED.values(), ids=list(MALFORMED))
@pytest.mark.parametrize("name", diagnostics.NAMES)
def test_a_malformed_counter_of_an_action(name: str, value: object, tmp_path: Path) -> None:
    record = factory.forged_record(CAPTURE, 2, change=change_counter(name, value))
    refused(with_second(tmp_path / "b", record), Check.RECORD_COUNTERS, name)


@pytest.mark.parametrize("value", MALFORMED.values(), ids=list(MALFORMED))
@pytest.mark.parametrize("name", diagnostics.NAMES)
def test_a_malformed_counter_of_the_root(name: str, value: object, tmp_path: Path) -> None:
    change = change_counter(name, value)
    factory.forged_bundle(tmp_path / "b", capture=CAPTURE, signer=SIGNER, change=change)
    refused(tmp_path / "b", Check.SUMMARY, name)


@pytest.mark.parametrize("name", diagnostics.NAMES)
def test_a_counter_of_the_root_that_is_not_the_sum(name: str, tmp_path: Path) -> None:
    summed = {**diagnostics.zeros(), "fanotifyAvailable": 3}
    for value in (summed[name] + 1, max(summed[name] - 1, 0)):
        if value == summed[name]:
            continue
        change = change_counter(name, value)
        factory.forged_bundle(tmp_path / "b", capture=CAPTURE, signer=SIGNER, change=change)
        refused(tmp_path / "b", Check.SUMMARY, r"summary\.(losses|diagnostics) is not what")


@pytest.mark.parametrize("name", [item.name for item in diagnostics.COUNTERS if item.gating])
def test_a_loss_that_the_root_does_not_sum(name: str, tmp_path: Path) -> None:
    """Also where losses are allowed: what the root says of them must be true."""
    counts = factory.counters(**{name: 1})
    path, policy = tmp_path / "b", {**POLICY, "requireZeroDrops": False}
    lossy = factory.signed_record(CAPTURE, 2, observed=factory.observation(counts=counts))
    good = factory.signed_record(CAPTURE, 1)
    factory.seal_to(path, capture=CAPTURE, signer=SIGNER, records=[good, lossy], policy=policy)
    resign_root(path, change_counter(name, 0))
    with (
        pytest.raises(VerificationError, match="is not what the actions give") as caught,
        cli_verify.open_bundle(str(path)) as bundle,
    ):
        verify_bundle(
            bundle,
            trusted=[SIGNER.public_key],
            capture_keys=None,
            artifacts=(),
            policy=LOSSES_ALLOWED,
        )
    assert caught.value.check == Check.SUMMARY.name


@pytest.mark.parametrize("number", NUMBERS.values(), ids=list(NUMBERS))
def test_numbers_in_another_form(number: bytes, tmp_path: Path) -> None:
    """No canonical encoder writes them, so they are put into the payload by hand."""
    place, wrong = b'"lateEvents":0', b'"lateEvents":' + number
    record = parse_record(factory.signed_record(CAPTURE, 2))
    payload = envelope.parse(record.envelope).payload
    assert payload.count(place) == 1
    signed = envelope.sign(payload.replace(place, wrong), CAPTURE)
    refused(
        with_second(tmp_path / "b", encode_record(signed, record.tables)), Check.RECORD_STATEMENT
    )

    factory.seal_to(tmp_path / "c", capture=CAPTURE, signer=SIGNER)
    resign_payload(tmp_path / "c", lambda payload: payload.replace(place, wrong))
    refused(tmp_path / "c", Check.ROOT_STATEMENT)


@pytest.mark.parametrize("name", ["lateEvents", "partialReadFallbacks"])
def test_a_counter_that_is_there_twice(name: str, tmp_path: Path) -> None:
    """The one JSON reader takes the first, the next one the last."""
    place = f'"{name}":0'.encode()
    twice = place + f',"{name}":1'.encode()
    factory.seal_to(tmp_path / "b", capture=CAPTURE, signer=SIGNER)
    resign_payload(tmp_path / "b", lambda payload: payload.replace(place, twice))
    refused(tmp_path / "b", Check.ROOT_STATEMENT)


@pytest.mark.parametrize(
    "stated", [[], ["lateEvents"], ["bytesHashed", "lateEvents", "unstableFiles"]]
)
def test_losses_that_do_not_follow_from_the_counters(stated: list[str], tmp_path: Path) -> None:
    def change(document: Dict[str, Any]) -> None:
        document["summary"]["diagnostics"].update(lateEvents=1, unstableFiles=1, bytesHashed=1)
        document["summary"]["losses"] = stated

    record = factory.forged_record(CAPTURE, 2, change=change)
    refused(with_second(tmp_path / "b", record), Check.RECORD_COUNTERS, "stated losses")


def test_partial_reads_are_summed_and_refuse_nothing(tmp_path: Path) -> None:
    counts = factory.counters(partialReadFallbacks=5)
    seen = factory.observation(counts=counts)
    records = [factory.signed_record(CAPTURE, number, observed=seen) for number in (1, 2)]
    sealed = factory.seal_to(tmp_path / "b", capture=CAPTURE, signer=SIGNER, records=records)
    assert sealed.summary["losses"] == []
    with cli_verify.open_bundle(str(tmp_path / "b")) as bundle:
        found = verify_bundle(
            bundle,
            trusted=[SIGNER.public_key],
            capture_keys=None,
            artifacts=(),
            policy=Policy(),
        )
    assert found.losses == {}
    assert found.root.predicate.summary["diagnostics"] == {
        **diagnostics.zeros(),
        "fanotifyAvailable": 2,
        "partialReadFallbacks": 10,
    }


POLICY: Dict[str, Any] = dict(factory.manifest([])["policy"])  # type: ignore[call-overload]


def resign_root(path: Path, change: Any) -> None:
    def changed(payload: bytes) -> bytes:
        signed = json.loads(payload)
        change(signed["predicate"])
        return canonical.encode(signed)

    resign_payload(path, changed)


def resign_payload(path: Path, change: Any) -> None:
    """Write the bundle again with another payload of its root, signed by the right key."""
    with BundleReader(path) as reader:
        entries = list(reader.entries())
        records = [reader.read_record(entry) for entry in entries]
        payload, inputs = envelope.parse(reader.root_envelope).payload, reader.engine_inputs
    changed = change(payload)
    assert changed != payload
    write_bundle(
        path,
        root_envelope=envelope.sign(changed, SIGNER),
        engine_inputs=inputs,
        index=[NewRecord(e.action_key, e.envelope_sha256, e.length) for e in entries],
        records=records,
    )
