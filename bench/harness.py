"""Compare two or more ways of doing something: alternating runs, medians, ratios, JSON.

A benchmark is a script that builds `Variant`s and calls `compare`. Runs alternate (A B A B …), so
that a slow moment of the machine hits all variants alike; the ratio is of medians of one session.
Results go to build/bench/NAME.json with machine, kernel, commit and command, and from there to
docs/benchmarks.md (bench/report.py). Benchmarks report; they never gate. Stdlib only.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Callable, Mapping, Optional, Sequence

REPO = Path(__file__).resolve().parent.parent
RESULTS = REPO / "build" / "bench"
RUNS_MAX = 10_000


@dataclasses.dataclass(frozen=True)
class Variant:
    """One way to do the work.

    Attributes:
        name: Short, for the table. The first variant is the baseline of the ratios.
        run: Does the work once. Returns the seconds it took, or None to have it timed here.
        prepare: Called before each run and not timed; None if nothing is to be done.
    """

    name: str
    run: Callable[[], Optional[float]]
    prepare: Optional[Callable[[], None]] = None


@dataclasses.dataclass(frozen=True)
class Goal:
    """What a variant should reach. It is reported, it never gates.

    Attributes:
        variant: Name of the variant.
        at_most: Largest value that is good.
        unit: `×`, the ratio to the first variant; `s more`, the difference of medians; `s`, the
            median itself.
    """

    variant: str
    at_most: float
    unit: str = "×"

    def judged(self, rows: Mapping[str, Mapping[str, float]]) -> Mapping[str, object]:
        """With what was measured; it is judged before it is rounded for the table."""
        row, first = rows[self.variant], next(iter(rows.values()))
        more = row["medianSeconds"] - (first["medianSeconds"] if self.unit == "s more" else 0)
        measured = row["ratio"] if self.unit == "×" else more
        return {
            "variant": self.variant,
            "goal": f"at most {self.at_most:g}{'' if self.unit == '×' else ' '}{self.unit}",
            "measured": round(measured, 4),
            "met": measured <= self.at_most,
        }


def timed(variant: Variant) -> float:
    """Seconds of one run of a variant."""
    if variant.prepare is not None:
        variant.prepare()
    started = time.perf_counter()
    seconds = variant.run()
    return time.perf_counter() - started if seconds is None else seconds


def alternate(
    variants: Sequence[Variant], runs: int, warmups: int = 1
) -> Mapping[str, list[float]]:
    """Run all variants in turn, `runs` times each, after `warmups` turns that do not count.

    Args:
        variants: At least one; names are distinct.
        runs: Counted runs of each, 1 to `RUNS_MAX`.
        warmups: Turns before counting starts.

    Returns:
        Seconds of each counted run, by variant name, in order.
    """
    if not 1 <= runs <= RUNS_MAX:
        raise ValueError(f"runs must be 1 to {RUNS_MAX}, not {runs}")
    if len({variant.name for variant in variants}) != len(variants):
        raise ValueError("variants need distinct names")
    samples: dict[str, list[float]] = {variant.name: [] for variant in variants}
    for turn in range(warmups + runs):
        for variant in variants:
            seconds = timed(variant)
            if turn >= warmups:
                samples[variant.name].append(seconds)
    return samples


def peak_memory_mib() -> int:
    """The largest resident size that this process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def first_line(path: str, prefix: str) -> str:
    """Value of the first `prefix: value` line of a file; empty if there is none."""
    for line in Path(path).read_text("utf-8", "replace").splitlines():
        if line.startswith(prefix):
            return line.partition(":")[2].strip()
    return ""


def machine() -> Mapping[str, object]:
    """What a number must be quoted with."""
    git = ["git", "-C", str(REPO)]
    commit = subprocess.run(
        [*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=False
    )
    status = subprocess.run(
        [*git, "status", "-s", "-uno"], capture_output=True, text=True, check=False
    )
    return {
        "cpu": first_line("/proc/cpuinfo", "model name"),
        "cpus": os.cpu_count(),
        "memory": first_line("/proc/meminfo", "MemTotal"),
        "kernel": platform.release(),
        "architecture": platform.machine(),
        "python": platform.python_version(),
        "commit": commit.stdout.strip() or "unknown",
        "dirty": bool(status.stdout.strip()),
    }


def summary(samples: Mapping[str, Sequence[float]]) -> Mapping[str, Mapping[str, float]]:
    """Median, least and largest per variant, and the ratio to the first variant's median."""
    result: dict[str, Mapping[str, float]] = {}
    base = statistics.median(next(iter(samples.values())))
    for name, values in samples.items():
        middle = statistics.median(values)
        result[name] = {
            "medianSeconds": middle,
            "minSeconds": min(values),
            "maxSeconds": max(values),
            "ratio": middle / base if base else float("nan"),
        }
    return result


def compare(
    name: str,
    question: str,
    variants: Sequence[Variant],
    *,
    runs: int,
    warmups: int = 1,
    facts: Optional[Mapping[str, object]] = None,
    goals: Sequence[Goal] = (),
) -> Mapping[str, object]:
    """Alternate the variants, print the table, write build/bench/NAME.json.

    Args:
        name: File name of the result, without suffix.
        question: The one question that this benchmark answers.
        variants: The first is the baseline.
        runs: Counted runs per variant.
        warmups: Turns before counting starts.
        facts: Further measured facts worth keeping (events, peak memory, …).
        goals: What variants should reach.
    """
    samples = alternate(variants, runs, warmups)
    return save(name, question, summary(samples), facts=facts, samples=samples, goals=goals)


def save(
    name: str,
    question: str,
    variants: Mapping[str, Mapping[str, float]],
    *,
    facts: Optional[Mapping[str, object]] = None,
    samples: Optional[Mapping[str, Sequence[float]]] = None,
    goals: Sequence[Goal] = (),
) -> Mapping[str, object]:
    """Write a result (also one that was not measured by `compare`) and print it."""
    judged = [goal.judged(variants) for goal in goals]
    document = {
        "name": name,
        "question": question,
        "measuredAt": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "machine": machine(),
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "variants": variants,
        "facts": dict(facts or {}),
        "samples": samples or {},
        "goals": judged,
    }
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(document, indent=1) + "\n", "utf-8")
    print(question)
    for variant, row in variants.items():
        print(f"  {variant:<28} {row['medianSeconds'] * 1000:10.2f} ms  {row['ratio']:6.2f}×")
    for fact, value in document["facts"].items():  # type: ignore[attr-defined]
        print(f"  {fact}: {value}")
    for goal in judged:
        verdict = "met" if goal["met"] else "MISSED"
        print(f"  goal of {goal['variant']}: {goal['goal']}: {verdict}")
    return document
