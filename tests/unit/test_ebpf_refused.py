"""What a host without eBPF is told: by privilege, by the verifier, by anything else."""

from __future__ import annotations

import errno

import pytest
from rootseal.capture import ebpf
from rootseal.errors import NativeError
from rootseal.privileges import CAP_BPF, has_capability


@pytest.mark.parametrize(
    ("number", "reason", "remedy"),
    [
        (errno.EACCES, "the kernel's verifier does not accept a program: load", "trace:ptrace"),
        (errno.ENOMEM, "load", "rootseal doctor"),
    ],
)
def test_refusal_says_what_to_do(number: int, reason: str, remedy: str) -> None:
    found = ebpf._explain(NativeError("load", number, "load"))
    assert reason in str(found) and remedy in found.remedy


def test_what_is_not_permitted_asks_for_what_is_missing() -> None:
    """Root's privilege, unless it is there: then it is a seccomp filter that refuses."""
    found = ebpf._explain(NativeError("load", errno.EPERM, "load"))
    assert "the kernel refused a program: load" in found.reason
    assert ("seccomp profile" if has_capability(CAP_BPF) else "as root") in found.remedy
