"""Does a flood of opens in one action make another action's opens wait? Median of one open(2).

Beside the median of an action that is alone: the same while another action's processes open files
without a pause, once captured too, and once not captured, which shows what the CPUs alone cost.
"""

from __future__ import annotations

import argparse
import contextlib
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Callable, Iterator

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "pants-plugins"))

import harness
import open_scale
from rootseal.capture.fanotify import FanotifyEngine

PROBE = Path(__file__).with_name("open_latency.c")
FILES, PROBED = 4000, 2000
FLOODERS = 2


@contextlib.contextmanager
def flood(run: Callable[[], object]) -> Iterator[None]:
    """Do this again and again meanwhile."""
    stop = threading.Event()

    def again() -> None:
        while not stop.is_set():
            run()

    thread = threading.Thread(target=again)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args()
    engine = FanotifyEngine(digest_cache_entries=4 * FILES)
    with tempfile.TemporaryDirectory(prefix="rootseal-bench-") as place:
        base = Path(place)
        for source, name in ((PROBE, "open_latency"), (open_scale.SOURCE, "open_many")):
            subprocess.run(["gcc", "-O2", "-D_GNU_SOURCE", source, "-o", base / name], check=True)
        open_scale.make_files(base / "files", FILES)
        quiet = open_scale.Work(base / "open_latency", base / "files", PROBED)
        busy = open_scale.Work(
            base / "open_many", base / "files", FILES, repeats=3, processes=FLOODERS
        )

        def probe() -> float:
            return quiet.captured(engine)[0]

        def beside(run: Callable[[], object]) -> float:
            with flood(run):
                return probe()

        variants = [
            harness.Variant("alone", probe),
            harness.Variant("beside a flood, not captured", lambda: beside(busy.bare)),
            harness.Variant(
                "beside a flood, captured", lambda: beside(lambda: busy.captured(engine))
            ),
        ]
        question = "A flood of opens in one action: the median open of another"
        goals = [harness.Goal("beside a flood, captured", 2.0)]
        harness.compare("fairness", question, variants, runs=options.runs, goals=goals)
    engine.close()


if __name__ == "__main__":
    main()
