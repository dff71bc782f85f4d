"""Which product files a declared output means: itself, what is below it, or what it leads to."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Dict, Iterable, List, Mapping, Tuple

from rootseal import leaf_table
from rootseal.leaf_table import Domain, Leaf
from rootseal.observation import LeafKind


def delivered(
    products: bytes, root: bytes, declared: Iterable[bytes]
) -> Tuple[List[Leaf], List[bytes]]:
    """The regular files that declared outputs mean, and the outputs that mean none.

    A symbolic link is a product, but no artifact: its digest is that of its text. The file behind
    it is one under its own name, if it is a product in the root.

    Args:
        products: The action's products table, not compressed.
        root: The action's root; looked at with the caller's rights.
        declared: Paths of files and directories, relative to it.
    """
    top = Path(os.path.realpath(os.fsdecode(root)))
    paths = [os.path.normpath(path) for path in declared]
    found, missing = _files_at(products, {path: path for path in paths})
    led, missing = _files_at(products, {path: resolved(top, path) for path in missing})
    return list({**found, **led}.values()), missing


def resolved(top: Path, path: bytes) -> bytes:
    """Where an output leads, relative to the root `top`; itself where that is elsewhere."""
    real = Path(os.path.realpath(top / os.fsdecode(path)))
    return os.fsencode(real.relative_to(top)) if top in real.parents else path


def _files_at(raw: bytes, places: Mapping[bytes, bytes]) -> Tuple[Dict[bytes, Leaf], List[bytes]]:
    """The regular files at or below the places of outputs, and the outputs without one."""
    found: Dict[bytes, Leaf] = {}
    missing = dict.fromkeys(places)
    for leaf in leaf_table.iter_leaves(raw, Domain.PRODUCT):
        if leaf.kind == LeafKind.SYMLINK:
            continue
        for path, place in places.items():
            if place == b"." or leaf.path == place or leaf.path.startswith(place + b"/"):
                missing.pop(path, None)
                found[leaf.path] = leaf
    return found, list(missing)
