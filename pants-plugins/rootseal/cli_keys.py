"""`rootseal keygen`, and how commands come by a signing key."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any, List, Optional, Tuple

from rootseal import keys
from rootseal.cli_output import add_json, emit, printable
from rootseal.errors import ConfigError

SIGNING_KEY_NAME = "signing.key"
CAPTURE_KEY_NAME = "capture.key"


def register(subparsers: Any) -> None:
    """Add `keygen`."""
    parser = subparsers.add_parser("keygen", help="make a signing key")
    parser.add_argument(
        "path",
        nargs="?",
        metavar="FILE",
        help="private key file to make (0600), in a directory that exists",
    )
    parser.add_argument(
        "--default",
        action="store_true",
        help="this user's signing key: made if it does not exist, kept if it does",
    )
    parser.add_argument(
        "--algorithm", choices=keys.ALGORITHMS, default="ed25519", help="default: %(default)s"
    )
    add_json(parser)
    parser.set_defaults(handler=keygen)


def keygen(arguments: argparse.Namespace) -> int:
    """Make a key and say where its halves are."""
    if arguments.default == (arguments.path is not None):
        raise ConfigError("keygen needs either a file to make or --default")
    if arguments.default:
        path = default_signing_key_path()
        signer = keys.load_or_create_key(path)
    else:
        path = Path(arguments.path)
        if not path.parent.is_dir():  # a slip in the path must not make a directory for a key
            raise ConfigError(f"{path.parent} is not a directory; make it first (`mkdir -m 700`)")
        signer = keys.create_key_files(path, arguments.algorithm)
    public = keys.public_key_path(path)
    keyid = signer.public_key.keyid
    text = f"private key {path}\npublic key  {public}\nkey id      {keyid}"
    text = "\n".join(printable(line) for line in text.split("\n"))
    emit(arguments, text, {"key": str(path), "publicKey": str(public), "keyid": keyid})
    return 0


def default_signing_key_path() -> Path:
    """Where this user's signing key is kept."""
    return keys.state_directory(os.environ, os.geteuid()) / SIGNING_KEY_NAME


def add_signing(parser: argparse.ArgumentParser) -> None:
    """The options that name a signing key."""
    parser.add_argument(
        "--key",
        metavar="KEY",
        help="private key file, or a securesystemslib key URI (awskms:, gcpkms:, hsm:, …); "
        "default: this user's key, made on first use",
    )
    parser.add_argument(
        "--public-key", metavar="FILE", help="public key of a key URI (files do not need it)"
    )


def signing_files(arguments: argparse.Namespace) -> List[Tuple[str, str]]:
    """The files that `add_signing` names, with their options; none may become a result."""
    key = arguments.key or str(default_signing_key_path())
    found = [("--key", key)]
    if Path(key).name:  # neither `/` nor `.`, which are no key
        found.append(("--key's public half", str(keys.public_key_path(key))))
    return found + [("--public-key", path) for path in filter(None, [arguments.public_key])]


def signer_from(arguments: argparse.Namespace) -> keys.Signer:
    """The signer that the options name."""
    if not arguments.key:
        return keys.load_or_create_key(default_signing_key_path())
    return keys.load_signer(arguments.key, public_key=arguments.public_key)


def own_capture_keys() -> List[keys.PublicKey]:
    """Public capture keys of this machine: the system daemon's and this user's, if they exist."""
    found = []
    for uid in sorted({0, os.geteuid()}):
        path = _capture_public_key_path(uid)
        if path is not None and path.exists():
            found.append(keys.load_public_key(path))
    return found


def _capture_public_key_path(uid: int) -> Optional[Path]:
    try:
        directory = keys.state_directory(os.environ, uid)
    except ConfigError:  # no home directory, so no daemon of this user either
        return None
    return keys.public_key_path(directory / CAPTURE_KEY_NAME)
