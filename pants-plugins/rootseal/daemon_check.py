"""CHECK: may a result that a build tool found in a cache count? Only its record can say so."""

from __future__ import annotations

from typing import Dict, List, Mapping, Optional, Sequence

from rootseal import keys, schema
from rootseal.action_check import read_expected
from rootseal.errors import ConfigError, EncodingError, VerificationError
from rootseal.record_check import VerifiedRecord, check_record
from rootseal.wire import Frame, Tag

OUTPUTS_MAX = 1 << 20
TRUSTED_KEYS_MAX = 256
EXIT_CODE_MAX = 255
SIGNAL_MAX = 127


def answer_check(frame: Frame, own_key: keys.PublicKey) -> Dict[str, object]:
    """The JSON of the CHECKED frame.

    Args:
        frame: A CHECK frame.
        own_key: This daemon's capture key; always trusted.

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
    try:
        verified = check_record(
            frame.one(Tag.RECORD),
            action_key=action_key,
            trusted_public_keys=trusted,
            declared_outputs=outputs,
            expected=expected,
            exit_code=exit_code,
        )
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
