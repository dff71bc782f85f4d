"""Mounts, roots and filesystems that an action makes for itself."""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import subprocess
from pathlib import Path
from typing import Iterator

import pytest

SECRET = "this must not go unseen\n"
SHA256 = hashlib.sha256(SECRET.encode()).hexdigest()
SCRIPT = "import subprocess, sys\nsys.exit(subprocess.run(['unshare', {flags!r}, 'sh', '-ec', "
NESTED = {
    "pivot_root": "mkdir new; mount --rbind / new; mkdir -p new{root}/old;"
    " pivot_root new new{root}/old; cat {root}/secret",
    "overlay": "mkdir low up work all; mv secret low;"
    " mount -t overlay o -o lowerdir=low,upperdir=up,workdir=work all; cat all/secret",
    "FUSE": 'python3 -c \'import ctypes, os; fd = os.open("{fuse}", 2);'
    ' opts = b"fd=%d,rootmode=40000,user_id=0,group_id=0" % fd; libc = ctypes.CDLL(None);'
    ' os.mkdir("m"); assert libc.mount(b"f", b"m", b"fuse", 0, opts) == 0\'',
}


def nested(name: str, root: Path) -> str:
    """A program that runs a script as root of its own user and mount namespace."""
    script = NESTED[name].format(root=root, fuse=root.parent / "fuse")
    return SCRIPT.format(flags="-Urm") + f"{script!r}]).returncode)\n"


@pytest.mark.requires("root", "fanotify", "launcher", "core", "userns")
@pytest.mark.parametrize("name", NESTED)
def test_a_filesystem_of_its_own_is_gated(arena, name) -> None:
    if name == "FUSE":
        if not Path("/dev/fuse").exists():
            pytest.skip("optional: no /dev/fuse on this host")
        # Without udev, /dev/fuse is for root only.
        device = arena.root.parent / "fuse"
        os.mknod(device, stat.S_IFCHR, Path("/dev/fuse").stat().st_rdev)
        device.chmod(0o666)
    arena.write("secret", SECRET)
    captured = arena.attack(nested(name, arena.root))
    assert captured.code == 0, captured.stderr
    assert captured.counter("namespaceEscapes") > 0
    assert captured.counter("unmarkedMounts") > 0
    arena.write("secret", SECRET)
    for made in ("new", "low", "up", "work", "all", "m"):
        shutil.rmtree(arena.root / made, ignore_errors=True)
    refused = arena.attack(nested(name, arena.root), "--require-zero-drops")
    assert refused.code != 0 and refused.action == {}


@pytest.mark.requires("root", "fanotify", "launcher", "core", "userns")
def test_a_root_of_its_own_hides_no_path(arena) -> None:
    """chroot in a user namespace that keeps the mounts: they are marked."""
    arena.write("secret", SECRET)
    captured = arena.attack(
        "import ctypes, os\n"
        "assert ctypes.CDLL(None).unshare(0x10000000) == 0\n"
        "os.chroot('.')\n"
        "open('/secret').read()\n",
        "--require-zero-drops",
    )
    assert captured.code == 0, captured.stderr
    assert captured.materials()["secret"] == {SHA256}


@pytest.fixture
def image(arena) -> Iterator[Path]:
    """A filesystem in a file, with one file in it."""
    content, path = arena.directory / "content", arena.directory / "image"
    content.mkdir()
    (content / "secret").write_text(SECRET)
    with path.open("wb") as stream:
        stream.truncate(4 << 20)
    subprocess.run(["mkfs.ext4", "-q", "-d", str(content), str(path)], check=True)
    yield path
    path.unlink()
    subprocess.run(["rm", "-r", str(content)], check=True)


@pytest.mark.requires("root", "fanotify", "launcher", "core", "loop")
def test_a_filesystem_in_a_file_is_gated(arena, image) -> None:
    """As root, who may mount; the mount lives in the action's own namespace and goes with it."""
    program = (
        "import os, subprocess\n"
        "os.mkdir('m')\n"
        f"subprocess.run(['mount', '-o', 'loop', {str(image)!r}, 'm'], check=True)\n"
        "open('m/secret').read()\n"
    )
    captured = arena.attack_as_root(program)
    assert captured.code == 0, captured.stderr
    assert captured.counter("unmarkedMounts") > 0
    (arena.root / "m").rmdir()
    refused = arena.attack_as_root(program, "--require-zero-drops")
    assert refused.code != 0 and refused.action == {}
    assert "unmarkedMounts" in refused.stderr


@pytest.fixture
def cow(arena) -> Iterator[Path]:
    """btrfs, where a file can be cloned without a read."""
    path, place = arena.directory / "btrfs", arena.directory / "cow"
    place.mkdir()
    with path.open("wb") as stream:
        stream.truncate(200 << 20)
    made = subprocess.run(["mkfs.btrfs", "-q", str(path)], capture_output=True)
    mounted = (
        made.returncode == 0
        and not subprocess.run(
            ["mount", "-o", "loop", str(path), str(place)], capture_output=True
        ).returncode
    )
    try:
        if not mounted:
            pytest.skip("optional: no btrfs on this host; the kernel lab has it")
        yield place
    finally:
        if mounted:
            subprocess.run(["umount", str(place)], check=True)
        path.unlink()
        place.rmdir()


@pytest.mark.requires("root", "fanotify", "launcher", "core", "loop")
def test_a_clone_is_recorded_at_both_ends(arena, cow) -> None:
    (cow / "secret").write_text(SECRET)
    program = (
        "import fcntl\n"
        f"with open('{cow}/secret') as a, open('{cow}/copy', 'w') as b:\n"
        "    fcntl.ioctl(b.fileno(), 0x40049409, a.fileno())  # FICLONE\n"
    )
    captured = arena.attack_as_root(program, "--require-zero-drops")
    assert captured.code == 0, captured.stderr
    assert captured.materials()[f"{cow}/secret"] == {SHA256}
    assert captured.products()[f"{cow}/copy"] == {SHA256}
