"""Arguments that come later: a build tool starts a command before it knows them.

The command does its imports, which is most of what a short one costs, and waits here. Nothing is
looked at, made or signed before the arguments are there, and nothing is if they never come.
"""

from __future__ import annotations

import argparse
import gc
import os
import sys
from typing import NoReturn, Optional, Sequence, Tuple

from rootseal import canonical
from rootseal.cli_output import EXIT_INTERNAL
from rootseal.errors import ConfigError, EncodingError

FLAG = "--arguments-on-stdin"
REQUEST_BYTES_MAX = 1 << 20


def add_flag(parser: argparse.ArgumentParser) -> None:
    """The flag of a command that `is_awaited` is asked about."""
    parser.add_argument(
        FLAG,
        action="store_true",
        help="as the only argument: take the arguments from standard input when they are known, "
        "as a JSON array of path texts (docs/protocol.md), and do nothing if there are none",
    )


def is_awaited(words: Sequence[str]) -> bool:
    """Whether a command line leaves its arguments for later."""
    return tuple(words[1:]) == (FLAG,) and words[0] == "seal"


def refuse_beside_others(arguments: argparse.Namespace) -> None:
    """Refuse the flag if it came with other arguments, which would be taken at once.

    Raises:
        ConfigError: It is set.
    """
    if arguments.arguments_on_stdin:
        raise ConfigError(f"{FLAG} takes the place of all other arguments; give it alone")


def read_arguments(descriptor: int = 0) -> Optional[Tuple[str, ...]]:
    """Wait for the arguments.

    Args:
        descriptor: Where they come from: standard input.

    Returns:
        The arguments, or None if the stream ended without any.

    Raises:
        ConfigError: It holds something else, or cannot be read.
    """
    gc.freeze()  # what was imported stays; looking at it again and again costs milliseconds
    try:
        with open(descriptor, "rb", closefd=False) as stream:
            data = stream.read(REQUEST_BYTES_MAX + 1)
    except OSError as error:
        raise ConfigError(f"standard input cannot be read: {error.strerror}") from None
    return _parse(data) if data else None


def _parse(data: bytes) -> Tuple[str, ...]:
    try:
        value = canonical.parse(data, bytes_max=REQUEST_BYTES_MAX)
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise EncodingError("not an array of texts")
        words = [canonical.path_bytes(item) for item in value]
        if any(b"\0" in word for word in words):
            raise EncodingError("an argument holds a NUL")
    except EncodingError as error:
        raise ConfigError(f"the arguments on standard input cannot be read: {error}") from None
    return tuple(os.fsdecode(word) for word in words)


def leave(code: int) -> NoReturn:
    """End at once: taking the interpreter apart costs a tenth of a short command."""
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except BrokenPipeError:  # who asked has gone, so nobody reads the code either
        os._exit(EXIT_INTERNAL)
    os._exit(code)
