"""What is refused of the signing key before a build: what `rootseal seal` would refuse after it."""

from __future__ import annotations

import re
from pathlib import Path

from rootseal import key_file
from rootseal.errors import ConfigError

_KEY_URI = re.compile(r"[a-z][a-z0-9+.-]+:")


def is_key_uri(key: str) -> bool:
    """Whether a key is named by a URI of securesystemslib (awskms:, gcpkms:, …)."""
    return _KEY_URI.match(key) is not None


def check_signing_key(key: str, public_key: str) -> None:
    """Refuse at once what sealing would refuse after the whole build.

    Not for goals that sign nothing: who has no release key may test and lint.

    Args:
        key: As in `Settings`.
        public_key: As in `Settings`; looked at only if the key is a URI.

    Raises:
        ConfigError: A file that cannot be such a key; names the option and the file.
    """
    if not key:
        return
    if is_key_uri(key):
        _check_public_key(public_key)
    else:
        _check_private_key(key)


def _check_private_key(path: str) -> None:
    try:
        key_file.check_private(key_file.read(Path(path), private=True), path)
    except OSError as error:
        raise ConfigError(
            f"the signing key {path} cannot be read: {error.strerror}; correct [rootseal].key, or "
            f"make one: rootseal keygen {path}"
        ) from error
    except ConfigError as error:
        raise ConfigError(f"[rootseal].key: {error}") from error


def _check_public_key(path: str) -> None:
    try:
        key_file.check_public(key_file.read(Path(path), private=False), path)
    except OSError as error:
        raise ConfigError(
            f"[rootseal].public_key: cannot read the key {path}: {error.strerror}"
        ) from error
    except ConfigError as error:
        raise ConfigError(f"[rootseal].public_key: {error}") from error
