"""What does it cost to have files that change after their open compared when they are read?

With the comparison and without (docs/decisions/0012-compare-at-access.md), in turn, nothing being
changed: distinct small files with a cold and a warm digest cache, the same files again and again,
and a file that the action writes in many small pieces.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Dict, List

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "pants-plugins"))

import harness
from open_scale import SOURCE, Work, check, make_files
from rootseal.capture.fanotify import FanotifyEngine

WRITES = 20_000
WRITER = (
    "import os, sys, time\n"
    "os.write(int(sys.argv[1]), b'x'); os.read(int(sys.argv[2]), 1)\n"
    "started = time.perf_counter()\n"
    "fd = os.open(sys.argv[3], os.O_WRONLY | os.O_CREAT)\n"
    f"for _ in range({WRITES}): os.write(fd, b'x')\n"
    "print(time.perf_counter() - started)\n"
)


@dataclasses.dataclass
class Writer(Work):
    """Many small writes into one new file."""

    def argv(self, *more: int) -> List[str]:
        place = self.files / f"new{os.urandom(4).hex()}"
        enter = ["unshare", "--mount", "--propagation", "private"]
        return [*enter, sys.executable, "-c", WRITER, *map(str, more), str(place)]


def measure(name: str, what: str, work: Work, count: int, runs: int, *, cold: bool) -> None:
    """Alternate bare, without and with the comparison."""
    entries = 4 * max(work.count, 1 << 12)
    cpu: Dict[bool, List[float]] = {True: [], False: []}
    engines = {on: FanotifyEngine(digest_cache_entries=entries, compare_at_access=on) for on in cpu}

    def captured(on: bool) -> float:
        if cold:
            engines[on].close()
            engines[on] = FanotifyEngine(digest_cache_entries=entries, compare_at_access=on)
        before = time.process_time()
        seconds, seen = work.captured(engines[on])
        cpu[on].append(time.process_time() - before)
        check(seen, work.count)
        return seconds

    variants = [
        harness.Variant("without the comparison", lambda: captured(False)),
        harness.Variant("with it", lambda: captured(True)),
    ]
    samples = harness.alternate(variants, runs)
    for engine in engines.values():
        engine.close()
    facts: Dict[str, object] = {"calls": count}
    for variant, values in samples.items():
        middle = sorted(values)[len(values) // 2]
        facts[f"µs per call, {variant}"] = round(middle / count * 1e6, 2)
        facts[f"least µs per call, {variant}"] = round(min(values) / count * 1e6, 2)
    for on, values in cpu.items():
        word = "with it" if on else "without the comparison"
        middle = sorted(values)[len(values) // 2]
        facts[f"CPU µs of the core per call, {word}"] = round(middle / count * 1e6, 2)
    question = f"{what}: compared at each access against not?"
    harness.save(name, question, harness.summary(samples), facts=facts, samples=samples)


def main() -> None:
    """Build the reader, make the files, measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=20_000)
    parser.add_argument("--runs", type=int, default=9)
    options = parser.parse_args()
    if FanotifyEngine.probe_access() is not None:
        sys.exit("access_cost: this kernel has no FAN_PRE_ACCESS (Linux 6.14)")
    with tempfile.TemporaryDirectory(prefix="rootseal-bench-", dir=harness.REPO / "build") as place:
        program, files = Path(place) / "open_many", Path(place) / "files"
        subprocess.run(["gcc", "-O2", "-D_GNU_SOURCE", SOURCE, "-o", program], check=True)
        make_files(files, options.files)
        count, runs = options.files, options.runs
        work = Work(program, files, count)
        measure("access_cold", f"{count} distinct opens, cold cache", work, count, runs, cold=True)
        measure("access_warm", f"{count} distinct opens, warm cache", work, count, runs, cold=False)
        again = Work(program, files, count // 10, repeats=10)
        text = f"{count // 10} files opened ten times each"
        measure("access_again", text, again, count, runs, cold=False)
        writer = Writer(program, files, 0)
        measure("access_writes", f"{WRITES} small writes", writer, WRITES, runs, cold=False)


if __name__ == "__main__":
    main()
