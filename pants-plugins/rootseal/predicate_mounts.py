"""The mounts of an action's namespace, in its predicate (docs/predicate.md). Pure."""

from __future__ import annotations

import functools
from typing import Dict, List, Tuple

from rootseal import canonical, schema
from rootseal.observation import MountMark, Posture

POSTURES = tuple(posture.value for posture in Posture)
MOUNTS_SHAPE = schema.list_of(
    schema.object_of(
        {
            "mountPoint": schema.path_text,
            "filesystem": schema.text(256),
            "marked": schema.boolean,
            "posture": schema.nullable(schema.one_of(POSTURES)),
            "reason": schema.text(4096),
            "comparedAtAccess": schema.boolean,
        }
    ),
    1 << 16,
)


@functools.lru_cache(maxsize=64)  # actions of one host have the same mounts again and again
def mounts_document(mounts: Tuple[MountMark, ...]) -> List[Dict[str, object]]:
    """Checked already; nobody changes it."""
    document = [_mount(mount) for mount in mounts]
    MOUNTS_SHAPE(document, "predicate.capture.mounts")
    return document


def _mount(mount: MountMark) -> Dict[str, object]:
    return {
        "mountPoint": canonical.path_text(mount.mount_point),
        "filesystem": mount.filesystem,
        "marked": mount.marked,
        "posture": None if mount.posture is None else mount.posture.value,
        "reason": mount.reason,
        "comparedAtAccess": mount.compared_at_access,
    }
