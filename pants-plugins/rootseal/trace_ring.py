"""The size of the ring buffer of the eBPF trace: as users write it, and which one a daemon has."""

from __future__ import annotations

from typing import Mapping, Optional

from rootseal.errors import ConfigError
from rootseal.sizes import SIZE_FORM, parse_size

RING_BYTES_DEFAULT = 1 << 24
RING_BYTES_MIN = 1 << 16
RING_BYTES_MAX = 1 << 30


def read_size(text: str, name: str) -> int:
    """A size in bytes; 0 if the text is empty: nobody says.

    Args:
        text: As a user writes it, for example 16M.
        name: What the user set, for the error.

    Raises:
        ConfigError: Not a size, or not one that a ring buffer can have.
    """
    if not text:
        return 0
    try:
        size = parse_size(text)
    except ValueError:
        raise ConfigError(f"{name} needs {SIZE_FORM}, not {text[:64]!r}") from None
    check_size(size, name)
    return size


def check_size(size: int, name: str) -> None:
    """Refuse a size that a ring buffer cannot have.

    Raises:
        ConfigError: Says which it can have.
    """
    if size & (size - 1) or not RING_BYTES_MIN <= size <= RING_BYTES_MAX:
        raise ConfigError(
            f"{name} must be a power of two from {RING_BYTES_MIN} to {RING_BYTES_MAX} bytes, "
            f"not {size}"
        )


def size_of(status: Mapping[str, object]) -> Optional[int]:
    """The size that a daemon's status tells; None if the daemon has no eBPF, and so no ring."""
    trace = status.get("trace")
    size = trace.get("ringBytes") if isinstance(trace, dict) else None
    return size if isinstance(size, int) else None


def is_other(status: Mapping[str, object], wanted: int) -> bool:
    """Whether a daemon has a ring of another size than is wanted; 0: any will do."""
    return bool(wanted) and size_of(status) not in (None, wanted)
