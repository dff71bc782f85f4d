"""Action records: written by the real encoders, refused when anything in them is not right."""

from __future__ import annotations

import core_factory as factory
import pytest
from rootseal import keys, record_check
from rootseal.errors import PolicyError, SignatureError, StatementError, VerificationError

KEY = factory.description().action_key
OUTPUT = {"path": "out/a.o", "sha256": factory.leaf(b"x", b"object").digest.hex(), "size": 6}


@pytest.fixture(scope="module", params=keys.ALGORITHMS)
def signer(request: pytest.FixtureRequest) -> keys.KeyFileSigner:
    return keys.generate(request.param)


def check(data: bytes, signer: keys.KeyFileSigner, *outputs: dict[str, object]) -> None:
    record_check.check_record(
        data,
        action_key=KEY,
        trusted_public_keys=[signer.public_key],
        declared_outputs=outputs or (OUTPUT,),
    )


def test_a_genuine_record_counts(signer: keys.KeyFileSigner) -> None:
    check(factory.signed_record(signer), signer)


def test_every_flipped_byte_is_refused(signer: keys.KeyFileSigner) -> None:
    data = factory.signed_record(signer)
    for index in range(len(data)):
        bad = bytearray(data)
        bad[index] ^= 1 << (index % 8)
        with pytest.raises(VerificationError) as caught:
            check(bytes(bad), signer)
        assert caught.value.check is not None


def test_every_shorter_record_is_refused(signer: keys.KeyFileSigner) -> None:
    data = factory.signed_record(signer)
    for length in range(len(data)):
        with pytest.raises(VerificationError):
            check(data[:length], signer)
    with pytest.raises(VerificationError):
        check(data + b"\x00", signer)


def test_an_unknown_capture_key_is_refused(signer: keys.KeyFileSigner) -> None:
    with pytest.raises(SignatureError, match="record-signature"):
        check(factory.signed_record(keys.generate("ed25519")), signer)


def test_the_record_of_another_action_is_refused(signer: keys.KeyFileSigner) -> None:
    with pytest.raises(StatementError, match="record-action-key"):
        check(factory.signed_record(signer, 2), signer)


@pytest.mark.parametrize(
    "output",
    [
        {**OUTPUT, "sha256": "0" * 64},
        {**OUTPUT, "path": "out/b.o"},
        {**OUTPUT, "size": 7},
        {"path": "out/a.o", "target": "elsewhere"},
    ],
)
def test_outputs_that_the_record_does_not_explain_are_refused(
    signer: keys.KeyFileSigner, output: dict[str, object]
) -> None:
    with pytest.raises(PolicyError, match="record-outputs"):
        check(factory.signed_record(signer), signer, output)
