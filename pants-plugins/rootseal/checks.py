"""The checks of verification, in the order in which they are made.

Every refusal names one of these; docs/verification.md explains each under the same number, and
every member has a test that fails there.
"""

from __future__ import annotations

import contextlib
import enum
from typing import Iterator, Optional, Type

from rootseal.errors import EncodingError, VerificationError


class Check(enum.Enum):
    """One check. The value is its number."""

    BUNDLE_FORMAT = 1
    ROOT_ENVELOPE = 2
    ROOT_SIGNATURE = 3
    ROOT_STATEMENT = 4
    ARTIFACTS = 5
    TREE = 6
    ENGINE_INPUTS = 7
    RECORD_FORMAT = 8
    RECORD_ENVELOPE = 9
    RECORD_SIGNATURE = 10
    RECORD_STATEMENT = 11
    RECORD_ACTION_KEY = 12
    RECORD_TABLES = 13
    RECORD_COUNTERS = 14
    RECORD_LOSSES = 15
    RECORD_POSTURE = 16
    RECORD_OUTPUTS = 17
    SUMMARY = 18
    TARGETS = 19
    POLICY = 20
    PROOF_FORMAT = 21
    PROOF = 22

    @property
    def label(self) -> str:
        """How messages name the check, for example `check 3 (root-signature)`."""
        return f"check {self.value} ({self.name.lower().replace('_', '-')})"


@contextlib.contextmanager
def checking(
    check: Check, error: Type[VerificationError], *, about: Optional[str] = None
) -> Iterator[None]:
    """Name the check in every refusal that leaves this block.

    Args:
        check: The check that the block makes.
        error: What a malformed encoding inside the block is refused as.
        about: What is being looked at (`action 0a1b…`), put before the reason.
    """
    try:
        yield
    except EncodingError as found:
        raise _named(error(str(found)), check, about) from None
    except VerificationError as found:
        if found.check is not None:
            raise
        raise _named(found, check, about) from None


def _named(found: VerificationError, check: Check, about: Optional[str]) -> VerificationError:
    place = check.label if about is None else f"{check.label}: {about}"
    return type(found)(f"{place}: {found}", check=check.name, data=found.data)
