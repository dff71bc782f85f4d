"""System calls of a running process that fail, wait or kill, by strace(1)'s injection."""

from __future__ import annotations

import contextlib
import subprocess
from typing import Iterator, List, Sequence

from running_daemon import GIVE_UP_SECONDS, RunningDaemon


def strace(call: str, when: object = 1, what: str = "signal=KILL") -> List[str]:
    """A tracer that meets the `when`-th such call of each thread with a signal or an error."""
    quiet = ["strace", "-o", "/dev/null", "-e", f"trace={call}"]
    return [*quiet, "-e", f"inject={call}:{what}:when={when}"]


@contextlib.contextmanager
def attached(daemon: RunningDaemon, words: Sequence[str], thread: int = 0) -> Iterator[None]:
    """strace on a running daemon, all its threads or one, until the block ends."""
    where = ["-p", str(thread)] if thread else ["-f", "-p", str(daemon.process.pid)]
    with attached_to(words, where):
        yield


@contextlib.contextmanager
def attached_to(words: Sequence[str], where: Sequence[str]) -> Iterator[None]:
    """strace on what `where` says, until the block ends."""
    with subprocess.Popen([*words, *where], stderr=subprocess.PIPE, text=True) as tracer:
        assert tracer.stderr is not None
        said = tracer.stderr.readline()
        assert "attached" in said, said
        try:
            yield
        finally:
            tracer.terminate()
            tracer.communicate(timeout=GIVE_UP_SECONDS)
