"""Numbers on the command line: sizes with units, and seconds. One reader for every option."""

from __future__ import annotations

import argparse

from rootseal.sizes import SIZE_FORM, is_number, parse_size

SECONDS_MAX = 10**9


def size(text: str) -> int:
    """A size in bytes, see `sizes`.

    Raises:
        argparse.ArgumentTypeError: Not of that form, or more than 2^60.
    """
    try:
        return parse_size(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"needs {SIZE_FORM}, not {text[:64]!r}") from None


def seconds(text: str) -> int:
    """Whole seconds.

    Raises:
        argparse.ArgumentTypeError: Not a number, or more than 10^9.
    """
    if not is_number(text) or int(text) > SECONDS_MAX:
        raise argparse.ArgumentTypeError(f"needs a number from 0 to 10^9, not {text[:64]!r}")
    return int(text)
