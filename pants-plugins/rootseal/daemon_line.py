"""The line before the capture: so many actions at once as there is room for, the others wait.

First come, first served. The room is asked for again and again, since root may change the kernel's
limit of fanotify groups while a daemon runs.
"""

from __future__ import annotations

import collections
import contextlib
import threading
from typing import Callable, Deque, Iterator

LOOK_SECONDS = 1.0  # between two looks at the room, when nobody leaves meanwhile


class Line:
    """Places that are taken in the order of coming."""

    def __init__(self, room: Callable[[], int]) -> None:
        """An empty line.

        Args:
            room: How many places there are at the moment, at least one.
        """
        self._room = room
        self._waiting: Deque[object] = collections.deque()
        self._taken = 0
        self._changed = threading.Condition()

    @property
    def queued(self) -> int:
        """How many wait."""
        with self._changed:
            return len(self._waiting)

    @contextlib.contextmanager
    def place(self, before_leaving: Callable[[], None] = lambda: None) -> Iterator[None]:
        """Wait for a place and keep it.

        Args:
            before_leaving: Called at the end, before anybody else gets the place.
        """
        self._enter()
        try:
            yield
        finally:
            try:
                before_leaving()
            finally:
                with self._changed:
                    self._taken -= 1
                    self._changed.notify_all()

    def _enter(self) -> None:
        ticket = object()
        with self._changed:
            self._waiting.append(ticket)
            try:
                while self._waiting[0] is not ticket or self._taken >= self._room():
                    self._changed.wait(LOOK_SECONDS)
                self._taken += 1
            finally:
                self._waiting.remove(ticket)
                self._changed.notify_all()
