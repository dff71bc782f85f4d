"""`rootseal toolchain seal` and `rootseal toolchain verify`, and the options that require one."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any, Optional, Tuple

from rootseal import envelope, files, keys, toolchain, toolchain_files
from rootseal.canonical import path_text
from rootseal.cli_keys import add_signing, signer_from, signing_files
from rootseal.cli_output import add_json, emit, printable, progress
from rootseal.cli_paths import check_result
from rootseal.errors import ConfigError, VerificationError
from rootseal.seal_artifacts import MODES, environment_mode
from rootseal.toolchain import Toolchain, ToolScope, TrustedTools

DIFFERENCES_SHOWN = 20


def register(subparsers: Any) -> None:
    """Add `toolchain`."""
    group = subparsers.add_parser("toolchain", help="manifests of the tools a build may execute")
    commands = group.add_subparsers(dest="toolchain_command", metavar="COMMAND", required=True)

    parser = commands.add_parser("seal", help="list, seal and sign the files of directories")
    parser.add_argument("directories", metavar="DIR", nargs="+")
    parser.add_argument("--out", metavar="MANIFEST", required=True, help="manifest to write")
    parser.add_argument(
        "--fsverity",
        choices=MODES,
        help="seal the files, which makes them read-only (default: $ROOTSEAL_FSVERITY, else auto: "
        "where the filesystem can)",
    )
    add_signing(parser)
    add_json(parser)
    parser.set_defaults(handler=seal)

    parser = commands.add_parser("verify", help="compare a toolchain with its manifest")
    parser.add_argument("manifest", metavar="MANIFEST")
    parser.add_argument(
        "--key", metavar="PUB", action="append", required=True, help="public key of the signer"
    )
    parser.add_argument(
        "--read-all", action="store_true", help="read the content of sealed files too"
    )
    add_json(parser)
    parser.set_defaults(handler=verify)


def seal(arguments: argparse.Namespace) -> int:
    """Seal directories."""
    mode = arguments.fsverity or environment_mode(os.environ, "auto")
    check_result(("--out", arguments.out), b'{"payload"', signing_files(arguments))
    signer = signer_from(arguments)
    with progress("sealing files", as_json=arguments.json) as advance:
        found = toolchain_files.seal_directories(
            [os.fsencode(item) for item in arguments.directories], mode=mode, progress=advance
        )
    data = toolchain.sign_toolchain(found, signer)
    with files.complete_file(arguments.out) as stream:
        stream.write(data)
    sealed = sum(file.fsverity is not None for file in found.files)
    size = sum(file.size for file in found.files)
    root = found.tree[0].hex()
    text = f"{len(found.files)} files, {size} bytes, {sealed} sealed with fs-verity, tree "
    emit(
        arguments,
        printable(f"{text}{root[:16]} → {arguments.out}"),
        {
            "manifest": arguments.out,
            "files": len(found.files),
            "bytes": size,
            "fsVerityFilesSealed": sealed,
            "treeRoot": root,
        },
    )
    return 0


def verify(arguments: argparse.Namespace) -> int:
    """Compare a toolchain with its manifest."""
    found = load_toolchain(arguments.manifest, keys.load_public_keys(arguments.key))
    with progress("comparing files", as_json=arguments.json) as advance:
        compared = toolchain_files.compare(found, read_all=arguments.read_all, progress=advance)
    if compared.differences:
        shown = [
            f"{path_text(item.path)}: {item.reason}"
            for item in compared.differences[:DIFFERENCES_SHOWN]
        ]
        more = len(compared.differences) - len(shown)
        text = "; ".join(shown) + (f"; and {more} more" if more else "")
        raise VerificationError(
            f"{len(compared.differences)} of the toolchain's files differ: {text}",
            data={
                "differences": [
                    {"path": path_text(item.path), "reason": item.reason}
                    for item in compared.differences
                ]
            },
        )
    emit(
        arguments,
        f"toolchain verified: {compared.measured} files measured, {compared.hashed} read",
        {"measured": compared.measured, "hashed": compared.hashed},
    )
    return 0


def add_toolchain(parser: argparse.ArgumentParser) -> None:
    """The options that require every tool of a build (or of one action) to be in a manifest."""
    parser.add_argument(
        "--toolchain",
        metavar="MANIFEST",
        action="append",
        default=[],
        help="refuse a file that is executed, or machine code that is opened, from outside the "
        "sandbox and is, by content, in none of these signed manifests (repeatable)",
    )
    parser.add_argument(
        "--toolchain-key",
        metavar="PUB",
        action="append",
        default=[],
        help="public key that may have signed a toolchain manifest (repeatable)",
    )
    parser.add_argument(
        "--toolchain-scope",
        choices=[scope.value for scope in ToolScope],
        default=ToolScope.EXECUTED.value,
        help="programs, scripts and libraries only, or all that was read outside the sandboxes "
        "(default: %(default)s)",
    )


def tools_from(arguments: argparse.Namespace) -> Optional[TrustedTools]:
    """What the options allow; None if they require nothing."""
    if not arguments.toolchain:
        if arguments.toolchain_key:
            raise ConfigError("--toolchain-key needs --toolchain too")
        return None
    if not arguments.toolchain_key:
        raise ConfigError("--toolchain needs the public key of its signer (--toolchain-key)")
    trusted = keys.load_public_keys(arguments.toolchain_key)
    loaded = [(path, load_toolchain(path, trusted)) for path in arguments.toolchain]
    return toolchain.trusted_tools(loaded, ToolScope(arguments.toolchain_scope))


def load_toolchain(path: str, trusted: Tuple[keys.PublicKey, ...]) -> Toolchain:
    """Read a signed manifest file."""
    data = files.read_bounded(
        Path(path), bytes_max=envelope.ENVELOPE_BYTES_MAX, what="the toolchain manifest"
    )
    try:
        return toolchain.read_toolchain(data, trusted)
    except VerificationError as error:
        raise VerificationError(f"toolchain manifest {path}: {error}") from None
