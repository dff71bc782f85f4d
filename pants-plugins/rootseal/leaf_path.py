"""Paths as leaf tables hold them, and the ways between them and absolute paths. Pure.

The capture records the path that the kernel gives an open file: symbolic links are resolved,
there is no `.`, `..` or empty component, and what lies below the action's root is relative to it
(docs/formats.md, Paths). Another spelling of a path is in no table, whatever was read, so a
statement that something is *not* there must refuse it.
"""

from __future__ import annotations

from rootseal.errors import EncodingError

PATH_BYTES_MAX = 4096


def check(path: bytes) -> None:
    """Refuse a spelling that no leaf can have.

    Raises:
        EncodingError: Says what is wrong with it.
    """
    if not path:
        raise EncodingError("an empty path names no file")
    if len(path) > PATH_BYTES_MAX or b"\x00" in path:
        raise EncodingError(f"a path is at most {PATH_BYTES_MAX} bytes without NUL")
    parts = path[path.startswith(b"/") :].split(b"/")
    if not all(parts):
        raise EncodingError("a path with `//`, or with a slash at its end, is never recorded")
    if b"." in parts or b".." in parts:
        raise EncodingError("a path with `.` or `..` is never recorded")


def recorded(path: bytes, root: bytes) -> bytes:
    """The path that a leaf has for this file in an action with this root.

    Args:
        path: Absolute, or relative to the root.
        root: The action's root as its predicate has it, absolute.

    Raises:
        EncodingError: A spelling that no leaf can have, or the root itself, which is no file.
    """
    check(path)
    if not path.startswith(b"/"):
        return path
    if path == root:
        raise EncodingError("this path is the action's root, a directory")
    below = root.rstrip(b"/") + b"/"
    return path[len(below) :] if path.startswith(below) else path


def absolute(path: bytes, root: bytes) -> bytes:
    """The absolute path of a leaf in an action with this root."""
    return path if path.startswith(b"/") else root.rstrip(b"/") + b"/" + path
