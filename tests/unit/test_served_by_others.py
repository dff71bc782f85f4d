"""What the step down to `observed` names: where the materials are, not what else there is."""

from __future__ import annotations

import dataclasses

import core_factory as factory
import pytest
from rootseal import leaf_table
from rootseal.daemon_action import served_by_others
from rootseal.leaf_table import Domain
from rootseal.observation import MountMark, Observation, Posture

OTHERS = "served by others"
MOUNTS = (
    MountMark(b"/", "ext4", True, ""),
    MountMark(b"/home", "nfs4", True, OTHERS),
    MountMark(b"/home/local", "xfs", True, ""),
    MountMark(b"/share", "9p", True, OTHERS),
    MountMark(b"/tool", "fuse.one", True, OTHERS),  # a file
    MountMark(b"/gone", "cifs", False, "hidden under another mount"),
)


def observation(*paths: bytes, posture: Posture = Posture.OBSERVED) -> Observation:
    leaves = [factory.leaf(path, b"content") for path in paths]
    return dataclasses.replace(
        factory.observation(posture=posture),
        materials=leaf_table.encode(Domain.MATERIAL, leaves),
        mounts=MOUNTS,
    )


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        ((b"/home/user/input", b"/usr/bin/cc"), "(nfs4)"),
        ((b"/share/input", b"/home/local/input"), "(9p)"),
        ((b"/share/input", b"/home/input", b"/tool"), "(9p, fuse.one, nfs4)"),
        ((b"input", b"/tools/other"), "(nfs4)"),  # the root is there
        ((b"/" + b"d/" * 2000 + b"input", b"/tool"), "(fuse.one)"),
        # Of what left no material nothing is known: all are named.
        ((b"/usr/bin/cc",), "(9p, fuse.one, nfs4)"),
    ],
)
def test_only_what_was_used_is_named(paths: tuple[bytes, ...], names: str) -> None:
    root = b"/home/root" if b"input" in paths else b"/sandbox"
    (step,) = served_by_others(observation(*paths), root)
    assert (step.wanted, step.used) == ("held", "observed")
    assert f"others serve {names}: content can change" in step.reason


def test_what_was_held_has_no_such_step() -> None:
    assert served_by_others(observation(b"/usr/bin/cc", posture=Posture.HELD), b"/sandbox") == ()
