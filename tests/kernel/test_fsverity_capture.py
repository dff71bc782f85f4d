"""Materials that are sealed with fs-verity are measured, not read, if a manifest knows them."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Iterator

import pytest
from fanotify_action import Lab, build_fixture
from rootseal import digest, fsverity
from rootseal.errors import NativeError
from rootseal.observation import DigestSource, Posture

EXPECTED = "fs-verity" in os.environ.get("ROOTSEAL_LAB_EXPECTS", "").split(",")
SIZE = 3_000_000
READER = """
#include <fcntl.h>
int main(int argc, char **argv) { return argc != 2 || open(argv[1], O_RDONLY) < 0; }
"""


@pytest.fixture
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    found = Lab(build_fixture(tmp_path_factory.mktemp("fixture")))
    yield found
    found.engine.close()


@pytest.fixture
def sealed(tmp_path: Path) -> tuple[Path, fsverity.Measurement]:
    """A sealed file outside any root, and what it is."""
    if not fsverity.available(tmp_path):
        assert not EXPECTED, "this row of the lab is there for fs-verity"
        pytest.skip("optional: no fs-verity on the filesystem of the temporary files")
    path = tmp_path / "library"
    path.write_bytes(os.urandom(SIZE))
    return path, fsverity.seal_file(path)


def read_in_scope(lab: Lab, tmp_path: Path, path: Path) -> tuple[int, bytes, int]:
    """Source and digest of the file as a material, and the bytes hashed in all."""
    root = tmp_path / f"root-{len(list(tmp_path.iterdir()))}"
    root.mkdir()
    seen = lab.run(root, ["/bin/sh", "-c", f"read -r line <{path}; exit 0"])
    (leaf,) = seen.material(os.fsencode(path))
    return leaf.source, leaf.digest, seen.counters["bytesHashed"]


def test_known_sealed_file_is_measured_and_not_read(
    lab: Lab, tmp_path: Path, sealed: tuple[Path, fsverity.Measurement]
) -> None:
    path, found = sealed
    lab.engine.trust_sealed([(found.fsverity, found.sha256, found.size)])
    source, sha256, hashed = read_in_scope(lab, tmp_path, path)
    assert (source, sha256) == (DigestSource.FSVERITY_MEASURED, digest.sha256(path.read_bytes()))
    again = read_in_scope(lab, tmp_path, path)
    assert again[0] == DigestSource.FSVERITY_MEASURED
    assert again[2] < SIZE, "the file was read though its seal is known"
    assert hashed >= again[2]


def test_sealed_file_that_no_manifest_knows_is_hashed(
    lab: Lab, tmp_path: Path, sealed: tuple[Path, fsverity.Measurement]
) -> None:
    path, found = sealed
    lab.engine.trust_sealed([(bytes(32), found.sha256, found.size)])
    source, sha256, hashed = read_in_scope(lab, tmp_path, path)
    assert (source, sha256) == (DigestSource.FANOTIFY_OPEN_TIME, found.sha256)
    assert hashed >= SIZE


def test_manifest_with_another_size_is_not_believed(
    lab: Lab, tmp_path: Path, sealed: tuple[Path, fsverity.Measurement]
) -> None:
    """btrfs lets a sealed file be truncated by path; its measurement then stays as it was."""
    path, found = sealed
    lab.engine.trust_sealed([(found.fsverity, bytes(32), found.size + 1)])
    source, sha256, _ = read_in_scope(lab, tmp_path, path)
    assert (source, sha256) == (DigestSource.FANOTIFY_OPEN_TIME, found.sha256)


def test_unsealed_copy_with_the_same_content_is_hashed(
    lab: Lab, tmp_path: Path, sealed: tuple[Path, fsverity.Measurement]
) -> None:
    path, found = sealed
    lab.engine.trust_sealed([(found.fsverity, found.sha256, found.size)])
    copy = tmp_path / "copy"
    copy.write_bytes(path.read_bytes())
    source, sha256, _ = read_in_scope(lab, tmp_path, copy)
    assert (source, sha256) == (DigestSource.FANOTIFY_OPEN_TIME, found.sha256)


def test_posture_is_sealed_only_if_every_material_was_measured(
    lab: Lab, tmp_path: Path, sealed: tuple[Path, fsverity.Measurement]
) -> None:
    source, program = tmp_path / "reader.c", tmp_path / "reader"
    source.write_text(READER)
    subprocess.run(["gcc", "-O1", "-static", str(source), "-o", str(program)], check=True)
    both = [(program, fsverity.seal_file(program)), sealed]
    lab.engine.trust_sealed([(known.fsverity, known.sha256, known.size) for _, known in both])
    hashed = tmp_path / "hashed"
    hashed.write_bytes(b"not sealed")
    found = []
    for path in (sealed[0], hashed):
        root = tmp_path / f"root-of-{path.name}"
        root.mkdir()
        seen = lab.run(root, [str(program), str(path)])
        assert (seen.exit_code, len(seen.materials)) == (0, 2), seen.materials
        found.append(seen.observation.posture)
    assert found == [Posture.SEALED, Posture.HELD]


def test_trust_is_given_once(lab: Lab) -> None:
    lab.engine.trust_sealed([])
    with pytest.raises(NativeError) as caught:
        lab.engine.trust_sealed([])
    assert os.strerror(caught.value.errno) == "Device or resource busy"
