"""Flags, environment and level: stronger wins, contradictions are named, nothing weakens."""

from __future__ import annotations

from typing import Dict, Optional, Tuple

import pytest
from rootseal.errors import ConfigError
from rootseal.hardening import (
    LEVELS,
    WEAK_MODES,
    Said,
    check_level,
    level_variable,
    strengthened,
    switch,
    zero_drops_variable,
)

AUTO = Said("auto", "ROOTSEAL_FANOTIFY=auto")
STRICT = Said("strict", "--hardening=strict")
MODE = Said("auto", "--capture-mode=auto")


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
        check_level(STRICT, MODE, [said])


@pytest.mark.parametrize("mode", WEAK_MODES)
def test_strict_cannot_be_weakened_by_the_mode(mode: str) -> None:
    with pytest.raises(ConfigError, match=f"contradicts --capture-mode={mode}"):
        check_level(STRICT, Said(mode, f"--capture-mode={mode}"), [AUTO])


def test_everything_against_strict_is_named_at_once() -> None:
    switches = [Said("off", "--fanotify=off"), Said("off", "F=0")]
    with pytest.raises(ConfigError, match="--fanotify=off, F=0, --capture-mode=walk"):
        check_level(STRICT, Said("walk", "--capture-mode=walk"), switches)


@pytest.mark.parametrize("level", ["off", "standard"])
def test_the_other_levels_may_be_strengthened_or_switched_off(level: str) -> None:
    said = Said(level, f"--hardening={level}")
    check_level(said, Said("walk", "--capture-mode=walk"), [Said("off", "--fanotify=off")])
    check_level(said, MODE, [Said("on", "--fanotify=on")])


@pytest.mark.parametrize("values", [("off", "standard"), ("strict",), ("standard", "strict")])
def test_a_level_may_be_strengthened(values: Tuple[str, ...]) -> None:
    said = [Said(value, f"source of {value}") for value in values]
    assert strengthened(said, LEVELS) == said[-1]


@pytest.mark.parametrize("values", [("strict", "standard"), ("off", "strict", "off")])
def test_a_level_is_never_weakened_and_both_sources_are_named(values: Tuple[str, ...]) -> None:
    said = [Said(value, f"source of {value}") for value in values]
    with pytest.raises(ConfigError, match=f"source of {values[-1]} is weaker than source of str"):
        strengthened(said, LEVELS)


@pytest.mark.parametrize(
    ("text", "value"), [("1", "on"), ("ON", "on"), ("0", "off"), ("off", "off")]
)
def test_zero_drops_may_be_required_by_the_environment(text: str, value: str) -> None:
    name = "ROOTSEAL_REQUIRE_ZERO_DROPS"
    assert zero_drops_variable({name: text}) == (Said(value, f"{name}={text.lower()}"),)


@pytest.mark.parametrize("environ", [{}, {"ROOTSEAL_HARDENING": ""}])
def test_a_variable_that_is_not_set_says_nothing(environ: Dict[str, str]) -> None:
    assert (*level_variable(environ), *zero_drops_variable(environ)) == ()


def test_an_unknown_word_is_no_level_and_no_demand() -> None:
    with pytest.raises(ConfigError, match="ROOTSEAL_HARDENING must be one of off, standard, stri"):
        level_variable({"ROOTSEAL_HARDENING": "strickt"})
    with pytest.raises(ConfigError, match="ZERO_DROPS must be one of 0, off, 1, on; not 'auto'"):
        zero_drops_variable({"ROOTSEAL_REQUIRE_ZERO_DROPS": "auto"})
