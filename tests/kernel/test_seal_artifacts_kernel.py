"""A whole build whose artifacts are sealed with fs-verity, and verified while they are."""

from __future__ import annotations

import ctypes
import fcntl
import hashlib
import json
import os
import struct
import subprocess
from pathlib import Path
from typing import Any, Sequence

import core_factory
import pytest
from rootseal import fsverity, keys, seal, toolchain, toolchain_files
from rootseal.errors import CaptureError, IncompleteError
from rootseal.manifest import read_manifest

EXPECTED = "fs-verity" in os.environ.get("ROOTSEAL_LAB_EXPECTS", "").split(",")
CONTENT = {"app.bin": core_factory.ARTIFACT, "lib/lib.a": b"lib"}


@pytest.fixture
def dist(tmp_path: Path) -> Path:
    """An artifact directory whose files can be sealed."""
    if not fsverity.available(tmp_path):
        assert not EXPECTED, "this row of the lab is there for fs-verity"
        pytest.skip("optional: no fs-verity on the filesystem of the temporary files")
    for name, content in CONTENT.items():
        (tmp_path / "dist" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "dist" / name).write_bytes(content)
    return tmp_path / "dist"


def build(dist: Path, mode: str) -> tuple[Path, Path]:
    """Seal a bundle of one action over the artifacts; bundle and public key."""
    capture = keys.generate("ed25519")
    signer = keys.create_key_files(dist.parent / "key.pem", "ed25519")
    record = core_factory.signed_record(capture)
    document: dict[str, Any] = core_factory.manifest([record])
    document["policy"]["fsverity"] = mode
    manifest = read_manifest(document)
    out = dist.parent / "build.rootseal"
    seal.seal(
        manifest,
        records=seal.RecordsInMemory({manifest.actions[0].record: record}),
        trusted=[capture.public_key],
        signer=signer,
        out=out,
        targets_dir=None,
        artifacts_dir=dist,
    )
    return out, keys.public_key_path(dist.parent / "key.pem")


def seal_with_salt(path: Path) -> None:
    """FS_IOC_ENABLE_VERITY with other parameters than Rootseal's."""
    salt = ctypes.create_string_buffer(b"salt", 4)
    address = ctypes.addressof(salt)
    with path.open("rb") as stream:
        argument = struct.pack("=IIIIQIIQ88x", 1, 1, 4096, len(salt), address, 0, 0, 0)
        fcntl.ioctl(stream, 0x40806685, argument)


def verify(
    command: Sequence[str], bundle: Path, key: Path, *artifacts: Path
) -> tuple[int, dict[str, Any], str]:
    arguments = [arg for path in artifacts for arg in ("--artifact", str(path))]
    done = subprocess.run(
        [*command, "verify", bundle, "--key", key, "--json", *arguments], capture_output=True
    )
    text = done.stdout.decode() or "{}"
    return done.returncode, json.loads(text), done.stderr.decode() + text


@pytest.mark.parametrize("mode", ["auto", "on"])
def test_artifacts_are_sealed_and_measured_again(
    dist: Path, mode: str, rootseal_command: Sequence[str]
) -> None:
    bundle, key = build(dist, mode)
    for name in CONTENT:
        with pytest.raises(PermissionError):
            (dist / name).open("r+b")
    copy = dist.parent / "copy"
    copy.write_bytes(CONTENT["app.bin"])
    code, answer, text = verify(rootseal_command, bundle, key, dist / "app.bin", copy)
    assert code == 0, text
    assert [item["fsverity"] for item in answer["artifacts"]] == ["measured", "copy"]


def test_off_leaves_artifacts_writable(dist: Path) -> None:
    build(dist, "off")
    (dist / "app.bin").write_bytes(b"other")


def test_open_writer_refuses_on_and_counts_in_auto(
    dist: Path, rootseal_command: Sequence[str]
) -> None:
    with (dist / "app.bin").open("r+b"):
        with pytest.raises(CaptureError, match="open for writing"):
            build(dist, "on")
        for name in ("key.pem", "key.pub"):
            (dist.parent / name).unlink()
        bundle, key = build(dist, "auto")
    code, answer, text = verify(rootseal_command, bundle, key, dist / "lib/lib.a")
    assert code == 0, text
    assert answer["artifacts"][0]["fsverity"] == "measured"
    counted = answer["summary"]["diagnostics"]
    assert [counted[f"fsVerity{name}"] for name in ("FilesSealed", "SealFailures")] == [1, 1]


def test_the_same_content_with_another_measurement_is_refused(
    dist: Path, rootseal_command: Sequence[str]
) -> None:
    """It has the SHA-256 of the artifact, and is not the file that was sealed: it has a salt."""
    bundle, key = build(dist, "on")
    path = dist / "app.bin"
    path.unlink()
    path.write_bytes(CONTENT["app.bin"])
    assert verify(rootseal_command, bundle, key, path)[1]["artifacts"][0]["fsverity"] == "copy"
    seal_with_salt(path)
    code, answer, text = verify(rootseal_command, bundle, key, path)
    assert (code, answer["error"]["check"]) == (1, "ARTIFACTS"), text
    assert "is sealed with fs-verity digest" in text


def sealed_one_of_two(dist: Path, command: Sequence[str], artifact: Path) -> Any:
    """Under `auto`, after a build that `on` refused: how an artifact is sealed; one is not."""
    for name in ("key.pem", "key.pub"):
        (dist.parent / name).unlink()
    bundle, key = build(dist, "auto")
    code, answer, text = verify(command, bundle, key, artifact)
    assert code == 0, text
    counted = answer["summary"]["diagnostics"]
    assert [counted[f"fsVerity{name}"] for name in ("FilesSealed", "SealFailures")] == [1, 1]
    return answer["artifacts"][0]["fsverity"]


def test_an_artifact_that_is_sealed_in_another_way_is_no_sealed_artifact(
    dist: Path, rootseal_command: Sequence[str]
) -> None:
    """Its digest would not be the one that docs/predicate.md promises."""
    fsverity.seal_file(dist / "lib/lib.a")
    seal_with_salt(dist / "app.bin")
    with pytest.raises(CaptureError, match=r"app\.bin is sealed already, but not with SHA-256"):
        build(dist, "on")
    assert sealed_one_of_two(dist, rootseal_command, dist / "lib/lib.a") == "measured"


def test_a_file_outside_the_directory_is_never_sealed_for_an_artifact(dist: Path) -> None:
    outside = dist.parent / "outside"
    (dist / "app.bin").rename(outside)
    (dist / "app.bin").symlink_to(outside)
    with pytest.raises(CaptureError, match="leads out of"):
        build(dist, "on")
    outside.write_bytes(b"still writable")


def test_an_artifact_with_another_name_is_never_sealed(
    dist: Path, rootseal_command: Sequence[str]
) -> None:
    """`on` refuses it, `auto` counts it; the other name may be anybody's."""
    outside = dist.parent / "outside"
    os.link(dist / "app.bin", outside)
    with pytest.raises(CaptureError, match=r"app\.bin .*other names \(hard links\).*copy it"):
        build(dist, "on")
    assert sealed_one_of_two(dist, rootseal_command, dist / "app.bin") is None
    outside.write_bytes(b"still writable")


def test_artifact_that_is_not_what_was_built_is_refused(dist: Path) -> None:
    (dist / "app.bin").write_bytes(b"something else")
    with pytest.raises(IncompleteError, match=hashlib.sha256(b"something else").hexdigest()):
        build(dist, "auto")


def test_sealed_toolchain_is_measured_not_read(
    dist: Path, tmp_path: Path, rootseal_command: Sequence[str]
) -> None:
    manifest = tmp_path / "tools.toolchain"
    signer = keys.create_key_files(tmp_path / "tools.pem", "ed25519")
    os.link(dist / "lib/lib.a", dist / "alias")  # as packages do; sealed here, unlike an artifact
    found = toolchain_files.seal_directories([os.fsencode(dist)], mode="on")
    manifest.write_bytes(toolchain.sign_toolchain(found, signer))
    command = [*rootseal_command, "toolchain", "verify", manifest, "--json"]
    command += ["--key", keys.public_key_path(tmp_path / "tools.pem")]
    done = subprocess.run(command, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"ok": True, "measured": 3, "hashed": 0}
    with pytest.raises(PermissionError):
        (dist / "app.bin").write_bytes(b"patched compiler")
    (dist / "app.bin").unlink()
    (dist / "app.bin").write_bytes(CONTENT["app.bin"][::-1])
    compared = toolchain_files.compare(found, read_all=False)
    assert [(item.path, item.reason) for item in compared.differences] == [
        (os.fsencode(dist / "app.bin"), "content")
    ]
