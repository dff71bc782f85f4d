"""The C tests of the capture core under ASan and UBSan, and a short run of each fuzz target."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from capabilities import probe

NATIVE = Path(__file__).resolve().parents[2] / "native"


def make(*words: str) -> str:
    done = subprocess.run(
        ["make", "-s", "-C", str(NATIVE), *words], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return done.stdout


def test_core_under_the_sanitizers() -> None:
    out = make("asan")
    for name in (
        "test_capture",
        "test_containers",
        "test_dcache_hostile",
        "test_event_errors",
        "test_parsers",
        "test_queue_overflow",
        "test_records_scale",
        "trace_test_agg",
    ):
        assert f"asan: {name} " in out
    if probe("root").available and probe("fanotify").available:
        assert "skipped" not in out


@pytest.mark.requires("clang")
def test_fuzz_targets_start_clean() -> None:
    out = make("fuzz", "FUZZ_SECONDS=2")
    targets = sorted(path.stem for path in Path(__file__).parent.glob("fuzz_*.c"))
    assert re.findall(r"fuzz: (\w+) for", out) == targets
    assert out.count("stat::number_of_executed_units") == len(targets)
