"""Loads the trace programs with BCC and keeps them attached until its standard input ends.

Run by the daemon under the system's Python, which has Debian's `bcc` module (python3-bpfcc); on a
host without BTF this is the one place where a compiler runs. The maps are the daemon's: their
descriptors are inherited under the numbers given as -D flags. Prints one JSON object per line:
`{"attached": NAME}`, `{"refused": NAME, "reason": TEXT}`, at last `{"ready": true}`.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
from pathlib import Path

PROGRAMS = {
    "trace_fork": "sched_process_fork",
    "trace_exec": "sched_process_exec",
    "trace_exit": "sched_process_exit",
    "trace_open": "sys_exit",
    "trace_write": "sys_exit",
    "trace_send": "sys_exit",
    "trace_socket": "sys_exit",
    "trace_connect": "sys_exit",
    "trace_fileop": "sys_exit",
    "trace_handle": "sys_exit",
    "trace_copy": "sys_exit",
    "trace_call": "sys_exit",
}
ERROR_CHARACTERS_MAX = 400


def say(**fields: object) -> None:
    """Tell the daemon."""
    print(json.dumps(fields), flush=True)


def headers_release() -> str:
    """Which kernel the headers are of, as they say; empty if they do not."""
    for part in ("build", "source"):
        path = Path(f"/lib/modules/{os.uname().release}/{part}")
        text = path / "include/generated/utsrelease.h"
        if text.exists():
            return text.read_text("ascii").split('"')[1]
    return ""


def main() -> int:
    """Load, attach, wait."""
    flags = sys.argv[1:]
    here = Path(__file__).resolve().parent
    try:
        import bcc
    except ImportError as error:
        say(failed=f"the system's Python has no bcc module ({error})")
        return 1
    if "-DRS_OFFSETS_FROM_HEADERS" in flags and headers_release() != os.uname().release:
        say(failed=f"the kernel headers are of {headers_release() or 'no kernel'}, not of this one")
        return 1
    try:
        source = (here / "trace_bcc.c").read_text("utf-8")
        program = bcc.BPF(text=source, cflags=[f"-I{here}", "-Wno-everything", *flags])
    except Exception as error:  # noqa: BLE001 - the process edge: bcc raises bare Exceptions
        say(failed=f"bcc could not compile: {str(error)[:ERROR_CHARACTERS_MAX]}")
        return 1
    kept = []
    for name, tracepoint in PROGRAMS.items():
        try:
            function = program.load_func(name, bcc.BPF.RAW_TRACEPOINT)
            descriptor = bcc.lib.bpf_attach_raw_tracepoint(function.fd, tracepoint.encode())
            if descriptor < 0:
                raise OSError(ctypes.get_errno(), "raw tracepoint refused")
        except Exception as error:  # noqa: BLE001 - as above
            say(refused=name, reason=str(error)[-ERROR_CHARACTERS_MAX:])
            continue
        kept.append((function, descriptor))
        say(attached=name)
    say(ready=True)
    sys.stdin.buffer.read()  # until the daemon closes it, or is gone
    return 0


if __name__ == "__main__":
    sys.exit(main())
