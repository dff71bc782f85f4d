"""A line of /proc/PID/mountinfo, and what is said of the mounts that others serve. Pure."""

from __future__ import annotations

from typing import Optional, Tuple

SERVED_BY_OTHERS = "served by others: content can change after it was hashed"
_ESCAPES = (b"\\040", b"\\011", b"\\012", b"\\134")  # the backslash itself last


def read_line(line: bytes) -> Optional[Tuple[bytes, str]]:
    """Mount point and filesystem type; None for what is no such line.

    Source:
        proc_pid_mountinfo(5).
    """
    before, _, after = line.partition(b" - ")
    words, kind = before.split(b" "), after.split(b" ")[0]
    if len(words) < 5 or not kind:
        return None
    point = words[4]
    for code in _ESCAPES:
        point = point.replace(code, bytes([int(code[1:], 8)]))
    return point, kind.decode("ascii", "backslashreplace")
