"""What a trace backend says of one process: environment, network, files, system calls.

The types are the same for every trace backend (eBPF, ptrace), so that the predicate and the
differential tests need to know one shape. Paths and arguments are bytes, as the kernel has them;
text (`str`) is path text (docs/formats.md, Paths); times are nanoseconds since the epoch.
"""

from __future__ import annotations

import dataclasses
from typing import Optional, Tuple, Union


@dataclasses.dataclass(frozen=True)
class Socket:
    """A socket that was made. Names are those of socket(2), or the number where there is none."""

    family: str
    type: str
    protocol: int


@dataclasses.dataclass(frozen=True)
class Connection:
    """A connect, or a datagram sent to a named peer.

    Attributes:
        syscall: `connect`, `sendto`, `sendmsg` or `sendmmsg`.
        family: As for `Socket`.
        address: Text form; a path for AF_UNIX (path text), empty if it could not be read.
        port: 0 where the family has none.
        fd: Descriptor of the socket.
        result: 0, or the negative errno the process got.
        time_ns: When.
        hostname: Server name of the first TLS ClientHello sent on it, empty if none was seen.
    """

    syscall: str
    family: str
    address: str
    port: int
    fd: int
    result: int
    time_ns: int
    hostname: str = ""


@dataclasses.dataclass(frozen=True)
class Bind:
    """A bind(2)."""

    family: str
    address: str
    port: int
    fd: int
    result: int
    time_ns: int


@dataclasses.dataclass(frozen=True)
class DnsLookup:
    """A query to port 53; `name` is empty where only the connection was seen."""

    syscall: str
    server: str
    name: str
    time_ns: int


@dataclasses.dataclass(frozen=True)
class Network:
    """Everything a process did with sockets."""

    sockets: Tuple[Socket, ...] = ()
    connections: Tuple[Connection, ...] = ()
    binds: Tuple[Bind, ...] = ()
    dns_lookups: Tuple[DnsLookup, ...] = ()


@dataclasses.dataclass(frozen=True)
class FileWrite:
    """What a process wrote to one file; `time_ns` is that of the first write.

    `size` is the sum of the bytes written (eBPF), or the size of the file when the action ended
    (ptrace, which lets write(2) run unwatched; 0 if the file was gone).
    """

    path: bytes
    size: int
    time_ns: int


@dataclasses.dataclass(frozen=True)
class Rename:
    """A rename(2) or one of its kind."""

    source: bytes
    destination: bytes
    time_ns: int


@dataclasses.dataclass(frozen=True)
class Delete:
    """An unlink(2), unlinkat(2) or rmdir(2)."""

    path: bytes
    time_ns: int


@dataclasses.dataclass(frozen=True)
class PermChange:
    """A chmod(2) or one of its kind; `set_exec` says whether any execute bit is set now."""

    path: bytes
    mode: int
    set_exec: bool
    time_ns: int


@dataclasses.dataclass(frozen=True)
class Link:
    """A hard or symbolic link; the target of a symbolic link is its text."""

    target: bytes
    path: bytes
    symbolic: bool
    time_ns: int


@dataclasses.dataclass(frozen=True)
class Truncation:
    """A truncate(2) or ftruncate(2)."""

    path: bytes
    size: int
    time_ns: int


@dataclasses.dataclass(frozen=True)
class FileOps:
    """Everything a process did to files beside opening them."""

    writes: Tuple[FileWrite, ...] = ()
    renames: Tuple[Rename, ...] = ()
    deletes: Tuple[Delete, ...] = ()
    perm_changes: Tuple[PermChange, ...] = ()
    links: Tuple[Link, ...] = ()
    truncations: Tuple[Truncation, ...] = ()


@dataclasses.dataclass(frozen=True)
class SyscallEvent:
    """Another call worth knowing of.

    Attributes:
        syscall: Its name; `io_uring_openat` for an open that a ring asked for.
        result: What it returned (negative errno on failure); None if nobody waited for it, or if
            it is an address (`mmap`).
        details: Named arguments: numbers, flags as text, or paths; sorted by name.
        time_ns: When; the first time where equal calls are one event.
        count: How many equal calls this event stands for.
        verdict: `ran`, `denied` (did not run, the caller got `result`) or `skipped` (did not run,
            the caller was told that it succeeded).
    """

    syscall: str
    result: Optional[int]
    details: Tuple[Tuple[str, Union[int, str]], ...]
    time_ns: int
    count: int = 1
    verdict: str = "ran"


Environ = Tuple[Tuple[bytes, bytes], ...]
"""Name and SHA-256 of the value of each variable."""


@dataclasses.dataclass(frozen=True)
class ProcessTrace:
    """What a trace backend adds to a `ProcessRecord`.

    Attributes:
        environ: The environment of the last exec.
        specbypassisvuln: Whether speculative store bypass is possible, None if unknown.
        truncated: Whether arguments, environment or a path were cut.
    """

    environ: Environ = ()
    specbypassisvuln: Optional[bool] = None
    truncated: bool = False
    network: Network = Network()
    file_ops: FileOps = FileOps()
    syscall_events: Tuple[SyscallEvent, ...] = ()
