"""What a host without eBPF is told: by privilege, by the verifier, by anything else."""

from __future__ import annotations

import errno

import pytest
from rootseal.capture import ebpf
from rootseal.errors import NativeError


@pytest.mark.parametrize(
    ("number", "reason", "remedy"),
    [
        (errno.EPERM, "the kernel refused a program: load", "as root"),
        (errno.EACCES, "the kernel's verifier does not accept a program: load", "trace:ptrace"),
        (errno.ENOMEM, "load", "rootseal doctor"),
    ],
)
def test_refusal_says_what_to_do(number: int, reason: str, remedy: str) -> None:
    found = ebpf._explain(NativeError("load", number, "load"))
    assert reason in str(found) and remedy in found.remedy
