"""What `rootseal daemon status` prints for people; `--json` has the same as data."""

from __future__ import annotations

import shlex
from typing import Iterator, List, Mapping, Sequence

ROWS_SHOWN = 20


def status_lines(status: Mapping[str, object]) -> List[str]:
    """The lines of a status; a field of a newer daemon is shown as well as it can be."""
    lines: List[str] = []
    for name, value in status.items():
        if name == "options" and isinstance(value, list):
            lines.append(f"{name}: {shlex.join(str(item) for item in value) or 'none'}")
        elif name == "trace" and isinstance(value, dict):
            lines += _trace(value)
        elif name == "activity" and isinstance(value, list):
            lines += _activity(value)
        else:
            lines.append(f"{name}: {_text(value)}")
    return lines


def _text(value: object) -> str:
    if value is None or value == "":
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        return ", ".join(f"{name} {_text(item)}" for name, item in value.items()) or "none"
    if isinstance(value, list):
        return "; ".join(_text(item) for item in value) or "none"
    return str(value)


def _trace(trace: Mapping[str, object]) -> Iterator[str]:
    yield f"trace: {_text({key: item for key, item in trace.items() if key != 'programs'})}"
    programs = trace.get("programs")
    for item in programs if isinstance(programs, list) else ():
        if isinstance(item, dict):
            state = "attached" if item.get("attached") else f"not attached, {item.get('reason')}"
            yield f"  {item.get('name')}: {state}"


def _activity(rows: Sequence[object]) -> Iterator[str]:
    """The running actions, those that hash large files first, as the daemon orders them."""
    yield f"activity: {'' if rows else 'none'}".rstrip()
    for row in rows[:ROWS_SHOWN]:
        if not isinstance(row, dict):
            continue
        hashed, files = row.get("bytesHashed"), row.get("longHashes")
        text = (
            f"  launcher {row.get('launcher')}: {row.get('events')} events, {hashed} bytes hashed"
        )
        if files:
            text += f", hashing {files} large files of {row.get('longBytes')} bytes now"
        yield text
    if len(rows) > ROWS_SHOWN:
        yield f"  and {len(rows) - ROWS_SHOWN} more"
