"""The fs-verity digest in plain Python, against digests that the kernel's own tool calculated."""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rootseal import fsverity
from rootseal.errors import BackendUnavailable, CaptureError

# Size of the file of bytes i % 251 → digest by `fsverity digest` (fsverity-utils 1.5).
KNOWN = {
    0: "3d248ca542a24fc62d1c43b916eae5016878e2533c88238480b26128a1f1af95",
    1: "b803429503d95915829b29fdbc8bbad142f3abfd11b1cadf5526582e685c0551",
    4095: "5f4953aad672b0188023d6cd6fbce9d09508eb7dad165b6298ce0086bc1e72db",
    4096: "13e9b8848ae484a36acb3f3cac0ceb2f7601e96633d15c92f9bd3dd44e492157",
    4097: "b0d074abef4d544404facfab6ba242f6a8ccbde90f1325cd286f3c8aa8d0f8aa",
    524288: "d82861203d50ae9b60948504a704f35f5118bd229aeb1a22d6dae47b1767c4c4",
    524289: "4dc6905041c9c4ee73e13b53f63f5d289c46da359b664a965ead7f8cc4d799d4",
    1000003: "8b690b7dc0389911beec5f118ce25a67542edab9e7c1b742772b22b59c73b3f7",
    67108864: "196650e8bd05f8516c0ede56deeb4d1ff2be9809dc2d827261db4a7773957567",
    67112961: "6c9eb280104cc46005292472def41b84d906f80379e06771affabc4c1f2f97b8",
}


def content(size: int) -> bytes:
    return (bytes(range(251)) * (size // 251 + 1))[:size]


@pytest.mark.parametrize("size", KNOWN)
def test_digest_is_that_of_the_kernels_tool(size: int) -> None:
    assert fsverity.calculate(io.BytesIO(content(size))).hex() == KNOWN[size]


def recursive_root(hashes: list[bytes]) -> bytes:
    """Another way to the root hash: whole levels at once."""
    if len(hashes) == 1:
        return hashes[0]
    joined = b"".join(hashes)
    blocks = [joined[at : at + 4096].ljust(4096, b"\0") for at in range(0, len(joined), 4096)]
    return recursive_root([hashlib.sha256(block).digest() for block in blocks])


def by_levels(data: bytes) -> bytes:
    blocks = [data[at : at + 4096].ljust(4096, b"\0") for at in range(0, len(data), 4096)]
    root = recursive_root([hashlib.sha256(b).digest() for b in blocks]) if blocks else bytes(32)
    head = b"\1\1\x0c\0" + bytes(4) + len(data).to_bytes(8, "little")
    return hashlib.sha256(head + root.ljust(64, b"\0") + bytes(176)).digest()


@settings(deadline=None)  # no test depends on time
@given(
    blocks=st.integers(0, 3 * 128 + 2), extra=st.integers(0, 4095), cuts=st.integers(999, 3 * 4096)
)
def test_pieces_of_any_size_give_the_digest_of_whole_levels(
    blocks: int, extra: int, cuts: int
) -> None:
    data = content(blocks * 4096 + extra)
    calculator = fsverity.Calculator()
    for start in range(0, len(data), cuts):
        calculator.update(data[start : start + cuts])
    assert calculator.digest() == by_levels(data)


def test_trailing_zeros_change_the_digest() -> None:
    """Padding is not content: the size is part of what is hashed."""
    short = fsverity.calculate(io.BytesIO(b"a"))
    assert short != fsverity.calculate(io.BytesIO(b"a\0"))


def test_files_that_are_not_sealed_are_not_measured(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"content")
    with path.open("rb") as file:
        assert not fsverity.is_sealed(file.fileno())
        with pytest.raises(CaptureError, match="is not sealed"):
            fsverity.measure(file.fileno(), where=str(path))


def test_a_symlink_is_not_sealed_through(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/etc/passwd")
    with pytest.raises(CaptureError, match="cannot open"):
        fsverity.seal_file(tmp_path / "link")


def test_a_filesystem_without_fs_verity_says_what_to_do() -> None:
    shm = Path("/dev/shm")
    if not shm.is_dir():
        pytest.skip("optional: no /dev/shm here to stand for a tmpfs")
    path, link = shm / f"rootseal-test-{id(shm)}", shm / f"rootseal-test-{id(shm)}-link"
    try:
        path.write_bytes(b"content")
        assert not fsverity.available(shm)
        with pytest.raises(BackendUnavailable, match="btrfs"):
            fsverity.seal_file(path)
        os.link(path, link)  # no seal that failed: there would be none of a copy either
        with pytest.raises(BackendUnavailable, match="btrfs"):
            fsverity.seal_file(path)
    finally:
        path.unlink(missing_ok=True)
        link.unlink(missing_ok=True)


def test_a_directory_that_cannot_be_written_is_an_error_not_an_answer(tmp_path: Path) -> None:
    with pytest.raises(CaptureError, match="cannot try"):
        fsverity.available(tmp_path / "missing")


def test_the_tool_agrees_here_too(tmp_path: Path) -> None:
    tool = shutil.which("fsverity")
    if tool is None:
        pytest.skip("optional: no fsverity command (package fsverity) to compare with")
    path = tmp_path / "file"
    path.write_bytes(content(1_000_003))
    done = subprocess.run([tool, "digest", "--compact", path], capture_output=True, check=True)
    with path.open("rb") as stream:
        assert fsverity.calculate(stream).hex() == done.stdout.decode().strip()
