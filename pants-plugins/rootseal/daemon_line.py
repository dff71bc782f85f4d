"""The line before the capture: so many actions at once as there is room for, the others wait.

First come, first served, but no user takes all places from the others (`leaves_room`). The room is
asked for again and again, since root may change the kernel's limit of fanotify groups while a
daemon runs.
"""

from __future__ import annotations

import collections
import contextlib
import threading
from typing import Callable, Counter, Deque, Dict, Iterator, Optional

LOOK_SECONDS = 1.0  # between two looks at the room, when nobody leaves meanwhile


def leaves_room(held: int, taken: int, room: int) -> bool:
    """Whether a user who holds so many may take one more and leave something to the others.

    He may as long as he holds less than is free: half of all if he is alone, and half of what is
    left for each who comes after him.

    Args:
        held: What this user holds.
        taken: What all hold.
        room: What there is in all.
    """
    return held < room - taken


class Line:
    """Places that are taken in the order of coming."""

    def __init__(self, room: Callable[[], int]) -> None:
        """An empty line.

        Args:
            room: How many places there are at the moment, at least one.
        """
        self._room = room
        self._came = 0
        self._waiting: Dict[Optional[int], Deque[int]] = {}  # by user, in the order of coming
        self._held: Counter[Optional[int]] = collections.Counter()
        self._changed = threading.Condition()

    @property
    def queued(self) -> int:
        """How many wait."""
        with self._changed:
            return sum(len(tickets) for tickets in self._waiting.values())

    @contextlib.contextmanager
    def place(
        self,
        before_leaving: Callable[[], None] = lambda: None,
        *,
        user: Optional[int] = None,
    ) -> Iterator[None]:
        """Wait for a place and keep it.

        Args:
            before_leaving: Called at the end, before anybody else gets the place.
            user: Who must leave room to others; None: somebody who need not.
        """
        self._enter(user)
        try:
            yield
        finally:
            try:
                before_leaving()
            finally:
                with self._changed:
                    self._held[user] -= 1
                    self._held += collections.Counter()  # forgets those who hold nothing
                    self._changed.notify_all()

    def _enter(self, user: Optional[int]) -> None:
        with self._changed:
            self._came = ticket = self._came + 1
            self._waiting.setdefault(user, collections.deque()).append(ticket)
            try:
                while self._next() != ticket:
                    self._changed.wait(LOOK_SECONDS)
                self._held[user] += 1
            finally:
                self._waiting[user].remove(ticket)
                if not self._waiting[user]:
                    del self._waiting[user]
                self._changed.notify_all()

    def _next(self) -> Optional[int]:
        """The ticket of who may enter now; None if nobody may."""
        room, taken = self._room(), sum(self._held.values())
        if taken >= room:
            return None
        return min(
            (
                tickets[0]
                for user, tickets in self._waiting.items()
                if user is None or leaves_room(self._held[user], taken, room)
            ),
            default=None,
        )
