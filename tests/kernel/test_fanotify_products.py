"""Products: what an action left behind, with the digest that it has at the end."""

from __future__ import annotations

import hashlib
import os
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Iterator

import pytest
from fanotify_action import Lab, Seen, build_fixture, gives_file_handles
from rootseal import diagnostics
from rootseal.observation import DigestSource, LeafKind

pytestmark = pytest.mark.requires("root", "fanotify", "gcc", "core")
CLOCK_REALTIME_COARSE = 5  # what file times are taken from; Python has no name for it


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    made = Lab(build_fixture(tmp_path_factory.mktemp("fixture")), digest_cache_entries=65536)
    yield made
    made.engine.close()


@pytest.fixture(params=["disk", "tmpfs"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A root on the disk's filesystem, and one on tmpfs."""
    place = tmp_path / "root"
    place.mkdir()
    if request.param == "tmpfs":
        subprocess.run(["mount", "-t", "tmpfs", "rootseal-test", place], check=True)
    yield place
    if request.param == "tmpfs":
        subprocess.run(["umount", "-l", place], check=True)


def sha256(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def content(directory: str, number: int, suffix: str = "") -> bytes:
    return f"content of {directory}/{number}{suffix}".encode()


def check_many(seen: Seen, count: int, suffix: str = "") -> None:
    found = {leaf.path: leaf.digest for leaf in seen.products}
    assert len(found) == count
    for number in range(count):
        assert found[b"%d" % number] == sha256(content(".", number, suffix))
    assert diagnostics.losses(seen.counters) == {}


def test_a_product_and_its_parts(lab: Lab, root: Path) -> None:
    seen = lab.run(root, ["/bin/sh", "-c", "umask 027; mkdir -p a/b; echo x > a/b/out; echo y > o"])
    product = seen.product(b"a/b/out")
    assert seen.product_paths() == [b"a/b/out", b"o"]
    assert (product.digest, product.size, product.mode) == (sha256(b"x\n"), 2, 0o640)
    assert product.kind == LeafKind.FILE
    assert product.source == DigestSource.FANOTIFY_CLOSE_WRITE


@pytest.mark.heavy
def test_ten_thousand_files(lab: Lab, root: Path) -> None:
    check_many(lab.do(root, "write-many", ".", "10000"), 10_000)


@pytest.mark.heavy
def test_two_thousand_files_closed_at_exit(lab: Lab, root: Path) -> None:
    check_many(lab.do(root, "leave-open", ".", "2000"), 2000)


@pytest.mark.heavy
def test_short_lived_writers(lab: Lab, root: Path) -> None:
    check_many(lab.do(root, "write-fork", ".", "500"), 500)


def test_atomic_renames(lab: Lab, root: Path) -> None:
    check_many(lab.do(root, "atomic", ".", "500"), 500, ".tmp")


def test_atomic_renames_outside_the_root(lab: Lab, root: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    cache.mkdir()
    seen = lab.do(root, "atomic", cache, "200")
    found = {leaf.path: leaf.digest for leaf in seen.products}
    assert len(found) == 200
    for number in range(200):
        expected = sha256(content(str(cache), number, ".tmp"))
        assert found[os.fsencode(cache / str(number))] == expected
    assert diagnostics.losses(seen.counters) == {}


def test_moved_to_another_directory_outside_the_root(lab: Lab, root: Path, tmp_path: Path) -> None:
    if not gives_file_handles(tmp_path):
        pytest.skip("optional: no file handles on overlayfs, so this is not found there")
    for name in ("from", "to"):
        (tmp_path / name).mkdir()
    command = f"echo moved > {tmp_path}/from/f; mv {tmp_path}/from/f {tmp_path}/to/g"
    seen = lab.run(root, ["/bin/sh", "-c", command])
    assert seen.product_paths() == [os.fsencode(tmp_path / "to" / "g")]


def test_unlinked_files_are_no_products(lab: Lab, root: Path) -> None:
    seen = lab.run(root, ["/bin/sh", "-c", "echo x > gone; rm gone; echo y > kept"])
    assert seen.product_paths() == [b"kept"]


def test_hardlink_aliases_are_products(lab: Lab, root: Path) -> None:
    (root / "old").write_bytes(b"old")
    seen = lab.run(root, ["/bin/sh", "-c", "echo x > a; ln a b; ln old c"])
    assert {leaf.path: leaf.digest for leaf in seen.products} == {
        b"a": sha256(b"x\n"),
        b"b": sha256(b"x\n"),
        b"c": sha256(b"old"),
    }


def test_inputs_renamed_are_products(lab: Lab, root: Path) -> None:
    (root / "in").write_bytes(b"moved")
    seen = lab.run(root, ["/bin/mv", "in", "out"])
    assert seen.product(b"out").digest == sha256(b"moved")
    assert seen.product(b"out").source == DigestSource.WALK


@pytest.mark.parametrize("way", ["mmap-write", "mmap-closed"])
def test_files_written_through_a_mapping(lab: Lab, root: Path, way: str) -> None:
    (root / "old").write_bytes(b"old content that is longer")
    seen = lab.do(root, way, "new", "mapped")
    assert seen.product(b"new").digest == sha256(b"mapped")
    seen = lab.do(root, way, "old", "changed")
    assert seen.product(b"old").digest == sha256(b"changed")


def test_a_linked_temporary_file(lab: Lab, root: Path) -> None:
    seen = lab.do(root, "tmpfile-link", "linked", "text")
    assert seen.product(b"linked").digest == sha256(b"text")
    assert diagnostics.losses(seen.counters) == {}


def test_symlinks_are_products_of_their_text(lab: Lab, root: Path) -> None:
    seen = lab.run(root, ["/bin/sh", "-c", "ln -s /nowhere/at/all s; ln -s loop loop"])
    product = seen.product(b"s")
    assert (product.kind, product.size) == (LeafKind.SYMLINK, len("/nowhere/at/all"))
    assert product.digest == sha256(b"/nowhere/at/all")
    assert seen.product(b"loop").digest == sha256(b"loop")


def test_untouched_inputs_are_no_products(lab: Lab, root: Path) -> None:
    (root / "deep" / "er").mkdir(parents=True)
    (root / "deep" / "er" / "input").write_bytes(b"input")
    (root / "link").symlink_to("deep")
    seen = lab.run(root, ["/bin/sh", "-c", "cat deep/er/input; echo x > out"])
    assert seen.product_paths() == [b"out"]


def test_declared_outputs_are_products_whatever_their_times(lab: Lab, root: Path) -> None:
    (root / "dist" / "sub").mkdir(parents=True)
    (root / "dist" / "sub" / "old").write_bytes(b"old")
    (root / "file").write_bytes(b"file")
    (root / "other").write_bytes(b"other")
    seen = lab.run(root, ["/bin/true"], files=[b"file", b"missing"], dirs=[b"dist"])
    assert {leaf.path: leaf.digest for leaf in seen.products} == {
        b"dist/sub/old": sha256(b"old"),
        b"file": sha256(b"file"),
    }
    assert {leaf.source for leaf in seen.products} == {DigestSource.WALK}


def test_declared_outputs_behind_a_symlinked_directory(
    lab: Lab, root: Path, tmp_path: Path
) -> None:
    (tmp_path / "elsewhere").mkdir()
    command = f"ln -s {tmp_path}/elsewhere out; echo x > out/file; mkdir out/d; echo y > out/d/g"
    seen = lab.run(root, ["/bin/sh", "-c", command], files=[b"out/file"], dirs=[b"out/d"])
    assert seen.product(b"out/file").digest == sha256(b"x\n")
    assert seen.product(b"out/d/g").digest == sha256(b"y\n")


def test_written_often_and_last_content_counts(lab: Lab, root: Path) -> None:
    command = (
        "for i in 1 2 3 4 5 6 7 8 9; do echo $i > f; done; echo a > g; echo b > g; truncate -s1 g"
    )
    seen = lab.run(root, ["/bin/sh", "-c", command])
    assert seen.product(b"f").digest == sha256(b"9\n")
    assert seen.product(b"g").digest == sha256(b"b")


# So many other files: from some number on the capture knows only the names of the rest.
@pytest.mark.parametrize("others", [1, pytest.param(3000, marks=pytest.mark.heavy)])
def test_files_made_and_truncated_by_name_in_one_tick(lab: Lab, root: Path, others: int) -> None:
    """Nobody opens them, so that only size and times tell; the size is the same in the end.

    A file that was made in the clock tick in which the action begins would have the same times.
    """
    for number in range(others):
        (root / f"other{number}").write_bytes(b"other")
    for attempt in range(20):
        before = time.clock_gettime(CLOCK_REALTIME_COARSE)
        while time.clock_gettime(CLOCK_REALTIME_COARSE) == before:
            pass  # a tick begins
        for number in range(3):
            (root / str(number)).write_bytes(content(".", number))
        seen = lab.do(root, "cut", ".", 3)
        cut = {b"%d" % n: b"c" + bytes(len(content(".", n)) - 1) for n in range(3)}
        want = {path: sha256(data) for path, data in cut.items()}
        assert {leaf.path: leaf.digest for leaf in seen.products} == want, attempt
        assert diagnostics.losses(seen.counters) == {}


def test_what_is_as_it_was_is_no_product(lab: Lab, root: Path) -> None:
    """Also if it was made just before; a change of its mode alone is one."""
    for number in range(50):
        (root / str(number)).write_bytes(content(".", number))
    (root / "mode").write_bytes(b"mode")
    (root / "link").symlink_to("0")
    os.utime(root / "1", (2**32, 2**32))  # of the future, as after a clock that was set back
    seen = lab.run(root, ["/bin/chmod", "600", "mode"])
    assert seen.product_paths() == [b"mode"]


def test_two_writers_of_one_file(lab: Lab, root: Path) -> None:
    command = (
        "(for i in $(seq 300); do echo left >> f; done) & "
        "(for i in $(seq 300); do echo right >> f; done) & wait"
    )
    seen = lab.run(root, ["/bin/sh", "-c", command])
    assert seen.product(b"f").digest == sha256((root / "f").read_bytes())
    assert seen.product(b"f").size == 300 * 5 + 300 * 6


def test_an_action_that_removes_its_own_root(lab: Lab, tmp_path: Path) -> None:
    place = tmp_path / "doomed"
    place.mkdir()
    seen = lab.run(place, ["/bin/sh", "-c", f"echo x > f; rm -r {place}"])
    assert seen.exit_code == 0
    assert seen.products == []


def test_mounts_are_listed_and_late_ones_counted(lab: Lab, root: Path) -> None:
    (root / "mnt").mkdir()
    seen = lab.run(root, ["/bin/sh", "-c", "mount -t tmpfs new mnt && echo x > mnt/f"])
    late = [
        mark for mark in seen.observation.mounts if mark.mount_point == os.fsencode(root / "mnt")
    ]
    assert [mark.marked for mark in late] == [False]
    assert seen.counters["unmarkedMounts"] == 1
    marked = {mark.mount_point for mark in seen.observation.mounts if mark.marked}
    assert b"/" in marked
    excluded = {mark.filesystem for mark in seen.observation.mounts if not mark.marked}
    assert "proc" in excluded
    assert seen.counters["excludedMounts"] >= 1


def test_devices_on_a_tmpfs_dev_answer_for_themselves(lab: Lab, tmp_path: Path) -> None:
    """As in a container: /dev/tty without a terminal fails with ENXIO, not with our refusal."""
    place = tmp_path / "dev"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "rootseal-test", place], check=True)
    try:
        os.mknod(place / "tty", 0o666 | stat.S_IFCHR, os.makedev(5, 0))
        os.mknod(place / "null", 0o666 | stat.S_IFCHR, os.makedev(1, 3))
        (place / "regular").write_bytes(b"regular")
        script = (
            "import errno, os, sys\n"
            f"os.close(os.open('{place}/null', os.O_RDWR))\n"
            f"os.close(os.open('{place}/regular', os.O_RDONLY))\n"
            "os.setsid()\n"
            f"try: os.open('{place}/tty', os.O_RDWR)\n"
            "except OSError as error: sys.exit(error.errno != errno.ENXIO)\n"
            "sys.exit(2)\n"
        )
        seen = lab.run(tmp_path, [sys.executable, "-c", script])
    finally:
        subprocess.run(["umount", "-l", place], check=True)
    assert seen.exit_code == 0
    regular = [leaf for leaf in seen.materials if leaf.path.endswith(b"dev/regular")]
    assert [leaf.digest for leaf in regular] == [sha256(b"regular")]
    assert diagnostics.losses(seen.counters) == {}


@pytest.mark.heavy
def test_an_output_behind_a_symlink_that_changes_as_it_is_hashed_is_counted(
    lab: Lab, root: Path, outside: Path
) -> None:
    target, ended = outside / "target", threading.Event()
    target.write_bytes(bytes(64 << 20))  # takes long to hash, also for a writer that must wait

    def change() -> None:
        with target.open("r+b", buffering=0) as file:
            while not ended.is_set():
                file.write(b"x")

    writer = threading.Thread(target=change)
    writer.start()
    try:
        seen = lab.run(root, ["/bin/ln", "-s", outside, "d"], files=[b"d/target"])
    finally:
        ended.set()
        writer.join()
    assert seen.counters["unstableFiles"] == 1


@pytest.mark.heavy
def test_an_engine_that_ends_while_a_file_is_hashed_lets_go_of_the_opener(
    root: Path, tmp_path: Path
) -> None:
    def groups() -> int:
        listed = Path("/proc/self/fd").iterdir()
        return sum("fanotify" in str(fd.readlink()) for fd in listed if fd.is_symlink())

    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(1 << 30)
    own, before = Lab(build_fixture(tmp_path)), groups()
    action = own.start(root, ["/usr/bin/head", "-c1", tmp_path / "sparse"])
    assert action.scope is not None
    while action.scope.progress()["long_hashes"] == 0:
        time.sleep(0.001)
    own.engine.close()
    assert groups() == before
    assert action.process.wait(timeout=600) == 0
