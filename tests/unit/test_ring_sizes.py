"""Sizes of the trace's ring: what users write, what a daemon tells."""

from __future__ import annotations

import pytest
from rootseal.errors import ConfigError
from rootseal.trace_ring import is_other, read_size, size_of


@pytest.mark.parametrize(
    ("text", "size"),
    [("", 0), ("65536", 1 << 16), ("64K", 1 << 16), ("16m", 1 << 24), ("1G", 1 << 30)],
)
def test_sizes(text: str, size: int) -> None:
    assert read_size(text, "--ring") == size


@pytest.mark.parametrize(
    ("text", "word"),
    [
        *[(text, "a size like") for text in ("many", "1T", "-1", "1.5M", "٣M", "9" * 20, "M")],
        *[(text, "power of two") for text in ("9" * 13, "0", "100000", "32K", "2G", "0K")],
    ],
)
def test_what_is_no_size_names_what_was_set(text: str, word: str) -> None:
    with pytest.raises(ConfigError, match=f"^--ring .*{word}"):
        read_size(text, "--ring")


def test_a_daemon_without_a_ring_fits_every_size() -> None:
    assert size_of({"trace": {"loader": None}}) is size_of({}) is None
    assert not is_other({"trace": {"loader": None}}, 1 << 20)


def test_another_size_is_other_only_if_one_is_wanted() -> None:
    status = {"trace": {"loader": "libbpf", "ringBytes": 1 << 24}}
    assert is_other(status, 1 << 20)
    assert not is_other(status, 1 << 24)
    assert not is_other(status, 0)
