"""The rows of the host's own kernel: the same tests, run here."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import time
from typing import Any

from lab_guest import facts
from lab_kernels import LAB, REPO
from lab_rows import Row

TEMPORARY_FREE_BYTES = 1 << 30


def run_host(rows: tuple[Row, ...], row_seconds: int) -> dict[str, Any]:
    """Run the rows here; the same result as `lab_vm.run_boot`."""
    out = LAB / "run" / "host"
    out.mkdir(parents=True, exist_ok=True)
    started, before = time.monotonic(), processor_seconds()
    found = {row.filesystem: run_row(row, row_seconds) for row in rows}
    return {
        "booted": True,
        "reason": "",
        "seconds": round(time.monotonic() - started, 1),
        "processorSeconds": round(processor_seconds() - before, 1),
        "facts": facts(),
        "rows": found,
    }


def processor_seconds() -> float:
    """What this process's children have taken."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def run_row(row: Row, seconds: int) -> dict[str, Any]:
    """Run pytest for one row of the host."""
    stem = LAB / "run" / "host" / row.filesystem
    stem.with_suffix(".xml").unlink(missing_ok=True)
    if os.geteuid() != 0:
        reason = "the kernel tests need root on this host: sudo make lab"
        return {"status": None, "reason": reason, "seconds": 0.0}
    command = ["setpriv", "--pdeathsig", "KILL"]  # never outlives the run
    command += ["env", "--default-signal=INT,QUIT"]  # what a shell's `&` ignores
    # Those marked heavy run in `make test`, and take too long beside two emulated machines.
    command += [sys.executable, "-m", "pytest", "-v", "-p", "no:cacheprovider", "-m", "not heavy"]
    command += [f"--junitxml={stem}.xml", f"--basetemp={stem}.tmp", *row.tests]
    started = time.monotonic()
    with stem.with_suffix(".log").open("wb") as log:
        try:
            done = subprocess.run(
                command,
                cwd=REPO,
                env={
                    **os.environ,
                    "MUST_RUN": "",
                    "PYTHONPATH": str(REPO / "pants-plugins"),
                    "ROOTSEAL_LAB_EXPECTS": ",".join(row.expects),
                },
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                timeout=seconds,
            )
        except subprocess.TimeoutExpired:
            reason = f"stopped after {seconds} s"
            return {"status": None, "reason": reason, "seconds": float(seconds)}
    return {"status": done.returncode, "reason": "", "seconds": time.monotonic() - started}
