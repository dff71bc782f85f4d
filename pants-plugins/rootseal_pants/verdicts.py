"""What is said of an action that has no record, or whose record is refused."""

from __future__ import annotations

import signal
from typing import Any

from rootseal import diagnostics
from rootseal.errors import CaptureError

_LAUNCHER_PREFIX = "rootseal-exec: "
_LAUNCHER_FAILED = 125
WORKSPACE_PROBLEM = (
    "it runs in the workspace, not in a sandbox (the environment of its target is a local "
    "workspace). Give the target another environment"
)


class CaptureFailed(CaptureError):
    """A result that cannot be believed; the message names the action, why, and the remedy."""


def no_record_problem(process: Any, result: Any) -> str:
    """Why a result without a record is genuine nevertheless, or empty if it is not.

    Only one is: Pants kills an action that runs into its timeout, and the launcher with it. Such a
    result has no outputs; it can fail a build, but it cannot be part of an attestation.
    """
    timed_out = (
        process.timeout_seconds > 0
        and result.exit_code == -signal.SIGTERM
        and b"Exceeded timeout" in result.stdout + result.stderr
    )
    if not timed_out:
        return ""
    return (
        f"it was killed after its timeout of {process.timeout_seconds} s. Raise its timeout, or "
        "fix what keeps it from ending"
    )


def refused_message(process: Any, key: str, result: Any, record: str, reason: str) -> str:
    """One line: which action, why its result is not believed, and what to do."""
    action = f"action {key[:16]} ({process.description})"
    line = launcher_line(result.stderr)
    if not record and result.exit_code == _LAUNCHER_FAILED and line:
        return f"{action} was not captured: {line}"
    if not record:
        return (
            f"{action} ended with exit code {result.exit_code} and left no record. Run "
            "`rootseal doctor`, and build again; if it stays so, report it with the action."
        )
    origin = {
        "ran": "this run",
        "hit_locally": "the local cache",
        "hit_remotely": "the remote cache",
    }.get(result.metadata._source, result.metadata._source)
    return (
        f"the record of {action} from {origin} is refused: {reason}. If it was captured by another "
        "machine that you trust, add its public key to [rootseal].trusted_capture_keys."
    )


def is_loss(result: Any) -> bool:
    """Whether an action that ran failed because its capture lost something (zero drops)."""
    return result.exit_code == _LAUNCHER_FAILED and diagnostics.LOST in launcher_line(result.stderr)


def launcher_line(stderr: bytes) -> str:
    """The launcher's own last line on standard error, without its prefix; empty if none."""
    for line in reversed(stderr.decode(errors="replace").splitlines()):
        if line.startswith(_LAUNCHER_PREFIX):
            return line[len(_LAUNCHER_PREFIX) :]
    return ""
