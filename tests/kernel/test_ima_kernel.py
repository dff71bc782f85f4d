"""The `ima` backend on a kernel that measures (in the lab: `ima_policy=tcb`)."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from rootseal import diagnostics, digest, ima, leaf_table
from rootseal.capture import ima as backend
from rootseal.capture.scope import CaptureLimits
from rootseal.capture.walk import WalkEngine, WalkInputs
from rootseal.errors import BackendUnavailable, EncodingError
from rootseal.leaf_table import Domain
from rootseal.observation import DigestSource, Posture

EXPECTED = "ima" in os.environ.get("ROOTSEAL_LAB_EXPECTS", "").split(",")
ASCII = backend.LIST.with_name("ascii_runtime_measurements")


@pytest.fixture
def window() -> backend.ImaWindow:
    """What the kernel measures from here on."""
    try:
        return backend.ImaWindow()
    except BackendUnavailable as error:
        assert not EXPECTED, "this row of the lab is there for IMA"
        pytest.skip(f"optional: {error}")


def measured_here(tmp_path: Path) -> Path:
    """The folder, if the kernel's policy measures files on its filesystem."""
    if os.environ.get("ROOTSEAL_LAB_FILESYSTEM") == "tmpfs":
        pytest.skip("optional: the tcb policy leaves tmpfs out")
    return tmp_path


def test_both_lists_of_this_kernel_agree_and_are_genuine(window: backend.ImaWindow) -> None:
    window.close()
    entries = ima.parse_binary(backend.LIST.read_bytes())
    ima.check_list(entries, pcrs=backend.read_pcrs())
    try:
        text = ima.parse_ascii(ASCII.read_bytes())
    except EncodingError:
        assert any(b"\n" in entry.name for entry in entries)
        return
    shorter = min(len(text), len(entries))
    assert text[:shorter] == entries[:shorter]


def test_read_file_is_measured_with_its_content(window: backend.ImaWindow, tmp_path: Path) -> None:
    path = measured_here(tmp_path) / "material"
    content = os.urandom(10_000)
    path.write_bytes(content)
    assert path.read_bytes() == content
    found = ima.by_path(window.entries())
    assert [entry.digest for entry in found[bytes(path)]] == [digest.sha256(content)]
    window.close()


def test_writing_what_is_being_read_is_a_violation(
    window: backend.ImaWindow, tmp_path: Path
) -> None:
    path = measured_here(tmp_path) / "material"
    path.write_bytes(os.urandom(100))
    with path.open("rb"), path.open("r+b"):
        pass
    entries = [entry for entry in window.entries() if entry.name == bytes(path)]
    assert [entry.is_violation for entry in entries] == [False, True]
    window.close()


def test_action_gets_what_the_kernel_measured(window: backend.ImaWindow, tmp_path: Path) -> None:
    root = measured_here(tmp_path) / "root"
    root.mkdir()
    outside = tmp_path / "tool"
    outside.write_bytes(os.urandom(100))
    (root / "read").write_bytes(os.urandom(100))
    (root / "unread").write_bytes(os.urandom(100))
    walk = WalkEngine().open_scope(
        pid=0, root=bytes(root), limits=CaptureLimits(), inputs=WalkInputs()
    )
    window.close()
    scope = backend.ImaScope(walk, backend.ImaWindow(), root=bytes(root))
    # The first snapshot was read by root, so it is measured already: change what is to be read.
    (root / "read").write_bytes(os.urandom(200))
    (root / "out").write_bytes((root / "read").read_bytes() + outside.read_bytes())
    found = scope.finish(outputs_files=[b"out"], outputs_dirs=[])
    materials = {
        leaf.path: leaf for leaf in leaf_table.iter_leaves(found.materials.raw, Domain.MATERIAL)
    }
    assert materials[bytes(outside)].digest == digest.sha256(outside.read_bytes())
    assert materials[bytes(outside)].source == DigestSource.IMA
    assert materials[b"unread"].source == DigestSource.WALK
    assert (found.backend, found.posture) == ("walk+ima", Posture.WALKED)
    assert diagnostics.losses(found.counters) == {}
