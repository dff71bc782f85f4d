"""Run the test groups one after the other and print a table of what ran and what did not.

Usage: scripts/test.py [GROUP...] [-- pytest options]

Each group is its own pytest process, so that one that hangs or dies cannot hide another; `plugin`
runs under Pants' interpreter. Exit code 0 if everything that ran passed and no group that
MUST_RUN names was skipped or is empty.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Mapping, Sequence

REPO = Path(__file__).resolve().parent.parent
RESULTS = REPO / "build" / "test-results"
GROUPS = ("tidy", "unit", "native", "kernel", "plugin", "integration", "adversarial")
ALIASES = {"pants": ("plugin", "integration"), "all": GROUPS}
GROUP_TIMEOUT_SECONDS = 45 * 60
NO_TESTS_COLLECTED = 5


@dataclasses.dataclass(frozen=True)
class GroupResult:
    """How one group went.

    Attributes:
        group: Its name.
        counts: passed, failed, skipped, xfailed.
        reasons: Reason of a skip, and how often.
        closing: The last line of pytest, or why there is none.
        ok: Whether the group counts as passed.
    """

    group: str
    counts: Mapping[str, int]
    reasons: Mapping[str, int]
    closing: str
    ok: bool


def must_run() -> set[str]:
    """Groups that the environment variable MUST_RUN names."""
    names = os.environ.get("MUST_RUN", "").replace(" ", "").split(",")
    return {group for name in names if name for group in ALIASES.get(name, (name,))}


def interpreter(group: str) -> Path:
    """The Python a group runs under."""
    if group == "plugin":
        venv = Path(os.environ.get("ROOTSEAL_PANTS_VENV", str(REPO / ".venv-pants")))
        return venv / "bin" / "python"
    return Path(sys.executable)


def test_files(group: str) -> list[str]:
    """What to hand to pytest for a group; empty if it has no test file yet."""
    if group == "tidy":
        return ["tests/tidy_test.py", "tests/tidy_docs_test.py"]
    directory = REPO / "tests" / group
    found = [*directory.rglob("test_*.py"), *directory.rglob("*_test.py")]
    return [f"tests/{group}"] if found else []


def tee(process: subprocess.Popen[str]) -> str:
    """Copy a process's output to ours; its last line that is not empty."""
    last = ""
    assert process.stdout is not None
    for line in process.stdout:
        sys.stdout.write(line)
        sys.stdout.flush()
        last = line.strip() or last
    return last


def run_group(group: str, options: Sequence[str]) -> GroupResult:
    """Run one group under pytest."""
    files = test_files(group)
    python = interpreter(group)
    if not files:
        return GroupResult(group, {}, {}, "no tests in this group", group not in must_run())
    if not python.exists():
        reason = f"no {python}; run `make setup`"
        return GroupResult(group, {"skipped": 1}, {reason: 1}, reason, group not in must_run())
    result_file = RESULTS / f"{group}.json"
    result_file.unlink(missing_ok=True)
    # A place of our own, removed by rm: pytest's own removal gives up on very deep directories.
    scratch = tempfile.mkdtemp(prefix="rst-")
    argv = [str(python), "-m", "pytest", "-o", "faulthandler_timeout=300"]
    argv += ["--basetemp", f"{scratch}/t", *options, *files]
    print(f"\n=== {group}: {' '.join(argv[1:])}", flush=True)
    environment = {**os.environ, "ROOTSEAL_TEST_RESULTS": str(result_file)}
    command = ["timeout", "--kill-after=30", str(GROUP_TIMEOUT_SECONDS), *argv]
    with subprocess.Popen(
        command,
        cwd=REPO,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    ) as process:
        closing = tee(process)
    subprocess.run(["rm", "-rf", "--one-file-system", scratch], check=False)
    return read_result(group, result_file, closing, process.returncode)


def read_result(group: str, path: Path, closing: str, code: int) -> GroupResult:
    """Put pytest's exit code and the counts that conftest.py wrote together."""
    try:
        document = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return GroupResult(group, {"failed": 1}, {}, f"pytest died (exit {code}): {closing}", False)
    ok = code == 0 or (code == NO_TESTS_COLLECTED and group not in must_run())
    return GroupResult(group, document["counts"], document["reasons"], closing, ok)


def table(results: Sequence[GroupResult], seconds: float) -> str:
    """The closing table, with the reasons of skips below it."""
    heads = ("passed", "failed", "skipped", "xfailed")
    lines = [f"{'group':<13}" + "".join(f"{head:>9}" for head in heads) + "  result"]
    for result in results:
        cells = "".join(f"{result.counts.get(head, 0):>9}" for head in heads)
        lines.append(f"{result.group:<13}{cells}  {'ok' if result.ok else 'FAILED'}")
    for result in results:
        for reason, count in sorted(result.reasons.items()):
            lines.append(f"skipped: {result.group}: {count} × {reason}")
    lines += [f"pytest: {result.group}: {result.closing}" for result in results]
    lines.append(f"all groups: {seconds:.0f} s")
    return "\n".join(lines)


def split_arguments(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Groups, and what follows `--`."""
    words = list(arguments)
    cut = words.index("--") if "--" in words else len(words)
    groups = [group for word in words[:cut] for group in ALIASES.get(word, (word,))]
    unknown = set(groups) - set(GROUPS)
    if unknown:
        sys.exit(f"test: unknown group {sorted(unknown)}; known: {', '.join(GROUPS)}, pants, all")
    return groups or list(GROUPS), words[cut + 1 :]


def main() -> int:
    """Run what the command line names."""
    groups, options = split_arguments(sys.argv[1:])
    RESULTS.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    results = [run_group(group, options) for group in groups]
    text = table(results, time.monotonic() - started)
    (RESULTS / "summary.txt").write_text(text + "\n", "utf-8")
    print("\n" + text)
    return 0 if all(result.ok for result in results) else 1


if __name__ == "__main__":
    sys.exit(main())
