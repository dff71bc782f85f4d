"""`rootseal daemon ensure`: a daemon of this build that answers, started if there is none.

found, of this build            → used
found, of another build, idle   → ended, and one of this build started with its options
found, of another build, busy, or somebody else's → an error that says what to do
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
) -> Dict[str, object]:
    """The status of a daemon of this build that serves this user.

    Args:
        place: Where to start one if none answers.
        places: Where to look first, in order.
        options: Options of `rootseal daemon run` for one that is started.
        keep_options: One that replaces another takes over the options of that.

    Raises:
        CaptureError: It does not start (says what it said), or one of another build is in the way.
        ConfigError: Its directories are not usable.
    """
    found = _look(places)
    if found is not None and found.get("build") == build_digest():
        return found
    if found is not None:
        _end_other_build(found)
        options = _options_of(found, options) if keep_options else options
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


def _end_other_build(found: Mapping[str, object]) -> None:
    """End an idle daemon whose code is not this installation's, so that it signs no more records.

    Raises:
        CaptureError: It is busy, or another user's.
    """
    path, version = str(found.get("socket")), str(found.get("version"))
    about = f"the daemon at {path} is of another build (version {version})"
    if found.get("uid") != os.getuid():
        raise CaptureError(
            f"{about} and belongs to uid {found.get('uid')}; update it: "
            "`sudo rootseal daemon ensure` with this installation"
        )
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
