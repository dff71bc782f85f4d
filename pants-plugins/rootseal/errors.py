"""Every error Rootseal raises on purpose.

The message of each error says what to do next; the attributes carry the data, so that `--json`
output and tests never parse prose. `cli_output.exit_code_of` has the exit code of each.
"""

from __future__ import annotations

from typing import Mapping, Optional


class Error(Exception):
    """Base of all errors of this package."""


class ConfigError(Error):
    """The caller asked for something that contradicts itself or does not exist."""


class KeyFormatError(ConfigError):
    """A file that was read is not a key of a supported kind; verification refuses by it."""


class EncodingError(Error):
    """Bytes that are not what their format says (or data that its format cannot hold)."""


class CaptureError(Error):
    """Capture of an action could not start, or could not be completed."""


class BackendUnavailable(CaptureError):
    """A capture backend cannot run on this host.

    Attributes:
        backend: Name of the backend (`fanotify`, `ebpf`, `ptrace`, `walk`, `ima`).
        reason: What is missing, in one sentence.
        remedy: The exact thing to do, a command where there is one.
    """

    def __init__(self, backend: str, reason: str, remedy: str) -> None:
        super().__init__(f"{backend} is not available: {reason}. {remedy}")
        self.backend = backend
        self.reason = reason
        self.remedy = remedy


class GroupsTaken(BackendUnavailable):
    """No fanotify group is free at the moment: other programs of this user hold them."""


class CaptureLost(CaptureError):
    """Something may have been missed while an action was captured.

    Attributes:
        counters: Name of each gating counter that is not zero, and its value.
    """

    def __init__(self, message: str, counters: Mapping[str, int]) -> None:
        super().__init__(message)
        self.counters = dict(counters)


class ZeroDropsError(CaptureLost):
    """Zero drops were required, and something may have been missed: nothing is signed."""


class PostureError(CaptureError):
    """The posture that was achieved is weaker than the one that was asked for."""

    def __init__(self, message: str, requested: str, achieved: str) -> None:
        super().__init__(message)
        self.requested = requested
        self.achieved = achieved


class KeyExposedError(CaptureError):
    """An action read the key that signs its record, so it could sign records itself.

    Attributes:
        data: `path` where it read the key, and `remedy`.
    """

    def __init__(self, path: str, remedy: str) -> None:
        super().__init__(f"the action read the daemon's capture key at {path}. {remedy}")
        self.data = {"path": path, "remedy": remedy}


class ToolchainError(CaptureError):
    """An action used a file from outside its sandbox that no required toolchain manifest lists.

    Attributes:
        data: `toolchain.UnknownTool.data`: path, content and manifests.
    """

    def __init__(self, message: str, data: Mapping[str, object]) -> None:
        super().__init__(message)
        self.data = dict(data)


class NativeError(CaptureError):
    """A call into the C core failed.

    Attributes:
        operation: The operation that failed, as the C core names it.
        errno: Positive errno value.
    """

    def __init__(self, operation: str, errno: int, message: str) -> None:
        super().__init__(message)
        self.operation = operation
        self.errno = errno


class VerificationError(Error):
    """Something that was to be verified is refused.

    Attributes:
        check: Name of the check that refused it (a member of `verify.Check`), if one did.
        data: What the check expected and found, for `--json`.
    """

    def __init__(
        self,
        message: str,
        *,
        check: Optional[str] = None,
        data: Optional[Mapping[str, object]] = None,
    ) -> None:
        super().__init__(message)
        self.check = check
        self.data: Mapping[str, object] = dict(data or {})


class EnvelopeError(VerificationError):
    """A DSSE envelope that is malformed, or not in its canonical form."""


class SignatureError(VerificationError):
    """No trusted key made this signature."""


class StatementError(VerificationError):
    """A Statement or predicate that is malformed, of an unknown version, or contradicts itself."""


class ProofError(VerificationError):
    """A Merkle proof or tree that does not lead to the signed root."""


class IncompleteError(VerificationError):
    """A loss counter is not zero, or is absent."""


class PolicyError(VerificationError):
    """Everything is genuine, but the policy does not accept it."""
