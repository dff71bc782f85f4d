"""Signing keys: Ed25519 and ECDSA P-256, as PEM files or behind a securesystemslib signer.

A key's id is the SHA-256 of its DER SubjectPublicKeyInfo. Private key files are created whole and
0600, or not at all.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import os
import re
import secrets
from pathlib import Path
from typing import Any, Iterable, Mapping, Optional, Protocol, Tuple, Union

from cryptography.exceptions import InternalError, InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from rootseal import digest, key_file
from rootseal.errors import ConfigError, KeyFormatError, SignatureError

ALGORITHMS = key_file.ALGORITHMS
_URI = re.compile(r"[a-z][a-z0-9+.-]+:")

PrivateKeyTypes = Union[ed25519.Ed25519PrivateKey, ec.EllipticCurvePrivateKey]
PublicKeyTypes = Union[ed25519.Ed25519PublicKey, ec.EllipticCurvePublicKey]


class SignatureLike(Protocol):
    """What a signer returns (securesystemslib's `Signature` is one)."""

    @property
    def signature(self) -> str:
        """The signature, lower-case hex."""


class Signer(Protocol):
    """What signs: `KeyFileSigner`, or any securesystemslib signer (KMS, HSM, PIV)."""

    @property
    def public_key(self) -> object:
        """Our `PublicKey`, or a securesystemslib `Key`."""

    def sign(self, payload: bytes) -> SignatureLike:
        """Sign the bytes themselves (the key's own scheme hashes them)."""


@dataclasses.dataclass(frozen=True)
class HexSignature:
    """A signature as `Signer.sign` returns it."""

    keyid: str
    signature: str


@dataclasses.dataclass(frozen=True)
class PublicKey:
    """A public key that can verify.

    Attributes:
        spki: DER SubjectPublicKeyInfo.
    """

    spki: bytes

    @functools.cached_property
    def keyid(self) -> str:
        """SHA-256 of the DER form, hex."""
        return digest.sha256_hex(self.spki)

    @property
    def pem(self) -> str:
        """PEM text, ending with a newline."""
        return _public_pem(_load_spki(self.spki)).decode("ascii")

    def verify(self, signature: bytes, message: bytes) -> None:
        """Check a signature.

        Raises:
            SignatureError: It was not made by this key over this message.
        """
        key = _load_spki(self.spki)
        try:
            if isinstance(key, ed25519.Ed25519PublicKey):
                key.verify(signature, message)
            else:
                key.verify(signature, message, ec.ECDSA(hashes.SHA256()))
        except InvalidSignature:
            raise SignatureError(f"the signature is not by key {self.keyid}") from None


@dataclasses.dataclass(frozen=True)
class KeyFileSigner:
    """A private key in memory."""

    key: PrivateKeyTypes = dataclasses.field(repr=False)

    @functools.cached_property
    def public_key(self) -> PublicKey:
        """The public half."""
        return PublicKey(_spki(self.key.public_key()))

    def sign(self, payload: bytes) -> HexSignature:
        """Sign the payload."""
        if isinstance(self.key, ed25519.Ed25519PrivateKey):
            signature = self.key.sign(payload)
        else:
            signature = self.key.sign(payload, ec.ECDSA(hashes.SHA256()))
        return HexSignature(self.public_key.keyid, signature.hex())


def generate(algorithm: str) -> KeyFileSigner:
    """Make a new private key.

    Args:
        algorithm: One of `ALGORITHMS`.
    """
    if algorithm == "ed25519":
        return KeyFileSigner(ed25519.Ed25519PrivateKey.generate())
    if algorithm == "ecdsa-p256":
        return KeyFileSigner(ec.generate_private_key(ec.SECP256R1()))
    raise ConfigError(f"unknown key algorithm {algorithm!r}; use one of {', '.join(ALGORITHMS)}")


def parse_public_key(pem: bytes, *, where: str = "public key") -> PublicKey:
    """Read a public key from PEM.

    Raises:
        KeyFormatError: Not exactly one PEM public key of a supported kind; says what it is instead.
    """
    key_file.public_block(pem, where)
    try:
        key = serialization.load_pem_public_key(pem)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise KeyFormatError(f"{where} is not a readable PEM public key: {error}") from None
    return PublicKey(_spki(_supported_public(key, where)))


def parse_private_key(pem: bytes, *, where: str = "private key") -> KeyFileSigner:
    """Read an unencrypted private key from PEM.

    Raises:
        KeyFormatError: Not exactly one PEM private key of a supported kind; says what it is.
    """
    key_file.private_block(pem, where)
    try:
        key = serialization.load_pem_private_key(pem, password=None)
    except TypeError:
        raise key_file.encrypted(where) from None
    except (ValueError, UnsupportedAlgorithm) as error:
        raise KeyFormatError(f"{where} is not a readable PEM private key: {error}") from None
    except InternalError:  # what the library makes of an Ed25519 key of another length
        raise KeyFormatError(f"{where} is not a readable PEM private key: wrong length") from None
    if isinstance(key, (ed25519.Ed25519PrivateKey, ec.EllipticCurvePrivateKey)):
        _supported_public(key.public_key(), where)
        return KeyFileSigner(key)
    raise key_file.other_kind(where)


def load_public_key(path: Union[str, Path]) -> PublicKey:
    """Read a public key file; `ConfigError` if it cannot be read or is something else."""
    return parse_public_key(_read_file(Path(path), private=False), where=str(path))


def load_public_keys(paths: Iterable[Union[str, Path]]) -> Tuple[PublicKey, ...]:
    """Read several public key files."""
    return tuple(load_public_key(path) for path in paths)


def load_private_key(path: Union[str, Path]) -> KeyFileSigner:
    """Read a private key file that only its owner may read.

    Raises:
        ConfigError: It cannot be read, others may read it, or it is not a supported key.
    """
    pem = _read_file(Path(path), private=True)
    return parse_private_key(pem, where=str(path))


def load_signer(source: str, *, public_key: Optional[str] = None) -> Signer:
    """The signer that a key file path or a securesystemslib key URI names.

    Args:
        source: Path of a PEM private key, or a URI such as `awskms:…`, `gcpkms:…` or `hsm:…`.
        public_key: Path of the public key; needed with a URI.

    Raises:
        ConfigError: The key cannot be had; says what is missing.
    """
    if not _URI.match(source):
        return load_private_key(source)
    if public_key is None:
        raise ConfigError(
            f"signing with {source} needs the public key too; give it as a PEM file (--public-key)"
        )
    library = _signing_library()
    scheme, known = source.partition(":")[0], sorted(library.SIGNER_FOR_URI_SCHEME)
    if scheme not in known:
        raise ConfigError(f"no signer for the key URI scheme {scheme!r}; known: {', '.join(known)}")
    ours = load_public_key(public_key)
    key = library.SSlibKey.from_crypto(_load_spki(ours.spki), keyid=ours.keyid)
    signer: Signer = library.Signer.from_priv_key_uri(source, key)
    return signer


def _signing_library() -> Any:
    try:
        return importlib.import_module("securesystemslib.signer")
    except ImportError:
        raise ConfigError(
            "signing by key URI needs securesystemslib; run `pip install securesystemslib`"
        ) from None


def public_key_of(signer: Signer) -> PublicKey:
    """Our `PublicKey` of any signer.

    Raises:
        ConfigError: A securesystemslib key of a kind that envelopes do not allow.
    """
    key = signer.public_key
    if isinstance(key, PublicKey):
        return key
    keytype, keyval = getattr(key, "keytype", None), getattr(key, "keyval", None)
    public = keyval.get("public") if isinstance(keyval, Mapping) else None
    if not isinstance(public, str):
        raise ConfigError(
            "the signer does not give its public key; use an Ed25519 or ECDSA P-256 key"
        )
    if keytype == "ed25519" and re.fullmatch(r"[0-9a-f]{64}", public):
        raw = ed25519.Ed25519PublicKey.from_public_bytes(bytes.fromhex(public))
        return PublicKey(_spki(raw))
    return parse_public_key(public.encode("utf-8"), where="the signer's public key")


def public_key_path(private_path: Union[str, Path]) -> Path:
    """Where the public half of a key file is kept: the same name with `.pub`."""
    return Path(private_path).with_suffix(".pub")


def create_key_files(
    path: Union[str, Path], algorithm: str, *, replace_public: bool = False
) -> KeyFileSigner:
    """Make a key, its file (0600) and its public file (0644) beside it; never overwrites a key.

    Args:
        path: The private key file; the public one has its name with `.pub` as the suffix, so that
            `a.x` and `a.y` would share it.
        algorithm: One of `ALGORITHMS`.
        replace_public: Whether a public file may be there already: one whose private half is gone.

    Raises:
        ConfigError: A file exists, or cannot be written.
    """
    path = Path(path)
    public = public_key_path(path)
    if path.suffix == ".pub":
        raise ConfigError(f"{path} would be the name of the public key; choose a name without .pub")
    if not replace_public and os.path.lexists(public) and not os.path.lexists(path):
        raise ConfigError(
            f"{public}, where the public key would be, exists already and is of another key; "
            "remove it first or choose another name"
        )
    signer = generate(algorithm)
    pem = signer.key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        _create_file(path, pem, 0o600, replace=False)
        _create_file(public, signer.public_key.pem.encode("ascii"), 0o644, replace=True)
    except FileExistsError:
        raise ConfigError(
            f"{path} exists already; remove it first or choose another name"
        ) from None
    except OSError as error:
        raise ConfigError(f"cannot write the key {path}: {error.strerror}") from None
    return signer


def load_or_create_capture_key(path: Union[str, Path]) -> KeyFileSigner:
    """The key of this machine's captures, made (Ed25519) the first time; safe under races.

    Raises:
        ConfigError: It exists but is unusable, or cannot be created.
    """
    return load_or_create_key(path)


def load_or_create_key(path: Union[str, Path]) -> KeyFileSigner:
    """Load a private key, or make an Ed25519 key there; the public file is put right too."""
    path = Path(path)
    if not path.exists():
        try:
            return create_key_files(path, "ed25519", replace_public=True)
        except ConfigError:
            if not path.exists():  # anything but another process having been quicker
                raise
    signer = load_private_key(path)
    pem = signer.public_key.pem.encode("ascii")
    public = public_key_path(path)
    try:
        if not public.exists() or public.read_bytes() != pem:
            _create_file(public, pem, 0o644, replace=True)
    except OSError as error:
        raise ConfigError(f"cannot write the public key {public}: {error.strerror}") from None
    return signer


def state_directory(environ: Mapping[str, str], uid: int) -> Path:
    """Where keys and state of this user live (the system's for root)."""
    if uid == 0:
        return Path("/var/lib/rootseal")
    base = environ.get("XDG_STATE_HOME", "")
    if base.startswith("/"):
        return Path(base) / "rootseal"
    home = environ.get("HOME", "")
    if not home.startswith("/"):
        raise ConfigError("neither XDG_STATE_HOME nor HOME is set; set one, or name the key file")
    return Path(home) / ".local" / "state" / "rootseal"


def _create_file(path: Path, data: bytes, mode: int, *, replace: bool) -> None:
    """Create a file that is complete the moment it has its name."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fchmod(stream.fileno(), mode)
            os.fsync(stream.fileno())
        if replace:
            temporary.replace(path)
        else:
            os.link(temporary, path)  # fails if the name is taken
    finally:
        temporary.unlink(missing_ok=True)


def _read_file(path: Path, *, private: bool) -> bytes:
    try:
        return key_file.read(path, private=private)
    except OSError as error:
        raise ConfigError(f"cannot read the key {path}: {error.strerror}") from None


def _supported_public(key: object, where: str) -> PublicKeyTypes:
    if isinstance(key, ed25519.Ed25519PublicKey):
        return key
    if isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP256R1):
        return key
    raise key_file.other_kind(where)


def _spki(key: PublicKeyTypes) -> bytes:
    return key.public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def _public_pem(key: PublicKeyTypes) -> bytes:
    return key.public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )


@functools.lru_cache(maxsize=256)  # a capture key is the same for thousands of records
def _load_spki(spki: bytes) -> PublicKeyTypes:
    return _supported_public(serialization.load_der_public_key(spki), "public key")
