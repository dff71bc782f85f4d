"""The daemon's side of the keeper (keeper.py): groups are handed to it before actions start."""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
import struct
import subprocess
import sys
import threading
from pathlib import Path
from typing import Iterator

from rootseal import keeper
from rootseal.errors import CaptureError

FULL_SECONDS = 30  # that a keeper leaves its queue full
_SCRIPT = Path(keeper.__file__).resolve()


class Keeper:
    """One keeper process; it outlives this one for as long as an action does."""

    def __init__(self) -> None:
        """Start it."""
        self._lock = threading.Lock()
        self._tokens = itertools.count(1)
        self._socket = _start()

    @contextlib.contextmanager
    def holding(self, group: int, launcher: int) -> Iterator[None]:
        """Have a group held until the end of the block; until the launcher's end if that fails.

        Args:
            group: Descriptor of the fanotify group.
            launcher: Process id of the action's launcher.

        Raises:
            CaptureError: Nobody can hold it: the action must not start.
        """
        token = next(self._tokens).to_bytes(keeper.TOKEN_BYTES, "big")
        try:
            process = os.pidfd_open(launcher)
        except OSError as error:
            raise CaptureError(f"the launcher {launcher} is gone: {error.strerror}") from None
        try:
            self._hold(token, group, process)
        finally:
            os.close(process)
        try:
            yield
        except BaseException:
            self._tell(keeper.ORPHAN + token)
            raise
        self._tell(keeper.RELEASE + token)

    def _tell(self, message: bytes) -> None:
        with self._lock, contextlib.suppress(OSError):  # a dead keeper holds nothing
            self._socket.send(message)

    def _hold(self, token: bytes, group: int, process: int) -> None:
        with self._lock:
            try:
                self._ask(token, group, process)
            except OSError:
                self._socket.close()  # it was killed: the actions it watched over run on
                self._socket = _start()
                try:
                    self._ask(token, group, process)
                except OSError as error:
                    raise CaptureError(
                        f"the keeper of the capture does not answer ({error}); restart the daemon"
                    ) from None

    def _ask(self, token: bytes, group: int, process: int) -> None:
        """Send it. That is enough: the message in the keeper's queue keeps the group open."""
        socket.send_fds(self._socket, [keeper.HOLD + token], [group, process])

    def close(self) -> None:
        """Let it end, once the actions that it still watches over have ended."""
        with self._lock:
            self._socket.close()


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
