"""Paths of what an action did, relative to its root (docs/formats.md, Paths). Pure."""

from __future__ import annotations


def relative_to(root: bytes, path: bytes) -> bytes:
    """A path below the root relative to it; any other, and the root itself, as it is."""
    prefix = root.rstrip(b"/") + b"/"
    return path[len(prefix) :] if path.startswith(prefix) and len(path) > len(prefix) else path


def relative_as_given(root: bytes, path: bytes) -> bytes:
    """As `relative_to` for a name that a process gave; the root itself is `.`.

    A path with `..` stays as it was given: what a `..` after a symbolic link meant is not known.
    """
    if b".." in path.split(b"/"):
        return path
    return b"." if path == root else relative_to(root, path)
