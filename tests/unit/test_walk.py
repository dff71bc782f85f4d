"""The walk backend: what it sees, what it cannot, and that every cap is counted."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Dict

import pytest
from rootseal import diagnostics, leaf_table
from rootseal.capture.scope import CaptureLimits
from rootseal.capture.walk import WalkEngine, WalkInputs
from rootseal.errors import CaptureError
from rootseal.leaf_table import Domain, Leaf
from rootseal.observation import LeafKind, Observation, Posture


@pytest.fixture
def root(tmp_path: Path) -> Path:
    path = tmp_path / "root"
    path.mkdir()
    return path


def scope(root: Path, limits: CaptureLimits = CaptureLimits(), **inputs: object):  # type: ignore[no-untyped-def]  # noqa: B008
    return WalkEngine().open_scope(
        pid=0,
        root=os.fsencode(root),
        limits=limits,
        inputs=WalkInputs(**inputs),  # type: ignore[arg-type]
    )


def finish(found, files: tuple[bytes, ...] = (), dirs: tuple[bytes, ...] = ()) -> Observation:  # type: ignore[no-untyped-def]
    observation: Observation = found.finish(outputs_files=files, outputs_dirs=dirs)
    return observation


def materials(observation: Observation) -> Dict[bytes, Leaf]:
    leaves = leaf_table.iter_leaves(observation.materials.raw, Domain.MATERIAL)
    return {leaf.path: leaf for leaf in leaves}


def products(observation: Observation) -> Dict[bytes, Leaf]:
    leaves = leaf_table.iter_leaves(observation.products.raw, Domain.PRODUCT)
    return {leaf.path: leaf for leaf in leaves}


def test_before_and_after(root: Path) -> None:
    for name in ("kept", "changed", "removed", "renamed", "touched"):
        (root / name).write_text(name)
    (root / "empty").mkdir()
    found = scope(root)
    (root / "changed").write_text("changed!")
    (root / "removed").unlink()
    (root / "renamed").rename(root / "empty" / "new name")
    (root / "made").write_text("made")
    (root / "link").symlink_to("kept")
    observation = finish(found)
    assert set(materials(observation)) == {b"kept", b"changed", b"removed", b"renamed", b"touched"}
    assert set(products(observation)) == {b"changed", b"empty/new name", b"made", b"link"}
    assert products(observation)[b"link"].kind == LeafKind.SYMLINK
    assert observation.posture == Posture.WALKED
    assert diagnostics.losses(observation.counters) == {}


def test_declared_outputs_are_products_even_if_unchanged(root: Path) -> None:
    (root / "d").mkdir()
    for name in ("file", "d/inner", "other"):
        (root / name).write_text(name)
    observation = finish(scope(root), files=(b"file",), dirs=(b"d",))
    assert set(products(observation)) == {b"file", b"d/inner"}
    assert set(products(finish(scope(root), dirs=(b".",)))) == {b"file", b"d/inner", b"other"}


def test_odd_names_special_files_and_loops(root: Path) -> None:
    odd = os.fsencode(root) + b"/line\nbreak \xff"
    Path(os.fsdecode(odd)).write_text("odd")
    os.mkfifo(root / "fifo")
    (root / "loop").symlink_to("loop")
    (root / "up").symlink_to("..")
    seen = set(materials(finish(scope(root))))
    assert b"line\nbreak \xff" in seen
    assert b"loop" in seen
    assert b"fifo" not in seen


def test_named_inputs_and_linked_directories(root: Path, tmp_path: Path) -> None:
    shared, tool = tmp_path / "shared", tmp_path / "tool"
    shared.mkdir()
    (shared / "header").write_text("h")
    tool.write_text("t")
    (root / "immutable").symlink_to(shared)
    observation = finish(scope(root, program=os.fsencode(tool), paths=(os.fsencode(tool),)))
    found = materials(observation)
    assert found[os.fsencode(tool)].kind == LeafKind.EXECUTABLE
    assert os.fsencode(shared / "header") in found
    (root / "inside").write_text("program")
    inside = finish(scope(root, program=os.fsencode(root / "inside")))
    assert materials(inside)[b"inside"].kind == LeafKind.EXECUTABLE


@pytest.mark.parametrize(
    ("limits", "counter"),
    [
        (CaptureLimits(max_digests=2), "fanotifyDigestsCapHit"),
        (CaptureLimits(max_record_bytes=150), "recordBytesCapHit"),
        (CaptureLimits(max_hashed_bytes=2), "hashedBytesCapHit"),
    ],
)
def test_every_cap_is_counted(root: Path, limits: CaptureLimits, counter: str) -> None:
    for number in range(3):
        (root / str(number)).write_text("x")
    observation = finish(scope(root, limits))
    assert diagnostics.losses(observation.counters).get(counter, 0) >= 1
    assert 1 <= len(materials(observation)) < 3


def test_the_same_content_is_hashed_once_across_scopes(root: Path) -> None:
    (root / "file").write_text("content")
    os.utime(root / "file", (1, 1))
    engine = WalkEngine()

    def observe() -> Observation:
        opened = engine.open_scope(pid=0, root=os.fsencode(root), limits=CaptureLimits())
        return opened.finish(outputs_files=(), outputs_dirs=())

    first = observe()
    assert first.counters["bytesHashed"] >= len("content")
    assert materials(observe()) == materials(first)


def test_a_change_of_the_same_size_is_seen_at_once(root: Path) -> None:
    """Within one tick of the clock nothing but the content tells."""
    for _ in range(50):
        (root / "file").write_text("aaaa")
        found = scope(root)
        (root / "file").write_text("bbbb")
        assert set(products(finish(found))) == {b"file"}


def test_a_scope_ends_once(root: Path) -> None:
    found = scope(root)
    finish(found)
    with pytest.raises(CaptureError, match="ended already"):
        finish(found)
    aborted = scope(root)
    aborted.abort()
    aborted.abort()
    with pytest.raises(CaptureError, match="ended already"):
        finish(aborted)


def test_a_root_that_is_no_directory_is_refused(root: Path) -> None:
    (root / "file").write_text("x")
    for path in (root / "file", root / "absent"):
        with pytest.raises(CaptureError, match="is not a directory"):
            scope(path)
