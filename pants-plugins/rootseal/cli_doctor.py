"""`rootseal doctor`: what this host can capture, and what to do about what it cannot."""

from __future__ import annotations

import argparse
import dataclasses
import json
from typing import Any

from rootseal.cli_output import add_json, printable
from rootseal.doctor import Diagnosis, diagnose
from rootseal.observation import Posture


def register(subparsers: Any) -> None:
    """Add `doctor`."""
    parser = subparsers.add_parser("doctor", help="what this host can capture, and the remedies")
    add_json(parser)
    parser.set_defaults(handler=run)


def run(arguments: argparse.Namespace) -> int:
    """Show the diagnosis; 0 if an action of this user would be captured `held`, else 1."""
    found = diagnose()
    if arguments.json:
        print(json.dumps(document(found)))
    else:
        _show(found)
    return 0 if is_good(found) else 1


def is_good(found: Diagnosis) -> bool:
    """Whether nothing that is needed is missing, and openers would be held."""
    needed = all(finding.good for finding in found.findings if finding.needed)
    return needed and found.posture.rank >= Posture.HELD.rank


def document(found: Diagnosis) -> dict[str, object]:
    """The diagnosis for machines."""
    return {
        "ok": is_good(found),
        "posture": found.posture.value,
        "reason": found.reason,
        "postures": found.postures,
        "findings": [dataclasses.asdict(finding) for finding in found.findings],
    }


def _show(found: Diagnosis) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for name in ("", "what", "found", "remedy"):
        table.add_column(name, overflow="fold")
    for finding in found.findings:
        mark = (
            "[green]yes[/]" if finding.good else "[red]no[/]" if finding.needed else "[yellow]no[/]"
        )
        cells = (finding.name, finding.found, finding.remedy)
        table.add_row(mark, *(escape(printable(cell)) for cell in cells))
    console = Console()
    console.print(table)
    text = f"an action of this user is captured with posture {found.posture.value}"
    if found.reason:
        text += f": {found.reason}"
    console.print(escape(printable(text)))
