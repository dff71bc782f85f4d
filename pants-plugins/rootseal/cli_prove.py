"""`rootseal prove`: one fact of a bundle as a proof file."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any, Optional

from rootseal import canonical, digest, files, leaf_path, prove
from rootseal.bundle import BundleReader
from rootseal.cli_output import add_json, emit, printable
from rootseal.cli_paths import check_result
from rootseal.cli_verify import add_trust, hash_artifact, open_bundle, read_root
from rootseal.errors import ConfigError, EncodingError
from rootseal.leaf_table import Domain
from rootseal.verify import VerifiedRoot


def register(subparsers: Any) -> None:
    """Add `prove`."""
    parser = subparsers.add_parser("prove", help="make a proof of one fact of a bundle")
    parser.add_argument("bundle", metavar="BUNDLE")
    parser.add_argument("--action", metavar="KEY", help="an action is in the build")
    fact = parser.add_mutually_exclusive_group()
    fact.add_argument("--artifact", metavar="FILE", help="a file is an artifact of the build")
    fact.add_argument("--material", metavar="PATH", help="an action read a path")
    fact.add_argument("--product", metavar="PATH", help="an action left a path behind")
    fact.add_argument(
        "--absent",
        metavar="PATH",
        help="no action (or, with --action, this one) read a path, spelled as it is recorded: "
        "absolute or relative to the action's root, symbolic links resolved",
    )
    parser.add_argument("--out", metavar="FILE", help="proof file to write; default: stdout")
    add_trust(parser)
    add_json(parser)
    parser.set_defaults(handler=run)


def run(arguments: argparse.Namespace) -> int:
    """Make a proof."""
    key = _action_key(arguments.action)
    if arguments.out is not None:
        check_result(("--out", arguments.out), b'{"a', [("the bundle", arguments.bundle)])
    with open_bundle(arguments.bundle) as bundle:
        root = read_root(arguments, bundle)
        proof = _prove(arguments, bundle, root, key)
    data = prove.encode_proof(proof)
    if arguments.out is None:
        sys.stdout.buffer.write(data)
        return 0
    with files.complete_file(arguments.out) as stream:
        stream.write(data)
    text = f"proof of {proof['kind']} ({len(data)} bytes) → {arguments.out}"
    emit(
        arguments,
        printable(text),
        {"kind": proof["kind"], "proof": str(Path(arguments.out)), "size": len(data)},
    )
    return 0


def _prove(
    arguments: argparse.Namespace,
    bundle: BundleReader,
    root: VerifiedRoot,
    action_key: Optional[bytes],
) -> prove.Json:
    if arguments.artifact is not None:
        return prove.prove_artifact(bundle, root, hash_artifact(arguments.artifact))
    if arguments.absent is not None:
        path = _absent_path(arguments.absent)
        proof = prove.prove_absence(bundle, root, path, action_key=action_key)
        _hint(path)
        return proof
    for domain, path in (
        (Domain.MATERIAL, arguments.material),
        (Domain.PRODUCT, arguments.product),
    ):
        if path is not None:
            return prove.prove_leaf(bundle, root, domain, _path(path), action_key=action_key)
    if action_key is not None:
        return prove.prove_action(bundle, root, action_key)
    raise ConfigError("say what to prove: --action, --artifact, --material, --product or --absent")


def _action_key(text: Optional[str]) -> Optional[bytes]:
    if text is None:
        return None
    try:
        return digest.digest_from_hex(text)
    except EncodingError:
        raise ConfigError("--action needs the whole key, 64 lower-case hex digits") from None


def _absent_path(text: str) -> bytes:
    path = _path(text)
    try:
        leaf_path.check(path)
    except EncodingError as error:
        raise ConfigError(f"the path {text!r}: {error}; spell it as it is recorded") from None
    return path


def _hint(path: bytes) -> None:
    """A symbolic link of this host on the way may be one of the build host too: only a hint."""
    real = os.path.realpath(path) if path.startswith(b"/") else path
    if real != path:
        found, meant = canonical.path_text(path), canonical.path_text(real)
        text = (
            f"rootseal: note: on this host {found} leads to {meant}; what is read through a "
            f"symbolic link is recorded there, so prove `--absent {meant}` too"
        )
        print(printable(text), file=sys.stderr)


def _path(text: str) -> bytes:
    try:
        return canonical.path_bytes(text)
    except EncodingError as error:
        raise ConfigError(f"the path {text!r}: {error}; `%` is written %25") from None
