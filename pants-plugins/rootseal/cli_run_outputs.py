"""Declared outputs of `rootseal run`: what they are, and their seals."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Dict, List, Mapping, Tuple

from rootseal import canonical, fsverity, leaf_table, outputs
from rootseal.errors import IncompleteError
from rootseal.record_check import VerifiedRecord


def declared_outputs(arguments: argparse.Namespace) -> Tuple[List[str], List[str]]:
    """Declared files and directories."""
    directories = [path for path in arguments.output if path.endswith("/") or Path(path).is_dir()]
    return [path for path in arguments.output if path not in directories], directories


def seals_outputs(arguments: argparse.Namespace, options: Mapping[str, str]) -> bool:
    """Outputs that a bundle attests are sealed; without a bundle only on demand."""
    return bool(options["fsverity"] == "on" or (arguments.out and options["fsverity"] == "auto"))


def make_outputs_writable(arguments: argparse.Namespace) -> None:
    """Replace what the last run sealed by copies: the command may write it in place."""
    output_files, directories = declared_outputs(arguments)
    top = Path(arguments.root or ".").resolve()
    paths = [Path(os.path.realpath(path)) for path in output_files]  # as it was sealed
    paths += [item for path in directories for item in Path(path).resolve().rglob("*")]
    for path in paths:
        if top in path.parents:
            fsverity.unseal(path)


def artifacts_of(verified: VerifiedRecord, root: Path) -> List[Dict[str, object]]:
    """The regular files that were declared and that the command left: they become the subjects.

    A symbolic link is a product, but no artifact: its digest is that of its text, and whoever
    verifies reads the file behind it. That file is an artifact under its own name, if the command
    made it and it is in a declared directory, or a declared output leads to it.

    Raises:
        IncompleteError: A declared output is not there.
    """
    raw = leaf_table.decompress(verified.record.tables.products)
    leaves, missing = outputs.delivered(raw, os.fsencode(root), _paths(verified))
    if verified.predicate.document["exitcode"] == 0:
        for path in missing:
            _refuse_absent(root / os.fsdecode(path), canonical.path_text(path))
    return [
        {
            "name": canonical.path_text(leaf.path),
            "sha256": leaf.digest.hex(),
            "size": leaf.size,
        }
        for leaf in leaves
    ]


def _refuse_absent(path: Path, name: str) -> None:
    """An output of which the capture saw no file: only a directory without files is one.

    Raises:
        IncompleteError: Says what is there instead.
    """
    if path.is_dir():
        if all(item.is_symlink() or item.is_dir() for item in path.rglob("*")):
            return
        why = "it holds nothing that the command left as a regular file"
    elif path.is_symlink():
        why = "it is a symbolic link, and the command made no file in the root that it leads to"
    else:
        why = "it is no regular file" if os.path.lexists(path) else "nothing is there"
    raise IncompleteError(
        f"the command did not leave its output {name}: {why}; check --output and --root"
    )


def _paths(verified: VerifiedRecord) -> Tuple[bytes, ...]:
    """Declared outputs of a record, relative to its root."""
    declared = verified.predicate.document["declaredOutputs"]
    assert isinstance(declared, dict)  # noqa: S101 - the reader of predicates has checked it
    return tuple(canonical.path_bytes(text) for text in declared["files"] + declared["directories"])
