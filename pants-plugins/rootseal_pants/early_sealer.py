"""A sealer that is started with the goals, so that it has done its imports when they have ended.

    early_sealer(session) opens a place -> start(session, …) -> run(session, …), or the block ends

Owns that process, at most one in a pantsd: it waits for its arguments (docs/protocol.md, The
sealer), and neither reads nor signs anything before it has them. It ends with the block if nobody
needs it, and by itself if Pants dies. A session that cannot have it starts one when it is needed.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import subprocess
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Iterator, Mapping, Optional, Sequence, Tuple

from rootseal.canonical import path_text

from rootseal_pants.child import Child
from rootseal_pants.runtime import did_not_end, run_rootseal

logger = logging.getLogger(__name__)
_WAITING = ("seal", "--arguments-on-stdin")
Origin = Tuple[str, str, Mapping[str, str]]  # executable, working directory, environment


@dataclass
class _Place:
    """Where the sealer of one session waits."""

    session: Any
    sealer: Optional[Child] = None
    origin: Optional[Origin] = None


_lock = threading.Lock()
_place: Optional[_Place] = None


@contextlib.contextmanager
def early_sealer(session: Any) -> Iterator[None]:
    """While this is open, a sealer may wait for this session; what is left of it then is ended.

    The goal `attest` runs the goal `package`, so one may be open already: that one counts. One of
    another session, of which a pantsd may have several at once, leaves no place for this one.
    """
    global _place
    with _lock:
        mine = _Place(session) if _place is None else None
        _place = mine or _place
    try:
        yield
    finally:
        if mine is not None:
            with _lock:
                _place = None
            if mine.sealer is not None:
                mine.sealer.end()


def start(session: Any, executable: str) -> None:
    """Start a sealer in the place of this session, if that is open and empty."""
    place = _place_of(session)
    if place is None or place.sealer is not None:
        return
    with contextlib.suppress(OSError):  # the one that is started when it is needed says why
        place.sealer = Child([executable, *_WAITING])
        place.origin = _origin(executable)


def run(
    session: Any, command: Sequence[str], *, timeout_seconds: float
) -> subprocess.CompletedProcess[bytes]:
    """Run `rootseal seal …`, as `run_rootseal` does, by the sealer that waits if there is one.

    Args:
        session: Of this run.
        command: Path of the executable, `seal`, and its arguments.
        timeout_seconds: For all of it.
    """
    sealer = _taken(session, command[0])
    if sealer is not None:
        ended = sealer.has_ended()
        request = json.dumps([path_text(os.fsencode(word)) for word in command[2:]]).encode()
        try:
            done = sealer.finish(b"" if ended else request, timeout_seconds=timeout_seconds)
        except subprocess.TimeoutExpired as error:
            raise did_not_end(command, timeout_seconds) from error
        if sealer.delivered and not ended:
            return done
        why = done.stderr.decode(errors="replace").strip() or f"exit code {done.returncode}"
        logger.warning(f"The sealer that was started early has ended ({why}); another is started.")
    return run_rootseal(command, timeout_seconds=timeout_seconds)


def _place_of(session: Any) -> Optional[_Place]:
    place = _place
    return place if place is not None and place.session is session else None


def _taken(session: Any, executable: str) -> Optional[Child]:
    """The sealer of this session, which is the caller's from here on, if it is like a new one."""
    place = _place_of(session)
    if place is None or place.sealer is None:
        return None
    sealer, place.sealer = place.sealer, None
    if place.origin == _origin(executable):
        return sealer
    sealer.end()
    return None


def _origin(executable: str) -> Origin:
    """What a process takes from its starter."""
    return executable, str(Path.cwd()), dict(os.environ)
