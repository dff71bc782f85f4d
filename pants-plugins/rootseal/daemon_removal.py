"""Where fanotify would hinder an action: on NFS, when it removes what an event still holds.

The client of NFS renames such a file (.nfs…) until it is let go, and its directory cannot be
removed meanwhile. The tracer holds nothing while who traces goes on, so there it is the better one.
"""

from __future__ import annotations

import os
from typing import Optional

from rootseal import files
from rootseal.daemon_peer import Peer, as_user
from rootseal.errors import BackendUnavailable

NFS_SUPER_MAGIC = 0x6969  # linux/magic.h


def hinders_removal(root: bytes, peer: Peer) -> Optional[BackendUnavailable]:
    """Why fanotify may make an action with this root fail; None if it does not.

    Args:
        root: Directory of the action; absolute.
        peer: Whose action it is.

    Raises:
        CaptureError: The identity of the client cannot be taken.

    Source:
        statfs(2); fs/nfs/unlink.c of Linux, nfs_sillyrename.
    """
    try:
        with as_user(peer):
            descriptor = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                magic = files.filesystem_magic(descriptor)
            finally:
                os.close(descriptor)
    except OSError:
        return None  # many a server of FUSE does not say; NFS and what this machine has do
    if magic != NFS_SUPER_MAGIC:
        return None
    return BackendUnavailable(
        "fanotify",
        "the root is on NFS, where a file that an event still holds is renamed, not removed",
        "Put the root on a filesystem of this machine.",
    )
