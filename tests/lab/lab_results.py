"""Results of a run of the lab: read from the JUnit files, kept in build/lab/results.json."""

from __future__ import annotations

import dataclasses
import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

from lab_kernels import LAB, LabError
from lab_rows import ROWS, Row

RESULTS = LAB / "results.json"
TEXT_CHARACTERS_MAX = 6000
LOG_TAIL_LINES = 25


@dataclasses.dataclass(frozen=True)
class TestResult:
    """One test of one row.

    Attributes:
        name: Such as `test_lab_facts::test_kernel_has_btf`.
        outcome: `passed`, `failed` or `skipped`.
        text: Why it failed or was skipped; what it found out, if it passed and says so.
        seconds: How long it took.
    """

    name: str
    outcome: str
    text: str
    seconds: float


TestResult.__test__ = False  # type: ignore[attr-defined]  # not a test class


def read_junit(path: Path) -> list[TestResult]:
    """The tests of a JUnit file of pytest; empty if the file was never written.

    Raises:
        LabError: It is cut or garbage.
    """
    if not path.exists():
        return []
    try:
        return read_cases(ElementTree.parse(path).getroot())
    except (ElementTree.ParseError, ValueError) as error:
        raise LabError(f"{path.name} cannot be read: {error}") from None


def read_cases(root: ElementTree.Element) -> list[TestResult]:
    """The tests below the root of a JUnit document."""
    results = []
    for case in root.iter("testcase"):
        outcome, text = "passed", ""
        for child in case:
            if child.tag in ("failure", "error"):
                outcome, text = "failed", f"{child.get('message')}\n{child.text}"
            elif child.tag == "properties" and outcome == "passed":
                text = "; ".join(str(item.get("value")) for item in child)
            elif child.tag == "skipped" and outcome == "passed":
                outcome, text = "skipped", str(child.get("message"))
        module = str(case.get("classname") or case.get("name")).rpartition(".")[2]
        name = f"{module}::{case.get('name')}"
        seconds = float(case.get("time") or 0)
        results.append(TestResult(name, outcome, text[-TEXT_CHARACTERS_MAX:], seconds))
    return results


def boot_document(boot: str, result: dict[str, Any], chosen: tuple[Row, ...]) -> dict[str, Any]:
    """Put what a boot returned and what its rows left into one JSON object."""
    rows = {}
    for row in chosen:
        stem = LAB / "run" / boot / row.filesystem
        ended = result["rows"].get(row.filesystem)
        if ended is None:
            ended = {"status": None, "reason": "the machine ended before this row", "seconds": 0.0}
        tests, reason = row_results(stem, ended["status"], ended["reason"])
        rows[row.name] = {
            "reason": reason,
            "seconds": round(ended["seconds"], 1),
            "tests": [dataclasses.asdict(test) for test in tests],
        }
    return {**result, "rows": rows}


def row_results(stem: Path, status: int | None, reason: str) -> tuple[list[TestResult], str]:
    """What a row's pytest left, and why that is not all; its exit status must agree with it."""
    if status is None:
        return [], reason
    try:
        tests = read_junit(stem.with_suffix(".xml"))
    except LabError as error:
        return [], reason or str(error)
    failed = any(test.outcome == "failed" for test in tests)
    if not reason and (not tests or status != int(failed)):
        reason = f"pytest ended with {status}:\n{tail(stem.with_suffix('.log'))}"
    return tests, reason


def tail(log: Path) -> str:
    """The end of a log."""
    if not log.exists():
        return "no log"
    return "\n".join(log.read_text("utf-8", "replace").splitlines()[-LOG_TAIL_LINES:])


def write_results(document: dict[str, Any]) -> None:
    """Keep the results of a whole run."""
    RESULTS.write_text(json.dumps(document, indent=1) + "\n", "utf-8")


def read_results() -> dict[str, Any]:
    """The results of the last run; a whole one must hold every row."""
    try:
        document: dict[str, Any] = json.loads(RESULTS.read_text("utf-8"))
    except FileNotFoundError:
        raise LabError("the kernel lab has not run yet: make lab") from None
    found = {row for boot in document["boots"].values() for row in boot["rows"]}
    if document["whole"] and found != {row.name for row in ROWS}:
        raise LabError("the results are of other rows than those of today: make lab")
    return document
