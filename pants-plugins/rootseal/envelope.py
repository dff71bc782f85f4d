"""DSSE envelopes: one payload, one signature, one canonical form (docs/formats.md, DSSE).

The envelope's text is matched against its only allowed form before anything in it is parsed, and
the payload is handed out only after its signature was verified.
"""

from __future__ import annotations

import base64
import binascii
import dataclasses
import re
from typing import Iterable

from rootseal import keys
from rootseal.errors import EnvelopeError, SignatureError

PAYLOAD_TYPE = "application/vnd.in-toto+json"
ENVELOPE_BYTES_MAX = 64 * 1024 * 1024
SIGNATURE_BYTES_MAX = 1024
_FORM = re.compile(
    rb'\{"payload":"([A-Za-z0-9+/=]*)","payloadType":"application/vnd\.in-toto\+json",'
    rb'"signatures":\[\{"keyid":"([0-9a-f]{64})","sig":"([A-Za-z0-9+/=]+)"\}\]\}'
)
# Canonical JSON, written out: what stands in it is base64 and hex, which need no escape.
_TEXT = (
    b'{"payload":"%b","payloadType":"application/vnd.in-toto+json",'
    b'"signatures":[{"keyid":"%b","sig":"%b"}]}'
)


@dataclasses.dataclass(frozen=True)
class Envelope:
    """A well-formed envelope whose signature nobody has checked yet.

    Attributes:
        payload: The statement's bytes; not to be parsed before `verify`.
        keyid: Id of the key that claims to have signed.
        signature: The signature's bytes.
    """

    payload: bytes = dataclasses.field(repr=False)
    keyid: str
    signature: bytes = dataclasses.field(repr=False)


def pae(payload_type: str, payload: bytes) -> bytes:
    """DSSE's pre-authentication encoding; lengths count bytes, not characters."""
    kind = payload_type.encode("utf-8")
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)


def sign(statement: bytes, signer: keys.Signer) -> bytes:
    """Sign a statement's bytes.

    Returns:
        The envelope, canonical JSON.

    Raises:
        EnvelopeError: The statement is too large for an envelope.
        SignatureError: The signer returned a signature that its own public key does not accept.
    """
    public_key = keys.public_key_of(signer)
    message = pae(PAYLOAD_TYPE, statement)
    signature = bytes.fromhex(signer.sign(message).signature)
    if not isinstance(signer, keys.KeyFileSigner):  # what a broken remote signer gives ends here
        public_key.verify(signature, message)
    keyid, text = public_key.keyid.encode("ascii"), base64.b64encode(statement)
    data = _TEXT % (text, keyid, base64.b64encode(signature))
    if len(data) > ENVELOPE_BYTES_MAX:
        raise EnvelopeError(f"the envelope has {len(data)} bytes; at most {ENVELOPE_BYTES_MAX} fit")
    return data


def parse(data: bytes) -> Envelope:
    """Read an envelope in its canonical form.

    Raises:
        EnvelopeError: Another payload type, another form, more than one signature, or too large.
    """
    if len(data) > ENVELOPE_BYTES_MAX:
        raise EnvelopeError(
            f"the envelope has {len(data)} bytes; at most {ENVELOPE_BYTES_MAX} are accepted"
        )
    match = _FORM.fullmatch(data)
    if match is None:
        raise EnvelopeError("not a DSSE envelope in canonical form with one signature")
    payload, keyid, signature = match.groups()
    raw_signature = _decode(signature)
    if len(raw_signature) > SIGNATURE_BYTES_MAX:
        raise EnvelopeError(f"the signature has {len(raw_signature)} bytes")
    return Envelope(_decode(payload), keyid.decode("ascii"), raw_signature)


def verify(envelope: Envelope, trusted: Iterable[keys.PublicKey]) -> bytes:
    """Check that one of the trusted keys signed the envelope.

    Returns:
        The payload, now to be believed as far as the key is.

    Raises:
        SignatureError: Signed by none of them.
    """
    known = list(trusted)
    for key in known:
        if key.keyid == envelope.keyid:
            key.verify(envelope.signature, pae(PAYLOAD_TYPE, envelope.payload))
            return envelope.payload
    names = ", ".join(key.keyid[:16] for key in known) or "none"
    raise SignatureError(
        f"signed by key {envelope.keyid[:16]}…, which is not trusted here (trusted: {names})",
        data={"keyid": envelope.keyid, "trusted": [key.keyid for key in known]},
    )


def _decode(text: bytes) -> bytes:
    try:
        value = base64.b64decode(text, validate=True)
    except binascii.Error:
        raise EnvelopeError("the envelope holds malformed base64") from None
    if base64.b64encode(value) != text:  # padding bits that are not zero
        raise EnvelopeError("the envelope holds base64 that is not canonical")
    return value
