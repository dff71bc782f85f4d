"""What `rootseal run` says while its command waits."""

from __future__ import annotations

from typing import Any, Dict

import pytest
from rootseal.cli_progress import waiting_text

IDLE: Dict[str, Any] = {"activity": [], "actions": {"running": 1, "queued": 0}, "groupsAwaited": 0}
OTHER = {"launcher": 8, "events": 1, "bytesHashed": 0, "longHashes": 1, "longBytes": 9}


def row(files: int, size: int) -> Dict[str, int]:
    return {
        "launcher": 7,
        "events": 5,
        "bytesHashed": 3 << 20,
        "longHashes": files,
        "longBytes": size,
    }


@pytest.mark.parametrize(
    ("changed", "text"),
    [
        ({}, ""),
        ({"activity": [OTHER, row(0, 0)]}, ""),
        (
            {"activity": [OTHER, row(1, 4 << 30)]},
            "hashing a large file of 4.0 GiB before it is read (3.0 MiB done)",
        ),
        (
            {"activity": [row(2, 1000)]},
            "hashing 2 large files of 1000 B before it is read (3.0 MiB done)",
        ),
        ({"groupsAwaited": 1}, "waiting for a fanotify group: "),
        ({"actions": {"running": 9, "queued": 3}}, "waiting in line: 3 actions"),
        ({"activity": [row(0, 0)], "groupsAwaited": 1}, ""),
        ({"activity": None, "actions": None}, ""),
    ],
)
def test_the_text_says_what_the_action_waits_for(changed: Dict[str, Any], text: str) -> None:
    found = waiting_text({**IDLE, **changed}, 7)
    assert found.startswith(text) and bool(found) == bool(text)
