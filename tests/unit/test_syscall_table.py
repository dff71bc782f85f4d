"""docs/backends.md lists every difference of the table, and no other."""

from __future__ import annotations

from pathlib import Path

from syscall_table import TABLE

PAGE = Path(__file__).resolve().parents[2] / "docs" / "backends.md"


def rows() -> set[str]:
    """The lines that the page must have."""
    return {
        f"| `{name}` | {', '.join(unlike.backends)} | {unlike.why} |"
        for name, row in TABLE.items()
        for unlike in row.unlike
    }


def test_page_lists_the_differences_of_the_table() -> None:
    text = PAGE.read_text(encoding="utf-8").partition("<!-- differences")[2].partition("\n\n## ")[0]
    listed = {line for line in text.splitlines() if line.startswith("| `")}
    assert listed == rows()
