"""What the files below a root are before an action, and which of them are others afterwards.

Nothing is read: path, inode, size and times. Used where a trace tells who wrote what, and no event
holds the content of what was written.
"""

from __future__ import annotations

import dataclasses
import os
import stat
from typing import AbstractSet, Dict, Iterator, List, Tuple

from rootseal.errors import CaptureError

FILES_MAX = 1 << 21
_Identity = Tuple[int, int, int, int]  # inode, size, times of modification and of change


@dataclasses.dataclass(frozen=True)
class Changed:
    """A file or symlink that was not there before, or is not as it was.

    Attributes:
        path: Relative to the root.
        device: As stat(2) has it.
        inode: Likewise.
        size: In bytes.
        is_symlink: Else a regular file.
        content: Whether it may have other content than before; else mode, owner or name changed.
    """

    path: bytes
    device: int
    inode: int
    size: int
    is_symlink: bool
    content: bool


class RootState:
    """The files of a root at one moment."""

    def __init__(self, root: bytes) -> None:
        """Look at every file.

        Args:
            root: Absolute.

        Raises:
            CaptureError: There are more than `FILES_MAX`.
        """
        self._root = root
        self.unreadable = 0
        """Directories that could not be read when `changed` looked."""
        self._before: Dict[bytes, _Identity] = {}
        for path, found in self._walk():
            if len(self._before) == FILES_MAX:
                raise CaptureError(
                    f"the root has more than {FILES_MAX} files; use fanotify, or a smaller root"
                )
            self._before[path] = _identity(found)

    def changed(self) -> List[Changed]:
        """What is new or other now."""
        self.unreadable = 0
        return [
            Changed(
                path,
                found.st_dev,
                found.st_ino,
                found.st_size,
                stat.S_ISLNK(found.st_mode),
                before is None or before[:3] != _identity(found)[:3],
            )
            for path, found in self._walk()
            for before in (self._before.get(path),)
            if before is None or _is_other(before, found)
        ]

    def _walk(self) -> Iterator[Tuple[bytes, os.stat_result]]:
        """Regular files and symlinks, paths relative to the root; no symlink is followed."""
        top = self._root.rstrip(b"/") + b"/"
        pending = [top]
        while pending:
            directory = pending.pop()
            try:
                with os.scandir(directory) as entries:
                    children = list(entries)
            except FileNotFoundError:
                continue  # removed meanwhile
            except OSError:
                self.unreadable += 1
                continue
            for child in children:
                if child.is_dir(follow_symlinks=False):
                    pending.append(child.path)
                    continue
                try:
                    found = child.stat(follow_symlinks=False)
                except FileNotFoundError:
                    continue
                if stat.S_ISREG(found.st_mode) or stat.S_ISLNK(found.st_mode):
                    yield child.path[len(top) :], found


def own_names(told: AbstractSet[bytes], path: bytes) -> bool:
    """Whether a trace told of a rename or link to this path, or to a directory on its way."""
    return any(b"m" + part in told for part in path.split(b"/"))


def _is_other(before: _Identity, found: os.stat_result) -> bool:
    now = _identity(found)
    # With more than one link the time of change may be of another link to the same file.
    return before[:3] != now[:3] or (found.st_nlink == 1 and before[3] != now[3])


def _identity(found: os.stat_result) -> _Identity:
    return found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns
