"""Flags, environment and hardening level: they may strengthen each other, never weaken. Pure.

Two words for one switch, or a switch against the level `strict`, that pull in different
directions are an error that names both: neither is obeyed in silence.
"""

from __future__ import annotations

from typing import List, Mapping, NamedTuple, Optional

from rootseal.errors import ConfigError

_WORDS = {"0": "off", "off": "off", "auto": "auto", "1": "on", "on": "on"}
WEAK_MODES = ("walk", "ima", "trace:ptrace")  # those that hold nobody in the kernel for a digest


class Said(NamedTuple):
    """A value and who said it, as the caller wrote it."""

    value: str
    source: str


def switch(name: str, flag: Optional[str], environ: Mapping[str, str]) -> Said:
    """The value of `--NAME` and `ROOTSEAL_NAME` together: off, auto or on.

    Raises:
        ConfigError: The variable has an unknown value, or one says on and the other off.
    """
    variable = f"ROOTSEAL_{name.upper()}"
    text = environ.get(variable, "").lower() or "auto"
    if text not in _WORDS:
        raise ConfigError(f"{variable} must be one of 0, off, auto, 1, on; not {text!r}")
    said = Said(_WORDS[text], f"{variable}={text}")
    if flag is None or flag == said.value:
        return said
    given = Said(flag, f"--{name}={flag}")
    if {flag, said.value} == {"on", "off"}:
        raise ConfigError(f"{given.source} contradicts {said.source}; drop one of them")
    return said if flag == "auto" else given


def check_level(hardening: str, capture_mode: str, switches: Mapping[str, Said]) -> None:
    """Refuse what would weaken the level `strict`.

    Args:
        hardening: off, standard or strict.
        capture_mode: As given.
        switches: fanotify and fsverity.

    Raises:
        ConfigError: Names the level and each word against it.
    """
    if hardening != "strict":
        return
    against: List[str] = [said.source for said in switches.values() if said.value == "off"]
    if capture_mode in WEAK_MODES:
        against.append(f"--capture-mode={capture_mode}")
    if against:
        raise ConfigError(
            f"--hardening=strict contradicts {', '.join(against)}; drop one of them: strict needs "
            "fanotify and a trace, and fs-verity wherever there is one"
        )
