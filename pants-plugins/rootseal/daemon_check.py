"""CHECK: may a result that a build tool found in a cache count? Only its record can say so."""

from __future__ import annotations

import threading
from typing import Dict, List, Mapping, Optional, Sequence

from rootseal import digest, keys, schema
from rootseal.action_check import read_expected
from rootseal.errors import ConfigError, EncodingError, VerificationError
from rootseal.record import SignedRecord
from rootseal.record_check import VerifiedRecord, judge_record, own_record, verify_record
from rootseal.wire import Frame, Tag

OUTPUTS_MAX = 1 << 20
TRUSTED_KEYS_MAX = 256
EXIT_CODE_MAX = 255
SIGNAL_MAX = 127
MADE_COUNT_MAX = 64  # a build tool checks a record as soon as it has it
MADE_BYTES_MAX = 64 << 20


class MadeRecords:
    """The last records that this daemon made: what it signed itself it need not verify."""

    def __init__(self, keyid: str) -> None:
        self._keyid = keyid
        self._lock = threading.Lock()
        self._records: Dict[bytes, VerifiedRecord] = {}
        self._bytes = 0

    def add(self, signed: SignedRecord) -> None:
        """Remember a record; the oldest go when there are too many."""
        verified = own_record(signed, self._keyid)
        name = digest.sha256(signed.data)
        with self._lock:
            if name in self._records:
                return
            self._records[name] = verified
            self._bytes += _held_bytes(verified)
            while self._bytes > MADE_BYTES_MAX or len(self._records) > MADE_COUNT_MAX:
                self._bytes -= _held_bytes(self._records.pop(next(iter(self._records))))

    def find(self, data: bytes) -> Optional[VerifiedRecord]:
        """The record with these very bytes, if this daemon made it lately."""
        with self._lock:
            return self._records.get(digest.sha256(data))


def _held_bytes(verified: VerifiedRecord) -> int:
    return len(verified.record.tables.products)


def answer_check(frame: Frame, own_key: keys.PublicKey, made: MadeRecords) -> Dict[str, object]:
    """The JSON of the CHECKED frame.

    Args:
        frame: A CHECK frame.
        own_key: This daemon's capture key; always trusted.
        made: Records that this daemon made.

    Raises:
        EncodingError: The frame is malformed.
        ConfigError: A trusted key is not a public key.
    """
    action_key, request = frame.one(Tag.ACTION_KEY), frame.json()
    if len(action_key) != 32:
        raise EncodingError("the action key is not 32 bytes")
    outputs = _outputs(request.get("outputs"))
    expected = read_expected(request.get("action"))
    exit_code = _exit_code(request.get("exitCode"))
    trusted = [own_key, *_trusted(request.get("trustedCaptureKeys", []))]
    data = frame.one(Tag.RECORD)
    try:
        verified = made.find(data)
        if verified is None or verified.predicate.action_key != action_key:
            verified = verify_record(
                data, action_key=action_key, envelope_sha256=None, trusted=trusted
            )
        judge_record(verified, outputs, expected, exit_code)
    except VerificationError as error:
        return {"accepted": False, "reason": str(error), "check": error.check}
    return _accepted(verified)


def _accepted(verified: VerifiedRecord) -> Dict[str, object]:
    capture = schema.as_object(verified.predicate.document["capture"])
    return {
        "accepted": True,
        "reason": "",
        "capturedAt": capture["startedAt"],
        "host": capture["host"],
        "posture": verified.predicate.posture.value,
        "keyid": verified.keyid,
        "losses": dict(verified.losses),
    }


def _outputs(value: object) -> Sequence[Mapping[str, object]]:
    if not isinstance(value, list) or len(value) > OUTPUTS_MAX:
        raise EncodingError(f"outputs is not a list of at most {OUTPUTS_MAX}")
    for item in value:
        if not isinstance(item, dict):
            raise EncodingError("an output is not an object")
    return value


def _exit_code(value: object) -> Optional[int]:
    if value is None or (type(value) is int and -SIGNAL_MAX <= value <= EXIT_CODE_MAX):
        return value
    raise EncodingError("the exit code is not a number that a process can end with")


def _trusted(value: object) -> List[keys.PublicKey]:
    if not isinstance(value, list) or len(value) > TRUSTED_KEYS_MAX:
        raise ConfigError(f"trusted capture keys are not a list of at most {TRUSTED_KEYS_MAX}")
    found = []
    for number, pem in enumerate(value):
        if not isinstance(pem, str):
            raise ConfigError("a trusted capture key is not PEM text")
        found.append(keys.parse_public_key(pem.encode("utf-8"), where=f"trusted key {number}"))
    return found
