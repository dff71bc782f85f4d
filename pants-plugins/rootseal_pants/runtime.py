"""The plugin's side of the `rootseal` executable and its daemon.

Owns no state: every function asks the daemon or starts the executable, with a limit on the time.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Mapping, Sequence

from rootseal import wire
from rootseal.build_id import build_digest
from rootseal.errors import CaptureError, ConfigError
from rootseal.trace_ring import is_other

from rootseal_pants.child import Child

ENSURE_TIMEOUT_SECONDS = 60


@dataclass(frozen=True)
class DaemonInfo:
    """A daemon that answers.

    Attributes:
        socket: Path of its socket.
        version: Rootseal's version.
        launcher: Path of `rootseal-exec`.
        posture: The strongest posture that it can reach.
        backend: The capture backend that reaches it.
        capture_key: Path of the public key (PEM) that its records are signed with.
    """

    socket: str
    version: str
    launcher: str
    posture: str
    backend: str
    capture_key: str


@dataclass(frozen=True)
class Verdict:
    """What the daemon says of a record that came with a result.

    Attributes:
        accepted: Whether it may count.
        reason: Why not.
        losses: Gating counters above zero of an accepted record.
    """

    accepted: bool
    reason: str
    losses: Mapping[str, int] = field(default_factory=dict)


def find_executable(configured: str, build_root: str) -> str:
    """Path of the `rootseal` executable.

    Args:
        configured: `[rootseal].executable`, may be empty.
        build_root: Absolute path.
    """
    if configured:
        path = Path(build_root, configured)
        if path.is_file() and os.access(path, os.X_OK):
            return str(path)
        raise ConfigError(
            f"[rootseal].executable is {configured!r}, but {path} is not an executable file. "
            "Correct it, or remove it to use `.venv/bin/rootseal` or the one on PATH."
        )
    local = Path(build_root, ".venv", "bin", "rootseal")
    found = str(local) if os.access(local, os.X_OK) else shutil.which("rootseal")
    if found is None:
        raise ConfigError(
            "The `rootseal` executable was not found. Install Rootseal's wheel, or run `make setup "
            "build` in its repository, and set [rootseal].executable in pants.toml; "
            "`--no-rootseal-enabled` builds without an attestation."
        )
    return found


def run_rootseal(
    command: Sequence[str], *, timeout_seconds: float
) -> subprocess.CompletedProcess[bytes]:
    """Run the executable to its end, with its output captured."""
    try:
        return Child(command).finish(timeout_seconds=timeout_seconds)
    except subprocess.TimeoutExpired as error:
        raise did_not_end(command, timeout_seconds) from error
    except OSError as error:
        raise ConfigError(f"cannot run {command[0]}: {error.strerror}") from error


def did_not_end(command: Sequence[str], timeout_seconds: float) -> CaptureError:
    """The error of a command that was killed because it took too long."""
    return CaptureError(
        f"`{' '.join(command)}` did not end within {timeout_seconds:.0f} s. "
        "Run it by hand to see why."
    )


def ensure_daemon(executable: str, socket: str, trace_ring_bytes: int) -> DaemonInfo:
    """Make sure that a daemon of this build and ring answers; else the executable sees to it.

    Args:
        executable: Path of the `rootseal` executable.
        socket: Of the daemon, or empty for the usual places.
        trace_ring_bytes: Size that the ring of its trace must have, if it has one; 0: any.
    """
    places = (socket,) if socket else daemon_places(os.getuid())
    found = wire.find_daemon(places)
    if found is not None and _is_fit(found, trace_ring_bytes):
        return read_daemon_info(found)
    command = [executable, "daemon", "ensure", "--json"]
    if trace_ring_bytes:
        command += ["--trace-ring", str(trace_ring_bytes)]
    if socket:
        command += ["--socket", socket]
    done = run_rootseal(command, timeout_seconds=ENSURE_TIMEOUT_SECONDS)
    if done.returncode != 0:
        why = done.stderr.decode(errors="replace").strip() or f"exit code {done.returncode}"
        raise CaptureError(f"`{' '.join(command)}` failed: {why}. `rootseal doctor` says more.")
    try:
        return read_daemon_info(json.loads(done.stdout))
    except ValueError as error:
        raise CaptureError(f"`{' '.join(command)}` did not print JSON: {error}") from error


def _is_fit(status: Mapping[str, object], trace_ring_bytes: int) -> bool:
    return status.get("build") == build_digest() and not is_other(status, trace_ring_bytes)


def daemon_places(uid: int) -> tuple[str, ...]:
    """Where a daemon for this user may listen, in order: root uses the system's only."""
    return (wire.SYSTEM_SOCKET,) if uid == 0 else wire.socket_places(uid)


def read_daemon_info(value: Mapping[str, object]) -> DaemonInfo:
    """Read what a daemon says of itself."""
    fields = []
    for name in ("socket", "version", "launcher", "posture", "backend", "captureKey"):
        field = value.get(name)
        if not isinstance(field, str):
            raise CaptureError(
                f"the daemon does not say its {name}. Are the plugin and the daemon of the same "
                "version? `rootseal daemon stop` ends an old one."
            )
        fields.append(field)
    return DaemonInfo(*fields)


def check_record(
    socket: str,
    *,
    action_key: str,
    record: bytes,
    outputs: Sequence[Mapping[str, Any]],
    action: Mapping[str, Any],
    exit_code: int,
    trusted_capture_keys: Sequence[str],
) -> Verdict:
    """Let the daemon judge the record that came with a result.

    Args:
        socket: Path of the daemon's socket.
        action_key: What the record must name, 64 hex digits.
        record: The record's bytes.
        outputs: Every file and symlink of the result; see docs/protocol.md, CHECK.
        action: What the action key stands for; see there.
        exit_code: Of the result.
        trusted_capture_keys: Public keys (PEM) that are accepted beside the daemon's own.
    """
    answer = wire.check(
        socket,
        action_key=bytes.fromhex(action_key),
        record=record,
        outputs=outputs,
        action=action,
        exit_code=exit_code,
        trusted_capture_keys=trusted_capture_keys,
    )
    accepted, reason = answer.get("accepted"), answer.get("reason")
    if accepted is not True:
        return Verdict(False, reason if isinstance(reason, str) else "no reason was given")
    losses = answer.get("losses")
    if not isinstance(losses, dict):
        raise CaptureError(f"the daemon at {socket} did not say what the record lost")
    return Verdict(True, "", losses)
