"""How much capture is demanded, from all who have a say: a stronger word is never taken back.

    pants.toml, PANTS_ROOTSEAL_*, flags, ROOTSEAL_FANOTIFY … -> Demands, or an error naming two

Pants itself takes the flag, else the variable, else the file. Here a flag or a variable may only
strengthen what the file demands (rootseal/hardening.py has the rules, the command line's too).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any, Mapping, Sequence

from rootseal.hardening import (
    LEVELS,
    OFF_ON,
    Said,
    at_level,
    check_level,
    decided,
    level_variable,
    strengthened,
    switch,
    zero_drops_variable,
)

SCOPE = "rootseal"
SWITCHES = ("fanotify", "fsverity")


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
    levels = _with_variable(said_of(options, "hardening"), level_variable(environ))
    refusing = _with_variable(said_of(options, "require_zero_drops"), zero_drops_variable(environ))
    hardening, zero_drops = strengthened(levels, LEVELS), strengthened(refusing, OFF_ON)
    mode = said_of(options, "capture_mode")[-1]
    refusals = [zero_drops] if zero_drops.source else []
    check_level(hardening, mode, [*switches, *refusals])
    fanotify, fsverity = (
        at_level(hardening.value, mode.value, name, said.value)
        for name, said in zip(SWITCHES, switches)
    )
    return Demands(mode.value, fanotify, fsverity, hardening.value, zero_drops.value == "on")


def said_of(options: Any, name: str) -> Sequence[Said]:
    """What each source says of an option, the flag last; only the default, if nobody says anything.

    The default has no source.
    """
    final = Said(_word(getattr(options.for_scope(SCOPE), name)), "")
    found = [
        Said(_word(value), _source(name, value, rank.name, details))
        for value, rank, details in _history(options, name)
        if value is not None and rank.name not in ("NONE", "HARDCODED")
    ]
    return found or [final]


def _with_variable(said: Sequence[Said], variable: Sequence[Said]) -> Sequence[Said]:
    """A variable of the user's own may strengthen files, and flags may strengthen it.

    The default, which has no source, gives way to it.
    """
    if not variable:
        return said
    flags = [item for item in said if item.source.startswith("--")]
    return [*(item for item in said if item.source and item not in flags), *variable, *flags]


def _history(options: Any, name: str) -> list[tuple[Any, Any, str | None]]:
    """Value, rank and details of each source, the default first.

    Up to 2.23 the parser of the scope keeps them. Later the native parser derives them for an
    option as it was registered: a pair in 2.24, from 2.25 on an object.
    """
    if not hasattr(options, "native_parser"):
        history = options.get_parser(SCOPE).history(name).ranked_values
        return [(item.value, item.rank, item.details) for item in history]
    native = options.native_parser.with_derivation()
    flag = f"--{name.replace('_', '-')}"
    if hasattr(options, "get_registrar"):
        infos = options.get_registrar(SCOPE).option_registrations_iter()
        (info,) = (info for info in infos if flag in info.args)
        return list(native.get_derivation(SCOPE, info))
    pairs = options.get_parser(SCOPE).option_registrations_iter()
    ((flags, fields),) = ((flags, fields) for flags, fields in pairs if flag in flags)
    return list(
        native.get_derivation(scope=SCOPE, registration_args=flags, registration_kwargs=fields)
    )


def _word(value: object) -> str:
    if isinstance(value, bool):
        return OFF_ON[value]
    return str(value.value if isinstance(value, Enum) else value)


def _source(name: str, value: object, rank: str, details: str | None) -> str:
    """Where a value was said, as the user wrote it."""
    if rank == "FLAG":
        flag = f"{SCOPE}-{name.replace('_', '-')}"
        if isinstance(value, bool):
            return f"--{flag}" if value else f"--no-{flag}"
        return f"--{flag}={_word(value)}"
    if rank == "ENVIRONMENT":
        return f"PANTS_{SCOPE.upper()}_{name.upper()}={_word(value)}"
    return f"[{SCOPE}].{name} = {_word(value)} ({details or 'a configuration file'})"
