"""Who a client is, whom the daemon serves, and file access with the client's rights only."""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import functools
import os
import platform
import pwd
import socket
import struct
import threading
import time
from typing import FrozenSet, Iterator, List, Optional, Tuple

from rootseal import wire
from rootseal.errors import CaptureError, ConfigError

_CREDENTIALS = struct.Struct("iII")
_CREDENTIALS_SPACE = socket.CMSG_SPACE(_CREDENTIALS.size)
# setfsuid, setfsgid, setgroups: raw, because the C library would change all threads.
_NUMBERS = {"x86_64": (122, 123, 116), "aarch64": (151, 152, 159)}
_GROUPS_MAX = 65536
_thread = threading.local()  # .foreign: this thread took a client's identity
_STAT_BYTES = 4096  # a line of 52 numbers and a name


@dataclasses.dataclass(frozen=True)
class Peer:
    """The process at the other end, as the kernel named it when it connected."""

    pid: int
    uid: int
    gid: int


@dataclasses.dataclass(frozen=True)
class Allowed:
    """Whom a daemon serves beside its own user and root.

    Attributes:
        uids: User ids.
        gids: Group ids; primary and supplementary membership count.
    """

    uids: FrozenSet[int] = frozenset()
    gids: FrozenSet[int] = frozenset()

    def serves(self, peer: Peer) -> bool:
        """Whether this peer may have its actions captured."""
        if peer.uid in (os.getuid(), 0) or peer.uid in self.uids:
            return True
        return bool(self.gids and not self.gids.isdisjoint(groups_of(peer.uid, peer.gid)))

    def sharing(self, peer: Peer) -> Optional[int]:
        """The uid of a peer who must leave room to other users; None if he need not.

        Root and the daemon's own user need not, nor does a user beside whom no other is allowed.
        """
        alone = not self.gids and len(self.uids) < 2
        return None if alone or peer.uid in (os.getuid(), 0) else peer.uid


def peer_of(connection: socket.socket) -> Peer:
    """The peer of a connection."""
    return Peer(*wire.peer_ids(connection))


def groups_of(uid: int, gid: int) -> List[int]:
    """All groups of a user by the user database, the given primary group included."""
    try:
        return os.getgrouplist(pwd.getpwuid(uid).pw_name, gid)
    except KeyError:
        return [gid]


@contextlib.contextmanager
def as_user(peer: Peer) -> Iterator[None]:
    """Access files in this thread with the client's rights: a daemon must lend nobody its own.

    Does nothing when the daemon has no more rights than the client.

    Raises:
        CaptureError: The identity cannot be changed; nothing has been read then.
    """
    if os.getuid() == peer.uid or os.geteuid() != 0:
        yield
        return
    own_groups = os.getgroups()
    _thread.foreign = True
    try:
        _become(peer.uid, peer.gid, groups_of(peer.uid, peer.gid))
        yield
    finally:
        _become(0, 0, own_groups)
        _thread.foreign = False


def identity_is_own() -> bool:
    """Whether this thread has the daemon's identity; else it must not serve anybody else."""
    return not getattr(_thread, "foreign", False)


def _become(uid: int, gid: int, groups: List[int]) -> None:
    numbers = _NUMBERS.get(platform.machine())
    if numbers is None:
        raise CaptureError(f"no per-thread identity on {platform.machine()}; run a daemon per user")
    set_fsuid, set_fsgid, set_groups = numbers
    library = ctypes.CDLL(None, use_errno=True)
    groups = groups[:_GROUPS_MAX]
    array = (ctypes.c_uint32 * len(groups))(*groups)
    if uid == 0:
        library.syscall(set_fsuid, 0)
    if library.syscall(set_groups, len(groups), array) < 0:
        raise CaptureError(f"cannot take the groups of a client: errno {ctypes.get_errno()}")
    library.syscall(set_fsgid, gid)
    library.syscall(set_fsuid, uid)
    # Both calls return the previous value, never an error: asking again tells whether they worked.
    if library.syscall(set_fsuid, -1) != uid or library.syscall(set_fsgid, -1) != gid:
        raise CaptureError(f"cannot take the identity of uid {uid}")


def receive_some(connection: socket.socket, count: int) -> bytes:
    """Read up to `count` bytes as soon as there are any.

    Raises:
        EOFError: The peer closed.
        TimeoutError: Nothing came within the socket's SO_RCVTIMEO.
    """
    try:
        data = connection.recv(count)
    except BlockingIOError:
        raise TimeoutError("the peer is too slow") from None
    if not data:
        raise EOFError(0)
    return data


def receive_credentials(connection: socket.socket, deadline: float) -> Tuple[wire.FrameType, Peer]:
    """Read one frame without payload, and who sent it by the kernel's word (SCM_CREDENTIALS).

    Raises:
        EncodingError: Garbage.
        EOFError: The peer closed.
        TimeoutError: The deadline passed, or nothing came within the socket's SO_RCVTIMEO.
        CaptureError: The kernel named no sender.
    """
    data, sender = _receive_with_sender(connection, wire.HEADER_BYTES)
    if len(data) < wire.HEADER_BYTES:
        with _deadline(connection, deadline):
            while len(data) < wire.HEADER_BYTES:
                part, found = _receive_with_sender(connection, wire.HEADER_BYTES - len(data))
                data, sender = data + part, found or sender
    frame_type, length = wire.decode_header(data)
    if length != 0 or sender is None:
        raise CaptureError("the action's process did not identify itself")
    return frame_type, sender


def _receive_with_sender(connection: socket.socket, count: int) -> Tuple[bytes, Optional[Peer]]:
    try:
        part, ancillary, _, _ = connection.recvmsg(count, _CREDENTIALS_SPACE)
    except BlockingIOError:
        raise TimeoutError("the peer is too slow") from None
    if not part:
        raise EOFError(0)
    for level, kind, value in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_CREDENTIALS):
            return part, Peer(*_CREDENTIALS.unpack(value[: _CREDENTIALS.size]))
    return part, None


@contextlib.contextmanager
def _deadline(connection: socket.socket, deadline: float) -> Iterator[None]:
    connection.settimeout(max(deadline - time.monotonic(), 0.001))
    try:
        yield
    except socket.timeout:
        raise TimeoutError("the peer is too slow") from None
    finally:
        connection.settimeout(None)


def mount_namespace(pid: int) -> Tuple[int, int]:
    """Identity of a process's mount namespace.

    Raises:
        CaptureError: The process is gone, or may not be looked at.
    """
    try:
        found = os.stat(f"/proc/{pid}/ns/mnt")
    except OSError as error:
        raise CaptureError(
            f"the action's process {pid} cannot be examined: {error.strerror}"
        ) from None
    return found.st_dev, found.st_ino


@contextlib.contextmanager
def opened_process(pid: int, what: str) -> Iterator[int]:
    """A pidfd: the pid cannot come to mean another process unseen.

    Args:
        pid: Process id.
        what: How an error names it.

    Raises:
        CaptureError: It is gone.
    """
    try:
        descriptor = os.pidfd_open(pid)
    except OSError as error:
        raise CaptureError(f"{what} {pid} is gone: {error.strerror}") from None
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def opened_namespace(pid: int) -> Iterator[int]:
    """A descriptor of a process's mount namespace: as long as it is open, no other is that one.

    Raises:
        CaptureError: The process is gone, or may not be looked at.
    """
    try:
        descriptor = os.open(f"/proc/{pid}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise CaptureError(
            f"the action's process {pid} cannot be examined: {error.strerror}"
        ) from None
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@functools.lru_cache(maxsize=1)  # the daemon stays where it is
def _own_namespace() -> Tuple[int, int]:
    return mount_namespace(os.getpid())


def check_child(sender: Peer, launcher: Peer, *, private_namespace: bool) -> None:
    """The process that said READY is the launcher's own child, where it must be.

    Args:
        sender: Who the kernel says sent READY.
        launcher: Who announced the action.
        private_namespace: Whether the child must be in a mount namespace of its own.

    Raises:
        CaptureError: It is not; says why.
    """
    if sender.uid != launcher.uid and launcher.uid != 0:
        raise CaptureError(f"the action's process has uid {sender.uid}, not {launcher.uid}")
    if _parent_of(sender.pid) != launcher.pid:
        raise CaptureError(f"process {sender.pid} is not a child of the launcher {launcher.pid}")
    if not private_namespace:
        return
    own = mount_namespace(sender.pid)
    if own in (mount_namespace(launcher.pid), _own_namespace()):
        raise CaptureError("the action's process is not in a private mount namespace")


def _parent_of(pid: int) -> int:
    try:
        descriptor = os.open(f"/proc/{pid}/stat", os.O_RDONLY | os.O_CLOEXEC)
        try:
            text = os.read(descriptor, _STAT_BYTES)
        finally:
            os.close(descriptor)
        return int(text[text.rindex(b")") + 2 :].split(None, 2)[1])
    except (OSError, ValueError, IndexError):
        raise CaptureError(f"the action's process {pid} is gone, or not in sight") from None


def check_root(root: bytes, peer: Peer) -> None:
    """The root is a directory by its real path, and the client's own where the daemon may do more.

    The record names it: a path through a link would hide which files were inside.

    Raises:
        ConfigError: It is not; says what to give instead.
    """
    name = os.fsdecode(root)
    try:
        with as_user(peer):
            descriptor = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            real = os.path.realpath(root)
    except OSError as error:
        raise ConfigError(f"the root {name} cannot be used: {error.strerror}") from None
    try:
        owner = os.fstat(descriptor).st_uid
    finally:
        os.close(descriptor)
    if real != root:
        raise ConfigError(f"the root {name} is {os.fsdecode(real)} by its real path; give that")
    if peer.uid not in (0, os.getuid()) and owner != peer.uid:
        raise ConfigError(
            f"the root {name} belongs to uid {owner}, not to you (uid {peer.uid}); give a "
            "directory of your own (--root), or use a daemon of your own"
        )
