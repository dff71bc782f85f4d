"""Numbers on the command line: sizes with units, and seconds. One reader for every option."""

from __future__ import annotations

import argparse

SIZE_BYTES_MAX = 2**60
SECONDS_MAX = 10**9
SIZE_FORM = "a size like 65536, 64K, 16M or 1G"
_UNITS = {"": 0, "K": 10, "M": 20, "G": 30}
_DIGITS_MAX = 19


def size(text: str) -> int:
    """A size in bytes: digits, and K, M or G for powers of 1024.

    Raises:
        argparse.ArgumentTypeError: Not of that form, or more than 2^60.
    """
    digits, unit = (text[:-1], text[-1].upper()) if text[-1:].isalpha() else (text, "")
    if _is_number(digits) and unit in _UNITS:
        value = int(digits) << _UNITS[unit]
        if value <= SIZE_BYTES_MAX:
            return value
    raise argparse.ArgumentTypeError(f"needs {SIZE_FORM}, not {text[:64]!r}")


def seconds(text: str) -> int:
    """Whole seconds.

    Raises:
        argparse.ArgumentTypeError: Not a number, or more than 10^9.
    """
    if not _is_number(text) or int(text) > SECONDS_MAX:
        raise argparse.ArgumentTypeError(f"needs a number from 0 to 10^9, not {text[:64]!r}")
    return int(text)


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= _DIGITS_MAX
