"""How much capture is demanded, from all who have a say: a stronger word is never taken back.

    pants.toml, PANTS_ROOTSEAL_*, flags, ROOTSEAL_FANOTIFY … -> Demands, or an error naming two

Pants itself takes the flag, else the variable, else the file. Here a flag or a variable may only
strengthen what the file demands (rootseal/hardening.py has the rules, the command line's too).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any, Mapping, Sequence

from rootseal.hardening import LEVELS, Said, check_level, decided, strengthened, switch

SCOPE = "rootseal"
SWITCHES = ("fanotify", "fsverity")
_OFF_ON = ("off", "on")


@dataclass(frozen=True)
class Demands:
    """What is demanded of every capture; the fields are those of the manifest's policy."""

    capture_mode: str
    fanotify: str
    fsverity: str
    hardening: str
    require_zero_drops: bool


def demands_of(options: Any, environ: Mapping[str, str]) -> Demands:
    """The demands of a run.

    Args:
        options: Pants' options, of all scopes.
        environ: The environment of the user.

    Raises:
        ConfigError: Two words contradict each other, or one would weaken another; names both.
    """
    switches = [
        decided([switch(name, None, environ), *said_of(options, name)]) for name in SWITCHES
    ]
    hardening = strengthened(said_of(options, "hardening"), LEVELS)
    zero_drops = strengthened(said_of(options, "require_zero_drops"), _OFF_ON)
    mode = said_of(options, "capture_mode")[-1]
    refusals = [zero_drops] if zero_drops.source else []
    check_level(hardening, mode, [*switches, *refusals])
    fanotify, fsverity = (said.value for said in switches)
    return Demands(mode.value, fanotify, fsverity, hardening.value, zero_drops.value == "on")


def said_of(options: Any, name: str) -> Sequence[Said]:
    """What each source says of an option, the flag last; only the default, if nobody says anything.

    The default has no source. Versions of Pants that keep no history say the last word only.
    """
    final = Said(_word(getattr(options.for_scope(SCOPE), name)), "")
    if not hasattr(options, "get_parser"):
        return [Said(final.value, f"[{SCOPE}].{name} = {final.value}")]
    found = [
        Said(_word(item.value), _source(name, item))
        for item in options.get_parser(SCOPE).history(name).ranked_values
        if item.value is not None and item.rank.name not in ("NONE", "HARDCODED")
    ]
    return found or [final]


def _word(value: object) -> str:
    if isinstance(value, bool):
        return _OFF_ON[value]
    return str(value.value if isinstance(value, Enum) else value)


def _source(name: str, item: Any) -> str:
    """Where a value was said, as the user wrote it."""
    if item.rank.name == "FLAG":
        flag = f"{SCOPE}-{name.replace('_', '-')}"
        if isinstance(item.value, bool):
            return f"--{flag}" if item.value else f"--no-{flag}"
        return f"--{flag}={_word(item.value)}"
    if item.rank.name == "ENVIRONMENT":
        return f"PANTS_{SCOPE.upper()}_{name.upper()}={_word(item.value)}"
    return f"[{SCOPE}].{name} = {_word(item.value)} ({item.details or 'a configuration file'})"
