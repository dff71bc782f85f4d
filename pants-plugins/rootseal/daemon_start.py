"""`rootseal daemon ensure`: a daemon of this build, with these options, started if there is none.

found, of this build and with the options → used
found, else, and idle                     → ended, and one started with its options and these
found, else, and busy or somebody else's  → an error that says what to do
"""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Dict, List, Mapping, Optional, Tuple

from rootseal import wire
from rootseal.build_id import build_digest
from rootseal.daemon_options import Options, missing, options_of, text_of, together
from rootseal.daemon_place import RUNS_ALREADY, Place, prepare_directories
from rootseal.errors import CaptureError, ConfigError
from rootseal.executable import rootseal_command
from rootseal.trace_ring import is_other

RING_OPTION = "--trace-ring"
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
    defaults: Options,
    wanted: Options,
    *,
    state_named: bool = False,
) -> Dict[str, object]:
    """The status of a daemon of this build that serves this user and has these options.

    Args:
        place: Where to start one if none answers.
        places: Where to look first, in order.
        defaults: Options of one that is started, where nothing else is said.
        wanted: Options that it must have; one that replaces another takes over the others of that.
        state_named: The caller named the state directory; else one that replaces another keeps its.

    Raises:
        CaptureError: It does not start (says what it said), or another one is in the way.
        ConfigError: Its directories are not usable.
    """
    found = _look(places)
    if found is None:
        return _start(place, together(defaults, wanted))
    running = options_of(found.get("options"))
    lacking = _lacking(found, wanted)
    if found.get("build") == build_digest() and not lacking:
        return found
    _end(found, lacking)
    if not state_named:
        place = _with_state_of(found, place)
    return _start(place, together(running or defaults, wanted))


def _with_state_of(found: Mapping[str, object], place: Place) -> Place:
    """This place with the state of another daemon: its capture key goes on to be the key."""
    state = found.get("stateDirectory")  # releases before this one say it, too
    return dataclasses.replace(place, state=Path(state)) if isinstance(state, str) else place


def _look(places: Tuple[str, ...]) -> Optional[Dict[str, object]]:
    """The first daemon that serves this user; one that nobody can talk to is an error."""
    for path in places:
        try:
            return wire.status(path)
        except wire.DaemonError as error:
            if error.code == "Protocol":
                raise
    return None


def _lacking(found: Mapping[str, object], wanted: Options) -> Options:
    """What a daemon does not have as it is wanted; one without a trace needs no ring."""
    lacking = missing(options_of(found.get("options")), wanted)
    if RING_OPTION in lacking:
        at = lacking.index(RING_OPTION)
        if not is_other(found, int(lacking[at + 1])):
            return (*lacking[:at], *lacking[at + 2 :])
    return lacking


def _end(found: Mapping[str, object], lacking: Options) -> None:
    """End an idle daemon that is not as it should be.

    Its code is not this installation's, so that it signs no more records; or it has other options.

    Raises:
        CaptureError: It is busy, or another user's.
    """
    path = str(found.get("socket"))
    about = f"the daemon at {path} is of another build (version {found.get('version')})"
    if found.get("build") == build_digest():
        running = text_of(options_of(found.get("options")))
        about = f"the daemon at {path} runs with {running}, not with {text_of(lacking)},"
    if found.get("uid") != os.getuid():
        ensure_it = rootseal_command("daemon", "ensure", *lacking, sudo=found.get("uid") == 0)
        raise CaptureError(
            f"{about} and belongs to uid {found.get('uid')}; as that user: `{ensure_it}`"
        )
    actions = found.get("actions")
    busy = sum(actions.values()) if isinstance(actions, dict) else 0
    if busy:
        raise CaptureError(
            f"{about} and {busy} of its actions have not ended; wait for them, or run "
            f"`{_stop_command(path)}`, then try again"
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


def _stop_command(path: str) -> str:
    """The command that stops the daemon at a socket: with the socket, if it is not a usual one."""
    usual = path in (wire.SYSTEM_SOCKET, *wire.user_socket_paths(os.getuid()))
    return rootseal_command("daemon", "stop", *(() if usual else ("--socket", path)))


def _start(place: Place, options: Options) -> Dict[str, object]:
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


def _command(place: Place, options: Options) -> List[str]:
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
        if process.poll() not in (None, 0) and not _was_beaten(place.log, log_start):
            break
        time.sleep(_POLL_SECONDS)
    said = _said(place.log, log_start)
    raise CaptureError(
        f"the daemon did not start: {said or 'it said nothing'} (log: {place.log}). "
        f"Run `{rootseal_command('daemon', 'run')}` to see it start."
    )


def _was_beaten(log: Path, start: int) -> bool:
    """Whether it ended because another one has its place."""
    return RUNS_ALREADY in (_said(log, start) or "")


def _said(log: Path, start: int) -> Optional[str]:
    """The last line that the daemon left in its log."""
    try:
        with log.open("rb") as stream:
            stream.seek(max(start, log.stat().st_size - _LOG_TAIL_BYTES))
            lines = stream.read(_LOG_TAIL_BYTES).decode("utf-8", "replace").strip().splitlines()
    except OSError:
        return None
    return lines[-1] if lines else None
