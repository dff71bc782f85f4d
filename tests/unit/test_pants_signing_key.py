"""The signing key before a build: refused in the words of `rootseal seal`, or passed on to it."""

from __future__ import annotations

import base64
import os
from pathlib import Path
from typing import Callable, Union

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa, x25519
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from rootseal import key_file, keys
from rootseal.errors import ConfigError
from rootseal_pants.signing_key import check_signing_key

ED25519 = ed25519.Ed25519PrivateKey.generate()
P256 = ec.generate_private_key(ec.SECP256R1())
P384 = ec.generate_private_key(ec.SECP384R1())
RSA = rsa.generate_private_key(65537, 2048)
X25519 = x25519.X25519PrivateKey.generate()
ED448 = ed448.Ed448PrivateKey.generate()
PKCS8, SEC1, OPENSSH = (
    PrivateFormat.PKCS8,
    PrivateFormat.TraditionalOpenSSL,
    PrivateFormat.OpenSSH,
)
SECRET = BestAvailableEncryption(b"secret")
Private = Union[
    ed25519.Ed25519PrivateKey,
    ed448.Ed448PrivateKey,
    x25519.X25519PrivateKey,
    ec.EllipticCurvePrivateKey,
    rsa.RSAPrivateKey,
]


def pem(
    key: Private,
    form: PrivateFormat = PKCS8,
    secret: serialization.KeySerializationEncryption = NoEncryption(),  # noqa: B008
) -> bytes:
    return key.private_bytes(Encoding.PEM, form, secret)


def public(key: Private) -> bytes:
    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def lines(data: bytes, label: str = "PRIVATE KEY") -> bytes:
    """A block with this body."""
    return b"-----BEGIN %b-----\n%b\n-----END %b-----\n" % (label.encode(), data, label.encode())


def written_out() -> bytes:
    """The P-256 key with its curve as parameters instead of a name, as `openssl` may write it."""
    prime = 2**256 - 2**224 + 2**192 + 2**96 - 1
    order = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
    b = 0x5AC635D8AA3A93E7B3EBBD55769886BC651D06B0CC53B0F63BCE3C3E27D2604B
    base = ec.derive_private_key(1, ec.SECP256R1()).public_key()
    point = base.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
    field = tlv(0x30, tlv(6, bytes.fromhex("2a8648ce3d0101")), integer(prime))
    curve = tlv(0x30, tlv(4, (prime - 3).to_bytes(32, "big")), tlv(4, b.to_bytes(32, "big")))
    parameters = tlv(0x30, integer(1), field, curve, tlv(4, point), integer(order), integer(1))
    algorithm = tlv(0x30, tlv(6, bytes.fromhex("2a8648ce3d0201")), parameters)
    secret = P256.private_numbers().private_value.to_bytes(32, "big")
    return lines(
        base64.b64encode(
            tlv(0x30, integer(0), algorithm, tlv(4, tlv(0x30, integer(1), tlv(4, secret))))
        )
    )


def tlv(tag: int, *parts: bytes) -> bytes:
    body = b"".join(parts)
    size = len(body).to_bytes(2, "big").lstrip(b"\0")
    return bytes([tag]) + (size if len(body) < 128 else bytes([0x80 + len(size)]) + size) + body


def integer(value: int) -> bytes:
    return tlv(2, value.to_bytes(value.bit_length() // 8 + 1, "big"))


GOOD = {
    "Ed25519": pem(ED25519),
    "P-256": pem(P256),
    "P-256 of SEC 1": pem(P256, SEC1),
    "P-256 with its parameters written out": written_out(),
    "lines that end as on Windows": pem(ED25519).replace(b"\n", b"\r\n"),
    "space around": b"\n  " + pem(P256) + b"\n\n",
    "space inside": pem(ED25519).replace(b"MC4", b"MC4 \n"),
}
BAD = {
    "nothing": (b"", "is not a PEM key file"),
    "garbage": (b"\x00\xffgarbage", "is not a PEM key file"),
    "two keys": (pem(ED25519) * 2, "is not a PEM key file"),
    "text before": (b"mine\n" + pem(ED25519), "is not a PEM key file"),
    "another end": (pem(P256, SEC1).replace(b"END EC ", b"END "), "is not a PEM key file"),
    "a public key": (public(ED25519), "holds a PEM PUBLIC KEY; a private key is needed"),
    "a certificate": (lines(b"AAAA", "CERTIFICATE"), "holds a PEM CERTIFICATE"),
    "encrypted": (pem(ED25519, PKCS8, SECRET), "is encrypted; decrypt it"),
    "encrypted of SEC 1": (pem(P256, SEC1, SECRET), "is encrypted; decrypt it"),
    "RSA": (pem(RSA), "is of another kind; use ed25519 or ecdsa-p256"),
    "RSA of PKCS 1": (pem(RSA, SEC1), "is of another kind"),
    "P-384": (pem(P384), "is of another kind"),
    "Ed448": (pem(ED448), "is of another kind"),
    "X25519": (pem(X25519), "is of another kind"),
    "OpenSSH": (pem(ED25519, OPENSSH), "is not a readable PEM private key: "),
    "no base64": (lines(b"~~~~"), "is not a readable PEM private key: "),
    "an empty body": (lines(b""), "is not a readable PEM private key: "),
    "cut": (lines(pem(P256).splitlines()[1]), "is not a readable PEM private key: "),
    "not DER": (lines(b"AAAA"), "is not a readable PEM private key: "),
    "too large": (b" " * key_file.KEY_FILE_BYTES_MAX + pem(P256), "is too large to be a key file"),
}


def key_of(directory: Path, data: bytes, mode: int = 0o600) -> str:
    path = directory / "a.key"
    path.write_bytes(data)
    path.chmod(mode)
    return str(path)


def refusal(check: Callable[[], object]) -> str:
    with pytest.raises(ConfigError) as caught:
        check()
    return str(caught.value)


@pytest.mark.parametrize("name", GOOD)
def test_what_can_sign_passes(tmp_path: Path, name: str) -> None:
    key = key_of(tmp_path, GOOD[name])
    keys.load_private_key(key)  # it can
    check_signing_key(key, "")


@pytest.mark.parametrize("name", BAD)
def test_what_sealing_would_refuse_is_refused_in_its_words(tmp_path: Path, name: str) -> None:
    data, words = BAD[name]
    key = key_of(tmp_path, data)
    early = refusal(lambda: check_signing_key(key, ""))
    late = refusal(lambda: keys.load_private_key(key))
    assert early.startswith(f"[rootseal].key: {key} {words}")
    if words.endswith(": "):  # the rest is by who reads it
        assert late.startswith(f"{key} {words}")
    else:
        assert early == f"[rootseal].key: {late}"


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o620, 0o601, 0o604])
def test_a_key_that_others_may_use_is_refused(tmp_path: Path, mode: int) -> None:
    key = key_of(tmp_path, GOOD["Ed25519"], mode)
    early = refusal(lambda: check_signing_key(key, ""))
    assert f"(mode {mode:04o}); run `chmod 600 {key}`" in early
    assert early == f"[rootseal].key: {refusal(lambda: keys.load_private_key(key))}"


def test_a_directory_a_fifo_and_nothing_are_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path, tmp_path / "fifo"):
        early = refusal(lambda path=path: check_signing_key(str(path), ""))  # type: ignore[misc]
        assert early == f"[rootseal].key: {path} is not a regular file; name a key file"
    none = refusal(lambda: check_signing_key(str(tmp_path / "none"), ""))
    assert "cannot be read: No such file or directory; correct [rootseal].key" in none
    check_signing_key("", "")  # a key of one's own, made later


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (pem(ED25519), "holds a private key; give the public one"),
        (lines(b"AAAA", "CERTIFICATE"), "holds a PEM CERTIFICATE; a PEM PUBLIC KEY is needed"),
        (b"garbage", "is not a PEM key file"),
        (public(RSA), "is of another kind"),
        (lines(b"AAAA", "PUBLIC KEY"), "is not a readable PEM public key: "),
    ],
)
def test_a_key_uri_needs_a_public_key(tmp_path: Path, data: bytes, words: str) -> None:
    uri, path = "awskms:alias/release", tmp_path / "a.pub"
    none = refusal(lambda: check_signing_key(uri, str(path)))
    assert none == f"[rootseal].public_key: cannot read the key {path}: No such file or directory"
    path.write_bytes(data)
    early = refusal(lambda: check_signing_key(uri, str(path)))
    assert early.startswith(f"[rootseal].public_key: {path} {words}")
    assert f"{path} {words}" in refusal(lambda: keys.load_public_key(path))
    for key in (ED25519, P256):
        path.write_bytes(public(key))
        check_signing_key(uri, str(path))
