"""Values of [rootseal] options that the plugin refuses: those that the core would refuse, too."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rootseal.capture import scope
from rootseal.daemon_announce import CAPTURE_MODES
from rootseal.errors import ConfigError
from rootseal.toolchain import ToolScope
from rootseal_pants import option_values
from rootseal_pants.option_values import check_values

REPO = Path(__file__).resolve().parents[2]
GOOD = {
    "capture_mode": "auto",
    "toolchain_scope": "all",
    "max_digests": 1,
    "max_record_bytes": 2**30,
    "max_hashed_bytes": 2**62,
    "records_max_bytes": 0,
    "descendants": "kill:0",
    "out": "attestations/rootseal",
    "daemon_socket": "/" + "s" * 106,
}
BAD = [
    ("capture_mode", "", "one of auto, walk, "),
    ("capture_mode", "fanotify", "trace:ptrace, ima, not 'fanotify'"),
    ("toolchain_scope", "some", "one of executed, all, not 'some'"),
    ("max_digests", 0, "from 1 to 16777216, not 0"),
    ("max_digests", 2**24 + 1, "from 1 to 16777216"),
    ("max_record_bytes", -1, "from 1 to 1073741824"),
    ("max_hashed_bytes", 0, "from 1 to "),
    ("records_max_bytes", -1, "from 0 to "),
    *(("descendants", text, "`wait`, or `kill:SECONDS`") for text in ("", "kill", "kill:", "stop")),
    ("descendants", "kill:-1", "with at most 86400"),
    ("descendants", "kill:86401", "with at most 86400"),
    ("descendants", "kill:٣", "with at most 86400"),
    *(
        ("out", text, "below the distribution directory")
        for text in ("", ".", "/x", "../x", "a/..")
    ),
    ("daemon_socket", "run/daemon.sock", "an absolute path"),
    ("daemon_socket", "/" + "s" * 107, "of at most 107 bytes"),
]


def options(**changes: object) -> Any:
    return SimpleNamespace(**{**GOOD, **changes})


@pytest.mark.parametrize(
    "changes", [{}, {"descendants": "wait"}, {"descendants": "kill:86400"}, {"daemon_socket": ""}]
)
def test_good_values_are_taken(changes: dict[str, object]) -> None:
    check_values(options(**changes))


@pytest.mark.parametrize(("name", "value", "right"), BAD)
def test_the_error_names_the_option_and_what_is_right(name: str, value: object, right: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_values(options(**{name: value}))
    assert str(caught.value).startswith(f"[rootseal].{name} must be ")
    assert right in str(caught.value)


def test_what_is_right_is_what_the_core_takes() -> None:
    assert option_values.CHOICES["capture_mode"] == CAPTURE_MODES
    assert set(option_values.CHOICES["toolchain_scope"]) == {item.value for item in ToolScope}
    assert option_values.RANGES["max_digests"] == (1, scope.DIGESTS_MAX_LIMIT)
    assert option_values.RANGES["max_record_bytes"] == (1, scope.RECORD_BYTES_MAX_LIMIT)
    assert scope.CaptureLimits(max_hashed_bytes=2**62).max_hashed_bytes == 2**62
    with pytest.raises(ConfigError):
        scope.CaptureLimits(max_hashed_bytes=2**62 + 1)
    launcher = (REPO / "native" / "launcher" / "args.c").read_text("utf-8")
    assert f"#define SECONDS_MAX {option_values.KILL_SECONDS_MAX}\n" in launcher
