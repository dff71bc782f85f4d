"""Declared outputs of `rootseal run`: what they are, and their seals."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Dict, List, Mapping, Tuple

from rootseal import canonical, fsverity, leaf_table
from rootseal.errors import IncompleteError
from rootseal.leaf_table import Domain
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
    paths = [Path(path) for path in output_files]
    paths += [item for path in directories for item in Path(path).rglob("*")]
    for path in paths:
        fsverity.unseal(path)


def artifacts_of(verified: VerifiedRecord) -> List[Dict[str, object]]:
    """The products that were declared: they become the subjects.

    Raises:
        IncompleteError: A declared output is not there.
    """
    declared = _paths(verified)
    raw = leaf_table.decompress(verified.record.tables.products)
    found: Dict[bytes, Dict[str, object]] = {}
    missing = dict.fromkeys(declared, True)
    for leaf in leaf_table.iter_leaves(raw, Domain.PRODUCT):
        for path in declared:
            if leaf.path == path or leaf.path.startswith(path + b"/") or path == b".":
                missing[path] = False
                found[leaf.path] = {
                    "name": canonical.path_text(leaf.path),
                    "sha256": leaf.digest.hex(),
                    "size": leaf.size,
                }
    absent = [os.fsdecode(path) for path, gone in missing.items() if gone]
    if absent and verified.predicate.document["exitcode"] == 0:
        raise IncompleteError(
            f"the command did not leave its output {absent[0]}; check --output and --root"
        )
    return list(found.values())


def _paths(verified: VerifiedRecord) -> Tuple[bytes, ...]:
    """Declared outputs of a record, relative to its root."""
    outputs = verified.predicate.document["declaredOutputs"]
    assert isinstance(outputs, dict)  # noqa: S101 - the reader of predicates has checked it
    return tuple(canonical.path_bytes(text) for text in outputs["files"] + outputs["directories"])
