"""The kernel lab's results as ordinary tests: one per boot, per row, and per row and test.

`make lab` runs the machines first (lab_run.py) and then this file. A machine that did not boot and
a row without results are failures, never skips. A test that does not apply to a row says why.
"""

from __future__ import annotations

from typing import Any

import pytest
from lab_kernels import LabError
from lab_results import read_results

try:
    DOCUMENT: dict[str, Any] = read_results()
    MISSING = ""
except LabError as error:
    DOCUMENT, MISSING = {"boots": {}}, str(error)

BOOTS = DOCUMENT["boots"]
ROWS = {name: row for boot in BOOTS.values() for name, row in boot["rows"].items()}
# A list: pytest gives names that are there twice a number, and none hides another.
TESTS = [(f"{name}::{t['name']}", t) for name, row in ROWS.items() for t in row["tests"]]


def test_the_lab_has_run() -> None:
    assert not MISSING, MISSING
    assert BOOTS and ROWS and TESTS


@pytest.mark.parametrize("name", BOOTS)
def test_kernel_boots(name: str) -> None:
    assert BOOTS[name]["booted"], BOOTS[name]["reason"]
    assert not BOOTS[name]["reason"], BOOTS[name]["reason"]


@pytest.mark.parametrize("name", ROWS)
def test_row_has_results(name: str) -> None:
    assert not ROWS[name]["reason"], ROWS[name]["reason"]
    assert any(test["outcome"] == "passed" for test in ROWS[name]["tests"])


@pytest.mark.parametrize("result", [test for _, test in TESTS], ids=[name for name, _ in TESTS])
def test_result(result: dict[str, Any]) -> None:
    if result["outcome"] == "skipped":
        pytest.skip(result["text"])
    assert result["outcome"] == "passed", result["text"]
