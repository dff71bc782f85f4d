"""What does it cost readers of very many files to have every open held and hashed?

Distinct files (cold and warm digest cache) by one, two and eight processes, the same files opened
again and again, and eight actions at once against one. Three floors stand beside them, of a handler
that records nothing (open_floor.c): one that only answers (what holding alone costs on this host),
one that asks for the state and the path of each file before it answers, and one that hashes it too.
What a capture has to know before it lets an opener go, it cannot know for less.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Callable, Dict, List, Tuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "pants-plugins"))

import harness
from rootseal import diagnostics
from rootseal.capture.fanotify import FanotifyEngine
from rootseal.capture.scope import CaptureLimits
from rootseal.observation import Observation

SOURCE = Path(__file__).with_name("open_many.c")
FLOOR_SOURCE = Path(__file__).with_name("open_floor.c")
BLOB_BYTES = 1 << 20
HELD, NAMED, HASHED = (
    "held and let go, nothing else",
    "held, state and path asked for",
    "held, state, path and SHA-256",
)
DISTINCT_GOALS = (
    harness.Goal("captured, cold cache", 4.8),
    harness.Goal("captured, warm cache", 3.0),
)
LIMITS = CaptureLimits(max_digests=2_000_000)


def make_files(directory: Path, count: int) -> int:
    """Files of 0.5 to 16 KiB in a hundred directories; the bytes of all."""
    chosen, total = random.Random(7), 0
    blob = os.urandom(BLOB_BYTES)
    for number in range(100):
        (directory / str(number)).mkdir(parents=True)
    for number in range(count):
        size = 512 + int(15872 * chosen.random() ** 1.75)
        start = chosen.randrange(0, BLOB_BYTES - size)
        path = directory / str(number % 100) / f"f{number}"
        path.write_bytes(blob[start : start + size])
        total += size
    os.sync()
    return total


@dataclasses.dataclass
class Work:
    """The reader and what it reads."""

    program: Path
    files: Path
    count: int
    repeats: int = 1
    processes: int = 1

    def argv(self, *more: int) -> List[str]:
        numbers = (self.count, self.repeats, self.processes, *more)
        return [str(self.program), str(self.files), *map(str, numbers)]

    def bare(self) -> float:
        return float(subprocess.run(self.argv(), capture_output=True, check=True).stdout)

    def floor(self, mode: str) -> float:
        """Seconds under a handler that does no more than `mode` of open_floor.c."""
        argv = [str(self.program.with_name("open_floor")), mode, *self.argv()]
        return float(subprocess.run(argv, capture_output=True, check=True).stdout)

    def captured(self, engine: FanotifyEngine) -> Tuple[float, Observation]:
        """Seconds of the reader's own clock, and what was seen."""
        ready, ready_write = os.pipe()
        go_read, go = os.pipe()
        child = subprocess.Popen(
            self.argv(ready_write, go_read), pass_fds=(ready_write, go_read), stdout=subprocess.PIPE
        )
        os.close(ready_write)
        os.close(go_read)
        if os.read(ready, 1) != b"x":
            raise RuntimeError("the reader did not start")
        with tempfile.TemporaryDirectory() as root:
            scope = engine.open_scope(pid=child.pid, root=os.fsencode(root), limits=LIMITS)
            os.write(go, b"x")
            seconds = float(child.communicate()[0])
            seen = scope.finish(outputs_files=(), outputs_dirs=())
        os.close(ready)
        os.close(go)
        return seconds, seen


def check(seen: Observation, count: int) -> None:
    """Refuse to report a number of a run that lost something."""
    lost = diagnostics.losses(seen.counters)
    if lost or seen.materials.tree_size < count:
        raise RuntimeError(f"lost: {lost}, {seen.materials.tree_size} of {count} materials")


def sha256_rate() -> float:
    """Bytes per second that one CPU hashes, the best of a few tries."""
    data, best = bytes(64 << 20), 0.0
    for _ in range(5):
        started = time.process_time()
        hashlib.sha256(data).digest()
        best = max(best, len(data) / (time.process_time() - started))
    return best


class Distinct:
    """Every file once: cold cache (a fresh engine), then again with what it knows."""

    def __init__(self, work: Work, *, compared: bool = True) -> None:
        self.work, self.compared = work, compared
        self.engine = self.fresh()
        self.cpu: Dict[str, List[float]] = {"cold": [], "warm": []}

    def fresh(self) -> FanotifyEngine:
        return FanotifyEngine(
            digest_cache_entries=4 * self.work.count, compare_at_access=self.compared
        )

    def measure(self, name: str) -> float:
        before = resource.getrusage(resource.RUSAGE_SELF)
        seconds, seen = self.work.captured(self.engine)
        after = resource.getrusage(resource.RUSAGE_SELF)
        check(seen, self.work.count)
        spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        self.cpu[name].append(spent / self.work.count * 1e6)
        return seconds

    def cold(self) -> float:
        self.engine.close()
        self.engine = self.fresh()
        return self.measure("cold")

    def warm(self) -> float:
        return self.measure("warm")


def distinct(work: Work, runs: int, size_bytes: int) -> None:
    bench, plain = Distinct(work), Distinct(work, compared=False)
    variants = [
        harness.Variant("bare", work.bare),
        harness.Variant(HELD, lambda: work.floor("held")),
        harness.Variant(NAMED, lambda: work.floor("named")),
        harness.Variant(HASHED, lambda: work.floor("hashed")),
        harness.Variant("captured, cold cache", bench.cold),
        harness.Variant("captured, warm cache", bench.warm),
        harness.Variant("cold cache, accesses not compared", plain.cold),
        harness.Variant("warm cache, accesses not compared", plain.warm),
    ]
    samples = harness.alternate(variants, runs)
    bench.engine.close()
    plain.engine.close()
    bare = statistics.median(samples["bare"])
    named, hashed = (statistics.median(samples[name]) for name in (NAMED, HASHED))
    hashing = size_bytes / sha256_rate()
    facts: Dict[str, object] = {
        "files": work.count,
        "bytes": size_bytes,
        "processes": work.processes,
        "lost": 0,
        "floor of hashing alone": f"{(bare + hashing) / bare:.2f}× (bare + SHA-256)",
        "floor, warm cache": f"{named / bare:.2f}× ({NAMED})",
        "floor, cold cache": f"{hashed / bare:.2f}× ({HASHED})",
        "peak memory of the capturing process, MiB": harness.peak_memory_mib(),
    }
    for name, values in samples.items():
        facts[f"µs per open, {name}"] = round(statistics.median(values) / work.count * 1e6, 2)
    for name, values in bench.cpu.items():
        facts[f"CPU µs per open of the core, {name}"] = round(statistics.median(values), 2)
    harness.save(
        "open_scale" if work.processes == 1 else f"open_scale_{work.processes}p",
        f"{work.count} distinct opens by {work.processes} process(es): captured against bare?",
        harness.summary(samples),
        facts=facts,
        samples=samples,
        goals=DISTINCT_GOALS if work.processes == 1 else (),
    )


def repeated(work: Work, runs: int) -> None:
    engine = FanotifyEngine(digest_cache_entries=4 * work.count)
    variants = [
        harness.Variant("bare", work.bare),
        harness.Variant("captured", lambda: work.captured(engine)[0]),
    ]
    question = f"{work.count} files opened {work.repeats} times each: captured against bare?"
    goals = [harness.Goal("captured", 1.7)]
    harness.compare("open_again", question, variants, runs=runs, goals=goals)
    engine.close()


def together(work: Work, actions: int, runs: int) -> None:
    """Wall time per open of several actions at once against one alone, and both against bare.

    Several readers share the CPUs also without capture, so that is measured too: what capture adds
    is the ratio to as many bare readers.
    """
    engine = FanotifyEngine(digest_cache_entries=4 * work.count)
    seen: List[Observation] = []

    def at_once(one: Callable[[], object], count: int) -> Callable[[], float]:
        def timed() -> float:
            threads = [threading.Thread(target=one) for _ in range(count)]
            started = time.perf_counter()
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            return (time.perf_counter() - started) / count / work.count

        return timed

    def captured() -> None:
        seen.append(work.captured(engine)[1])

    captured()  # the cache is warm for all
    samples = harness.alternate(
        [
            harness.Variant("one alone", at_once(captured, 1)),
            harness.Variant(f"each of {actions}", at_once(captured, actions)),
            harness.Variant("one alone, bare", at_once(work.bare, 1)),
            harness.Variant(f"each of {actions}, bare", at_once(work.bare, actions)),
        ],
        runs,
    )
    engine.close()
    for observation in seen:
        check(observation, work.count)
    medians = {name: statistics.median(values) for name, values in samples.items()}
    alone = medians["one alone"] / medians["one alone, bare"]
    all_of_them = medians[f"each of {actions}"] / medians[f"each of {actions}, bare"]
    harness.save(
        "open_together",
        f"{actions} actions at once, {work.count} opens each: wall time per open",
        harness.summary(samples),
        facts={
            "lost": 0,
            "one alone against bare": f"{alone:.2f}×",
            f"{actions} at once against {actions} bare": f"{all_of_them:.2f}×",
        },
        samples=samples,
        goals=[harness.Goal(f"each of {actions}", 1.3)],
    )


def main() -> None:
    """Build the reader, make the files, measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=100_000)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 8])
    parser.add_argument("--only", choices=("distinct", "repeated", "together"), default="")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="rootseal-bench-") as place:
        program = Path(place) / "open_many"
        compiler = ["gcc", "-O2", "-D_GNU_SOURCE", "-pthread"]
        for source in (SOURCE, FLOOR_SOURCE):
            output = ["-o", str(Path(place) / source.stem), "-lcrypto"]
            subprocess.run([*compiler, source, *output], check=True)
        files = Path(place) / "files"
        size_bytes = make_files(files, options.files)
        for processes in options.processes if options.only in ("", "distinct") else ():
            work = Work(program, files, options.files, processes=processes)
            distinct(work, options.runs, size_bytes)
        if options.only in ("", "repeated"):
            repeated(Work(program, files, options.files // 10, repeats=10), options.runs)
        if options.only in ("", "together"):
            together(Work(program, files, options.files // 5), 8, options.runs)


if __name__ == "__main__":
    main()
