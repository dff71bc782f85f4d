"""Why a launcher cannot trace, in words: each reason with what ends it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rootseal.capture.ptrace import refused


@pytest.mark.parametrize(
    ("said", "yama", "reason", "remedy"),
    [
        ("not-permitted", 0, "a container's seccomp filter", "--cap-add SYS_PTRACE"),
        ("not-permitted", 1, "a container's seccomp filter", "--cap-add SYS_PTRACE"),
        ("not-permitted", 2, "ptrace_scope=2", "sudo sysctl kernel.yama.ptrace_scope=1"),
        ("not-permitted", 3, "ptrace_scope=3", "boot with `sysctl.kernel.yama.ptrace_scope=1`"),
        ("traced", 0, "a task has one tracer", "without strace or gdb"),
        ("no-filter", 0, "a seccomp filter", "Allow the seccomp call"),
        ("broken: the kernel is odd", 0, "the kernel is odd", "report"),
        ("something else", 0, "'something else'", "report"),
    ],
)
def test_reason_has_its_remedy(said: str, yama: int, reason: str, remedy: str) -> None:
    found = refused(said, yama)
    assert reason in found.reason and remedy in found.remedy


def test_what_cannot_be_undone_is_not_asked_for() -> None:
    """sysctl(8) cannot leave ptrace_scope=3."""
    assert "sudo sysctl" not in refused("not-permitted", 3).remedy


@given(st.text())
def test_any_words_of_a_launcher_give_a_bounded_reason(said: str) -> None:
    found = refused(said, 0)
    assert found.reason and len(found.reason) < 4000 and found.remedy
