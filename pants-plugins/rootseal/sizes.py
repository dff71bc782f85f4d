"""Sizes as users write them: digits, and K, M or G for powers of 1024. Standard library only."""

from __future__ import annotations

SIZE_BYTES_MAX = 2**60
SIZE_FORM = "a size like 65536, 64K, 16M or 1G"
_UNITS = {"": 0, "K": 10, "M": 20, "G": 30}
_DIGITS_MAX = 19


def parse_size(text: str) -> int:
    """A size in bytes.

    Raises:
        ValueError: Not of that form, or more than 2^60.
    """
    digits, unit = (text[:-1], text[-1].upper()) if text[-1:].isalpha() else (text, "")
    if is_number(digits) and unit in _UNITS:
        value = int(digits) << _UNITS[unit]
        if value <= SIZE_BYTES_MAX:
            return value
    raise ValueError(f"{text[:64]!r} is not {SIZE_FORM}")


def is_number(text: str) -> bool:
    """Whether a text is nothing but a few digits."""
    return text.isascii() and text.isdigit() and len(text) <= _DIGITS_MAX
