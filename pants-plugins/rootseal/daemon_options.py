"""Options of a daemon as its command line has them: which of two agree, and both together. Pure.

    ("--allow-uid", "1000", "--trace-ring", "1048576", "--no-fanotify")

A daemon says in its status with which it runs; `rootseal daemon ensure` compares them with what it
was given.
"""

from __future__ import annotations

import shlex
from typing import Dict, List, Sequence, Tuple

LISTS = ("--allow-uid", "--allow-group", "--toolchain", "--toolchain-key")
FLAGS = ("--no-fanotify",)
Options = Tuple[str, ...]


def options_of(value: object) -> Options:
    """The options that a status names; none, if it is of a release that did not say."""
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        return ()
    return tuple(value)


def missing(running: Options, wanted: Options) -> Options:
    """What is wanted and not so in the running daemon, as options."""
    has = _parsed(running)
    lacking: Dict[str, List[str]] = {}
    for name, values in _parsed(wanted).items():
        new = [value for value in values if value not in has.get(name, [])]
        if new or name not in has:
            lacking[name] = new
    return _unparsed(lacking)


def together(running: Options, wanted: Options) -> Options:
    """The options of a daemon that has what is wanted, and else is as the running one."""
    merged = _parsed(running)
    for name, values in _parsed(wanted).items():
        before = merged.get(name, []) if name in LISTS else []
        merged[name] = [*before, *(value for value in values if value not in before)]
    return _unparsed(merged)


def text_of(options: Options) -> str:
    """As a user would type them; `no options` if there are none."""
    return " ".join(map(shlex.quote, options)) or "no options"


def _parsed(options: Sequence[str]) -> Dict[str, List[str]]:
    found: Dict[str, List[str]] = {}
    rest = iter(options)
    for name in rest:
        values = found.setdefault(name, [])
        if name in FLAGS:
            continue
        value = next(rest, "")
        if name in LISTS:
            values.append(value)
        else:
            found[name] = [value]
    return found


def _unparsed(options: Dict[str, List[str]]) -> Options:
    result: List[str] = []
    for name, values in options.items():
        if name in FLAGS:
            result.append(name)
        for value in values:
            result += [name, value]
    return tuple(result)
