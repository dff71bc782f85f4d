"""docs/predicate.md and docs/verification.md list exactly what the code has."""

from __future__ import annotations

import re
from pathlib import Path

from rootseal.checks import Check
from rootseal.diagnostics import COUNTERS

DOCS = Path(__file__).resolve().parents[2] / "docs"


def test_the_counter_table_is_the_one_in_the_code() -> None:
    text = (DOCS / "predicate.md").read_text("utf-8")
    rows = [
        f"| `{c.name}` | {'yes' if c.gating else 'no'} | {c.meaning} | {c.remedy} |"
        for c in COUNTERS
    ]
    found = [line for line in text.splitlines() if re.match(r"\| `\w+` \| (yes|no) \|", line)]
    assert found == rows


def test_the_check_table_is_the_one_in_the_code() -> None:
    text = (DOCS / "verification.md").read_text("utf-8")
    found = re.findall(r"^\| (\d+) \| ([A-Z_]+) \|", text, re.MULTILINE)
    assert found == [(str(check.value), check.name) for check in Check]
