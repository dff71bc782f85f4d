"""Files outside the action's root that the kernel measured: which they are, and whether they still
are what was measured.

    name, digest of the list → paths of that name → read with the client's rights → leaf | mutation

A name of the list is less than a path: each space is `_` in it, and it is that of the mount
namespace of whoever opened the file. So it is believed only where the content is that of the
measurement; what the client may not read, its action has not read, and its digest is not told.
"""

from __future__ import annotations

import os
import stat
from typing import Dict, Iterable, List, Set, Tuple

from rootseal.capture import walk
from rootseal.capture.scope import CaptureLimits
from rootseal.leaf_table import PATH_BYTES_MAX, Leaf
from rootseal.observation import DigestSource, Mutation, MutationTime

SPELLINGS_MAX = 64  # of one name: directories and files that differ in spaces alone are few
_Listings = Dict[bytes, List[bytes]]


def find(
    measured: Iterable[Tuple[bytes, bytes]],
    *,
    root: bytes,
    limits: CaptureLimits,
    counters: Dict[str, int],
) -> Tuple[List[Leaf], List[Mutation]]:
    """Leaves of what is there as it was measured, and mutations of what is there otherwise.

    A file that is gone was a temporary one: its size is not known, and nothing is said of it.

    Args:
        measured: Absolute names and SHA-256 digests.
        root: The action's root.
        limits: Caps of this action.
        counters: What could not be done, and the bytes hashed, are added here.
    """
    digests: Dict[bytes, Set[bytes]] = {}
    for name, found in measured:
        digests.setdefault(name, set()).add(found)
    listings: _Listings = {}
    paths = {name: list(filter(_is_readable, _spellings(name, listings))) for name in digests}
    every = sorted({path for some in paths.values() for path in some})
    now = walk.leaves_of(every, root=root, limits=limits, counters=counters)
    by_path = {leaf.path: leaf for leaf in now}
    leaves: List[Leaf] = []
    mutations: List[Mutation] = []
    for name in sorted(digests):
        there = [by_path[path] for path in paths[name] if path in by_path]
        for wanted in sorted(digests[name]) if there else ():
            same = [leaf for leaf in there if leaf.digest == wanted]
            if same:
                leaves.append(same[0]._replace(source=int(DigestSource.IMA)))
            else:
                first = there[0]
                mutations.append(Mutation(first.path, wanted, first.digest, MutationTime.END))
    return leaves, mutations


def _is_readable(path: bytes) -> bool:
    try:
        regular = stat.S_ISREG(os.lstat(path).st_mode)
    except OSError:
        return False
    return regular and os.access(path, os.R_OK, effective_ids=True)


def _spellings(name: bytes, listings: _Listings) -> List[bytes]:
    """Paths that the list would call `name`, itself first."""
    if len(name) > PATH_BYTES_MAX:
        return []
    places = [b""]
    for part in name[1:].split(b"/"):
        places = [
            place + b"/" + entry for place in places for entry in _entries(place, part, listings)
        ][:SPELLINGS_MAX]
    return places


def _entries(place: bytes, part: bytes, listings: _Listings) -> List[bytes]:
    if b"_" not in part:
        return [part]
    if place not in listings:
        try:
            with os.scandir(place or b"/") as entries:
                listings[place] = [entry.name for entry in entries if b" " in entry.name]
        except OSError:  # gone, or not the client's to list: the name itself may do
            listings[place] = []
    return [part, *(entry for entry in listings[place] if entry.replace(b" ", b"_") == part)]
