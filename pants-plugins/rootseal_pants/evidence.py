"""What the plugin knows of one captured action, and its form as a label in Pants' node graph.

The node graph is the plugin's only index: Pants keeps a node for every action, memoized ones
included, so an action that is part of a build always brings its evidence, and nothing else does.
"""

from __future__ import annotations

import base64
import dataclasses
import json
from dataclasses import dataclass
from typing import Any, Mapping

from rootseal.errors import EncodingError

DESCRIPTION_CHARACTERS_MAX = 500


@dataclass(frozen=True)
class FileSummary:
    """Digest and size of a file or stream."""

    sha256: str
    size: int


@dataclass(frozen=True)
class Evidence:
    """An action whose result was accepted, and its record.

    Attributes:
        action_key: 64 hex digits.
        record: Name of the record; empty if the action has none (see `problem`).
        record_size: Size of the record in bytes.
        source: Where Pants had the result from: `ran`, `hit_locally` or `hit_remotely`.
        remote: Whether the process was to run by remote execution.
        run_id: The engine's number of the run in which the result was made.
        description: What Pants shows for the process, cut after some hundred characters.
        exit_code: As Pants reports it.
        stdout: Standard output.
        stderr: Standard error.
        problem: Why there is no record, or empty.
    """

    action_key: str
    record: str
    record_size: int
    source: str
    remote: bool
    run_id: int
    description: str
    exit_code: int
    stdout: FileSummary
    stderr: FileSummary
    problem: str = ""

    def label(self) -> str:
        """The evidence as letters, digits, `-` and `_`, so that it survives in a node label."""
        text = json.dumps(dataclasses.asdict(self), sort_keys=True, separators=(",", ":"))
        return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def evidence_from_label(label: str) -> Evidence:
    """Read a label that `Evidence.label` made."""
    try:
        padded = label + "=" * (-len(label) % 4)
        fields: Mapping[str, Any] = json.loads(base64.urlsafe_b64decode(padded))
        summaries = {name: FileSummary(**fields[name]) for name in ("stdout", "stderr")}
        return Evidence(**{**fields, **summaries})
    except (ValueError, TypeError, KeyError) as error:
        raise EncodingError(f"a node of Pants' graph has a malformed label: {error}") from error
