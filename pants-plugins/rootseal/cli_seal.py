"""`rootseal seal`: a run manifest and its records become a signed bundle."""

from __future__ import annotations

import argparse
import contextlib
from pathlib import Path
from typing import Any, Iterator, Sequence

from rootseal import files, keys
from rootseal.bundle import MAGIC
from rootseal.cli_keys import add_signing, own_capture_keys, signer_from, signing_files
from rootseal.cli_later import add_flag, refuse_beside_others
from rootseal.cli_output import add_json, emit, printable, progress
from rootseal.cli_paths import check_result
from rootseal.cli_toolchain import add_toolchain, tools_from
from rootseal.errors import CaptureError, ConfigError, VerificationError
from rootseal.manifest import MANIFEST_BYTES_MAX, parse_manifest
from rootseal.seal import RecordDirectory, SealedBuild, discard, seal, statement_paths


def register(subparsers: Any) -> None:
    """Add `seal`."""
    parser = subparsers.add_parser("seal", help="sign the bundle of a build run")
    parser.add_argument("manifest", metavar="MANIFEST", help="run manifest (docs/formats.md)")
    parser.add_argument(
        "--records", metavar="DIR", required=True, help="directory that holds the action records"
    )
    parser.add_argument("--out", metavar="BUNDLE", required=True, help="bundle file to write")
    parser.add_argument("--targets", metavar="DIR", help="write one signed statement per target")
    parser.add_argument(
        "--artifacts",
        metavar="DIR",
        help="where the artifacts are; they are sealed with fs-verity as policy.fsverity of the "
        "manifest says",
    )
    parser.add_argument(
        "--capture-key",
        metavar="FILE",
        action="append",
        default=[],
        help="public capture key to trust beside this machine's and the manifest's (repeatable)",
    )
    add_toolchain(parser)
    add_signing(parser)
    add_json(parser)
    add_flag(parser)
    parser.set_defaults(handler=run)


def run(arguments: argparse.Namespace) -> int:
    """Seal a run."""
    refuse_beside_others(arguments)
    data = files.read_bounded(arguments.manifest, bytes_max=MANIFEST_BYTES_MAX, what="the manifest")
    directory = Path(arguments.records)
    if not directory.is_dir():
        raise ConfigError(f"the records directory {directory} does not exist")
    others = [*signing_files(arguments), ("the manifest", arguments.manifest)]
    check_result(("--out", arguments.out), MAGIC, others)
    manifest, out = parse_manifest(data), Path(arguments.out)
    targets_dir = None if arguments.targets is None else Path(arguments.targets)
    results = {} if targets_dir is None else statement_paths(manifest.targets, targets_dir)
    with (
        _nothing_left_if_refused([out, *results.values()]),
        progress("verifying records", as_json=arguments.json) as advance,
    ):
        sealed = seal(
            manifest,
            records=RecordDirectory(directory),
            trusted=[*own_capture_keys(), *keys.load_public_keys(arguments.capture_key)],
            signer=signer_from(arguments),
            out=out,
            targets_dir=targets_dir,
            tools=tools_from(arguments),
            artifacts_dir=None if arguments.artifacts is None else Path(arguments.artifacts),
            progress=advance,
        )
    emit(arguments, describe(sealed), sealed_document(sealed))
    return 0


@contextlib.contextmanager
def _nothing_left_if_refused(results: Sequence[Path]) -> Iterator[None]:
    """What is refused leaves no bundle and no statement, not even older ones of their names."""
    try:
        yield
    except (VerificationError, CaptureError):
        discard(results)
        raise


def describe(sealed: SealedBuild) -> str:
    """One line about what was sealed."""
    summary = sealed.summary
    return printable(
        f"sealed {summary['actions']} actions, {summary['materials']} materials, "
        f"posture {summary['posture']}, tree {sealed.tree_root[:16]} → {sealed.bundle}"
    )


def sealed_document(sealed: SealedBuild) -> dict[str, object]:
    """What was sealed, for `--json`."""
    return {
        "bundle": str(sealed.bundle),
        "rootEnvelopeSha256": sealed.root_envelope_sha256,
        "treeRoot": sealed.tree_root,
        "summary": dict(sealed.summary),
        "targets": {address: str(path) for address, path in sealed.targets.items()},
    }
