"""Runs a program where the kernel refuses some calls, as a container's seccomp filter does."""

from __future__ import annotations

import os
import sys
from typing import List

# By machine: numbers of the calls, and of the architecture as seccomp knows it.
NUMBERS = {
    "x86_64": {"ptrace": 101, "seccomp": 317, "bpf": 321, "fanotify_init": 300},
    "aarch64": {"ptrace": 117, "seccomp": 277, "bpf": 280, "fanotify_init": 262},
}
# Each call of sys.argv[1] fails with EPERM; the rest is the command.
_SCRIPT = """
import ctypes, os, struct, sys
def instruction(code, value, no=0):
    return struct.pack("=HBBI", code, 0, no, value)
filter = instruction(0x20, 0)
for number in map(int, sys.argv[1].split(",")):
    filter += instruction(0x15, number, 1) + instruction(0x06, 0x00050001)
filter += instruction(0x06, 0x7FFF0000)
text = ctypes.create_string_buffer(filter)
program = struct.pack("HxxxxxxN", len(filter) // 8, ctypes.addressof(text))
libc = ctypes.CDLL(None, use_errno=True)
if libc.prctl(38, 1, 0, 0, 0) or libc.prctl(22, 2, ctypes.create_string_buffer(program)):
    sys.exit(os.strerror(ctypes.get_errno()))
os.execv(sys.argv[2], sys.argv[2:])
"""


def refusing(*calls: str) -> List[str]:
    """A prefix of a command, whose first word must be a path."""
    numbers = NUMBERS[os.uname().machine]
    return [sys.executable, "-c", _SCRIPT, ",".join(str(numbers[call]) for call in calls)]
