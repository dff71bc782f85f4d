"""The lab's own code, where no machine is needed."""

from __future__ import annotations

import lzma
import re
from collections import Counter
from pathlib import Path

import pytest
from lab_apt import Archive, sites, sources
from lab_kernels import REPO, Kernel, modules_in_order
from lab_results import read_junit
from lab_rows import BOOTS, DISKS, ROWS, Boot, rows_of
from lab_table import cell, page
from lab_vm import qemu_command

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
    ]
    row = {"reason": "", "seconds": 3.0, "tests": tests}
    boot = {"facts": {"release": "6.1"}, "seconds": 9.0, "rows": {"m/ext4": row}}
    boot["processorSeconds"] = 5.0
    document = {"startedAt": "T", "commit": "c", "seconds": 9.0, "boots": {"m": boot}}
    text = page(document)
    assert "| test_a test_x | yes 1, **no** 1 |" in text
    assert "- failed: m/ext4 test_a::test_x[2]: broken" in text
    assert "- n/a, 1 ×: test_a: none" in text


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
