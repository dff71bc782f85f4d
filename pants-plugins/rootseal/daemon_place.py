"""Where a daemon lives: its socket, its lock, its state directory. One daemon per socket."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import os
import socket
import stat
from pathlib import Path
from typing import Iterator, Mapping

from rootseal import keys, wire
from rootseal.errors import ConfigError

BACKLOG = 1024
RUNS_ALREADY = "a daemon runs already at"


@dataclasses.dataclass(frozen=True)
class Place:
    """The paths of one daemon.

    Attributes:
        socket: Path of the listening socket.
        state: Directory of the capture key and the log.
    """

    socket: Path
    state: Path

    @property
    def capture_key(self) -> Path:
        """Private key that signs action records."""
        return self.state / "capture.key"

    @property
    def digest_cache(self) -> Path:
        """What was hashed in this boot, for the next daemon."""
        return self.state / "digest-cache"

    @property
    def log(self) -> Path:
        """Log of a daemon that was started in the background."""
        return self.state / "daemon.log"


def default_socket(uid: int) -> Path:
    """Where a daemon of this user listens: the system's place for root."""
    if uid == 0:
        return Path(wire.SYSTEM_SOCKET)
    runtime, fallback = wire.user_socket_paths(uid)
    runtime_directory = Path(runtime).parent.parent
    return Path(runtime if os.access(runtime_directory, os.W_OK) else fallback)


def place_for(environ: Mapping[str, str], uid: int, socket_path: str, state: str) -> Place:
    """The place of this user's daemon, or of the one whose paths were given."""
    return Place(
        Path(socket_path).absolute() if socket_path else default_socket(uid),
        Path(state).absolute() if state else keys.state_directory(environ, uid),
    )


def prepare_directories(place: Place, uid: int) -> None:
    """Create what is missing; refuse a directory that somebody else could have prepared.

    Raises:
        ConfigError: A directory cannot be made, or is not ours.
    """
    shared = place.socket == Path(wire.SYSTEM_SOCKET)
    _own_directory(place.socket.parent, uid, 0o755 if shared else 0o700)
    # The public capture key lies there for everyone to read; the private one is 0600 itself.
    _own_directory(place.state, uid, 0o755 if uid == 0 else 0o700)


def _own_directory(path: Path, uid: int, mode: int) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            path.mkdir(mode=mode)
            path.chmod(mode)
        found = path.lstat()
    except OSError as error:
        raise ConfigError(f"cannot create {path}: {error.strerror}") from None
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != uid:
        raise ConfigError(f"{path} is not a directory of uid {uid}; remove it, or name another")
    if found.st_mode & 0o022 and not found.st_mode & stat.S_ISVTX:
        raise ConfigError(f"{path} may be written by others; run `chmod go-w {path}`")


@dataclasses.dataclass(frozen=True)
class Listener:
    """A listening socket, and how to see that clients can still find it.

    Attributes:
        socket: It.
        path: Where it was bound.
        inode: What was there then.
    """

    socket: socket.socket
    path: Path
    inode: int

    def is_lost(self) -> bool:
        """Whether somebody removed or replaced the socket's file."""
        try:
            return self.path.lstat().st_ino != self.inode
        except OSError:
            return True


@contextlib.contextmanager
def listen(place: Place, *, shared: bool) -> Iterator[Listener]:
    """The listening socket, with the lock that makes this the only daemon there.

    A stale socket (its daemon was killed) is replaced; the socket appears by rename, so a client
    that finds it can connect. Both are given back at the end.

    Args:
        place: Where.
        shared: Whether other users may connect (who is served is decided by their credentials).

    Raises:
        ConfigError: Another daemon runs there, or the socket cannot be made.
    """
    lock = _lock(place.socket.with_name(place.socket.name + ".lock"))
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        inode = _bind(listener, place.socket, 0o666 if shared else 0o600)
        yield Listener(listener, place.socket, inode)
        _remove_own(place.socket, inode)
    finally:
        listener.close()
        os.close(lock)  # the lock file stays: removing it would let two daemons in


def _lock(path: Path) -> int:
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise ConfigError(f"cannot open {path}: {error.strerror}") from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise ConfigError(
            f"{RUNS_ALREADY} {path.with_suffix('')}; `rootseal daemon stop` ends it"
        ) from None
    return descriptor


def _bind(listener: socket.socket, path: Path, mode: int) -> int:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.unlink(missing_ok=True)
        listener.bind(str(temporary))
        temporary.chmod(mode)
        listener.listen(BACKLOG)
        temporary.replace(path)
        return path.lstat().st_ino
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise ConfigError(f"cannot listen at {path}: {error}; choose a shorter --socket") from None


def _remove_own(path: Path, inode: int) -> None:
    with contextlib.suppress(FileNotFoundError):
        if path.lstat().st_ino == inode:
            path.unlink()
