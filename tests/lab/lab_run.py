"""Run the kernel lab: every boot, every row, and keep the results for test_lab.py.

Usage: python tests/lab/lab_run.py [--only BOOT]… [--filesystem NAME] [--tests FILE]…

--tests runs other tests in the rows that are left, for example real Pants on ext4 with verity:
--only 6.12-nobpf --filesystem ext4 --tests tests/integration/test_fsverity_pants.py

Exit code 0 once there are results, whatever they say (test_lab.py judges them); 2 if the lab
itself cannot run here, with what to do.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import dataclasses
import datetime
import os
import subprocess
import sys
import time
from typing import Any

from lab_arm64 import make_root
from lab_host import run_host
from lab_kernels import LAB, REPO, Kernel, LabError, fetch, require_tools
from lab_programs import PROGRAMS, build_programs
from lab_results import RESULTS, boot_document, write_results
from lab_rows import BOOTS, Boot, Row, rows_of
from lab_vm import is_fault_of_emulation, run_boot

GUESTS_AT_ONCE = 2  # each keeps about one processor busy, and has 3 GiB of memory
ROW_SECONDS = 1800  # guards against a hang; a row takes one to five minutes on a quiet machine


def commit() -> str:
    """The commit that is tested, with a mark if files differ from it."""
    done = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=12"],
        cwd=REPO,
        capture_output=True,
        text=True,
    )
    return done.stdout.strip() or "unknown"


def run_one(boot: Boot, rows: tuple[Row, ...], kernels: dict[str, Kernel]) -> dict[str, Any]:
    """Run one boot and say how it went."""
    seconds = int(os.environ.get("ROOTSEAL_LAB_ROW_SECONDS", ROW_SECONDS))
    if boot.series is None:
        result = run_host(rows, seconds)
    else:
        result = run_boot(boot, kernels[boot.series], rows, row_seconds=seconds)
        if is_fault_of_emulation(boot.name):
            print(f"lab: {boot.name}: the emulation failed (int3); once more", flush=True)
            result = run_boot(boot, kernels[boot.series], rows, row_seconds=seconds)
    document = boot_document(boot.name, result, rows)
    tests = [test for row in document["rows"].values() for test in row["tests"]]
    counts = {o: sum(t["outcome"] == o for t in tests) for o in ("passed", "failed", "skipped")}
    state = "booted" if result["booted"] else "DID NOT BOOT"
    counted = ", ".join(f"{count} {outcome}" for outcome, count in counts.items())
    print(
        f"lab: {boot.name}: {state}, {result['seconds']} s "
        f"({result['processorSeconds']} s of processors), {counted}",
        flush=True,
    )
    return document


def chosen_rows(boot: str, options: argparse.Namespace) -> tuple[Row, ...]:
    """The rows of a boot that the options leave, with other tests if they say so."""
    if options.only and boot not in options.only:
        return ()
    rows = rows_of(boot)
    if options.filesystem:
        rows = tuple(row for row in rows if row.filesystem == options.filesystem)
    if options.tests:
        rows = tuple(dataclasses.replace(row, tests=tuple(options.tests)) for row in rows)
    return rows


def run(options: argparse.Namespace) -> None:
    """Run the boots, two machines at once, and the host's own rows beside them."""
    started, when = time.monotonic(), datetime.datetime.now(datetime.timezone.utc)
    rows = {b.name: chosen_rows(b.name, options) for b in BOOTS}
    boots = [b for b in BOOTS if rows[b.name]]
    if not boots:
        raise LabError("no row is left by these options; tests/lab/lab_rows.py lists them")
    (LAB / "run").mkdir(parents=True, exist_ok=True)
    RESULTS.unlink(missing_ok=True)
    require_tools()
    kernels = {series: fetch(series) for series in sorted({b.series for b in boots if b.series})}
    if any(kernel.architecture == "arm64" for kernel in kernels.values()):
        make_root()
    build_programs(PROGRAMS)
    prepared = time.monotonic()
    host = [b for b in boots if b.series is None]
    guests = [b for b in boots if b.series is not None]
    with concurrent.futures.ThreadPoolExecutor(max_workers=GUESTS_AT_ONCE) as pool:
        futures = {b.name: pool.submit(run_one, b, rows[b.name], kernels) for b in guests}
        documents = {b.name: run_one(b, rows[b.name], kernels) for b in host}
        documents.update({name: future.result() for name, future in futures.items()})
    write_results(
        {
            "version": 1,
            "whole": not (options.only or options.filesystem or options.tests),
            "commit": commit(),
            "startedAt": when.strftime("%Y-%m-%dT%H:%M:%SZ"),
            "seconds": round(time.monotonic() - started, 1),
            "preparation": round(prepared - started, 1),
            "boots": {b.name: documents[b.name] for b in boots},
        }
    )


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description="Run the kernel lab.")
    parser.add_argument("--only", action="append", default=[], choices=[b.name for b in BOOTS])
    parser.add_argument("--filesystem", help="only the rows on this filesystem")
    parser.add_argument("--tests", action="append", default=[], help="these instead of a row's own")
    options = parser.parse_args()
    try:
        run(options)
    except LabError as error:
        print(f"lab: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
