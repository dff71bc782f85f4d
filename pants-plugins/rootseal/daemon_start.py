"""`rootseal daemon ensure`: a daemon that answers, started in the background if there is none."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Dict, List, Optional, Tuple

from rootseal import wire
from rootseal.daemon_place import Place, prepare_directories
from rootseal.errors import CaptureError

START_SECONDS = 30.0
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


def ensure(place: Place, places: Tuple[str, ...], options: Tuple[str, ...]) -> Dict[str, object]:
    """The status of a daemon that serves this user.

    Args:
        place: Where to start one if none answers.
        places: Where to look first, in order.
        options: Options of `rootseal daemon run` for one that is started.

    Raises:
        CaptureError: It does not start; says what it said.
        ConfigError: Its directories are not usable.
    """
    found = wire.find_daemon(places)
    if found is not None:
        return found
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
