"""The lab's own code, where no machine is needed."""

from __future__ import annotations

import json
import lzma
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import lab_vm
import pytest
from lab_apt import Archive, sites, sources
from lab_kernels import REPO, WANTED, Kernel, is_unpacked, modules_in_order
from lab_results import boot_document, read_junit, row_results
from lab_rows import BOOTS, DISKS, ROWS, Boot, rows_of
from lab_table import cell, page
from lab_vm import collect, qemu_command

JUNIT = """<testsuites><testsuite>
<testcase classname="tests.kernel.test_a" name="test_good[1]" time="0.5"><properties>
<property name="figure" value="fast"/></properties></testcase>
<testcase classname="tests.kernel.test_a" name="test_bad" time="1">
<failure message="m">why</failure></testcase>
<testcase classname="tests.kernel.test_a" name="test_error" time="1">
<error message="e">set-up</error></testcase>
<testcase classname="tests.kernel.test_a" name="test_na" time="0">
<skipped message="optional: no"/></testcase>
</testsuite></testsuites>"""


def module(depends: str) -> bytes:
    return b"\x7fELF...\0license=GPL\0depends=" + depends.encode() + b"\0name=x\0"


def test_modules_come_after_what_they_need(tmp_path: Path) -> None:
    (tmp_path / "fs").mkdir()
    (tmp_path / "fs" / "ext4.ko").write_bytes(module("jbd2,mbcache"))
    (tmp_path / "jbd2.ko.xz").write_bytes(lzma.compress(module("crc-helper")))
    (tmp_path / "mbcache.ko").write_bytes(module(""))
    (tmp_path / "crc-helper.ko").write_bytes(module("ext4"))  # a cycle must end
    order = [name for name, _ in modules_in_order(tmp_path, ("ext4", "built_in"))]
    assert order == ["crc_helper", "jbd2", "mbcache", "ext4"]


def test_a_kernel_is_unpacked_again_when_more_is_wanted_of_it(tmp_path: Path) -> None:
    assert not is_unpacked(tmp_path)
    (tmp_path / "unpacked").touch()  # as older checkouts left it
    assert not is_unpacked(tmp_path)
    (tmp_path / "unpacked").write_text(WANTED, "utf-8")
    assert is_unpacked(tmp_path)


def test_every_outcome_of_junit_is_read(tmp_path: Path) -> None:
    path = tmp_path / "row.xml"
    path.write_text(JUNIT, "utf-8")
    found = {test.name: (test.outcome, test.text) for test in read_junit(path)}
    assert found == {
        "test_a::test_good[1]": ("passed", "fast"),
        "test_a::test_bad": ("failed", "m\nwhy"),
        "test_a::test_error": ("failed", "e\nset-up"),
        "test_a::test_na": ("skipped", "optional: no"),
    }
    assert read_junit(tmp_path / "never-written.xml") == []


def row_left(folder: Path, junit: str, status: int | None, reason: str = "") -> tuple[int, str]:
    """How many tests of a row are there, and why it is not in order."""
    (folder / "ext4.xml").write_text(junit, "utf-8")
    (folder / "ext4.log").write_text("last words\n", "utf-8")
    tests, why = row_results(folder / "ext4", status, reason)
    return len(tests), why


def test_a_row_without_whole_results_says_why(tmp_path: Path) -> None:
    good = JUNIT.replace("failure", "properties").replace("error", "properties")
    assert row_left(tmp_path, good, 0) == (4, "")
    assert row_left(tmp_path, JUNIT, 1) == (4, "")
    assert row_left(tmp_path, JUNIT, None, "not mounted") == (0, "not mounted")
    assert row_left(tmp_path, JUNIT, 2, "stopped after 9 s") == (4, "stopped after 9 s")
    for junit, status in ((JUNIT, 0), (good, 1), (good, -9), ("<testsuites/>", 0), (JUNIT, 3)):
        assert row_left(tmp_path, junit, status)[1] == f"pytest ended with {status}:\nlast words"
    for cut in ("", "\0", JUNIT[: len(JUNIT) // 2], JUNIT.replace('"0.5"', '"soon"')):
        found = row_left(tmp_path, cut, 1)
        assert found[0] == 0 and "ext4.xml cannot be read" in found[1]


def test_a_test_that_failed_is_not_hidden_by_another_of_its_name(tmp_path: Path) -> None:
    tests = [
        {"name": "test_a::test_x", "outcome": outcome, "text": "broken", "seconds": 1.0}
        for outcome in ("failed", "passed")
    ]
    row = {"reason": "", "seconds": 1.0, "tests": tests}
    boots = {"m": {"booted": True, "reason": "", "rows": {"m/ext4": row}}}
    (tmp_path / "results.json").write_text(json.dumps({"whole": False, "boots": boots}))
    program = (
        "import pathlib, sys, pytest; sys.path.insert(0, sys.argv[1])\n"
        "import lab_results; lab_results.RESULTS = pathlib.Path(sys.argv[2], 'results.json')\n"
        "sys.exit(pytest.main(['-q', '-p', 'no:cacheprovider', sys.argv[1] + '/test_lab.py']))"
    )
    command = [sys.executable, "-c", program, REPO / "tests" / "lab", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1 and "1 failed, 4 passed" in done.stdout, done.stdout


GUEST: dict[str, Any] = {
    "facts": {"release": "6.1"},
    "rows": {"ext4": {"status": 1, "reason": "", "seconds": 2.5}},
}


@pytest.mark.parametrize(
    "left",
    [
        None,
        b"",
        b"\xff",
        json.dumps(GUEST).encode()[:-3],
        b"[]",
        b'{"facts": {}}',
        b'{"facts": {}, "rows": {"ext4": {}}}',
        b'{"facts": {}, "rows": {"ext4": {"status": "x", "reason": "", "seconds": 1}}}',
    ],
)
def test_a_guest_that_leaves_garbage_did_not_boot(tmp_path: Path, left: bytes | None) -> None:
    (tmp_path / "console.log").write_bytes(b"\xff\0panic\n")
    if left is not None:
        (tmp_path / "done.json").write_bytes(left)
    found = collect(tmp_path, "", 1.0)
    assert (found["booted"], found["facts"], found["rows"]) == (False, {}, {})
    assert "panic" in found["reason"]


def test_rows_that_a_guest_did_not_reach_are_said_to_be_missing(tmp_path: Path) -> None:
    (tmp_path / "done.json").write_text(json.dumps(GUEST))
    found = collect(tmp_path, "stopped after 9 s", 1.0)
    assert (found["booted"], found["reason"]) == (True, "stopped after 9 s")
    assert found["rows"] == GUEST["rows"]
    reached = tuple(row for row in rows_of("6.1-bpf") if row.filesystem in ("ext4", "xfs"))
    rows = boot_document("never-ran", found, reached)["rows"]
    assert rows["6.1-bpf/xfs"]["reason"] == "the machine ended before this row"
    assert rows["6.1-bpf/ext4"]["reason"].startswith("pytest ended with 1")


def test_rows_name_boots_disks_and_test_files_that_exist() -> None:
    boots = {boot.name for boot in BOOTS}
    assert len({row.name for row in ROWS}) == len(ROWS)
    for row in ROWS:
        assert row.boot in boots
        assert row.filesystem in {*DISKS, "overlay", "tmpfs", "own"}
        for name in row.tests:
            path, _, test = name.partition("::")
            assert (REPO / path).exists(), row
            test = test.partition("[")[0]
            assert not test or f"def {test}(" in (REPO / path).read_text("utf-8"), row


@pytest.mark.parametrize("boot", [boot for boot in BOOTS if boot.series], ids=lambda b: b.name)
def test_each_machine_is_emulated_and_cannot_write_to_the_host(boot: Boot) -> None:
    kernel = Kernel("6.1", "amd64", "6.1.0", Path("image"), Path("initramfs"))
    words = " ".join(qemu_command(kernel, boot, {}, Path("out")))
    assert "tcg" in words and "kvm" not in words
    assert re.search(r"path=/,mount_tag=host,readonly=on", words)
    assert "-nic none" in words
    assert rows_of(boot.name)


def test_table_shows_failures_and_reasons() -> None:
    tests = [
        {"name": "test_a::test_x[1]", "outcome": "passed", "text": "", "seconds": 1.0},
        {"name": "test_a::test_x[2]", "outcome": "failed", "text": "broken\nhere", "seconds": 1.0},
        {"name": "test_a::test_y", "outcome": "skipped", "text": "optional: none", "seconds": 0.0},
        {"name": "test_b::test_z", "outcome": "skipped", "text": "", "seconds": 0.0},
    ]
    row = {"reason": "", "seconds": 3.0, "tests": tests}
    boot = {"facts": {"release": "6.1"}, "seconds": 9.0, "rows": {"m/ext4": row}}
    boot["processorSeconds"] = 5.0
    document = {"startedAt": "T", "commit": "c", "seconds": 9.0, "preparation": 2.0}
    document["boots"] = {"m": boot}
    text = page(document)
    assert "| test_a test_x | yes 1, **no** 1 |" in text
    assert "- failed: m/ext4 test_a::test_x[2]: broken" in text
    assert "- n/a: none\n  - test_a test_y (m/ext4)\n" in text
    assert "- n/a: no reason\n  - test_b test_z (m/ext4)\n" in text
    assert "9 s in all, 2 s of them to fetch" in text


@pytest.mark.parametrize(
    ("console", "again"),
    [
        ("Oops: int3: 0000 [#2] PREEMPT\nKernel panic - not syncing: Fatal exception", True),
        ("Oops: general protection fault\nKernel panic - not syncing: Fatal exception", False),
        ("Oops: int3: 0000 [#1] PREEMPT", False),
        ("", False),
    ],
)
def test_only_a_fault_of_emulation_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, console: str, again: bool
) -> None:
    monkeypatch.setattr(lab_vm, "LAB", tmp_path)
    assert not lab_vm.is_fault_of_emulation("m")
    (tmp_path / "run" / "m").mkdir(parents=True)
    (tmp_path / "run" / "m" / "console.log").write_text(console)
    assert lab_vm.is_fault_of_emulation("m") == again


def test_empty_cell_is_a_test_that_did_not_run() -> None:
    assert cell(Counter()) == ""


def test_archives_are_those_of_the_machines_own_apt() -> None:
    text = (
        "Debian|Debian|main|http://mirror.test/debian\n"
        "Debian|Debian|main|http://mirror.test/debian\n"
        "Debian|Debian-Security|main|http://mirror.test/security\n"
        "Debian|Debian|contrib|http://mirror.test/other\n"
        "Somebody|Else|main|http://else.test\n"
    )
    lines = sources(Archive("bullseye", "arm64"), sites(text)).splitlines()
    assert [line.split("] ")[1] for line in lines] == [
        "http://mirror.test/debian bullseye main",
        "http://mirror.test/security bullseye-security main",
    ]
    assert all("arch=arm64" in line for line in lines)
    assert sites("") == []


def test_a_guest_of_aarch64_has_a_root_of_its_own() -> None:
    kernel = Kernel("6.1-arm64", "arm64", "6.1.0", Path("image"), Path("initramfs"))
    boot = Boot("6.1-arm64", "6.1-arm64", "", ())
    words = " ".join(qemu_command(kernel, boot, {}, Path("out")))
    assert words.count("path=") == 2 and f"path={kernel.root},mount_tag=host,readonly=on" in words
    assert "qemu-system-aarch64" in words and "lab.python=/usr/bin/python3" in words


def test_the_page_in_docs_has_the_rows_of_today() -> None:
    text = (REPO / "docs" / "kernels.md").read_text("utf-8")
    part = text.partition("## Rows\n")[2].partition("\n## ")[0]
    listed = [line.split("|")[1].strip() for line in part.splitlines() if line.startswith("| ")]
    assert set(listed) - {"row"} == {row.name for row in ROWS}, "run `make lab` and commit it"
