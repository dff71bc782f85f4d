"""How the daemon's descriptors are shared out, so that no open of a build ever waits for one.

A read of fanotify events installs a descriptor for each. If there is none left the kernel refuses
the opener with EPERM: a build would fail because of us. So the events' share is set aside first,
and what remains bounds the actions, the clients, and how many actions are armed or finished at a
time. Pure, but for reading and raising the limit of this process.
"""

from __future__ import annotations

import dataclasses
import os
import resource
import shlex
from typing import Dict, Optional, Sequence

from rootseal.errors import ConfigError
from rootseal.executable import rootseal_command

# An action from its place in the line to its end: group, root of the namespace, its own root,
# mountinfo, the namespace itself, a spill file, a pidfd of the launcher; a copy of the group on its
# way to the keeper. When the launcher was killed: two more, of the group's share.
ACTION_DESCRIPTORS = 8
# While it is armed or finished, beside the events of one read: its process, /proc/self/fd, the file
# being hashed, and the directories of a walk, one for each level.
WORK_DESCRIPTORS = 12
HANDLER_DESCRIPTORS = 2  # of a thread beside the events it holds: one in /proc
SPARE_DESCRIPTORS = 12  # log, digest cache, a client that is told to come later, ended scopes
EVENTS_PER_READ_MAX = 8
LONG_HASHES_MAX = 64
SHARDS_MAX = 256
LONG_HASHES_MIN = 2
CLIENTS_MIN = 16
GOOD_LIMIT = 4096  # with so many, the limit bounds neither 120 actions nor 1,024 clients
REMEDY_LIMIT = 65536


@dataclasses.dataclass(frozen=True)
class EventShare:
    """What is set aside for the threads that answer events.

    Attributes:
        limit: Descriptors that this process may have.
        shards: Threads that answer events, and as many that hash long files.
        events_per_read: Each read of a thread installs at most so many.
        long_hashes: Files that wait for a long hash.
    """

    limit: int
    shards: int
    events_per_read: int
    long_hashes: int

    @property
    def descriptors(self) -> int:
        """How many the threads may have open at once."""
        answering = self.shards * (self.events_per_read + HANDLER_DESCRIPTORS)
        return answering + self.shards * (1 + HANDLER_DESCRIPTORS) + self.long_hashes

    @property
    def ceiling(self) -> int:
        """The kernel gives the lowest number that is free: who gets this one took from events."""
        return self.limit - self.descriptors


@dataclasses.dataclass(frozen=True)
class Shares:
    """What a daemon may have at once.

    Attributes:
        events: Of the event threads.
        own: Descriptors that it holds without any client.
        slots: Actions.
        working: Of those, how many are armed or finished at a time.
        clients: Connections, those of actions that wait in line included.
    """

    events: EventShare
    own: int
    slots: int
    working: int
    clients: int

    def status(self) -> Dict[str, int]:
        """For the daemon's status."""
        return {
            "limit": self.events.limit,
            "held": self.own,
            "reservedForEvents": self.events.descriptors,
            "actions": self.slots,
            "clients": self.clients,
        }


def raise_limit() -> int:
    """Raise this process's limit of descriptors as far as it may; what it is then."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    except (ValueError, OSError):
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return hard if 0 <= hard < 2**31 else 2**31 - 1


def event_share(limit: int, cpus: int) -> EventShare:
    """A quarter of the limit at most: fewer events in a read, fewer long hashes, fewer threads."""
    quarter, cpus = limit // 4, min(cpus, SHARDS_MAX)
    for events, long_hashes in ((EVENTS_PER_READ_MAX, LONG_HASHES_MAX), (4, 16), (2, 4)):
        share = EventShare(limit, cpus, events, long_hashes)
        if share.descriptors <= quarter:
            return share
    each = EventShare(limit, 1, 1, 0).descriptors
    shards = max(1, min(cpus, (quarter - LONG_HASHES_MIN) // each))
    return EventShare(limit, shards, 1, LONG_HASHES_MIN)


def open_descriptors() -> int:
    """How many this process has open."""
    return len(os.listdir("/proc/self/fd")) - 1  # one is that of the listing


def shares(events: EventShare, own: int, *, slots: int, clients: int) -> Shares:
    """Share out what the events and the daemon itself leave.

    Args:
        events: What is set aside for events.
        own: Descriptors that the daemon holds without any client.
        slots: Actions that it would have at once; fewer if the limit says so.
        clients: Connections that it would have at once; fewer if the limit says so.

    Raises:
        ConfigError: Not enough for one action; says how many are needed, and how to get them.
    """
    left = events.limit - events.descriptors - own - SPARE_DESCRIPTORS
    work = WORK_DESCRIPTORS + events.events_per_read
    clients_min = min(clients, CLIENTS_MIN)
    missing = ACTION_DESCRIPTORS + work + clients_min - left
    if missing > 0:
        raise ConfigError(
            f"the hard limit of {events.limit} open files is too low to capture even one action: "
            f"at least {_needed(events, own, clients_min)} are needed. "
            f"Raise it: {limit_remedy(())}"
        )
    slots = max(1, min(slots, left // 2 // (ACTION_DESCRIPTORS + 1)))
    left -= slots * ACTION_DESCRIPTORS
    working = max(1, min(slots, (left - clients_min) // 2 // work))
    left -= working * work
    while left < clients_min and slots > 1:
        slots, left = slots - 1, left + ACTION_DESCRIPTORS
    return Shares(events, own, slots, min(working, slots), min(clients, left))


def _needed(events: EventShare, own: int, clients_min: int) -> int:
    """The lowest limit with which a daemon like this one starts."""
    limit = events.limit
    while True:
        limit += 16
        share = event_share(limit, events.shards)
        rest = limit - share.descriptors - own - SPARE_DESCRIPTORS
        if rest >= ACTION_DESCRIPTORS + WORK_DESCRIPTORS + share.events_per_read + clients_min:
            return limit


def limit_remedy(options: Sequence[str], *, owner: Optional[int] = None) -> str:
    """The command that starts a daemon anew under a higher limit.

    Args:
        options: Its options.
        owner: Whose daemon it is; None: this user's.
    """
    stop = rootseal_command("daemon", "stop")
    ensure = rootseal_command("daemon", "ensure", *options)
    script = f"ulimit -n {REMEDY_LIMIT} && {stop} && {ensure}"
    if os.getuid() == 0:
        return script
    if owner == 0:
        return f"sudo sh -c {shlex.quote(script)}"
    return f"sudo prlimit --pid $$ --nofile={REMEDY_LIMIT}:{REMEDY_LIMIT} && {stop} && {ensure}"
