"""`rootseal doctor`: what this host can capture, and what to do about what it cannot."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from typing import Any, List, Sequence

from rootseal.canonical import path_text
from rootseal.cli_output import add_json, printable
from rootseal.doctor import Diagnosis, diagnose
from rootseal.doctor_mounts import MountFinding, look_at_mounts, rows
from rootseal.observation import Posture


def register(subparsers: Any) -> None:
    """Add `doctor`."""
    parser = subparsers.add_parser("doctor", help="what this host can capture, and the remedies")
    add_json(parser)
    parser.set_defaults(handler=run)


def run(arguments: argparse.Namespace) -> int:
    """Show the diagnosis; 0 if an action of this user would be captured `held`, else 1."""
    found = diagnose()
    mounts = look_at_mounts(found.posture)
    if arguments.json:
        print(json.dumps({**document(found), "mounts": mounts_document(mounts)}))
    else:
        _show(found, mounts)
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


def mounts_document(mounts: Sequence[MountFinding]) -> list[dict[str, object]]:
    """The mounts for machines."""
    return [
        {
            "mountPoint": path_text(item.mount.mount_point),
            "filesystem": item.mount.filesystem,
            "posture": item.posture.value,
            "reason": item.mount.reason,
            "fsVerity": item.can_seal,
            "comparedAtAccess": item.mount.compared_at_access,
        }
        for item in mounts
    ]


def plain(found: Diagnosis, mounts: Sequence[MountFinding]) -> List[str]:
    """For a pipe or a file: a finding is one line, its remedy one more, and none is folded."""
    lines = []
    for finding in found.findings:
        lines.append(f"{'yes' if finding.good else 'no'}\t{finding.name}: {finding.found}")
        if finding.remedy:
            lines.append(f"\tremedy: {finding.remedy}")
    lines += ["\t".join(("mount", *row)) for row in rows(mounts)]
    lines.append(_conclusion(found))
    return ["\t".join(printable(part) for part in line.split("\t")) for line in lines]


def _conclusion(found: Diagnosis) -> str:
    text = f"an action of this user is captured with posture {found.posture.value}"
    return f"{text}: {found.reason}" if found.reason else text


def _show(found: Diagnosis, mounts: Sequence[MountFinding]) -> None:
    if not sys.stdout.isatty():
        print("\n".join(plain(found, mounts)))
        return
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
    places = Table(box=None, pad_edge=False)
    for name in ("mount", "filesystem", "posture of its files", "fs-verity"):
        places.add_column(name, overflow="fold")
    for row in rows(mounts):
        places.add_row(*(escape(printable(cell)) for cell in row))
    console.print(places)
    console.print(escape(printable(_conclusion(found))))
