"""What the commands print: one line for people, one JSON object for machines (`--json`)."""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import sys
from typing import Callable, Iterator, Mapping, Optional

from rootseal import diagnostics
from rootseal.errors import (
    CaptureError,
    CaptureLost,
    ConfigError,
    EncodingError,
    Error,
    NativeError,
    PostureError,
    ToolchainError,
    VerificationError,
)

EXIT_GOOD = 0
EXIT_REFUSED = 1
EXIT_USAGE = 2
EXIT_INTERNAL = 3
_REFUSALS = (VerificationError, CaptureLost, PostureError, ToolchainError, EncodingError)
_PROGRESS_ITEMS_MIN = 200  # below this, work is over before a bar could be read
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str) -> str:
    """Text without anything that could move the cursor, colour, or break the line."""
    return _UNPRINTABLE.sub(lambda match: f"\\u{ord(match.group()):04x}", text)


def emit(arguments: argparse.Namespace, text: str, data: Mapping[str, object]) -> None:
    """Print a result: `text` as it is, or `data` as one JSON object if `--json` was given.

    Callers put anything that is not their own words through `printable`.
    """
    if arguments.json:
        print(json.dumps({"ok": True, **data}, sort_keys=False))
    else:
        print(text)


def exit_code_of(error: Error) -> int:
    """The exit code that an error means (DESIGN section 8)."""
    if isinstance(error, _REFUSALS):
        return EXIT_REFUSED
    if isinstance(error, (ConfigError, CaptureError)) and not isinstance(error, NativeError):
        return EXIT_USAGE
    return EXIT_INTERNAL


def report(error: Error, *, as_json: bool) -> int:
    """Print an error as one line (and as JSON if asked), and return the exit code."""
    kind, message = type(error).__name__, printable(str(error))
    if as_json:
        data = {
            "type": kind,
            "check": getattr(error, "check", None),
            "message": str(error),
            "data": _data_of(error),
        }
        print(json.dumps({"ok": False, "error": data}))
    refused = exit_code_of(error) == EXIT_REFUSED
    print(f"rootseal: {'refused: ' if refused else ''}{message}", file=sys.stderr)
    return exit_code_of(error)


def _data_of(error: Error) -> Mapping[str, object]:
    if isinstance(error, CaptureLost):
        return diagnostics.loss_details(error.counters)
    if isinstance(error, PostureError):
        return {"requested": error.requested, "achieved": error.achieved}
    return dict(getattr(error, "data", None) or {})


@contextlib.contextmanager
def progress(label: str, *, as_json: bool) -> Iterator[Optional[Callable[[int, int], None]]]:
    """A progress bar on a terminal; None where nobody would see it."""
    if as_json or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task(label, total=None, visible=False)

        def advance(done: int, total: int) -> None:
            bars.update(task, completed=done, total=total, visible=total >= _PROGRESS_ITEMS_MIN)

        yield advance


def add_json(parser: argparse.ArgumentParser) -> None:
    """The `--json` flag, the same for every command."""
    parser.add_argument("--json", action="store_true", help="print one JSON object")
