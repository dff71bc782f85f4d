"""Keys and envelopes, held against securesystemslib's where both speak DSSE."""

from __future__ import annotations

import base64
import functools
import json
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from rootseal import canonical, envelope, key_file, keys
from rootseal.errors import ConfigError, EnvelopeError, SignatureError
from securesystemslib.dsse import Envelope as LibraryEnvelope
from securesystemslib.signer import CryptoSigner, SSlibKey

STATEMENT = '{"subject":"größer"}'.encode()


def pem_of(key: object, *, password: bytes = b"") -> bytes:
    encryption: serialization.KeySerializationEncryption = serialization.NoEncryption()
    if password:
        encryption = serialization.BestAvailableEncryption(password)
    return key.private_bytes(  # type: ignore[attr-defined,no-any-return]
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption
    )


@pytest.mark.parametrize("algorithm", keys.ALGORITHMS)
def test_key_files_are_private_whole_and_read_back(algorithm: str, tmp_path: Path) -> None:
    path = tmp_path / "new" / "sign.key"
    signer = keys.create_key_files(path, algorithm)
    public = keys.public_key_path(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(public.stat().st_mode) == 0o644
    assert sorted(item.name for item in path.parent.iterdir()) == ["sign.key", "sign.pub"]
    assert keys.load_private_key(path).public_key == signer.public_key
    assert keys.load_public_key(public) == signer.public_key
    with pytest.raises(ConfigError, match="exists already"):
        keys.create_key_files(path, algorithm)


def test_a_key_that_others_can_read_is_refused(tmp_path: Path) -> None:
    keys.create_key_files(tmp_path / "k.key", "ed25519")
    (tmp_path / "k.key").chmod(0o640)
    with pytest.raises(ConfigError, match="chmod 600"):
        keys.load_private_key(tmp_path / "k.key")


def test_a_capture_key_is_made_once_even_by_many_at_once(tmp_path: Path) -> None:
    path = tmp_path / "state" / "capture.key"
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda _: keys.load_or_create_capture_key(path), range(16)))
    assert len({signer.public_key.keyid for signer in made}) == 1
    assert keys.load_public_key(keys.public_key_path(path)) == made[0].public_key
    assert sorted(item.name for item in path.parent.iterdir()) == ["capture.key", "capture.pub"]


def test_a_lost_or_wrong_public_file_is_put_right(tmp_path: Path) -> None:
    path = tmp_path / "capture.key"
    signer = keys.load_or_create_capture_key(path)
    keys.public_key_path(path).write_text("wrong")
    keys.load_or_create_capture_key(path)
    assert keys.load_public_key(keys.public_key_path(path)) == signer.public_key


def ed25519_of(size: int) -> bytes:
    """PEM of an Ed25519 key (RFC 8410 section 7) of a length that may be wrong."""
    inner = bytes([4, size]) + bytes(size)
    body = bytes.fromhex("020100300506032b6570") + bytes([4, len(inner)]) + inner
    text = base64.b64encode(bytes([0x30, len(body)]) + body)
    return b"-----BEGIN PRIVATE KEY-----\n" + text + b"\n-----END PRIVATE KEY-----\n"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: b"", "not a PEM key file"),
        (lambda: b"not pem", "not a PEM key file"),
        (lambda: b"\x30\x82\x00\x00", "not a PEM key file"),
        (lambda: pem_of(rsa.generate_private_key(65537, 2048)), "of another kind"),
        (lambda: pem_of(ec.generate_private_key(ec.SECP384R1())), "of another kind"),
        (lambda: pem_of(ec.generate_private_key(ec.SECP256R1()), password=b"x"), "encrypted"),
        (lambda: keys.generate("ed25519").public_key.pem.encode(), "private key is needed"),
        (lambda: pem_of(keys.generate("ed25519").key) * 2, "not a PEM key file"),
        (
            lambda: b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n",
            "not a readable PEM",
        ),
        *((functools.partial(ed25519_of, size), "wrong length") for size in (0, 1, 31, 33, 64)),
    ],
)
def test_private_keys_in_the_wrong_format_are_one_clear_error(make: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        keys.parse_private_key(make())  # type: ignore[operator]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: b"ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAA comment", "not a PEM key file"),
        (lambda: pem_of(keys.generate("ed25519").key), "holds a private key"),
        (
            lambda: b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
            "PEM CERTIFICATE",
        ),
        (
            lambda: (
                rsa.generate_private_key(65537, 2048)
                .public_key()
                .public_bytes(
                    serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
                )
            ),
            "of another kind",
        ),
    ],
)
def test_public_keys_in_the_wrong_format_are_one_clear_error(make: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        keys.parse_public_key(make())  # type: ignore[operator]


def test_files_that_cannot_be_read_or_are_too_large(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read the key"):
        keys.load_public_key(tmp_path / "none.pub")
    (tmp_path / "large").write_bytes(b"x" * (key_file.KEY_FILE_BYTES_MAX + 1))
    with pytest.raises(ConfigError, match="too large"):
        keys.load_public_key(tmp_path / "large")


def test_key_uris_need_a_known_scheme_and_the_public_key(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--public-key"):
        keys.load_signer("awskms:alias/x")
    keys.create_key_files(tmp_path / "k", "ecdsa-p256")
    with pytest.raises(ConfigError, match="no signer for the key URI scheme"):
        keys.load_signer("nonsense:x", public_key=str(tmp_path / "k.pub"))


@pytest.mark.parametrize("algorithm", keys.ALGORITHMS)
def test_a_file_uri_signs_through_securesystemslib(algorithm: str, tmp_path: Path) -> None:
    """The road a KMS or HSM key takes, with a key file at its end."""
    path = tmp_path / "k.key"
    ours = keys.create_key_files(path, algorithm)
    signer = keys.load_signer(f"file2:{path}", public_key=str(keys.public_key_path(path)))
    assert isinstance(signer, CryptoSigner)
    assert keys.public_key_of(signer) == ours.public_key
    data = envelope.sign(STATEMENT, signer)
    assert envelope.verify(envelope.parse(data), [ours.public_key]) == STATEMENT


@pytest.mark.parametrize("algorithm", keys.ALGORITHMS)
def test_our_envelopes_verify_with_securesystemslib(algorithm: str) -> None:
    signer = keys.generate(algorithm)
    data = envelope.sign(STATEMENT, signer)
    document = json.loads(data)
    assert canonical.encode(document) == data
    document["signatures"][0]["sig"] = base64.b64encode(
        base64.b64decode(document["signatures"][0]["sig"])
    ).decode()
    theirs = LibraryEnvelope.from_dict(document)
    key = SSlibKey.from_crypto(signer.key.public_key(), keyid=signer.public_key.keyid)
    assert list(theirs.verify([key], 1)) == [signer.public_key.keyid]
    assert theirs.pae() == envelope.pae(envelope.PAYLOAD_TYPE, STATEMENT)


@pytest.mark.parametrize("algorithm", keys.ALGORITHMS)
def test_their_signers_sign_our_envelopes(algorithm: str) -> None:
    private = keys.generate(algorithm)
    theirs = CryptoSigner(private.key)
    data = envelope.sign(STATEMENT, theirs)
    found = envelope.parse(data)
    assert found.keyid == private.public_key.keyid
    assert envelope.verify(found, [private.public_key]) == STATEMENT


def test_pae_counts_bytes_not_characters() -> None:
    assert envelope.pae("é", "ü!".encode()) == "DSSEv1 2 é 3 ü!".encode()


class BrokenSigner:
    """A remote signer that returns another key's signature."""

    def __init__(self) -> None:
        self.public_key = keys.generate("ed25519").public_key

    def sign(self, payload: bytes) -> keys.HexSignature:
        return keys.generate("ed25519").sign(payload)


def test_a_signer_that_signs_wrongly_is_caught_at_once() -> None:
    with pytest.raises(SignatureError):
        envelope.sign(STATEMENT, BrokenSigner())


def test_every_flipped_byte_of_an_envelope_is_refused() -> None:
    signer = keys.generate("ecdsa-p256")
    data = envelope.sign(b'{"a":1}', signer)
    for index in range(len(data)):
        for bit in range(8):
            bad = bytearray(data)
            bad[index] ^= 1 << bit
            with pytest.raises((EnvelopeError, SignatureError)):
                envelope.verify(envelope.parse(bytes(bad)), [signer.public_key])


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text + b"\n",
        lambda text: text.replace(b'"payload":"', b'"payload":"\\u0041'),
        lambda text: text.replace(
            b'"signatures":[', b'"signatures":[' + text[text.index(b'[{"') + 1 : -2] + b","
        ),
        lambda text: text.replace(b'"sig":"', b'"sig":"=='),
        lambda text: text[:-3] + b',"extra":1}]}',
        lambda text: b"",
        lambda text: b"[" * 100_000,
    ],
)
def test_envelopes_in_another_form_are_refused(change: object) -> None:
    data = envelope.sign(STATEMENT, keys.generate("ed25519"))
    with pytest.raises(EnvelopeError):
        envelope.parse(change(data))  # type: ignore[operator]


def test_padding_bits_that_are_not_zero_are_refused() -> None:
    data = envelope.sign(b"x", keys.generate("ed25519"))  # "eA==" in base64
    assert b'"eA=="' in data
    with pytest.raises(EnvelopeError, match="not canonical"):
        envelope.parse(data.replace(b'"eA=="', b'"eB=="'))


def test_too_large_is_refused_before_it_is_matched() -> None:
    with pytest.raises(EnvelopeError, match="at most"):
        envelope.parse(b"x" * (envelope.ENVELOPE_BYTES_MAX + 1))


@pytest.mark.parametrize(
    ("environ", "uid", "expected"),
    [
        ({}, 0, "/var/lib/rootseal"),
        ({"HOME": "/home/a"}, 1, "/home/a/.local/state/rootseal"),
        ({"HOME": "/home/a", "XDG_STATE_HOME": "/s"}, 1, "/s/rootseal"),
        ({"HOME": "/home/a", "XDG_STATE_HOME": "relative"}, 1, "/home/a/.local/state/rootseal"),
    ],
)
def test_state_directory(environ: dict[str, str], uid: int, expected: str) -> None:
    assert keys.state_directory(environ, uid) == Path(expected)


def test_no_home_is_one_clear_error() -> None:
    with pytest.raises(ConfigError, match="XDG_STATE_HOME"):
        keys.state_directory({}, 1)
