"""The state of the version control system: which commit was built, and whether it was changed."""

from __future__ import annotations

import subprocess
from types import TracebackType
from typing import Optional, Sequence, Type

from rootseal_pants.child import Child

GIT_TIMEOUT_SECONDS = 60
_STATUS = ("status", "--porcelain=v2", "--branch", "--no-ahead-behind")
_HEADER = b"# "  # of lines that are about the branch; any other line is a change
_COMMIT = b"# branch.oid "
_NO_COMMIT = b"(initial)"


class VcsQuestion:
    """Asks git when it is made, and is answered when it is read: git runs meanwhile."""

    def __init__(self, build_root: str) -> None:
        self._build_root = build_root
        self._asked = _start(build_root, _STATUS)

    def __enter__(self) -> VcsQuestion:
        """The question itself; git has ended when the block has."""
        return self

    def __exit__(
        self,
        kind: Optional[Type[BaseException]],
        error: Optional[BaseException],
        trace: Optional[TracebackType],
    ) -> None:
        """End git, if nobody wanted to know."""
        if self._asked is not None:
            self._asked.end()

    def answer(self) -> dict[str, object] | None:
        """Commit and cleanness of the git work tree, or None where there is no commit."""
        status = _output(self._asked)
        if status is None:  # a commit whose changes git cannot tell counts as changed
            commit = _output(_start(self._build_root, ("rev-parse", "--verify", "HEAD")))
            return None if commit is None else _state(commit.strip(), True)
        lines = status.splitlines()
        commits = [line[len(_COMMIT) :] for line in lines if line.startswith(_COMMIT)]
        if not commits or commits[0] == _NO_COMMIT:
            return None
        return _state(commits[0], any(not line.startswith(_HEADER) for line in lines))


def _state(commit: bytes, dirty: bool) -> dict[str, object]:
    return {"system": "git", "commit": commit.decode(errors="replace"), "dirty": dirty}


def _start(build_root: str, arguments: Sequence[str]) -> Child | None:
    try:
        return Child(["git", "-C", build_root, *arguments])
    except OSError:
        return None  # no git, so no state of it


def _output(child: Child | None) -> bytes | None:
    """What git printed, or None if it did not succeed."""
    if child is None:
        return None
    try:
        done = child.finish(timeout_seconds=GIT_TIMEOUT_SECONDS)
    except subprocess.TimeoutExpired:
        return None
    return done.stdout if done.returncode == 0 else None
