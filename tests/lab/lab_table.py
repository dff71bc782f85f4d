"""Write docs/kernels.md from the results of a whole run of the lab (`make lab`).

A partial run leaves the document alone; a whole one under CI (the variable CI) is written to
build/lab/kernels.md, so that the tree stays as it was.
"""

from __future__ import annotations

import os
import re
import sys
from collections import Counter
from typing import Any

from lab_kernels import LAB, REPO, LabError
from lab_results import read_results
from lab_rows import BOOTS, ROWS

TARGET = REPO / "docs" / "kernels.md"
CI_TARGET = LAB / "kernels.md"
HEAD = """# Kernels

What runs where, as `make lab` found it: Debian's kernels booted under qemu with the host's tree
under an overlay (that of aarch64: a Debian of aarch64 with this checkout cross-compiled into it),
tests of `tests/kernel` inside as root (`tests/lab/lab_rows.py` says which where), their temporary
files on the row's filesystem. This page is written by `tests/lab/lab_table.py`; do not edit it. A
row fails if its kernel lacks what the row is there for; *n/a* counts tests that do not apply, with
the reasons below. An empty cell: another row runs that test, and this one does not; what is too
heavy for emulation runs on the host in `make test`.

"""
FILESYSTEMS_HEAD = """## Filesystems

The strongest posture that is honest for each, as `capture.mounts` of a predicate and `rootseal
doctor` have it per mount. An action has the weakest of the files that it read.

| filesystem | posture | fs-verity | shown by |
|---|---|---|---|
"""
# Filesystem, posture, fs-verity, shown by.
FILESYSTEMS = (
    ("ext4, btrfs", "held", "ext4 made with `-O verity`; btrfs", "rows of both"),
    ("xfs, tmpfs, ramfs", "held", "no", "rows of xfs and tmpfs; `test_filesystems`"),
    (
        "overlayfs",
        "held; its layers are not looked at, and a product that is moved to another directory "
        "outside the root is not found, for want of file handles",
        "no",
        "rows of overlay",
    ),
    (
        "NFS",
        "observed: others can change the content; hashed at each open. A filesystem of the server "
        "below another one is mounted by the kernel when somebody enters: if that is the action, "
        "it is `unmarkedMounts`, a loss",
        "no",
        "`test_nfs`: NFSv4.2 of the guest's own kernel",
    ),
    (
        "NFS with `root_squash`, of files that only their user may read",
        "under a daemon of root none: the open fails (EPERM) and counts as `handlerErrors`, a "
        "loss; observed under `--capture-mode trace:ptrace --fanotify off`",
        "no",
        "`test_nfs`",
    ),
    (
        "9p, and by the same rule CIFS, Ceph, virtiofs and the like",
        "observed: others can change the content",
        "no",
        "`test_filesystems` on the guests' 9p; the others not tried, for want of a server",
    ),
    ("FUSE", "observed", "no", "`test_filesystems` with a server of its own"),
    (
        "FUSE of one user, closed to root",
        "observed; an open of a file there counts as `handlerErrors`, a loss",
        "no",
        "`test_filesystems`",
    ),
    (
        "one that refuses the mark",
        "none: `unmarkedMounts`, a loss",
        "-",
        "`test_filesystems`, where the call is made to fail: none for files refuses it here",
    ),
    ("proc, sysfs, cgroup and the like", "none: no files of anyone", "-", "`test_filesystems`"),
)
MARKS = {"passed": "yes", "failed": "**no**", "skipped": "n/a"}


def filesystems() -> str:
    """The section on filesystems, which no run changes."""
    return FILESYSTEMS_HEAD + "".join(f"| {' | '.join(line)} |\n" for line in FILESYSTEMS) + "\n"


def row_label(name: str) -> str:
    """Short head of a column."""
    return name.replace("/", "<br>")


def boots_table(boots: dict[str, Any]) -> list[str]:
    """One line per machine."""
    lines = [
        "| machine | kernel | lsm | command line | tests | seconds | of processors |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, boot in boots.items():
        facts = boot["facts"]
        line = re.sub(r".*lab\.runner=\S+", "", str(facts.get("commandLine", ""))).strip()
        if name == "host":
            line = "(the host's own)"
        tests = [t for row in boot["rows"].values() for t in row["tests"]]
        lines.append(
            f"| {name} | {facts.get('release', 'did not boot')} | {facts.get('lsm') or '-'} "
            f"| {line or '-'} | {len(tests)} | {boot['seconds']:.0f} "
            f"| {boot['processorSeconds']:.0f} |"
        )
    return lines


def rows_table(rows: dict[str, Any]) -> list[str]:
    """One line per row: what it is there for, and counts."""
    lines = ["| row | there for | passed | failed | n/a | seconds |", "|---|---|---|---|---|---|"]
    for name, row in rows.items():
        count = Counter(test["outcome"] for test in row["tests"])
        numbers = f"{count['passed']} | {count['failed']} | {count['skipped']}"
        lines.append(f"| {name} | {capabilities(name)} | {numbers} | {row['seconds']:.0f} |")
    return lines


def capabilities(row_name: str) -> str:
    """What a row is there for, as tests/lab/lab_rows.py has it."""
    boots = {boot.name: boot for boot in BOOTS}
    found = [(*boots[row.boot].expects, *row.expects) for row in ROWS if row.name == row_name]
    return ", ".join(name for names in found for name in names) or "-"


def tests_table(rows: dict[str, Any]) -> list[str]:
    """One line per test, one column per row; parameters of a test are put together."""
    cells: dict[str, dict[str, Counter[str]]] = {}
    for name, row in rows.items():
        for test in row["tests"]:
            cells.setdefault(base_name(test), {}).setdefault(name, Counter())[test["outcome"]] += 1
    lines = ["| test | " + " | ".join(map(row_label, rows)) + " |", "|---" * (len(rows) + 1) + "|"]
    for base in sorted(cells):
        found = (cell(cells[base].get(name, Counter())) for name in rows)
        lines.append(f"| {base} | " + " | ".join(found) + " |")
    return lines


def cell(count: Counter[str]) -> str:
    """Outcome of a test in a row; counted where it has several parameters."""
    if not count:
        return ""
    if sum(count.values()) == 1:
        return MARKS[next(iter(count))]
    return ", ".join(f"{MARKS[o]} {count[o]}" for o in MARKS if count[o])


def figures(rows: dict[str, Any]) -> list[str]:
    """What tests found out."""
    found = [
        f"- {name}: {test['text']}"
        for name, row in rows.items()
        for test in row["tests"]
        if test["outcome"] == "passed" and test["text"]
    ]
    return found or ["- none in this run"]


def reasons(rows: dict[str, Any]) -> list[str]:
    """Why tests failed, and for each reason where which tests do not apply."""
    skipped: dict[str, dict[str, list[str]]] = {}
    lines = []
    for name, row in rows.items():
        if row["reason"]:
            lines.append(f"- {name}: {row['reason'].splitlines()[0]}")
        for test in row["tests"]:
            if test["outcome"] == "skipped":
                text = test["text"].replace("Skipped: ", "").replace("optional: ", "")
                first = text.splitlines()[0] if text else "no reason"
                places = skipped.setdefault(first, {}).setdefault(base_name(test), [])
                places += [] if name in places else [name]
            elif test["outcome"] == "failed":
                first = test["text"].splitlines()[0] if test["text"] else "no message"
                lines.append(f"- failed: {name} {test['name']}: {first[:200]}")
    for reason, tests in sorted(skipped.items()):
        lines.append(f"- n/a: {reason}")
        lines += [f"  - {test} ({', '.join(found)})" for test, found in sorted(tests.items())]
    return lines


def base_name(test: dict[str, Any]) -> str:
    """File and name of a test, without its parameters."""
    return re.sub(r"\[.*", "", test["name"], flags=re.DOTALL).replace("::", " ")


def page(document: dict[str, Any]) -> str:
    """The whole document."""
    boots = document["boots"]
    rows = {name: row for boot in boots.values() for name, row in boot["rows"].items()}
    parts = [
        HEAD + f"Run of {document['startedAt']}, commit {document['commit']}, "
        f"{document['seconds']:.0f} s in all, {document['preparation']:.0f} s of them to fetch and "
        "build what the machines need.\n",
        filesystems() + "## Machines\n\n" + "\n".join(boots_table(boots)) + "\n",
        "## Rows\n\n" + "\n".join(rows_table(rows)) + "\n",
        "## Tests\n\n" + "\n".join(tests_table(rows)) + "\n",
        "## Figures\n\nOn emulated processors (tcg), so only the ratios mean anything.\n\n"
        + "\n".join(figures(rows))
        + "\n",
        "## Reasons\n\n" + "\n".join(reasons(rows)) + "\n",
    ]
    return "\n".join(parts)


def main() -> int:
    """Entry point."""
    try:
        document = read_results()
    except LabError as error:
        print(f"lab: {error}", file=sys.stderr)
        return 2
    if not document["whole"]:
        print("lab: not all rows ran; docs/kernels.md is left as it is")
        return 0
    target = CI_TARGET if os.environ.get("CI") else TARGET
    target.write_text(page(document), "utf-8")
    print(f"lab: wrote {target.relative_to(REPO)}, {document['seconds']:.0f} s in all")
    return 0


if __name__ == "__main__":
    sys.exit(main())
