"""CHECK of records that the daemon made itself: the same answers, and bounded memory."""

from __future__ import annotations

import dataclasses
from typing import Any

import core_factory as factory
import pytest
from rootseal import daemon_check, keys, record, record_check
from rootseal.errors import VerificationError
from rootseal.predicate import StoredTables

CAPTURE = keys.generate("ed25519")
OUT = {"path": "out/a.o", "sha256": factory.leaf(b"out/a.o", b"object 1").digest.hex()}


def signed(number: int = 1) -> record.SignedRecord:
    return record.sign_record(factory.observation(), factory.description(number), CAPTURE)


def judged(verified: Any, **changed: Any) -> str:
    """Why a record may not count, or nothing."""
    request = {"declared_outputs": [], "expected": None, "exit_code": 0, **changed}
    try:
        record_check.judge_record(verified, **request)
    except VerificationError as error:
        return f"{error.check}: {error}"
    return ""


@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"exit_code": 1},
        {"declared_outputs": [{"path": "no/such", "sha256": "0" * 64}]},
        {"declared_outputs": [{"path": "out/a.o", "sha256": "0" * 64}]},
    ],
)
def test_what_was_made_here_is_judged_like_what_is_verified(changed: Any) -> None:
    made = signed()
    verified = record_check.verify_record(
        made.data,
        action_key=made.predicate.action_key,
        envelope_sha256=None,
        trusted=[CAPTURE.public_key],
    )
    own = record_check.own_record(made, CAPTURE.public_key.keyid)
    assert judged(own, **changed) == judged(verified, **changed)
    assert bool(judged(own, **changed)) == bool(changed)
    assert (own.keyid, own.losses, own.counters) == (
        verified.keyid,
        verified.losses,
        verified.counters,
    )
    assert "processes" not in own.predicate.document, "kept for long, so kept small"


def test_only_the_very_bytes_are_found() -> None:
    made = daemon_check.MadeRecords("key")
    first = signed()
    made.add(first)
    assert made.find(first.data) is not None
    assert made.find(first.data[:-1]) is None
    assert made.find(first.data + b"\0") is None


def test_the_oldest_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(daemon_check, "MADE_COUNT_MAX", 3)
    made, records = daemon_check.MadeRecords("key"), [signed(number) for number in range(1, 6)]
    for item in records:
        made.add(item)
    assert [made.find(item.data) is not None for item in records] == [False] * 2 + [True] * 3


def test_large_tables_go_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(daemon_check, "MADE_BYTES_MAX", 100)
    made = daemon_check.MadeRecords("key")
    for number in (1, 2):
        item = signed(number)
        large = StoredTables(b"", bytes(80), b"")
        made.add(dataclasses.replace(item, tables=large))
        assert made.find(item.data) is not None
    assert made.find(signed(1).data) is None
    made.add(made_again := signed(2))  # the same bytes once more are held once
    assert made.find(made_again.data) is not None
