"""What capture adds to real Pants: a build with cold caches, Pants' start, a run without changes.

Packages examples/ of this checkout with Pants' directories in a temporary place. Needs `make
setup build` and the package index.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Callable, Optional

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "integration"))

from harness import REPO, Goal, Variant, compare
from pants_repo import PantsRepo, find_executables

ON, OFF = "--rootseal-enabled", "--no-rootseal-enabled"


class Bench:
    """Pants in this checkout, with directories that can be made new."""

    def __init__(self, base: Path) -> None:
        pants, rootseal = find_executables()
        self.base = base
        self.number = 0
        self.pants, self.rootseal = pants, rootseal
        self.repo = self._fresh()

    def _fresh(self) -> PantsRepo:
        self.number += 1
        home = self.base / f"home{self.number}"
        home.mkdir()
        repo = PantsRepo(REPO, home, self.pants, self.rootseal)
        repo.dist = REPO / "build" / "bench-dist"
        repo.options["PANTS_ROOTSEAL_EXECUTABLE"] = str(self.rootseal)
        repo.options["PANTS_ROOTSEAL_DAEMON_SOCKET"] = str(self.base / "run" / "daemon.sock")
        return repo

    def renew(self) -> None:
        """Forget every cache, and have a new pantsd ready."""
        self.repo.stop_pantsd()
        shutil.rmtree(self.repo.home)
        self.repo = self._fresh()
        self.repo.run("roots").succeeded()

    def package(self, switch: str) -> Callable[[], Optional[float]]:
        """Package the examples."""
        return lambda: self._timed(switch, "package", "examples::")

    def start(self, *options: str) -> Callable[[], Optional[float]]:
        """Start Pants without its daemon, and do next to nothing."""
        return lambda: self._timed("--no-pantsd", *options, "roots")

    def _timed(self, *arguments: str) -> float:
        started = time.perf_counter()
        self.repo.run(*arguments).succeeded()
        return time.perf_counter() - started


def main() -> int:
    """Run the three comparisons."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="?", type=int, default=3, help="default: %(default)s")
    runs = parser.parse_args().runs
    with tempfile.TemporaryDirectory(prefix="rootseal-bench-") as base:
        bench = Bench(Path(base))
        try:
            compare(
                "pants_cold",
                "Packaging examples/ with cold caches and pantsd up",
                [
                    Variant("plain", bench.package(OFF), bench.renew),
                    Variant("captured", bench.package(ON), bench.renew),
                ],
                runs=runs,
                warmups=0,
                goals=[Goal("captured", 1.2)],
            )
            compare(
                "pants_memoized",
                "A second run without changes",
                [Variant("plain", bench.package(OFF)), Variant("captured", bench.package(ON))],
                runs=runs,
                goals=[Goal("captured", 1.0, "s more")],
            )
            compare(
                "pants_start",
                "Starting Pants without pantsd",
                [
                    Variant(
                        "without the plugin", bench.start("--backend-packages=-['rootseal_pants']")
                    ),
                    Variant("with the plugin", bench.start()),
                ],
                runs=runs,
                goals=[Goal("with the plugin", 3.0, "s more")],
            )
        finally:
            bench.repo.stop_pantsd()
            socket = str(Path(base) / "run" / "daemon.sock")
            bench.repo.command("daemon", "stop", "--socket", socket)
            shutil.rmtree(REPO / "build" / "bench-dist", ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
