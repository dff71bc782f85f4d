"""Names that an action gave to files from outside its root: a tool among them is no input. Pure.

A hard link or a rename brings a file in without opening it where it was. What the action itself
made outside and moved in is not among its materials, so it is never judged by these names.
"""

from __future__ import annotations

import os
from typing import FrozenSet, Iterator, Mapping, Sequence, Tuple, Union

from rootseal import canonical, schema
from rootseal.observation import ProcessRecord

Move = Tuple[Union[int, str], bytes, bytes]  # when, where the file was, its new name


def moves_seen(processes: Sequence[ProcessRecord]) -> Iterator[Move]:
    """What a trace saw being renamed and hard-linked; nothing without one."""
    for process in processes:
        if process.trace is None:
            continue
        for renamed in process.trace.file_ops.renames:
            yield renamed.time_ns, renamed.source, renamed.destination
        for link in process.trace.file_ops.links:
            if not link.symbolic:
                yield link.time_ns, link.target, link.path


def moves_signed(document: Mapping[str, object]) -> Iterator[Move]:
    """The same of a predicate that was read."""
    for process in map(schema.as_object, schema.as_list(document["processes"])):
        if "fileOps" not in process:
            continue
        done = schema.as_object(process["fileOps"])
        for item in map(schema.as_object, schema.as_list(done["renames"])):
            yield _move(item, "from", "to")
        for item in map(schema.as_object, schema.as_list(done["links"])):
            if not item["symbolic"]:
                yield _move(item, "target", "path")


def _move(item: Mapping[str, object], source: str, name: str) -> Move:
    paths = (canonical.path_bytes(str(item[key])) for key in (source, name))
    return (str(item["timestamp"]), *paths)  # type: ignore[return-value]


def brought_in(moves: Iterator[Move], root: bytes) -> FrozenSet[bytes]:
    """Names in the root, relative to it, of files and directories that came from outside.

    Args:
        moves: All with the same kind of time.
        root: The action's root, absolute.
    """
    found: set[bytes] = set()
    for _, source, name in sorted(moves):
        inside, came_from = _relative(root, name), _relative(root, source)
        if inside and (not came_from or is_below(came_from, found)):
            found.add(inside)
    return frozenset(found)


def is_below(path: bytes, places: Union[FrozenSet[bytes], set[bytes]]) -> bool:
    """Whether a path, or a directory that it is in, is among the places."""
    while path:
        if path in places:
            return True
        path = path.rpartition(b"/")[0]
    return False


def _relative(root: bytes, path: bytes) -> bytes:
    """Relative to the root; empty for the root itself and for what lies outside."""
    below = root.rstrip(b"/") + b"/"
    whole = os.path.normpath(path if path.startswith(b"/") else below + path)
    return whole[len(below) :] if whole.startswith(below) else b""
