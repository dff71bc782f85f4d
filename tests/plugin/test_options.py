"""The options of [rootseal]: those that must be there, each with help in whole sentences."""

from __future__ import annotations

from typing import Any

import pytest
from pants.option.option_types import collect_options_info
from rootseal.capture.scope import CaptureLimits
from rootseal_pants.subsystem import RootsealSubsystem

HELP = {
    info.flag_names[0][2:].replace("-", "_"): info.flag_options["help"]
    for info in collect_options_info(RootsealSubsystem)
}
DEFAULTS = {
    info.flag_names[0][2:].replace("-", "_"): info.flag_options.get("default")
    for info in collect_options_info(RootsealSubsystem)
}
REQUIRED = {
    *("enabled", "capture_mode", "fanotify", "fsverity", "hardening", "require_zero_drops"),
    *("key", "executable", "out", "trace_ring"),
}


def test_the_options_that_users_rely_on_are_there() -> None:
    assert set(HELP) >= REQUIRED


@pytest.mark.parametrize("name", sorted(HELP))
def test_help_is_whole_sentences(name: str) -> None:
    given: Any = HELP[name]
    text = given(RootsealSubsystem) if callable(given) else given
    assert text[0].isupper() and text[-1] == "." and len(text.split()) >= 6, text
    assert text == " ".join(text.split()), "no doubled or stray spaces where lines were joined"


@pytest.mark.parametrize("cap", ["max_digests", "max_record_bytes", "max_hashed_bytes"])
def test_the_caps_are_those_of_the_core(cap: str) -> None:
    """The plugin cannot import them: they are beside code that is not Python."""
    assert DEFAULTS[cap] == getattr(CaptureLimits(), cap)
