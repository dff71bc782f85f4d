"""A server of NFSv4 in this kernel, and a mount of it: files that others serve and change.

Nothing of nfs-utils is needed: the kernel asks its user space who a client is and what it may have,
and those few answers are given here before it asks. It serves a tmpfs on a free port of the
loopback address, with another one below. There is one server per network namespace, so this is for
machines of the kernel lab.

Source:
    Documentation/filesystems/nfs/rpc-cache.rst, fs/nfsd/export.c, nfsd(7), nfs(5).
"""

from __future__ import annotations

import contextlib
import dataclasses
import socket
import subprocess
from pathlib import Path
from typing import Iterator

NFSD = Path("/proc/fs/nfsd")
CACHES = Path("/proc/net/rpc")
CLIENT = "lab"
FOREVER = 2**31 - 1
NOBODY = 65534
# linux/nfsd/export.h. A tmpfs has no UUID that lasts, so it gets a number.
NFSEXP_INSECURE_PORT, NFSEXP_ROOTSQUASH, NFSEXP_ASYNC = 0x2, 0x4, 0x10
NFSEXP_NOSUBTREECHECK, NFSEXP_FSID = 0x400, 0x2000
FSID_NUM = 1
# What is known of a file is believed for an hour, or until somebody opens it.
OPTIONS = "vers=4.2,addr=127.0.0.1,clientaddr=127.0.0.1,actimeo=3600"
LEASES = Path("/proc/sys/fs/leases-enable")


@dataclasses.dataclass(frozen=True)
class Served:
    """A mount of NFS.

    Attributes:
        place: Where its clients see it.
        behind: The same directory as the server has it: who writes here is another machine.
    """

    place: Path
    behind: Path


def answer(cache: str, *words: object) -> None:
    """Answer a question that the kernel will ask."""
    (CACHES / cache / "channel").write_text(" ".join(map(str, words)) + "\n", "ascii")


def export(directory: Path, number: int, more_flags: int = 0) -> None:
    """Let this machine have a filesystem under that number; 0 is the one at the root."""
    flags = NFSEXP_INSECURE_PORT | NFSEXP_ASYNC | NFSEXP_NOSUBTREECHECK | NFSEXP_FSID | more_flags
    answer("auth.unix.ip", "nfsd", "127.0.0.1", FOREVER, CLIENT)
    answer("nfsd.export", CLIENT, directory, FOREVER, flags, NOBODY, NOBODY, number)
    fsid = "\\x" + number.to_bytes(4, "little").hex()
    answer("nfsd.fh", CLIENT, FSID_NUM, fsid, FOREVER, directory)


def start(clients: Path) -> int:
    """Start the server and give its port. It serves at once: nobody has anything to reclaim."""
    (NFSD / "nfsv4recoverydir").write_text(f"{clients}\n", "ascii")
    (NFSD / "versions").write_text("-3 +4 +4.1 +4.2\n", "ascii")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        (NFSD / "portlist").write_text(f"{listener.fileno()}\n", "ascii")
        port = int(listener.getsockname()[1])
    (NFSD / "threads").write_text("2\n", "ascii")
    (NFSD / "v4_end_grace").write_text("Y\n", "ascii")
    return port


def stop() -> None:
    """Stop the server, which forgets what it exports."""
    (NFSD / "threads").write_text("0\n", "ascii")


@contextlib.contextmanager
def without_delegations() -> Iterator[None]:
    """The server does not promise to tell of changes; many do not, or not always."""
    LEASES.write_text("0\n", "ascii")
    try:
        yield
    finally:
        LEASES.write_text("1\n", "ascii")


@contextlib.contextmanager
def mounted(kind: str, source: str, place: Path, options: str) -> Iterator[None]:
    """A mount, without the helper that its type may have."""
    place.mkdir(exist_ok=True)
    subprocess.run(["mount", "-i", "-t", kind, "-o", options, source, place], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", place], check=True)


@contextlib.contextmanager
def nfs(folder: Path) -> Iterator[Served]:
    """A mount of NFS below an empty folder.

    In it `inner` and `squashed` are filesystems of their own, and root is nobody in the second. The
    kernel mounts them when somebody enters, and unmounts them with the first.
    """
    served = Served(folder / "mounted", folder / "behind")
    (folder / "clients").mkdir()
    with contextlib.ExitStack() as stack:
        stack.enter_context(mounted("nfsd", "nfsd", NFSD, "rw"))
        stack.enter_context(mounted("tmpfs", "none", served.behind, "mode=1777"))
        for name in ("inner", "squashed"):
            stack.enter_context(mounted("tmpfs", "none", served.behind / name, "mode=1777"))
        stack.callback(stop)
        export(served.behind, 0)
        export(served.behind / "inner", 1)
        export(served.behind / "squashed", 2, NFSEXP_ROOTSQUASH)
        options = f"{OPTIONS},port={start(folder / 'clients')}"
        stack.enter_context(mounted("nfs4", "127.0.0.1:/", served.place, options))
        yield served
