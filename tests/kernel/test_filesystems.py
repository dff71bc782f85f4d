"""What the capture makes of filesystems: the strongest posture that is honest for each."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Iterator

import pytest
from fanotify_action import Lab, build_fixture
from rootseal import diagnostics
from rootseal.doctor_mounts import look_at_mounts
from rootseal.observation import MountMark, Posture

LAB_SHARE = Path("/lab/out")  # 9p, in the guests of the kernel lab


@pytest.fixture
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    found = Lab(build_fixture(tmp_path_factory.mktemp("fixture")))
    yield found
    found.engine.close()


def read_one(lab: Lab, root: Path, path: Path) -> tuple[Posture, dict[bytes, MountMark]]:
    """Posture of an action that reads a file, and the mounts of its namespace."""
    root.mkdir()
    seen = lab.run(root, ["/bin/sh", "-c", f"read -r line <{path}; exit 0"])
    assert seen.material(os.fsencode(path))
    assert diagnostics.losses(seen.counters) == {}
    mounts = {mount.mount_point: mount for mount in seen.observation.mounts}
    return seen.observation.posture, mounts


def test_files_of_this_filesystem_are_held(lab: Lab, tmp_path: Path) -> None:
    (tmp_path / "material").write_bytes(b"content\n")
    posture, _ = read_one(lab, tmp_path / "root", tmp_path / "material")
    assert posture is Posture.HELD


@pytest.mark.parametrize("kind", ["tmpfs", "overlay", "ramfs"])
def test_files_of_a_mounted_filesystem_are_held(lab: Lab, tmp_path: Path, kind: str) -> None:
    place = tmp_path / "mounted"
    for name in ("mounted", "lower", "upper", "work"):
        (tmp_path / name).mkdir()
    options = "rw"
    if kind == "overlay":
        subprocess.run(["mount", "-t", "tmpfs", "none", tmp_path / "upper"], check=True)
        (tmp_path / "upper" / "up").mkdir()
        (tmp_path / "upper" / "work").mkdir()
        (tmp_path / "lower" / "material").write_bytes(b"content\n")
        upper = tmp_path / "upper"
        options = f"lowerdir={tmp_path}/lower,upperdir={upper}/up,workdir={upper}/work"
    done = subprocess.run(["mount", "-t", kind, "-o", options, "none", place], capture_output=True)
    try:
        if done.returncode != 0:
            pytest.skip(f"optional: no {kind} here: {done.stderr.decode().strip()}")
        if kind != "overlay":
            (place / "material").write_bytes(b"content\n")
        posture, mounts = read_one(lab, tmp_path / "root", place / "material")
        assert posture is Posture.HELD
        assert mounts[os.fsencode(place)] == MountMark(os.fsencode(place), kind, True, "")
    finally:
        subprocess.run(["umount", place], capture_output=True)
        subprocess.run(["umount", tmp_path / "upper"], capture_output=True)


def test_what_others_serve_is_only_observed(lab: Lab, tmp_path: Path) -> None:
    """9p stands for network filesystems and FUSE: the host could change the file meanwhile."""
    if not os.environ.get("ROOTSEAL_LAB_EMULATED"):
        pytest.skip("optional: no filesystem here that another machine serves")
    path = LAB_SHARE / f"material-{os.getpid()}"
    path.write_bytes(b"content\n")
    posture, mounts = read_one(lab, tmp_path / "root", path)
    assert posture is Posture.OBSERVED
    mount = mounts[os.fsencode(LAB_SHARE)]
    assert (mount.filesystem, mount.marked) == ("9p", True)
    assert "can change after it was hashed" in mount.reason


def test_kernel_interfaces_are_left_out_with_a_reason(lab: Lab, tmp_path: Path) -> None:
    (tmp_path / "material").write_bytes(b"content\n")
    _, mounts = read_one(lab, tmp_path / "root", tmp_path / "material")
    assert not mounts[b"/proc"].marked
    assert "kernel interface" in mounts[b"/proc"].reason


def test_doctor_shows_each_mount_as_the_capture_finds_it() -> None:
    found = {item.mount.mount_point: item for item in look_at_mounts(Posture.HELD)}
    assert found[b"/"].posture is Posture.HELD
    assert b"/proc" not in found
    expects = os.environ.get("ROOTSEAL_LAB_EXPECTS", "").split(",")
    if os.environ.get("ROOTSEAL_LAB_EMULATED"):
        assert found[bytes(LAB_SHARE)].posture is Posture.OBSERVED
        here = Path("/lab/fs", os.environ["ROOTSEAL_LAB_FILESYSTEM"])
        assert bytes(here) not in found or found[bytes(here)].can_seal == ("fs-verity" in expects)
