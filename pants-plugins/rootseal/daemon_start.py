"""`rootseal daemon ensure`: a daemon of this build that answers, started if there is none.

found, of this build            → used
found, of another build, idle   → ended, and one of this build started with its options
found, of another build, busy, or somebody else's → an error that says what to do

A daemon whose trace has a ring of another size than is asked for is treated like one of another
build.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Dict, List, Mapping, Optional, Tuple

from rootseal import wire
from rootseal.build_id import build_digest
from rootseal.daemon_place import Place, prepare_directories
from rootseal.errors import CaptureError, ConfigError
from rootseal.trace_ring import is_other, size_of

START_SECONDS = 30.0
STOP_SECONDS = 30.0
IDLE_EXIT_SECONDS = 3600  # of a daemon that a user's build started by itself
LOG_BYTES_MAX = 1 << 20
_POLL_SECONDS = 0.02
_LOG_TAIL_BYTES = 2000
_PROGRAM = (
    "import sys; sys.path.insert(0, sys.argv.pop(1)); "
    "from rootseal.cli import main; sys.exit(main())"
)


def places_of(uid: int, socket_path: str) -> Tuple[str, ...]:
    """Where to look for a daemon: at the given socket only, or at the fixed places."""
    if socket_path:
        return (socket_path,)
    return (wire.SYSTEM_SOCKET,) if uid == 0 else wire.socket_places(uid)


def ensure(
    place: Place,
    places: Tuple[str, ...],
    options: Tuple[str, ...],
    *,
    keep_options: bool = False,
    ring_bytes: int = 0,
) -> Dict[str, object]:
    """The status of a daemon of this build that serves this user.

    Args:
        place: Where to start one if none answers.
        places: Where to look first, in order.
        options: Options of `rootseal daemon run` for one that is started.
        keep_options: One that replaces another takes over the options of that.
        ring_bytes: Size that the ring of its trace must have, if it has one; 0: any.

    Raises:
        CaptureError: It does not start (says what it said), or another one is in the way.
        ConfigError: Its directories are not usable.
    """
    found = _look(places)
    if found is not None:
        unfit = _unfit(found, ring_bytes)
        if unfit is None:
            return found
        _end_idle(found, *unfit)
        options = _options_of(found, options) if keep_options else options
    if ring_bytes:
        options = (*options, "--trace-ring", str(ring_bytes))  # the last one counts
    return _start(place, options)


def _look(places: Tuple[str, ...]) -> Optional[Dict[str, object]]:
    """The first daemon that serves this user; one that nobody can talk to is an error."""
    for path in places:
        try:
            return wire.status(path)
        except wire.DaemonError as error:
            if error.code == "Protocol":
                raise
    return None


def _unfit(found: Mapping[str, object], ring_bytes: int) -> Optional[Tuple[str, str]]:
    """Why a daemon cannot be used, and what root would do about it; None if it can."""
    if found.get("build") != build_digest():
        why = f"is of another build (version {found.get('version')})"
        return why, "update it: `sudo rootseal daemon ensure` with this installation"
    if is_other(found, ring_bytes):
        why = f"has a trace ring of {size_of(found)} bytes, not of {ring_bytes},"
        return why, f"replace it: `sudo rootseal daemon ensure --trace-ring {ring_bytes}`"
    return None


def _end_idle(found: Mapping[str, object], why: str, remedy: str) -> None:
    """End an idle daemon that cannot be used; one of another build would sign more records.

    Args:
        found: Its status.
        why: It cannot be used.
        remedy: If it is another user's.

    Raises:
        CaptureError: It is busy, or another user's.
    """
    path = str(found.get("socket"))
    about = f"the daemon at {path} {why}"
    if found.get("uid") != os.getuid():
        raise CaptureError(f"{about} and belongs to uid {found.get('uid')}; {remedy}")
    actions = found.get("actions")
    running = sum(actions.values()) if isinstance(actions, dict) else 0
    if running:
        raise CaptureError(
            f"{about} and {running} of its actions have not ended; wait for them, or run "
            "`rootseal daemon stop`, then try again"
        )
    stop_and_wait(path)


def stop_and_wait(path: str) -> bool:
    """End the daemon at a socket and wait until it is gone; False if there was none.

    Raises:
        DaemonError: This user may not stop it.
        ConfigError: It takes too long.
    """
    try:
        wire.stop(path)
    except wire.DaemonError as error:
        if error.code != "Unavailable":
            raise
        return False
    deadline = time.monotonic() + STOP_SECONDS
    while Path(path).exists():
        if time.monotonic() > deadline:
            raise ConfigError(f"the daemon at {path} is still ending; see its log")
        time.sleep(_POLL_SECONDS)
    return True


def _options_of(found: Mapping[str, object], default: Tuple[str, ...]) -> Tuple[str, ...]:
    options = found.get("options")
    if not isinstance(options, list) or not all(isinstance(item, str) for item in options):
        return default  # of a release that did not say
    return tuple(options) or default


def _start(place: Place, options: Tuple[str, ...]) -> Dict[str, object]:
    prepare_directories(place, os.getuid())
    rotate_log(place.log)
    with place.log.open("ab") as log:
        log.seek(0, os.SEEK_END)
        start = log.tell()
        process = subprocess.Popen(
            _command(place, options),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd="/",
            start_new_session=True,
        )
    return _wait(process, place, start)


def rotate_log(path: Path) -> None:
    """Keep the log and one older part, each of bounded size."""
    if path.exists() and path.stat().st_size > LOG_BYTES_MAX // 2:
        path.replace(path.with_suffix(".log.1"))


def _command(place: Place, options: Tuple[str, ...]) -> List[str]:
    package_parent = str(Path(__file__).resolve().parents[1])
    return [
        *(sys.executable, "-c", _PROGRAM, package_parent, "daemon", "run"),
        *("--socket", str(place.socket), "--state-dir", str(place.state)),
        *("--log-file", str(place.log)),
        *options,
    ]


def _wait(process: subprocess.Popen[bytes], place: Place, log_start: int) -> Dict[str, object]:
    """Wait until it answers. It may end because another one was quicker: that one answers then."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        found = wire.find_daemon((str(place.socket),))
        if found is not None:
            return found
        if process.poll() not in (None, 0, 2):
            break
        time.sleep(_POLL_SECONDS)
    said = _said(place.log, log_start)
    raise CaptureError(
        f"the daemon did not start: {said or 'it said nothing'} (log: {place.log}). "
        "Run `rootseal daemon run` to see it start."
    )


def _said(log: Path, start: int) -> Optional[str]:
    """The last line that the daemon left in its log."""
    try:
        with log.open("rb") as stream:
            stream.seek(max(start, log.stat().st_size - _LOG_TAIL_BYTES))
            lines = stream.read(_LOG_TAIL_BYTES).decode("utf-8", "replace").strip().splitlines()
    except OSError:
        return None
    return lines[-1] if lines else None
