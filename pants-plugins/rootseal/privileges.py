"""What the kernel lets this process do."""

from __future__ import annotations

from pathlib import Path

CAP_SYS_ADMIN = 21
CAP_BPF = 39
ALLOW_CALL = (
    "This process has the capability, so allow the call {call} in the container's seccomp profile, "
    "or run the daemon outside of the container."
)


def effective_capabilities() -> int:
    """Effective capabilities of this process, as a bit set."""
    for line in Path("/proc/self/status").read_text("ascii", "replace").splitlines():
        if line.startswith("CapEff:"):
            return int(line.split()[1], 16)
    return 0


def has_capability(number: int) -> bool:
    """Whether this process has a capability; what is refused all the same is refused by others."""
    return bool(effective_capabilities() >> number & 1)
