"""fs-verity as the kernel does it: sealing, measuring, refusing; and what Rootseal makes of it."""

from __future__ import annotations

import errno
import fcntl
import io
import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from rootseal import digest, fsverity
from rootseal.errors import CaptureError

EXPECTED = "fs-verity" in os.environ.get("ROOTSEAL_LAB_EXPECTS", "").split(",")
NOBODY = 65534
SIZES = (0, 1, 4096, 4097, 128 * 4096, 128 * 4096 + 1, 3_000_001)


@pytest.fixture
def verity(tmp_path: Path) -> Path:
    """A directory whose files can be sealed."""
    if not fsverity.available(tmp_path):
        assert not EXPECTED, "this row of the lab is there for fs-verity"
        pytest.skip("optional: no fs-verity on the filesystem of the temporary files")
    return tmp_path


def make(path: Path, data: bytes = b"built") -> Path:
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("size", SIZES)
def test_kernel_measures_what_python_calculates(verity: Path, size: int) -> None:
    data = bytes(i % 251 for i in range(size))
    found = fsverity.seal_file(make(verity / "product", data))
    assert found.fsverity == fsverity.calculate(io.BytesIO(data))
    assert (found.sha256, found.size) == (digest.sha256(data), size)


def test_sealed_file_says_so_and_refuses_writers(verity: Path) -> None:
    path = make(verity / "product")
    with path.open("rb") as file:
        assert not fsverity.is_sealed(file.fileno())
    fsverity.seal_file(path)
    with path.open("rb") as file:
        assert fsverity.is_sealed(file.fileno())
    for flags in (os.O_WRONLY, os.O_RDWR, os.O_WRONLY | os.O_TRUNC, os.O_WRONLY | os.O_APPEND):
        with pytest.raises(PermissionError):
            os.open(path, flags)
    assert path.read_bytes() == b"built"


def test_truncation_by_path_is_refused_or_found(verity: Path) -> None:
    """btrfs lets a sealed file be truncated by path: so the size is part of every comparison."""
    path = make(verity / "product", b"built" * 1000)
    sealed = fsverity.seal_file(path)
    assert fsverity.check_sealed(path, expected=sealed.fsverity, size=sealed.size)
    try:
        os.truncate(path, 100)
    except PermissionError:
        assert path.read_bytes() == b"built" * 1000
        return
    with pytest.raises(CaptureError, match="100 bytes"):
        fsverity.check_sealed(path, expected=sealed.fsverity, size=sealed.size)


def test_a_copy_is_not_sealed_and_another_sealed_file_is_refused(verity: Path) -> None:
    sealed = fsverity.seal_file(make(verity / "product"))
    copy = make(verity / "copy")
    assert not fsverity.check_sealed(copy, expected=sealed.fsverity, size=5)
    fsverity.seal_file(make(verity / "other", b"other"))
    with pytest.raises(CaptureError, match="signed are"):
        fsverity.check_sealed(verity / "other", expected=sealed.fsverity, size=5)


def test_a_sealed_file_seen_through_an_overlay_is_compared_by_content(verity: Path) -> None:
    """overlayfs shows the flag of the layer below, and does not measure."""
    for name in ("lower", "over", "layers"):
        (verity / name).mkdir()
    sealed = fsverity.seal_file(make(verity / "lower" / "product"))
    subprocess.run(["mount", "-t", "tmpfs", "none", verity / "layers"], check=True)
    try:
        for name in ("upper", "work"):
            (verity / "layers" / name).mkdir()
        layers = f"lowerdir={verity}/lower,upperdir={verity}/layers/upper"
        options = f"{layers},workdir={verity}/layers/work"
        command = ["mount", "-t", "overlay", "-o", options, "none", verity / "over"]
        subprocess.run(command, check=True)
        seen = verity / "over" / "product"
        assert not fsverity.check_sealed(seen, expected=sealed.fsverity, size=sealed.size)
        assert seen.read_bytes() == b"built"
    finally:
        subprocess.run(["umount", verity / "over"])
        subprocess.run(["umount", verity / "layers"], check=True)


def test_sealing_twice_is_sealing_once(verity: Path) -> None:
    path = make(verity / "product")
    assert fsverity.seal_file(path) == fsverity.seal_file(path)


AS_OWNER = """
import sys
from rootseal import errors, fsverity
for path in sys.argv[1:]:
    try:
        print(fsverity.seal_file(path).fsverity.hex())
    except errors.CaptureError as error:
        print(error)
"""


def test_an_ordinary_user_seals_read_only_files_that_are_his(verity: Path) -> None:
    """The kernel wants the permission to write: the owner gives it to himself for the moment."""
    for folder in (verity, *verity.parents):
        folder.chmod(folder.stat().st_mode | 0o001)  # pytest keeps its own folders to root
    own, other = make(verity / "own"), make(verity / "other")
    os.chown(own, NOBODY, NOBODY)
    own.chmod(0o555)
    package = str(Path(fsverity.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-c", AS_OWNER, own, other],
        env={"PYTHONPATH": package},
        capture_output=True,
        text=True,
        user=NOBODY,
        group=NOBODY,
        extra_groups=[],
    )
    assert done.stderr == ""
    sealed, refused = done.stdout.splitlines()
    assert sealed == fsverity.calculate(io.BytesIO(b"built")).hex()
    assert "no permission to write it; run as its owner" in refused
    assert [path.stat().st_mode & 0o777 for path in (own, other)] == [0o555, 0o644]
    with other.open("rb") as stream:
        assert not fsverity.is_sealed(stream.fileno())


def test_open_writer_is_named_as_the_reason(verity: Path) -> None:
    path = make(verity / "product")
    with path.open("r+b"), pytest.raises(CaptureError, match="open for writing"):
        fsverity.seal_file(path)


def test_rename_and_hardlink_keep_the_seal(verity: Path) -> None:
    path = make(verity / "product")
    before = fsverity.seal_file(path)
    os.link(path, verity / "link")
    path.rename(verity / "renamed")
    for name in ("link", "renamed"):
        with (verity / name).open("rb") as file:
            assert fsverity.measure(file.fileno(), where=name) == before.fsverity


def test_unsealed_copy_can_be_written_in_place(verity: Path) -> None:
    path = make(verity / "product")
    path.chmod(0o755)
    assert not fsverity.unseal(path)
    fsverity.seal_file(path)
    before = path.stat()
    assert fsverity.unseal(path)
    after = path.stat()
    assert (after.st_mode, after.st_mtime_ns) == (before.st_mode, before.st_mtime_ns)
    assert path.read_bytes() == b"built"
    path.write_bytes(b"built again")
    assert [item.name for item in verity.iterdir()] == ["product"]
    assert not fsverity.unseal(verity / "missing")


def test_everything_sealed_below_a_directory_can_be_written_again(verity: Path) -> None:
    dist, elsewhere = verity / "dist", make(verity / "elsewhere")
    (dist / "a" / "b").mkdir(parents=True)
    (dist / "link").symlink_to(elsewhere)
    (dist / "folder").symlink_to(verity)
    sealed = [make(dist / "one"), make(dist / "a" / "b" / os.fsdecode(b"two\n\xff")), elsewhere]
    for path in sealed:
        fsverity.seal_file(path)
    make(dist / "other")
    assert fsverity.unseal_below(dist) == 2
    for path in sealed[:2]:
        path.write_bytes(b"built again")
    with pytest.raises(PermissionError):
        elsewhere.write_bytes(b"not below it")
    assert fsverity.unseal_below(dist) == fsverity.unseal_below(verity / "missing") == 0


def test_changed_blocks_on_the_disk_are_an_error_when_read(verity: Path) -> None:
    """The row's disk is changed below the filesystem; the kernel notices at the next read."""
    path = make(verity / "product", os.urandom(64 * 4096))
    fsverity.seal_file(path)
    device, offset = place_on_disk(path)
    with device.open("r+b", buffering=0) as disk:
        disk.seek(offset)
        old = disk.read(512)
        disk.seek(offset)
        disk.write(bytes(512))
        os.fsync(disk.fileno())
        try:
            drop_caches()
            with pytest.raises(OSError) as caught, path.open("rb") as file:
                file.read()
            assert caught.value.errno == errno.EIO
        finally:
            disk.seek(offset)
            disk.write(old)
            os.fsync(disk.fileno())
            drop_caches()
    assert len(path.read_bytes()) == 64 * 4096


def drop_caches() -> None:
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3", "ascii")


def place_on_disk(path: Path) -> tuple[Path, int]:
    """The row's virtual disk and where on it the file's first block is (FIBMAP)."""
    row = os.environ.get("ROOTSEAL_LAB_FILESYSTEM")
    if row != "ext4":
        pytest.skip("optional: only on the lab's own ext4 disk are blocks changed")
    os.sync()
    with path.open("rb") as file:
        block_size = struct.unpack("i", fcntl.ioctl(file, 2, struct.pack("i", 0)))[0]  # FIGETBSZ
        block = struct.unpack("i", fcntl.ioctl(file, 1, struct.pack("i", 0)))[0]  # FIBMAP
    number = path.stat().st_dev
    device = Path(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}").resolve().name
    return Path("/dev", device), block * block_size
