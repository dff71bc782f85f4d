"""Flags, environment and level: stronger wins, contradictions are named, nothing weakens."""

from __future__ import annotations

from typing import Dict, Optional

import pytest
from rootseal.errors import ConfigError
from rootseal.hardening import WEAK_MODES, Said, check_level, switch

AUTO = Said("auto", "ROOTSEAL_FANOTIFY=auto")


@pytest.mark.parametrize(
    ("flag", "variable", "want"),
    [
        (None, None, "auto"),
        (None, "1", "on"),
        (None, "0", "off"),
        (None, "ON", "on"),
        ("on", None, "on"),
        ("off", None, "off"),
        ("on", "auto", "on"),
        ("on", "1", "on"),
        ("auto", "on", "on"),  # auto does not take back what was required
        ("auto", "off", "off"),
        ("off", "0", "off"),
    ],
)
def test_the_decided_one_wins(flag: Optional[str], variable: Optional[str], want: str) -> None:
    environ: Dict[str, str] = {} if variable is None else {"ROOTSEAL_FANOTIFY": variable}
    assert switch("fanotify", flag, environ).value == want


@pytest.mark.parametrize(("flag", "variable"), [("on", "0"), ("on", "off"), ("off", "1")])
def test_a_contradiction_names_both(flag: str, variable: str) -> None:
    with pytest.raises(ConfigError) as error:
        switch("fanotify", flag, {"ROOTSEAL_FANOTIFY": variable})
    assert f"--fanotify={flag}" in str(error.value)
    assert f"ROOTSEAL_FANOTIFY={variable}" in str(error.value)


def test_an_unknown_word_names_the_right_ones() -> None:
    with pytest.raises(ConfigError, match="ROOTSEAL_FSVERITY must be one of 0, off, auto, 1, on"):
        switch("fsverity", None, {"ROOTSEAL_FSVERITY": "yes"})


@pytest.mark.parametrize("name", ["fanotify", "fsverity"])
def test_strict_cannot_be_weakened_by_the_environment(name: str) -> None:
    said = switch(name, None, {f"ROOTSEAL_{name.upper()}": "0"})
    with pytest.raises(
        ConfigError, match=f"--hardening=strict contradicts ROOTSEAL_{name.upper()}=0"
    ):
        check_level("strict", "auto", {name: said})


@pytest.mark.parametrize("mode", WEAK_MODES)
def test_strict_cannot_be_weakened_by_the_mode(mode: str) -> None:
    with pytest.raises(ConfigError, match=f"contradicts --capture-mode={mode}"):
        check_level("strict", mode, {"fanotify": AUTO})


def test_everything_against_strict_is_named_at_once() -> None:
    switches = {"fanotify": Said("off", "--fanotify=off"), "fsverity": Said("off", "F=0")}
    with pytest.raises(ConfigError, match="--fanotify=off, F=0, --capture-mode=walk"):
        check_level("strict", "walk", switches)


@pytest.mark.parametrize("level", ["off", "standard"])
def test_the_other_levels_may_be_strengthened_or_switched_off(level: str) -> None:
    check_level(level, "walk", {"fanotify": Said("off", "--fanotify=off")})
    check_level(level, "auto", {"fanotify": Said("on", "--fanotify=on")})
