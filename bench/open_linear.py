"""Does the cost of an open grow with their number? 62,500 to 1,000,000 distinct files, cold cache.

One run each; the ratios are to the bare run of as many. Files of 512 bytes, so that a million fit
on a small disk.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Dict, Mapping, Tuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "pants-plugins"))

import harness
from open_scale import SOURCE, Work, check
from rootseal.capture.fanotify import FanotifyEngine

FILE_BYTES = 512


def make_files(directory: Path, count: int) -> None:
    """Small files in a hundred directories."""
    for number in range(100):
        (directory / str(number)).mkdir(parents=True)
    content = os.urandom(FILE_BYTES)
    for number in range(count):
        name = f"{directory}/{number % 100}/f{number}"
        descriptor = os.open(name, os.O_WRONLY | os.O_CREAT, 0o644)
        os.write(descriptor, number.to_bytes(8, "big") + content[8:])
        os.close(descriptor)
    os.sync()


def measure(work: Work) -> Tuple[float, float]:
    """Microseconds per open, bare and captured with a cold cache; nothing may be lost."""
    engine = FanotifyEngine(digest_cache_entries=2 * work.count)
    work.bare()  # from now on the files are in memory
    bare = work.bare()
    try:
        seconds, seen = work.captured(engine)
    finally:
        engine.close()
    check(seen, work.count)
    return bare / work.count * 1e6, seconds / work.count * 1e6


def main() -> None:
    """Make the files once, read more and more of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=1_000_000)
    options = parser.parse_args()
    rows: Dict[str, Mapping[str, float]] = {}
    with tempfile.TemporaryDirectory(prefix="rootseal-bench-") as place:
        program, files = Path(place) / "open_many", Path(place) / "files"
        subprocess.run(["gcc", "-O2", "-D_GNU_SOURCE", SOURCE, "-o", program], check=True)
        make_files(files, options.files)
        for count in (options.files // 16, options.files // 4, options.files):
            bare, captured = measure(Work(program, files, count))
            for name, micros in (("bare", bare), ("captured", captured)):
                times = dict.fromkeys(("medianSeconds", "minSeconds", "maxSeconds"), micros * 1e-6)
                rows[f"{count} files, {name}, per open"] = {**times, "ratio": micros / bare}
    harness.save(
        "open_linear",
        "Does the cost of an open grow with the number of files?",
        rows,
        facts={"lost": 0, "peak memory, MiB": harness.peak_memory_mib()},
    )


if __name__ == "__main__":
    main()
