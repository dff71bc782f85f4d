"""Starting programs from inside Pants, whose process is too large to be forked.

    start(command) -> Child -> finish(request): CompletedProcess; or `end`, if it is not needed

A fork copies the page tables of pantsd, some 20 ms for each program (measured, Python 3.9), in
which nothing else of it runs; `posix_spawn` copies none. A child gets its three standard streams
and nothing else: what Pants holds open without close-on-exec, its own store, is closed in it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import selectors
import signal
import subprocess
import time
from types import TracebackType
from typing import Optional, Sequence, Tuple, Type

_READ_BYTES = 1 << 16
_FIRST_FREE = 3  # below are the standard streams
_POLL_SECONDS = (0.0005, 0.05)  # between two looks at a child that closed its streams: first, most


class Child:
    """A program that runs; owns its process and our ends of its pipes.

    Attributes:
        command: What was started.
        delivered: Whether it was given all of its request.
    """

    def __init__(self, command: Sequence[str]) -> None:
        """Start the program, found by PATH, with this process's environment.

        Raises:
            OSError: It cannot be started.
        """
        self.command = tuple(command)
        self.delivered = False
        self._rest = memoryview(b"")
        self._output = {1: bytearray(), 2: bytearray()}
        self._code: Optional[int] = None
        with contextlib.ExitStack() as on_failure:
            theirs_0, ours_0 = _pipe(on_failure)
            ours_1, theirs_1 = _pipe(on_failure)
            ours_2, theirs_2 = _pipe(on_failure)
            theirs = (theirs_0, theirs_1, theirs_2)
            actions = [(os.POSIX_SPAWN_DUP2, end, number) for number, end in enumerate(theirs)]
            self._pid = os.posix_spawnp(
                self.command[0],
                self.command,
                os.environ,
                file_actions=[*actions, *_closings()],
                setsigdef=(signal.SIGPIPE, signal.SIGXFSZ),  # Python ignores them
            )
            on_failure.pop_all()
        for end in theirs:
            os.close(end)
        self._ours = {0: ours_0, 1: ours_1, 2: ours_2}

    def __enter__(self) -> Child:
        """The child itself; it has ended when the block has."""
        return self

    def __exit__(
        self,
        kind: Optional[Type[BaseException]],
        error: Optional[BaseException],
        trace: Optional[TracebackType],
    ) -> None:
        """End it."""
        self.end()

    def has_ended(self) -> bool:
        """Whether it runs no more."""
        if self._code is None:
            pid, status = os.waitpid(self._pid, os.WNOHANG)
            if pid != 0:
                self._code = _exit_code(status)
        return self._code is not None

    def end(self) -> None:
        """Kill it if it still runs, wait for it, and close its pipes."""
        if not self.has_ended():
            os.kill(self._pid, signal.SIGKILL)  # ours and not waited for, so it is this process
            self._code = _exit_code(os.waitpid(self._pid, 0)[1])
        for number in tuple(self._ours):
            self._close(number)

    def finish(
        self, request: bytes = b"", *, timeout_seconds: float
    ) -> subprocess.CompletedProcess[bytes]:
        """Give it its standard input and wait for its end.

        Args:
            request: All of its standard input. A child that ends or closes the pipe before it has
                read that is no error here: see `delivered`.
            timeout_seconds: For all of it.

        Raises:
            subprocess.TimeoutExpired: It did not end in time, and was killed.
        """
        deadline = time.monotonic() + timeout_seconds
        self._rest = memoryview(request)
        try:
            if not (self._exchange(deadline) and self._wait(deadline)):
                raise subprocess.TimeoutExpired(self.command, timeout_seconds)
        finally:
            self.end()
        outputs = (bytes(self._output[number]) for number in (1, 2))
        return subprocess.CompletedProcess(self.command, self._code or 0, *outputs)

    def _exchange(self, deadline: float) -> bool:
        """Write the request and read both outputs to their end; whether there was time enough."""
        with selectors.DefaultSelector() as selector:
            for number, end in self._ours.items():
                os.set_blocking(end, False)
                events = selectors.EVENT_READ if number else selectors.EVENT_WRITE
                selector.register(end, events, number)
            while selector.get_map():
                seconds = deadline - time.monotonic()
                if seconds <= 0:
                    return False
                for key, _ in selector.select(seconds):
                    if not (self._read(key.data) if key.data else self._write()):
                        selector.unregister(key.fd)
                        self._close(key.data)
        return True

    def _write(self) -> bool:
        """Write some of the request; whether there is more to write."""
        try:
            written = os.write(self._ours[0], self._rest) if self._rest else 0
        except BrokenPipeError:
            return False
        self._rest = self._rest[written:]
        self.delivered = not self._rest
        return not self.delivered

    def _read(self, number: int) -> bool:
        """Read some of an output; whether there is more to read."""
        block = os.read(self._ours[number], _READ_BYTES)
        self._output[number] += block
        return bool(block)

    def _wait(self, deadline: float) -> bool:
        """Wait for the end of a child that has closed its outputs; whether it came in time."""
        seconds, most = _POLL_SECONDS
        while not self.has_ended():
            if time.monotonic() >= deadline:
                return False
            time.sleep(seconds)
            seconds = min(2 * seconds, most)
        return True

    def _close(self, number: int) -> None:
        os.close(self._ours.pop(number))


def _pipe(on_failure: contextlib.ExitStack) -> Tuple[int, int]:
    """A pipe above the standard streams, whose ends are closed if something fails."""
    ends = []
    for end in os.pipe():
        if end < _FIRST_FREE:  # Pants was started without some of them
            above = fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, _FIRST_FREE)
            os.close(end)
            end = above
        on_failure.callback(os.close, end)
        ends.append(end)
    return ends[0], ends[1]


def _closings() -> Sequence[Tuple[int, int]]:
    """Has the child close what it would inherit beside its standard streams."""
    found = []
    with os.scandir("/proc/self/fd") as entries:
        for number in (int(entry.name) for entry in entries):
            with contextlib.suppress(OSError):  # another thread may have closed it by now
                if number >= _FIRST_FREE and os.get_inheritable(number):
                    found.append((os.POSIX_SPAWN_CLOSE, number))
    return found


def _exit_code(status: int) -> int:
    """As `subprocess` has it: minus the signal's number, if one ended the process."""
    return -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
