"""What the capture makes of each mount here: asked of the kernel, in a namespace of its own.

As root with the capture core, a process in a private mount namespace gets a real scope, and the
scope says of each mount whether it was marked: nothing else on the host can block on that. Without
that, the mounts are judged by their filesystem.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import importlib
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Iterator, List, Optional, Sequence, Tuple

from rootseal import fsverity
from rootseal.capture import mountinfo
from rootseal.capture.scope import CaptureLimits
from rootseal.errors import BackendUnavailable, CaptureError, ConfigError
from rootseal.observation import MountMark, Posture

NAMESPACE_SECONDS = 10.0
MOUNTS_MAX = 4096
_NOT_SHOWN = ("a kernel interface", "hidden under")


@dataclasses.dataclass(frozen=True)
class MountFinding:
    """One mount that can hold files.

    Attributes:
        mount: The mount, and whether it can be marked.
        posture: The strongest that is honest for files on it.
        can_seal: Whether its files can be sealed with fs-verity.
    """

    mount: MountMark
    posture: Posture
    can_seal: bool


def look_at_mounts(reachable: Posture) -> Tuple[MountFinding, ...]:
    """Every mount of this process's namespace that can hold files.

    Args:
        reachable: The posture that actions of this user reach where the filesystem allows it.
    """
    marks = _try_marks() if reachable.rank >= Posture.HELD.rank else ()
    return tuple(
        MountFinding(mark, _posture(mark, reachable), _can_seal(mark))
        for mark in (marks or _mounts_here())[:MOUNTS_MAX]
        if mark.marked or not mark.reason.startswith(_NOT_SHOWN)
    )


def _posture(mark: MountMark, reachable: Posture) -> Posture:
    if not mark.marked:
        return Posture.WALKED
    if mark.reason and reachable.rank > Posture.OBSERVED.rank:
        return Posture.OBSERVED
    return reachable


def _can_seal(mark: MountMark) -> bool:
    """Never by asking a server, which may not answer, or not the truth."""
    return not _is_remote(mark.filesystem) and fsverity.can_seal(mark.mount_point)


def _try_marks() -> Tuple[MountMark, ...]:
    """The mounts of a scope that is opened and dropped; empty where that cannot be done."""
    try:
        module = importlib.import_module("rootseal.capture.fanotify")
        engine = module.FanotifyEngine(shards=1, digest_cache_entries=16)
    except (ImportError, BackendUnavailable):
        return ()
    try:
        with tempfile.TemporaryDirectory() as root, _private_process() as pid:
            scope = engine.open_scope(pid=pid, root=os.fsencode(root), limits=CaptureLimits())
            try:
                return tuple(scope.mounts)
            finally:
                scope.abort()
    except (CaptureError, ConfigError):
        return ()
    finally:
        engine.close()


@contextlib.contextmanager
def _private_process() -> Iterator[int]:
    """A process in a mount namespace of its own, that waits until the block ends."""
    tool = shutil.which("unshare")
    if tool is None:
        raise ConfigError("no unshare command; install util-linux")
    own = Path("/proc/self/ns/mnt").readlink()
    with subprocess.Popen([tool, "--mount", "cat"], stdin=subprocess.PIPE) as process:
        deadline = time.monotonic() + NAMESPACE_SECONDS
        try:
            while process.poll() is None and Path(f"/proc/{process.pid}/ns/mnt").readlink() == own:
                if time.monotonic() > deadline:
                    raise ConfigError("a private mount namespace took too long to get")
                time.sleep(0.001)
            if process.poll() is not None:
                raise ConfigError("no private mount namespace for this user")
            yield process.pid
        finally:
            process.kill()


def _mounts_here() -> Tuple[MountMark, ...]:
    """The mounts that can hold files, judged by their filesystem's type alone."""
    found: List[MountMark] = []
    with contextlib.suppress(OSError):
        lines = Path("/proc/self/mountinfo").read_bytes().splitlines()
        pairs = [(line, _parse(line)) for line in lines]
        found = [mark for line, mark in pairs if mark is not None and _is_visible(line, mark)]
    return tuple(found)


def _is_visible(line: bytes, mark: MountMark) -> bool:
    """Whether the path leads to this mount, as far as this user may know: another may hide it."""
    if _is_remote(mark.filesystem):
        return True
    try:
        descriptor = os.open(mark.mount_point, os.O_PATH | os.O_CLOEXEC)
    except OSError as error:
        return error.errno not in (errno.ENOENT, errno.ENOTDIR)
    try:
        words = Path(f"/proc/self/fdinfo/{descriptor}").read_bytes().split()
    finally:
        os.close(descriptor)
    return words[words.index(b"mnt_id:") + 1] == line.split(b" ")[0]


PSEUDO = frozenset(
    [
        "autofs",
        "binder",
        "binfmt_misc",
        "bpf",
        "cgroup",
        "cgroup2",
        "configfs",
        "cpuset",
        "debugfs",
        "devpts",
        "devtmpfs",
        "efivarfs",
        "fusectl",
        "hugetlbfs",
        "mqueue",
        "nfsd",
        "nsfs",
        "proc",
        "pstore",
        "rpc_pipefs",
        "securityfs",
        "selinuxfs",
        "smackfs",
        "sysfs",
        "tracefs",
    ]
)
REMOTE = frozenset(
    [
        "9p",
        "afs",
        "ceph",
        "cifs",
        "coda",
        "fuse",
        "fuseblk",
        "gfs2",
        "lustre",
        "nfs",
        "nfs4",
        "ocfs2",
        "smb3",
        "virtiofs",
    ]
)


def _parse(line: bytes) -> Optional[MountMark]:
    found = mountinfo.read_line(line)
    if found is None or found[1] in PSEUDO:
        return None
    point, kind = found
    reason = mountinfo.SERVED_BY_OTHERS if _is_remote(kind) else ""
    return MountMark(point, kind, True, reason)


def _is_remote(kind: str) -> bool:
    return kind in REMOTE or kind.startswith("fuse.")


def rows(findings: Sequence[MountFinding]) -> List[Tuple[str, str, str, str]]:
    """Mount point, filesystem, posture with its reason, and fs-verity, for a table."""
    shown = []
    for item in findings:
        posture = item.posture.value
        if item.mount.reason:
            posture += f" ({item.mount.reason})"
        point = item.mount.mount_point.decode("utf-8", "backslashreplace")
        shown.append((point, item.mount.filesystem, posture, "yes" if item.can_seal else "no"))
    return shown
