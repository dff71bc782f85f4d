"""Key files without cryptography: the file, its PEM block, and which kind of key it must hold.

The plugin of Pants, which has the standard library only, refuses by this before a build what
keys.py would refuse after it, in the same words. What passes here is not yet a key: keys.py reads
it.
"""

from __future__ import annotations

import base64
import binascii
import dataclasses
import os
import re
import stat
from pathlib import Path

from rootseal.errors import ConfigError, KeyFormatError

ALGORITHMS = ("ed25519", "ecdsa-p256")
KEY_FILE_BYTES_MAX = 64 * 1024
_PEM = re.compile(rb"-----BEGIN ([A-Z0-9 ]+)-----\s((?:(?!-----).)*)-----END \1-----\s*", re.DOTALL)
# One of these is in the DER form of each supported key.
_MARKS = (
    bytes.fromhex("06032b6570"),  # the OID of Ed25519 (RFC 8410 section 3)
    bytes.fromhex("06082a8648ce3d030107"),  # the OID of P-256 (RFC 5480 section 2.1.1.1)
    # The field of P-256, where its parameters are written out (RFC 3279 section 2.3.5).
    bytes.fromhex("ffffffff00000001000000000000000000000000ffffffffffffffffffffffff"),
)


@dataclasses.dataclass(frozen=True)
class PemBlock:
    """A PEM block.

    Attributes:
        label: What it says it holds, such as `PUBLIC KEY`.
        body: What is between the lines of the label.
    """

    label: str
    body: bytes = dataclasses.field(repr=False)


def read(path: Path, *, private: bool) -> bytes:
    """Read a key file.

    Args:
        path: The file.
        private: Whether only its owner may have access.

    Raises:
        ConfigError: It is not a regular file, is too large, or others may use it.
        OSError: It cannot be read.
    """
    # Without O_NONBLOCK a FIFO would wait for a writer that may never come.
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise ConfigError(f"{path} is not a regular file; name a key file")
        data = os.read(descriptor, KEY_FILE_BYTES_MAX + 1)
    finally:
        os.close(descriptor)
    if len(data) > KEY_FILE_BYTES_MAX:
        raise KeyFormatError(f"{path} is too large to be a key file")
    mode = stat.S_IMODE(status.st_mode)
    if private and mode & 0o077:
        raise ConfigError(f"{path} may be used by others (mode {mode:04o}); run `chmod 600 {path}`")
    return data


def public_block(pem: bytes, where: str) -> PemBlock:
    """The one PEM block of a public key; `KeyFormatError` if it is something else."""
    block = _one_block(pem, where)
    if "PRIVATE KEY" in block.label:
        raise KeyFormatError(
            f"{where} holds a private key; give the public one (`rootseal keygen` wrote it: .pub)"
        )
    if block.label != "PUBLIC KEY":
        raise KeyFormatError(f"{where} holds a PEM {block.label}; a PEM PUBLIC KEY is needed")
    return block


def private_block(pem: bytes, where: str) -> PemBlock:
    """The one PEM block of a private key; `KeyFormatError` if it is something else."""
    block = _one_block(pem, where)
    if "PRIVATE KEY" not in block.label:
        raise KeyFormatError(f"{where} holds a PEM {block.label}; a private key is needed to sign")
    return block


def encrypted(where: str) -> KeyFormatError:
    """The error about a private key with a passphrase."""
    return KeyFormatError(
        f"{where} is encrypted; decrypt it (`openssl pkey -in KEY -out KEY2`) or use a key URI"
    )


def other_kind(where: str) -> KeyFormatError:
    """The error about a key of a kind that is not supported."""
    return KeyFormatError(f"{where} is of another kind; use {' or '.join(ALGORITHMS)}")


def check_public(pem: bytes, where: str) -> None:
    """Refuse what cannot be a public key of a supported kind, by `KeyFormatError`."""
    _check_body(public_block(pem, where), where, "public")


def check_private(pem: bytes, where: str) -> None:
    """Refuse what cannot be an unencrypted private key of a supported kind, by `KeyFormatError`."""
    block = private_block(pem, where)
    if block.label == "ENCRYPTED PRIVATE KEY" or b"Proc-Type: 4,ENCRYPTED" in block.body:
        raise encrypted(where)
    if block.label == "OPENSSH PRIVATE KEY":
        raise KeyFormatError(
            f"{where} is not a readable PEM private key: it has the form of OpenSSH"
        )
    _check_body(block, where, "private")


def _one_block(pem: bytes, where: str) -> PemBlock:
    match = _PEM.fullmatch(pem.strip() + b"\n")
    if match is None:
        raise KeyFormatError(f"{where} is not a PEM key file (one -----BEGIN … KEY----- block)")
    return PemBlock(match[1].decode("ascii"), match[2])


def _check_body(block: PemBlock, where: str, half: str) -> None:
    der = _decode(block.body)
    if not _is_whole(der):
        raise KeyFormatError(
            f"{where} is not a readable PEM {half} key: its body is not base64 of one whole key"
        )
    if not any(mark in der for mark in _MARKS):
        raise other_kind(where)


def _decode(body: bytes) -> bytes:
    """The bytes of a body, without its headers (RFC 1421 section 4.4); none if it is not base64."""
    lines = (line for line in body.split(b"\n") if b":" not in line)
    try:
        return base64.b64decode(b"".join(b"".join(lines).split()), validate=True)
    except binascii.Error:
        return b""


def _is_whole(der: bytes) -> bool:
    """Whether this is one DER SEQUENCE and nothing else (X.690 sections 8.1.3 and 8.9)."""
    if len(der) < 2 or der[0] != 0x30:
        return False
    if der[1] < 0x80:
        return len(der) == 2 + der[1]
    start = 2 + (der[1] & 0x7F)
    return len(der) == start + int.from_bytes(der[2:start], "big")
