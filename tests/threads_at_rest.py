"""Wait until no thread of a process has anything to do, so that what it was given is done."""

from __future__ import annotations

import time
from pathlib import Path

GIVE_UP_SECONDS = 120.0
IN_A_ROW = 3  # a thread waits for another at times


def wait_for_rest(pid: int) -> None:
    """Until all threads wait, each time that one looks at them."""
    deadline = time.monotonic() + GIVE_UP_SECONDS
    found = 0
    while found < IN_A_ROW:
        assert time.monotonic() < deadline, "there is always something to do"
        found = found + 1 if all(map(is_asleep, Path(f"/proc/{pid}/task").iterdir())) else 0
        time.sleep(0.01)


def is_asleep(thread: Path) -> bool:
    """Whether a thread waits for something, or is gone."""
    try:
        text = (thread / "stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return True
    return text.rpartition(")")[2].split()[0] == "S"
