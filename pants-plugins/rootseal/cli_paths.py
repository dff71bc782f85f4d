"""Files that a command line names: what a result may replace, and what has to be there."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Sequence, Tuple

from rootseal.errors import ConfigError

Named = Tuple[str, str]  # the option as the caller knows it, and the path that was given


def check_result(result: Named, magic: bytes, others: Sequence[Named]) -> None:
    """Refuse a result file that would replace something else than an older result.

    Args:
        result: The option, and the file that will be written.
        magic: How files of this kind begin; an empty file may be replaced too.
        others: The other files that the command line names.

    Raises:
        ConfigError: The file is one of the others, or exists and is not of this kind.
    """
    flag, path = result
    for other_flag, other in others:
        if is_same(path, other):
            raise ConfigError(f"{flag} {path} is also {other_flag}; give each a file of its own")
    try:
        status = os.lstat(path)
        if not stat.S_ISREG(status.st_mode):
            raise ConfigError(f"{flag} {path} exists and is not a regular file; name another")
        with Path(path).open("rb") as stream:
            start = stream.read(len(magic))
    except FileNotFoundError:
        return
    except OSError as error:
        raise ConfigError(f"cannot replace {flag} {path}: {error.strerror}") from None
    if start not in (b"", magic):
        raise ConfigError(
            f"{flag} {path} exists and is not what this command writes there; remove it first, or "
            "name another file"
        )


def is_same(one: str, other: str) -> bool:
    """Whether two paths are one file, which need not exist yet."""
    if os.path.realpath(one) == os.path.realpath(other):
        return True
    try:
        return Path(one).samefile(other)
    except OSError:
        return False


def check_there(flag: str, path: str) -> None:
    """Refuse a path that cannot be looked at.

    Raises:
        ConfigError: It does not exist, is a loop of symbolic links, or is out of reach.
    """
    try:
        Path(path).stat()
    except OSError as error:
        raise ConfigError(f"{flag} {path} cannot be used: {error.strerror}") from None
