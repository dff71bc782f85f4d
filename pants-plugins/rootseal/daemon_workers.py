"""The daemon's threads: each takes the clients that come, one at a time, and serves them.

A thread that waits for a client is woken by the kernel when one connects; nothing stands between,
and no thread is made for an action as long as enough of them wait.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
import time
from typing import Callable, Optional

from rootseal import daemon_peer

SPARE_MIN = 2  # threads that wait for the next client
SPARE_MAX = 32  # more than these end when they have nothing to do
_log = logging.getLogger("rootseal.daemon")


class Workers:
    """Threads that accept on one listening socket."""

    def __init__(self, listener: socket.socket, serve: Callable[[socket.socket], None]) -> None:
        """Start the first ones.

        Args:
            listener: Stays the caller's; blocking.
            serve: Serves a client to its end and owns its socket; raises nothing.
        """
        self._listener = listener
        self._serve = serve
        self._lock = threading.Lock()
        self._spare = 0
        self._stopping = False
        self.came = time.monotonic()  # when the last client came
        for _ in range(SPARE_MIN):
            self._start()

    def stop(self) -> None:
        """Let nobody connect any more, and the waiting threads end."""
        self._stopping = True
        with contextlib.suppress(OSError):  # wakes them: accept() fails from now on
            self._listener.shutdown(socket.SHUT_RDWR)

    def _start(self) -> None:
        with self._lock:
            self._spare += 1
        try:
            threading.Thread(target=self._work, daemon=True).start()
        except RuntimeError as error:  # out of memory or of processes: who is there goes on
            with self._lock:
                self._spare -= 1
            _log.error("cannot start a thread: %s", error)

    def _work(self) -> None:
        while self._take_one() and daemon_peer.identity_is_own():
            with self._lock:
                if self._spare >= SPARE_MAX:
                    return
                self._spare += 1
        # A thread that lost its own identity serves nobody any more; another one waits already.

    def _take_one(self) -> bool:
        """Serve one client. False: the daemon ends."""
        sock = self._accept()
        with self._lock:
            self._spare -= 1
            few = self._spare < SPARE_MIN
        if sock is None:
            return False
        self.came = time.monotonic()
        if few:
            self._start()
        self._serve(sock)
        return True

    def _accept(self) -> Optional[socket.socket]:
        while not self._stopping:
            try:
                return self._listener.accept()[0]
            except OSError as error:
                if self._stopping:
                    break
                _log.error("cannot accept a client: %s", error)
                time.sleep(0.1)  # out of descriptors: some will come free
        return None
