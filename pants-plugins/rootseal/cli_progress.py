"""What `rootseal run` shows on a terminal while its command is held or waits: from the daemon.

The launcher owns the action's streams and says nothing of its own; the daemon knows, and tells
whoever asks (`activity` in its status).
"""

from __future__ import annotations

import contextlib
import sys
import threading
from typing import Any, Iterator, Mapping, Optional

from rootseal import wire

LOOK_SECONDS = 1.0
STATUS_SECONDS = 5.0
_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


@contextlib.contextmanager
def shown_progress(socket: str, launcher: int) -> Iterator[None]:
    """Show on stderr, if that is a terminal, what a launcher's action waits for.

    Args:
        socket: Of the daemon.
        launcher: Process id of the launcher.
    """
    if not sys.stderr.isatty():
        yield
        return
    end = threading.Event()
    thread = threading.Thread(target=_show, args=(socket, launcher, end), daemon=True)
    thread.start()
    try:
        yield
    finally:
        end.set()
        thread.join()


def _show(socket: str, launcher: int, end: threading.Event) -> None:
    from rich.console import Console
    from rich.markup import escape

    line: Any = None
    while not end.wait(LOOK_SECONDS):
        text = _look(socket, launcher)
        if text and line is None:
            line = Console(stderr=True).status("")
            line.start()
        if text:
            line.update(escape(text))
        elif line is not None:
            line.stop()
            line = None
    if line is not None:
        line.stop()


def _look(socket: str, launcher: int) -> str:
    try:
        return waiting_text(wire.status(socket, timeout_seconds=STATUS_SECONDS), launcher)
    except wire.DaemonError:
        return ""  # the launcher notices by itself, and says it


def waiting_text(status: Mapping[str, object], launcher: int) -> str:
    """What an action waits for, by the daemon's status; empty if it runs."""
    row = _row_of(status, launcher)
    if row is not None:
        files, size = row.get("longHashes", 0), row.get("longBytes", 0)
        if not files:
            return ""
        what = "a large file" if files == 1 else f"{files} large files"
        return (
            f"hashing {what} of {_size(size)} before it is read ({_size(row['bytesHashed'])} done)"
        )
    if status.get("groupsAwaited"):
        return "waiting for a fanotify group: other programs of the daemon's user hold them all"
    actions = status.get("actions")
    queued = actions.get("queued") if isinstance(actions, dict) else 0
    return f"waiting in line: {queued} actions wait for a place" if queued else ""


def _row_of(status: Mapping[str, object], launcher: int) -> Optional[Mapping[str, int]]:
    rows = status.get("activity")
    for row in rows if isinstance(rows, list) else []:
        if isinstance(row, dict) and row.get("launcher") == launcher:
            return row
    return None


def _size(count: float) -> str:
    unit = 0
    while count >= 1024 and unit < len(_UNITS) - 1:
        count, unit = count / 1024, unit + 1
    return f"{count:.1f} {_UNITS[unit]}" if unit else f"{count:.0f} {_UNITS[unit]}"
