"""The daemon's side of the keeper (keeper.py): groups are handed to it before actions start."""

from __future__ import annotations

import contextlib
import itertools
import logging
import select
import socket
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, Callable, Iterable, Iterator, Optional, Set, Tuple

from rootseal import keeper
from rootseal.daemon_peer import opened_process
from rootseal.errors import CaptureError

FULL_SECONDS = 30  # that a keeper leaves its queue full
END_SECONDS = 10.0  # for the killing of what a launcher left behind; then the keeper goes on
LAUNCHER_SECONDS = 1.0  # from the end of its connection to that of a launcher that was killed
Known = Callable[[], Iterable[Tuple[int, int]]]
Where = Callable[[], Tuple[Optional[int], Iterable[Tuple[int, int]]]]
_SCRIPT = Path(keeper.__file__).resolve()
_log = logging.getLogger("rootseal.daemon")


class Keeper:
    """One keeper process; it outlives this one for as long as an action does."""

    def __init__(self) -> None:
        """Start it."""
        self._lock = threading.Lock()
        self._tokens = itertools.count(1)
        self._socket = _start()
        self.orphans_killed = 0
        """Processes that outlived their launcher."""

    @contextlib.contextmanager
    def holding(self, group: int, launcher: int, namespace: int, known: Known) -> Iterator[None]:
        """Have a group held until the end of the block; until the action's end if that fails.

        When it fails because the launcher was killed, what is left of the action is killed here,
        while its capture still goes on; what that does not end within seconds is the keeper's.

        Args:
            group: Descriptor of the fanotify group.
            launcher: Process id of the action's launcher.
            namespace: Descriptor of the action's mount namespace.
            known: Gives processes of the action that may have left it, as `kill_round` has them.

        Raises:
            CaptureError: Nobody can hold it: the action must not start.
        """
        token = next(self._tokens).to_bytes(keeper.TOKEN_BYTES, "big")
        with opened_process(launcher, "the launcher") as process:
            self._hold(token, group, process, namespace)
            try:
                yield
            except BaseException:
                try:
                    killed = end_orphans(process, lambda: (namespace, known()))
                    with self._lock:
                        self.orphans_killed += killed
                finally:  # whatever is left then, the keeper ends
                    self._tell(keeper.ORPHAN + token)
                raise
        self._tell(keeper.RELEASE + token)

    def _tell(self, message: bytes) -> None:
        with self._lock, contextlib.suppress(OSError):  # a dead keeper holds nothing
            self._socket.send(message)

    def _hold(self, token: bytes, *descriptors: int) -> None:
        with self._lock:
            try:
                self._ask(token, descriptors)
            except OSError:
                self._socket.close()  # it was killed: the actions it watched over run on
                self._socket = _start()
                try:
                    self._ask(token, descriptors)
                except OSError as error:
                    raise CaptureError(
                        f"the keeper of the capture does not answer ({error}); restart the daemon"
                    ) from None

    def _ask(self, token: bytes, descriptors: Tuple[int, ...]) -> None:
        """Send it. That is enough: the message in the keeper's queue keeps the group open."""
        socket.send_fds(self._socket, [keeper.HOLD + token], list(descriptors))

    def close(self) -> None:
        """Let it end, once the actions that it still watches over have ended."""
        with self._lock:
            self._socket.close()


def end_orphans(process: int, where: Where) -> int:
    """Kill what a launcher that was killed left behind; one that lives does that itself.

    Args:
        process: A pidfd of the launcher, whose connection has ended.
        where: Gives what `keeper.kill_round` wants to know, as it is now.

    Returns:
        How many processes there were.
    """
    poll = select.poll()
    poll.register(process, select.POLLIN)
    if not poll.poll(LAUNCHER_SECONDS * 1000):
        return 0
    found: Set[int] = set()
    deadline = time.monotonic() + END_SECONDS
    left = keeper.kill_round(*where())
    while left and time.monotonic() < deadline:
        found |= left
        time.sleep(keeper.ROUND_SECONDS)
        left = keeper.kill_round(*where())
    if found:
        _log.warning("a launcher was killed: so were %d processes of its action", len(found))
    if left:
        _log.warning("a killed launcher left processes that do not end: %s", sorted(left))
    return len(found)


class Follower:
    """For actions under eBPF alone, which have no namespace of their own, and hold nobody."""

    def __init__(self) -> None:
        """Follow nobody yet."""
        self._lock = threading.Lock()
        self.orphans_killed = 0
        """Processes that outlived their launcher."""

    @contextlib.contextmanager
    def following(self, launcher: int, scope: Any) -> Iterator[None]:
        """If the block fails because the launcher was killed, its action's processes are killed.

        Args:
            launcher: Its process id.
            scope: Of the action; it knows those that live.

        Raises:
            CaptureError: The launcher is gone.
        """
        with opened_process(launcher, "the launcher") as process:
            try:
                yield
            except BaseException:
                killed = end_orphans(process, lambda: (None, scope.known_processes()))
                with self._lock:
                    self.orphans_killed += killed
                raise


def _start() -> socket.socket:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", FULL_SECONDS, 0))
    with theirs:
        subprocess.Popen(  # nobody waits for it: it ends after us, or is a zombie until we end
            [sys.executable, "-I", "-S", str(_SCRIPT), str(theirs.fileno())],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            pass_fds=[theirs.fileno()],
            start_new_session=True,
        )
    return ours
