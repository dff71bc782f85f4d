"""The ledger of an action: two witnesses compared (docs/predicate.md). Pure."""

from __future__ import annotations

from typing import Dict, Optional

from rootseal import schema
from rootseal.errors import StatementError
from rootseal.observation import Ledger

REASONS_MAX = 64
_REASONS = schema.map_of(schema.integer(), REASONS_MAX)
LEDGER_SHAPE = schema.nullable(
    schema.object_of(
        {
            "files": schema.integer(),
            "hashed": schema.integer(),
            "excluded": _REASONS,
            "unhashed": _REASONS,
        }
    )
)
PROGRAMS_SHAPE = schema.nullable(  # of eBPF: observation.TracePrograms
    schema.object_of(
        {"loader": schema.text(64), "opens": schema.text(64), "reason": schema.text(4096)}
    )
)


def ledger_document(ledger: Optional[Ledger]) -> Optional[Dict[str, object]]:
    """The comparison of two witnesses; null where there was one."""
    if ledger is None:
        return None
    return {
        "files": ledger.files,
        "hashed": ledger.hashed,
        "excluded": dict(ledger.excluded),
        "unhashed": dict(ledger.unhashed),
    }


def check(value: object) -> None:
    """Check that every file of a ledger is in one of its places; its shape has been checked.

    Raises:
        StatementError: The numbers do not add up.
    """
    if value is None:
        return
    ledger = schema.as_object(value)
    parts = schema.as_integer(ledger["hashed"])
    for name in ("excluded", "unhashed"):
        parts += sum(schema.as_integer(n) for n in schema.as_object(ledger[name]).values())
    if parts != ledger["files"]:
        raise StatementError(f"predicate.ledger.files is {ledger['files']}, its parts are {parts}")
