"""Flags, environment and hardening level: they may strengthen each other, never weaken. Pure.

Two words for one switch, or a switch against the level `strict`, that pull in different
directions are an error that names both: neither is obeyed in silence.
"""

from __future__ import annotations

from typing import List, Mapping, NamedTuple, Optional, Sequence

from rootseal.errors import ConfigError

LEVELS = ("off", "standard", "strict")
OFF_ON = ("off", "on")
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
    said = [Said(_WORDS[text], f"{variable}={text}")]
    if flag is not None:
        said.append(Said(flag, f"--{name}={flag}"))
    return decided(said)


def level_variable(environ: Mapping[str, str]) -> Sequence[Said]:
    """What ROOTSEAL_HARDENING says; nothing, if it is not set.

    Raises:
        ConfigError: The variable has an unknown value.
    """
    return _variable("ROOTSEAL_HARDENING", {level: level for level in LEVELS}, environ)


def zero_drops_variable(environ: Mapping[str, str]) -> Sequence[Said]:
    """What ROOTSEAL_REQUIRE_ZERO_DROPS says, off or on; nothing, if it is not set.

    Raises:
        ConfigError: The variable has an unknown value.
    """
    words = {word: value for word, value in _WORDS.items() if value in OFF_ON}
    return _variable("ROOTSEAL_REQUIRE_ZERO_DROPS", words, environ)


def _variable(name: str, words: Mapping[str, str], environ: Mapping[str, str]) -> Sequence[Said]:
    text = environ.get(name, "").lower()
    if not text:
        return ()
    if text not in words:
        raise ConfigError(f"{name} must be one of {', '.join(words)}; not {text!r}")
    return (Said(words[text], f"{name}={text}"),)


def decided(said: Sequence[Said]) -> Said:
    """The one word for a switch: `auto` gives way to any other.

    Args:
        said: What each source says, at least one.

    Raises:
        ConfigError: One says on and another off.
    """
    found = said[0]
    for other in said[1:]:
        if {found.value, other.value} == {"on", "off"}:
            raise ConfigError(f"{other.source} contradicts {found.source}; drop one of them")
        if found.value == "auto":
            found = other
    return found


def at_level(level: str, capture_mode: str, name: str, value: str) -> str:
    """What the value of a switch comes to: at the level `off`, `auto` is off.

    But fanotify stays with a trace by eBPF that was asked for, which alone holds nobody.

    Args:
        level: off, standard or strict.
        capture_mode: As given.
        name: fanotify or fsverity.
        value: off, auto or on.
    """
    needed = name == "fanotify" and capture_mode == "trace:ebpf"
    return "off" if (level, value) == ("off", "auto") and not needed else value


def strengthened(said: Sequence[Said], order: Sequence[str]) -> Said:
    """The last word for something that may only get stronger.

    Args:
        said: What each source says, the one that is asked first (a file) first; at least one.
        order: The values, the weakest first.

    Raises:
        ConfigError: A later source would weaken what an earlier one demands.
    """
    for earlier, later in zip(said, said[1:]):
        if order.index(later.value) < order.index(earlier.value):
            raise ConfigError(
                f"{later.source} is weaker than {earlier.source}; flags may strengthen what the "
                "environment demands, both what a file demands, never weaken it: drop one of them"
            )
    return said[-1]


def weakness(requested: Mapping[str, object], *, held: bool) -> str:
    """What in a signed request contradicts its own level `strict`; empty if nothing does.

    Args:
        requested: `captureMode`, `fanotify`, `hardening` and `requireZeroDrops` of a predicate.
        held: Whether the posture that goes with it is at least `held`.
    """
    if requested["hardening"] != "strict":
        return ""
    if requested["requireZeroDrops"] is not True:
        return "requireZeroDrops false"
    if requested["fanotify"] == "off":
        return "fanotify off"
    if requested["captureMode"] in WEAK_MODES:
        return f"captureMode {requested['captureMode']}"
    return "" if held else "a posture weaker than held"


def has_two_witnesses(backend: str) -> bool:
    """Whether a capture had what `strict` needs: fanotify, and a trace beside it.

    Args:
        backend: `capture.backend` of a predicate.
    """
    parts = set(backend.split("+"))
    return "fanotify" in parts and not parts.isdisjoint({"ebpf", "ptrace"})


def check_level(hardening: Said, capture_mode: Said, others: Sequence[Said]) -> None:
    """Refuse what would weaken the level `strict`.

    Args:
        hardening: off, standard or strict.
        capture_mode: As given.
        others: Switches; those that are off are against the level.

    Raises:
        ConfigError: Names the level and each word against it.
    """
    if hardening.value != "strict":
        return
    against: List[str] = [said.source for said in others if said.value == "off"]
    if capture_mode.value in WEAK_MODES:
        against.append(capture_mode.source)
    if against:
        raise ConfigError(
            f"{hardening.source} contradicts {', '.join(against)}; drop one of them: strict needs "
            "fanotify and a trace, and fs-verity wherever there is one"
        )
