"""Values of [rootseal] options that no run could use: refused before any action runs, by name.

What Pants itself checks (numbers, booleans, the choices of an enumeration) comes here right. Pure.
"""

from __future__ import annotations

import os
import re
from pathlib import PurePath
from typing import Any, Mapping, Sequence, Tuple

from rootseal.errors import ConfigError

CHOICES: Mapping[str, Sequence[str]] = {
    "capture_mode": ("auto", "walk", "trace", "trace:auto", "trace:ebpf", "trace:ptrace", "ima"),
    "toolchain_scope": ("executed", "all"),
}
RANGES: Mapping[str, Tuple[int, int]] = {
    "max_digests": (1, 2**24),
    "max_record_bytes": (1, 2**30),
    "max_hashed_bytes": (1, 2**62),
    "records_max_bytes": (0, 2**62),
}
KILL_SECONDS_MAX = 86400
SOCKET_BYTES_MAX = 107  # sun_path of sockaddr_un, unix(7), with its NUL
_DESCENDANTS = re.compile(r"wait|kill:([0-9]{1,5})")


def check_values(options: Any) -> None:
    """Refuse a value that no run could use.

    Args:
        options: Has the options as attributes.

    Raises:
        ConfigError: Names the option, the value and what it may be.
    """
    for name, words in CHOICES.items():
        if getattr(options, name) not in words:
            raise _wrong(options, name, f"one of {', '.join(words)}")
    for name, (least, most) in RANGES.items():
        if not least <= getattr(options, name) <= most:
            raise _wrong(options, name, f"from {least} to {most}")
    _check_descendants(options)
    check_out(options)
    _check_socket(options)


def _wrong(options: Any, name: str, right: str) -> ConfigError:
    return ConfigError(f"[rootseal].{name} must be {right}, not {getattr(options, name)!r}")


def _check_descendants(options: Any) -> None:
    match = _DESCENDANTS.fullmatch(options.descendants)
    if match is None or int(match[1] or 0) > KILL_SECONDS_MAX:
        raise _wrong(
            options, "descendants", f"`wait`, or `kill:SECONDS` with at most {KILL_SECONDS_MAX}"
        )


def check_out(options: Any) -> None:
    """What is in there is removed before each run, so it is nobody else's directory.

    Raises:
        ConfigError: As `check_values`.
    """
    path = PurePath(options.out)
    if not path.parts or path.is_absolute() or ".." in path.parts:
        raise _wrong(options, "out", "a directory of its own below the distribution directory")


def _check_socket(options: Any) -> None:
    """Actions run elsewhere, so a relative path would mean another socket in each."""
    path = options.daemon_socket
    too_long = len(os.fsencode(path)) > SOCKET_BYTES_MAX
    if path and (not path.startswith("/") or too_long):
        right = f"an absolute path of at most {SOCKET_BYTES_MAX} bytes"
        raise _wrong(options, "daemon_socket", right)
