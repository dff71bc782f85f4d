"""The keeper: a process that holds every fanotify group, so that a dying daemon releases nobody.

When the last descriptor of a group is closed, the kernel lets all waiting openers go on, unseen.
The daemon's death would do that before the launchers have killed their actions. The keeper has a
copy of each group, from the moment the daemon has sent it (HOLD): in its queue, then as a
descriptor. It gives it back when the daemon says that the action has ended (RELEASE), or else, when
the daemon gave the action up (ORPHAN) or is gone itself, once the action's launcher has ended, and
its action with it. It needs two descriptors per action; the daemon, with the same limit, needs
more, so an action too many fails there.

Run as a file of its own, without the package: standard library only, and it opens nothing.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import sys
from typing import Dict, Tuple

TOKEN_BYTES = 8
HOLD, RELEASE, ORPHAN = b"H", b"R", b"O"
MESSAGE_BYTES = 1 + TOKEN_BYTES
DESCRIPTORS = 2  # the group, and a pidfd of the launcher


def main(number: int) -> int:
    """Serve the daemon at the other end of descriptor `number`, then its launchers."""
    for ignored in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(ignored, signal.SIG_IGN)
    with socket.socket(fileno=number) as daemon:
        _Keeper(daemon).run()
    return 0


class _Keeper:
    def __init__(self, daemon: socket.socket) -> None:
        self._daemon = daemon
        self._held: Dict[bytes, Tuple[int, int]] = {}  # token: group and launcher
        self._orphans: Dict[int, int] = {}  # launcher: group
        self._poll = select.poll()

    def run(self) -> None:
        """Until the daemon is gone, and every launcher that it left behind."""
        server = self._daemon.fileno()
        self._poll.register(server, select.POLLIN)
        serving = True
        while serving or self._orphans:
            for descriptor, _ in self._poll.poll():
                if descriptor != server:
                    self._give_back(descriptor)
                elif not self._serve():
                    serving = False
                    self._poll.unregister(server)
                    for token in list(self._held):
                        self._orphan(token)

    def _serve(self) -> bool:
        """One message; False when the daemon is gone."""
        try:
            message, descriptors, _, _ = socket.recv_fds(self._daemon, MESSAGE_BYTES, DESCRIPTORS)
        except OSError:
            return False
        kind, token = message[:1], message[1:]
        if kind == HOLD and len(descriptors) == DESCRIPTORS:
            self._held[token] = (descriptors[0], descriptors[1])
        elif kind == RELEASE:
            _close(self._held.pop(token, ()))
        elif kind == ORPHAN and token in self._held:
            self._orphan(token)
        return bool(message)

    def _orphan(self, token: bytes) -> None:
        group, launcher = self._held.pop(token)
        self._orphans[launcher] = group
        self._poll.register(launcher, select.POLLIN)

    def _give_back(self, launcher: int) -> None:
        self._poll.unregister(launcher)
        _close((self._orphans.pop(launcher), launcher))


def _close(descriptors: Tuple[int, ...]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])))
