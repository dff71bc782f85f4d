"""What doctor says of mounts: judged by their type where no scope can be opened."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from rootseal import doctor_mounts
from rootseal.observation import MountMark, Posture

LINE = b"36 35 98:0 / %s rw,noatime shared:1 - %s /dev/sda rw"


@pytest.mark.parametrize("kind", [b"proc", b"cgroup2", b"devpts", b"securityfs"])
def test_kernel_interfaces_hold_no_files(kind: bytes) -> None:
    assert doctor_mounts._parse(LINE % (b"/x", kind)) is None


@pytest.mark.parametrize("line", [b"", b"36 35", b"36 35 98:0 /", b"a b - "])
def test_what_is_no_mount_is_left_out(line: bytes) -> None:
    assert doctor_mounts._parse(line) is None


def test_escapes_of_the_kernel_are_undone_once() -> None:
    found = doctor_mounts._parse(LINE % (rb"/a\040b\134040", b"ext4"))
    assert found == MountMark(rb"/a b\040", "ext4", True, "")


@pytest.mark.parametrize("kind", ["nfs4", "fuse.sshfs", "fuse", "9p", "cifs"])
def test_what_others_serve_is_never_held(kind: str) -> None:
    mark = doctor_mounts._parse(LINE % (b"/x", kind.encode()))
    assert mark is not None
    for reachable in Posture:
        found = doctor_mounts._posture(mark, reachable)
        assert found.rank <= Posture.OBSERVED.rank
        assert found.rank <= reachable.rank


def test_the_types_that_others_serve_are_those_of_the_cores() -> None:
    header = Path(__file__).resolve().parents[2] / "native" / "remote_filesystems.h"
    assert set(re.findall(r'X\("([^"]+)",', header.read_text("utf-8"))) == doctor_mounts.REMOTE


def test_local_files_get_what_the_host_reaches() -> None:
    mark = MountMark(b"/", "ext4", True, "")
    assert doctor_mounts._posture(mark, Posture.HELD) is Posture.HELD
    assert doctor_mounts._posture(mark, Posture.WALKED) is Posture.WALKED


def test_mount_that_refuses_marks_is_walked_and_says_why() -> None:
    mark = MountMark(b"/odd", "oddfs", False, "Invalid argument")
    finding = doctor_mounts.MountFinding(
        mark, doctor_mounts._posture(mark, Posture.HELD), can_seal=False
    )
    assert doctor_mounts.rows([finding]) == [("/odd", "oddfs", "walked (Invalid argument)", "no")]


def test_mounts_of_this_host_without_privileges() -> None:
    points = {item.mount.mount_point for item in doctor_mounts.look_at_mounts(Posture.WALKED)}
    assert b"/" in points
    assert b"/proc" not in points
