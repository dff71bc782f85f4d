"""How long measuring a sealed file takes, beside reading and hashing it. Reports, never gates.

In the lab's full run the file has 1 GiB; elsewhere ROOTSEAL_FIGURE_BYTES says, or it is small.
"""

from __future__ import annotations

import os
import statistics
import time
from pathlib import Path
from typing import Callable

import pytest
from rootseal import digest, fsverity

SIZE = int(os.environ.get("ROOTSEAL_FIGURE_BYTES", str(8 << 20)))
BLOCK = bytes(range(256)) * 4096


def seconds(work: Callable[[], object], repeat: int) -> float:
    found = []
    for _ in range(repeat):
        started = time.perf_counter()
        work()
        found.append(time.perf_counter() - started)
    return statistics.median(found)


def test_measuring_beside_hashing(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    if not fsverity.available(tmp_path):
        pytest.skip("optional: no fs-verity on the filesystem of the temporary files")
    path = tmp_path / "sealed"
    with path.open("wb") as file:
        for start in range(0, SIZE, len(BLOCK)):
            file.write(start.to_bytes(8, "big") + BLOCK[: min(len(BLOCK), SIZE - start) - 8])
    sealed = fsverity.seal_file(path)

    def measure() -> None:
        with path.open("rb") as file:
            assert fsverity.measure(file.fileno(), where=str(path)) == sealed.fsverity

    def hash_all() -> None:
        with path.open("rb", buffering=0) as file:
            assert digest.sha256_file(file) == (sealed.sha256, SIZE)

    measuring, hashing = seconds(measure, 201), seconds(hash_all, 1)
    record_property(
        "figure",
        f"a sealed file of {SIZE >> 20} MiB: opened and measured in {measuring * 1e6:.0f} µs, "
        f"read and hashed in {hashing:.2f} s ({hashing / measuring:,.0f} times as long)",
    )
