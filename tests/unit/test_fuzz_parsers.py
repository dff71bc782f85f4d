"""The fuzzer itself: every parser takes a round of it, and a planted bug does not escape it."""

from __future__ import annotations

import fuzz_parsers
import pytest
from rootseal.errors import EncodingError

ONE_ROUND = 0.0


@pytest.mark.parametrize("name", fuzz_parsers.parsers())
def test_a_round_of_the_fuzzer_finds_nothing(name: str) -> None:
    assert (
        fuzz_parsers.fuzz(name, fuzz_parsers.parsers()[name], ONE_ROUND) >= fuzz_parsers.ROUND // 2
    )


def test_a_planted_bug_is_found() -> None:
    def read(data: bytes) -> object:
        if not data.startswith(b"HEAD"):
            raise EncodingError("no head")
        length = data[4] if len(data) > 4 else 0
        return data[5 + length]  # nobody has looked whether it is there

    with pytest.raises(IndexError):
        fuzz_parsers.fuzz("planted", fuzz_parsers.Parser(b"HEAD\x03abcd", read), ONE_ROUND)
