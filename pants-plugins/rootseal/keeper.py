"""The keeper: a process that holds every fanotify group, so that a dying daemon releases nobody.

When the last descriptor of a group is closed, the kernel lets all waiting openers go on, unseen.
The daemon's death would do that before the launchers have killed their actions. The keeper has a
copy of each group, from the moment the daemon has sent it (HOLD): in its queue, then as a
descriptor. It gives it back when the daemon says that the action has ended (RELEASE), or else, when
the daemon gave the action up (ORPHAN) or is gone itself, once the action's launcher has ended, and
nobody is left in the action's mount namespace: a launcher that was killed leaves its descendants
behind, and the keeper kills them (`kill_round`). It needs three descriptors per action; the daemon,
with the same limit, needs more, so an action too many fails there.

Run as a file of its own, without the package: standard library only, and it opens only /proc.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import sys
from pathlib import Path
from typing import Dict, Iterable, NamedTuple, Optional, Set, Tuple

TOKEN_BYTES = 8
HOLD, RELEASE, ORPHAN = b"H", b"R", b"O"
MESSAGE_BYTES = 1 + TOKEN_BYTES
DESCRIPTORS = 3  # the group, a pidfd of the launcher, the mount namespace
ROUND_SECONDS = 0.02  # between two rounds of killing
_STAT_BYTES = 4096


def main(number: int) -> int:
    """Serve the daemon at the other end of descriptor `number`, then its launchers."""
    for ignored in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(ignored, signal.SIG_IGN)
    with socket.socket(fileno=number) as daemon:
        _Keeper(daemon).run()
    return 0


class _Held(NamedTuple):
    group: int
    launcher: int
    namespace: int


class _Keeper:
    def __init__(self, daemon: socket.socket) -> None:
        self._daemon = daemon
        self._held: Dict[bytes, _Held] = {}  # by token
        self._orphans: Dict[int, _Held] = {}  # by launcher
        self._ending: Dict[int, _Held] = {}  # the same, once the launcher has ended
        self._poll = select.poll()

    def run(self) -> None:
        """Until the daemon is gone, and every action that it left behind."""
        server = self._daemon.fileno()
        self._poll.register(server, select.POLLIN)
        serving = True
        while serving or self._orphans or self._ending:
            pause = ROUND_SECONDS * 1000 if self._ending else None
            for descriptor, _ in self._poll.poll(pause):
                if descriptor != server:
                    self._poll.unregister(descriptor)
                    self._ending[descriptor] = self._orphans.pop(descriptor)
                elif not self._serve():
                    serving = False
                    self._poll.unregister(server)
                    for token in list(self._held):
                        self._orphan(token)
            self._end_some()

    def _end_some(self) -> None:
        for launcher, held in list(self._ending.items()):
            with contextlib.suppress(OSError):  # no descriptor is free: it is tried again
                if not kill_round(held.namespace):
                    _close(self._ending.pop(launcher))

    def _serve(self) -> bool:
        """One message; False when the daemon is gone."""
        try:
            message, descriptors, _, _ = socket.recv_fds(self._daemon, MESSAGE_BYTES, DESCRIPTORS)
        except OSError:
            return False
        kind, token = message[:1], message[1:]
        if kind == HOLD and len(descriptors) == DESCRIPTORS:
            self._held[token] = _Held(*descriptors)
        elif kind == RELEASE:
            _close(self._held.pop(token, ()))
        elif kind == ORPHAN and token in self._held:
            self._orphan(token)
        return bool(message)

    def _orphan(self, token: bytes) -> None:
        held = self._held.pop(token)
        self._orphans[held.launcher] = held
        self._poll.register(held.launcher, select.POLLIN)


def _close(descriptors: Tuple[int, ...]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)


def kill_round(namespace: Optional[int], known: Iterable[Tuple[int, int]] = ()) -> Set[int]:
    """SIGKILL to whoever is in a mount namespace, to known processes, and to their descendants.

    A process that forks meanwhile needs another round, and so does one that takes time to end.

    Args:
        namespace: Descriptor of /proc/PID/ns/mnt: while it is open no other namespace is that one.
            None: the action has none of its own.
        known: Process ids, and when each started. Whoever is in this process's own namespace
            only looked in from outside. 0: surely one of the action's, wherever it is.

    Returns:
        Process ids of those that were there; empty: nobody is left.
    """
    names = (path.name for path in Path("/proc").iterdir())
    table = {pid: _stat_of(pid) for pid in map(int, filter(str.isdigit, names))}
    found: Set[int] = set()
    if namespace is not None:
        about = os.fstat(namespace)
        found = {pid for pid in table if _is_in(pid, about)}
    found |= {pid for pid, start in known if _is_known(table.get(pid), pid, start)}
    grown = -1
    while grown != len(found):
        grown = len(found)
        found |= {pid for pid, stat in table.items() if stat.parent in found}
    found = {pid for pid in found if table[pid].state not in "ZX"}
    for pid in found:
        _kill(pid, table[pid])
    return found


class _Stat(NamedTuple):
    state: str
    parent: int
    start: int


_GONE = _Stat("X", 0, -1)


def _stat_of(pid: int) -> _Stat:
    """State, parent and start time in /proc/PID/stat."""
    try:
        descriptor = os.open(f"/proc/{pid}/stat", os.O_RDONLY | os.O_CLOEXEC)
        try:
            words = os.read(descriptor, _STAT_BYTES).rpartition(b")")[2].split()
        finally:
            os.close(descriptor)
        return _Stat(words[0].decode(), int(words[1]), int(words[19]))
    except (FileNotFoundError, ProcessLookupError):
        return _GONE


def _is_in(pid: int, namespace: os.stat_result) -> bool:
    try:
        return os.path.samestat(Path(f"/proc/{pid}/ns/mnt").stat(), namespace)
    except OSError:  # it has ended, is a zombie, or a kernel thread
        return False


def _is_known(stat: Optional[_Stat], pid: int, start: int) -> bool:
    if stat is None or start == 0:
        return stat is not None
    return stat.start == start and not _is_in(pid, Path("/proc/self/ns/mnt").stat())


def _kill(pid: int, stat: _Stat) -> None:
    """Through a pidfd, so that the pid cannot come to mean another process."""
    with contextlib.suppress(OSError):  # ended, or it may not be killed: then it is found again
        process = os.pidfd_open(pid)
        try:
            if _stat_of(pid).start == stat.start:
                signal.pidfd_send_signal(process, signal.SIGKILL)
        finally:
            os.close(process)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])))
