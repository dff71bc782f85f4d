"""What `rootseal run` refuses before anything happens: usage, exit code 2."""

from __future__ import annotations

import argparse
import os
import re
from pathlib import Path

from rootseal import bundle, hardening, record
from rootseal.cli_keys import signing_files
from rootseal.cli_paths import check_result, check_there
from rootseal.errors import ConfigError

DESCENDANTS_SECONDS_MAX = 86400  # native/launcher/args.c
CAPS = ("max-digests", "max-record-bytes", "max-hashed-bytes")
_KILL = re.compile(r"kill:(\d{1,9})", re.ASCII)


def check_usage(arguments: argparse.Namespace) -> None:
    """Refuse what cannot mean anything, in words of the command line.

    Raises:
        ConfigError: Names the option, and what is wrong with its value.
    """
    _check_descendants(arguments.descendants)
    for name in CAPS:
        value = getattr(arguments, name.replace("-", "_"))
        if value is not None and value < 1:
            raise ConfigError(f"--{name} must be at least 1, not {value}")
    check_there("--root", arguments.root)
    if not Path(arguments.root).is_dir():
        raise ConfigError(f"--root {arguments.root} is not a directory")
    for path in arguments.input:
        check_there("--input", path)
    root = os.path.realpath(arguments.root)
    for path in arguments.output:
        _check_output(path, root)
    _check_seal(arguments)
    check_results(arguments)


def check_results(arguments: argparse.Namespace) -> None:
    """--out and --record may replace an older bundle and record, and nothing else.

    Raises:
        ConfigError: Names the option and the file.
    """
    others = [] if arguments.out is None else signing_files(arguments)
    for flag in ("--output", "--input", "--toolchain", "--toolchain-key"):
        named = getattr(arguments, flag[2:].replace("-", "_"))
        others += [(flag, path) for path in named]
    if arguments.out is not None:
        check_result(("--out", arguments.out), bundle.MAGIC, others)
        others.append(("--out", arguments.out))
    if arguments.record is not None:
        check_result(("--record", arguments.record), record.MAGIC, others)


def _check_descendants(text: str) -> None:
    match = _KILL.fullmatch(text)
    if text != "wait" and (match is None or int(match.group(1)) > DESCENDANTS_SECONDS_MAX):
        raise ConfigError(
            f"--descendants is `wait` or `kill:SECONDS` (0 to {DESCENDANTS_SECONDS_MAX}), not "
            f"{text!r}"
        )


def _check_output(path: str, root: str) -> None:
    """As the launcher reads it: relative to the working directory, by its text, in the root."""
    if not path:
        raise ConfigError("--output needs a path")
    place = os.path.normpath(Path(working_directory()) / path)
    if place != root and not place.startswith(root.rstrip("/") + "/"):
        raise ConfigError(f"--output {path} lies outside the root {root}; see --root")


def _check_seal(arguments: argparse.Namespace) -> None:
    """A seal that was asked for needs something to seal; `auto` and `strict` seal what there is."""
    said = hardening.switch("fsverity", arguments.fsverity, os.environ)
    if said.value == "on" and not arguments.output:
        raise ConfigError(f"{said.source} seals what --output declares; name one, or drop it")


def working_directory() -> str:
    """The working directory.

    Raises:
        ConfigError: It was removed.
    """
    try:
        return str(Path.cwd())
    except OSError as error:
        raise ConfigError(f"the working directory cannot be used: {error.strerror}") from None
