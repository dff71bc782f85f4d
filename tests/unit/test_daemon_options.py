"""Which options of a running daemon are those that were asked for."""

from __future__ import annotations

from typing import Tuple

import pytest
from rootseal.daemon_options import missing, options_of, text_of, together

RUNNING = ("--idle-exit", "0", "--allow-uid", "1000", "--trace-ring", "65536")


@pytest.mark.parametrize(
    ("wanted", "lacking"),
    [
        ((), ()),
        (("--allow-uid", "1000"), ()),
        (("--allow-uid", "7"), ("--allow-uid", "7")),
        (("--allow-uid", "1000", "--allow-uid", "7"), ("--allow-uid", "7")),
        (("--trace-ring", "65536"), ()),
        (("--trace-ring", "131072"), ("--trace-ring", "131072")),
        (("--no-fanotify",), ("--no-fanotify",)),
        (("--stay-awake", "off"), ("--stay-awake", "off")),
    ],
)
def test_what_is_missing(wanted: Tuple[str, ...], lacking: Tuple[str, ...]) -> None:
    assert missing(RUNNING, wanted) == lacking
    both = together(RUNNING, wanted)
    assert missing(both, wanted) == ()
    assert missing(both, RUNNING[:4]) == (), "whom it served it goes on serving"


def test_lists_grow_and_single_values_are_replaced() -> None:
    both = together(RUNNING, ("--allow-uid", "7", "--trace-ring", "131072", "--no-fanotify"))
    assert both == (
        *("--idle-exit", "0", "--allow-uid", "1000", "--allow-uid", "7"),
        *("--trace-ring", "131072", "--no-fanotify"),
    )
    assert together(both, ("--no-fanotify",)) == both


def test_a_status_may_say_anything() -> None:
    assert options_of(["--allow-uid", "7"]) == ("--allow-uid", "7")
    for value in (None, "--allow-uid", [7], {"a": 1}):
        assert options_of(value) == ()
    assert text_of(()) == "no options"
    assert text_of(("--toolchain", "/a b")) == "--toolchain '/a b'"
