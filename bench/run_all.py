"""Run every benchmark in bench/ one after the other, then write docs/benchmarks.md.

A benchmark is any bench/*.py that imports the harness. One that fails is reported and makes the
exit code 1; the others still run.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path
from typing import Sequence

BENCH = Path(__file__).resolve().parent
NOT_BENCHMARKS = {"captured", "harness", "report", "run_all", "soak"}
TIMEOUT_SECONDS = 30 * 60


def benchmarks() -> list[Path]:
    """Every benchmark script, by name."""
    scripts = sorted(BENCH.glob("*.py"))
    return [path for path in scripts if path.stem not in NOT_BENCHMARKS and uses_harness(path)]


def uses_harness(path: Path) -> bool:
    """Whether a script is a benchmark: it imports the harness."""
    return "harness" in path.read_text("utf-8")


def run(script: Path, arguments: Sequence[str]) -> bool:
    """Run one benchmark; whether it succeeded."""
    print(f"\n=== bench/{script.name}", flush=True)
    try:
        argv = [sys.executable, str(script), *arguments]
        return subprocess.run(argv, check=False, timeout=TIMEOUT_SECONDS).returncode == 0
    except subprocess.TimeoutExpired:
        print(f"bench/{script.name}: not done after {TIMEOUT_SECONDS} s", file=sys.stderr)
        return False


def main() -> int:
    """Run what the command line names, or everything."""
    words = sys.argv[1:]
    cut = words.index("--") if "--" in words else len(words)
    parser = argparse.ArgumentParser(description=__doc__, usage="%(prog)s [NAME…] [-- ARGUMENTS]")
    parser.add_argument("names", nargs="*", metavar="NAME", help="default: all")
    wanted, arguments = set(parser.parse_args(words[:cut]).names), words[cut + 1 :]
    scripts = benchmarks()
    unknown = wanted - {path.stem for path in scripts}
    if unknown:
        known = ", ".join(path.stem for path in scripts)
        sys.exit(f"bench: no benchmark named {sorted(unknown)}; there are: {known}")
    chosen = [path for path in scripts if not wanted or path.stem in wanted]
    failed = [path.stem for path in chosen if not run(path, arguments)]
    subprocess.run([sys.executable, str(BENCH / "report.py")], check=True)
    if failed:
        print(f"bench: failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
