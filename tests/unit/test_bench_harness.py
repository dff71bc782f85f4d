"""The benchmark harness: order of runs, what counts, what the page says."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

BENCH = Path(__file__).resolve().parent.parent.parent / "bench"


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"bench_{name}", BENCH / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


harness, report, soak = load("harness"), load("report"), load("soak")


def test_runs_alternate_and_warmups_do_not_count() -> None:
    order: list[str] = []

    def variant(name: str, seconds: float) -> object:
        def run() -> float:
            order.append(name)
            return seconds

        return harness.Variant(name, run)

    samples = harness.alternate([variant("a", 1.0), variant("b", 3.0)], runs=2, warmups=1)
    assert order == ["a", "b"] * 3
    assert samples == {"a": [1.0, 1.0], "b": [3.0, 3.0]}
    assert harness.summary(samples)["b"]["ratio"] == 3.0


def test_prepare_is_called_before_each_run() -> None:
    calls: list[str] = []
    variant = harness.Variant("a", lambda: calls.append("run"), lambda: calls.append("prepare"))
    samples = harness.alternate([variant], runs=2, warmups=0)
    assert calls == ["prepare", "run"] * 2
    assert all(seconds >= 0 for seconds in samples["a"])


@pytest.mark.parametrize("runs", [0, -1, 10_001])
def test_number_of_runs_has_limits(runs: int) -> None:
    with pytest.raises(ValueError, match="runs must be 1 to"):
        harness.alternate([harness.Variant("a", lambda: 0.0)], runs=runs)


def test_result_and_page_carry_where_it_was_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(harness, "RESULTS", tmp_path)
    harness.compare("x", "How long?", [harness.Variant("a", lambda: 0.002)], runs=3, facts={"n": 7})
    document = json.loads((tmp_path / "x.json").read_text())
    assert document["samples"] == {"a": [0.002] * 3}
    page = report.page([document])
    for wanted in (
        "## How long?",
        "| a | 2.0 ms |",
        "1.00×",
        "- n: 7",
        document["machine"]["kernel"],
    ):
        assert wanted in page


def test_goals_are_judged_and_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harness, "RESULTS", tmp_path)
    variants = [harness.Variant("a", lambda: 1.0), harness.Variant("b", lambda: 1.5)]
    goals = [
        harness.Goal("b", 1.5),
        harness.Goal("b", 1.4),
        harness.Goal("b", 0.5, "s more"),
        harness.Goal("b", 0.4, "s more"),
    ]
    for goal, met in zip(goals, (True, False, True, False)):
        document = harness.compare("x", "?", variants, runs=1, goals=[goal])
        assert document["goals"][0]["met"] is met
        assert (": met |" if met else "**missed** |") in report.page([document])


def test_page_without_results_says_so() -> None:
    assert "make bench" in report.page([])


@pytest.mark.parametrize(
    ("grown", "descriptors", "code"),
    [(0, 0, 0), (1 << 20, 8, 0), ((1 << 20) + 1, 0, 1), (0, 9, 1)],
)
def test_the_soak_fails_if_the_daemon_grows(grown: int, descriptors: int, code: int) -> None:
    warm, last = soak.Sample(50 << 20, 40), soak.Sample((50 << 20) + grown, 40 + descriptors)
    assert soak.judge(soak.Soaked(warm, last, 10, 1.0), 1 << 20) == code


def test_a_soak_that_was_too_short_to_tell_fails() -> None:
    assert soak.judge(soak.Soaked(None, soak.Sample(1, 1), 10, 1.0), 1 << 20) == 1


@pytest.mark.parametrize(
    "script",
    sorted(path.name for path in BENCH.glob("*.py") if path.stem not in ("captured", "harness")),
)
def test_each_script_says_how_it_is_called_and_does_nothing_else(script: str) -> None:
    page = (BENCH.parent / "docs" / "benchmarks.md").read_bytes()
    command = [sys.executable, str(BENCH / script), "--help"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.startswith(f"usage: {script} ")
    assert (BENCH.parent / "docs" / "benchmarks.md").read_bytes() == page
