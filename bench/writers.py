"""Are all products there, and at what cost? Short-lived writers, files left open, one burst."""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Callable, Dict, Tuple

REPO = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(REPO / name) for name in ("pants-plugins", "tests", "tests/kernel")]

import harness
from fanotify_action import Lab, build_fixture
from rootseal import diagnostics

FILES_AT_ONCE = 19_600
# Name of the result -> (what it is, the fixture's command, files)
WORKS: Dict[str, Tuple[str, str, int]] = {
    "writers_short": ("5,000 writers of one file each", "write-fork", 5000),
    "writers_exit": ("2,000 files that are open when their writer exits", "leave-open", 2000),
    "writers_burst": ("19,500 files closed at once", "leave-open", 19_500),
}


class Work:
    """One way of writing, again and again in new directories."""

    def __init__(self, lab: Lab, place: Path, command: str, count: int) -> None:
        """Nothing is made yet."""
        self.lab, self.place, self.command, self.count = lab, place, command, count
        self.number = 0
        self.products = 0

    def _directory(self) -> Path:
        self.number += 1
        directory = self.place / str(self.number)
        directory.mkdir()
        return directory

    def bare(self) -> float:
        """Seconds without a scope."""
        directory = self._directory()
        started = time.perf_counter()
        argv = [str(self.lab.fixture), self.command, ".", str(self.count)]
        subprocess.run(argv, cwd=directory, check=True)
        return time.perf_counter() - started

    def captured(self) -> float:
        """Seconds with one; refuses a run that lost a product."""
        directory = self._directory()
        argv = [self.lab.fixture, self.command, ".", str(self.count)]
        started = time.perf_counter()
        seen = self.lab.run(directory, argv)
        seconds = time.perf_counter() - started
        self.products = len(seen.products)
        lost = diagnostics.losses(seen.counters)
        if seen.exit_code or lost or self.products != self.count:
            raise RuntimeError(f"{self.products} of {self.count} products, lost: {lost}")
        return seconds


def compare(lab: Lab, name: str, runs: int) -> None:
    """One of `WORKS`."""
    question, command, count = WORKS[name]
    with tempfile.TemporaryDirectory(prefix="rootseal-bench-") as place:
        work = Work(lab, Path(place), command, count)
        ways: Tuple[Tuple[str, Callable[[], float]], ...] = (
            ("bare", work.bare),
            ("captured, with the end", work.captured),
        )
        variants = [harness.Variant(way, run) for way, run in ways]
        samples = harness.alternate(variants, runs)
        harness.save(
            name,
            f"{question}: captured against bare?",
            harness.summary(samples),
            facts={"products": f"{work.products} of {count} (100%)", "lost": 0},
            samples=samples,
        )


def main() -> None:
    """All of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < FILES_AT_ONCE:
        sys.exit(f"bench: needs {FILES_AT_ONCE} open files; raise the limit (ulimit -Hn)")
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    with tempfile.TemporaryDirectory(prefix="rootseal-bench-") as place:
        lab = Lab(build_fixture(Path(place)), digest_cache_entries=65_536)
        for name in WORKS:
            compare(lab, name, options.runs)
        lab.engine.close()


if __name__ == "__main__":
    main()
