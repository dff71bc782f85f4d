"""An action has posture `sealed` only if fs-verity measured every material of it (check 16)."""

from __future__ import annotations

from typing import Sequence

import core_factory as factory
import pytest
from rootseal import keys
from rootseal.checks import Check
from rootseal.errors import VerificationError
from rootseal.leaf_table import Leaf
from rootseal.observation import DigestSource, Posture
from rootseal.record_check import VerifiedRecord, verify_record

CAPTURE = keys.generate("ed25519")
TOOL = factory.leaf(b"/usr/bin/cc", b"cc", kind=1, source=DigestSource.FSVERITY_MEASURED)


def verified(materials: Sequence[Leaf]) -> VerifiedRecord:
    observed = factory.observation(posture=Posture.SEALED, materials=materials)
    return verify_record(
        factory.forged_record(CAPTURE, 1, observed=observed),
        action_key=factory.description(1).action_key,
        envelope_sha256=None,
        trusted=[CAPTURE.public_key],
    )


def test_measured_files_alone_are_sealed() -> None:
    assert verified([TOOL]).predicate.posture is Posture.SEALED


@pytest.mark.parametrize(
    "source", [source for source in DigestSource if source is not DigestSource.FSVERITY_MEASURED]
)
def test_one_other_material_refutes_it(source: DigestSource) -> None:
    other = factory.leaf(b"/usr/include/a.h", b"int a;", source=source)
    with pytest.raises(VerificationError, match=r"/usr/include/a\.h was not measured") as caught:
        verified([TOOL, other])
    assert caught.value.check == Check.RECORD_POSTURE.name


def test_nothing_measured_is_not_sealed() -> None:
    with pytest.raises(VerificationError, match="no material was measured") as caught:
        verified([])
    assert caught.value.check == Check.RECORD_POSTURE.name
