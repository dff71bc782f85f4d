"""Turns the kept events of one scope (bpf/event.h) into processes.

The C core has checked that every length lies inside its event. There are some events per process,
not per open: opens never get here.
"""

from __future__ import annotations

import dataclasses
import ipaddress
import struct
from typing import Callable, Dict, Iterator, List, Mapping, NamedTuple, Optional, Tuple, Union

from rootseal import digest
from rootseal.capture import trace_names, trace_payload
from rootseal.observation import ProcessRecord
from rootseal.process_trace import (
    Bind,
    Connection,
    Delete,
    DnsLookup,
    FileOps,
    FileWrite,
    Link,
    Network,
    PermChange,
    ProcessTrace,
    Rename,
    Socket,
    SyscallEvent,
    Truncation,
)

HEAD = struct.Struct("=IIQQII")
FILE = "QIIIIQ"
LAYOUTS: Mapping[int, struct.Struct] = {
    1: struct.Struct("=32xII16s"),
    2: struct.Struct("=32x" + FILE + "IIIIII16s"),
    3: struct.Struct("=32xIIII"),
    4: struct.Struct("=32xIIII"),
    5: struct.Struct("=32xII16s"),
    6: struct.Struct("=32x" + FILE + "Ii"),
    7: struct.Struct("=32x" + FILE + "QIIII"),
    8: struct.Struct("=32x" + FILE + "QIIIIII"),
    9: struct.Struct("=32xiIII"),
    10: struct.Struct("=32xIiiIII128s"),
    11: struct.Struct("=32xIiII"),
    12: struct.Struct("=32x6Qq" + FILE + FILE + "IIII"),
}
TAIL = 256  # RS_HEAD_BYTES
_DNS_PORT = 53
_CONN_DNS = 2
_CUT_AREA = 4 | 8


def kernel_path(walk: bytes, name: bytes) -> bytes:
    """Join what the programs collected: components of a directory, leaf first, and a name."""
    if name.startswith(b"/"):
        return name
    parts = [part for part in reversed(walk.split(b"\0")) if part]
    parts += [part for part in name.split(b"/") if part not in (b"", b".")]
    return b"/" + b"/".join(parts)


def plain_text(raw: bytes) -> str:
    """Bytes as text; what is not UTF-8 becomes surrogates, which the predicate escapes."""
    return raw.decode("utf-8", "surrogateescape")


def relative_to(root: bytes, path: bytes) -> bytes:
    """A path as docs/formats.md wants it: relative inside the root, else absolute.

    A path with `..` stays as it was given: what a `..` after a symbolic link meant is not known.
    """
    if b".." in path.split(b"/"):
        return path
    if path == root:
        return b"."
    prefix = root.rstrip(b"/") + b"/"
    return path[len(prefix) :] if path.startswith(prefix) and len(path) > len(prefix) else path


def exit_code(status: int) -> int:
    """Exit code of a wait(2) status; 128 + signal when killed."""
    signal = status & 0x7F
    return 128 + signal if signal else (status >> 8) & 0xFF


def environ_digests(area: bytes) -> Tuple[Tuple[bytes, bytes], ...]:
    """Name and SHA-256 of the value of each `NAME=VALUE` in an environment area."""
    pairs = []
    for item in area.rstrip(b"\0").split(b"\0") if area.strip(b"\0") else ():
        name, _, value = item.partition(b"=")
        pairs.append((name, digest.sha256(value)))
    return tuple(pairs)


@dataclasses.dataclass
class _Process:
    """One process while its events are read."""

    tgid: int
    parent: int = 0
    program: bytes = b""
    comm: bytes = b""
    args: bytes = b""
    environ: bytes = b""
    args_total: int = 0
    environ_total: int = 0
    exitcode: Optional[int] = None
    ended: bool = False
    cut: bool = False
    sockets: List[Socket] = dataclasses.field(default_factory=list)
    connections: List[Connection] = dataclasses.field(default_factory=list)
    binds: List[Bind] = dataclasses.field(default_factory=list)
    dns: List[DnsLookup] = dataclasses.field(default_factory=list)
    writes: List[FileWrite] = dataclasses.field(default_factory=list)
    renames: List[Rename] = dataclasses.field(default_factory=list)
    deletes: List[Delete] = dataclasses.field(default_factory=list)
    perms: List[PermChange] = dataclasses.field(default_factory=list)
    links: List[Link] = dataclasses.field(default_factory=list)
    truncations: List[Truncation] = dataclasses.field(default_factory=list)
    calls: List[SyscallEvent] = dataclasses.field(default_factory=list)

    def record(self, specbypassisvuln: Optional[bool]) -> ProcessRecord:
        """The finished record."""
        short = len(self.args) < self.args_total or len(self.environ) < self.environ_total
        arguments = self.args[:-1] if self.args.endswith(b"\0") else self.args
        return ProcessRecord(
            processid=self.tgid,
            parentpid=self.parent,
            program=self.program,
            comm=self.comm,
            cmdline=tuple(arguments.split(b"\0")) if self.args else (),
            programdigest=None,
            exedigest=None,
            exitcode=self.exitcode,
            trace=ProcessTrace(
                environ=environ_digests(self.environ),
                specbypassisvuln=specbypassisvuln,
                truncated=self.cut or short,
                network=Network(
                    tuple(self.sockets),
                    tuple(self.connections),
                    tuple(self.binds),
                    tuple(self.dns),
                ),
                file_ops=FileOps(
                    tuple(self.writes),
                    tuple(self.renames),
                    tuple(self.deletes),
                    tuple(self.perms),
                    tuple(self.links),
                    tuple(self.truncations),
                ),
                syscall_events=tuple(self.calls),
            ),
        )


class _Event(NamedTuple):
    type: int
    time_ns: int
    tgid: int
    fields: Tuple[int, ...]
    data: memoryview

    def tail(self, start: int, length: int) -> bytes:
        return bytes(self.data[TAIL + start : TAIL + start + length])


def _text(raw: object) -> bytes:
    return bytes(raw).split(b"\0", 1)[0]  # type: ignore[call-overload, no-any-return]


def iter_events(events: bytes, clock_offset_ns: int) -> Iterator[_Event]:
    """Each event of a buffer, its time in nanoseconds since the epoch."""
    view, at = memoryview(events), 0
    while at < len(view):
        kind, size, _scope, time_ns, tgid, _tid = HEAD.unpack_from(view, at)
        layout = LAYOUTS[kind]
        fields = layout.unpack_from(view, at)
        yield _Event(kind, time_ns + clock_offset_ns, tgid, fields, view[at : at + size])
        at += size


class Reader:
    """Collects the processes of one scope.

    Args:
        root: The action's root, absolute and without symbolic links.
        clock_offset_ns: CLOCK_REALTIME minus CLOCK_MONOTONIC.
        specbypassisvuln: As for `ProcessTrace`; the same for all processes of a host.
    """

    def __init__(
        self, *, root: bytes, clock_offset_ns: int, specbypassisvuln: Optional[bool]
    ) -> None:
        """Start with no process."""
        self._root = root
        self._offset = clock_offset_ns
        self._vulnerable = specbypassisvuln
        self._all: List[_Process] = []
        self._live: Dict[int, _Process] = {}
        self._handlers: Mapping[int, Callable[[_Process, _Event], None]] = {
            1: self._fork,
            2: self._exec,
            3: self._area,
            4: self._area,
            5: self._exit,
            7: self._write,
            8: self._fileop,
            9: self._socket,
            10: self._address,
            11: self._payload,
            12: self._call,
        }

    def read(self, events: bytes) -> Tuple[ProcessRecord, ...]:
        """The processes in the order in which they were first seen."""
        for event in iter_events(events, self._offset):
            process = self._live.get(event.tgid)
            if process is None or (event.type == 1 and process.ended):  # a pid that is used again
                process = _Process(event.tgid)
                self._live[event.tgid] = process
                self._all.append(process)
            self._handlers[event.type](process, event)
        return tuple(process.record(self._vulnerable) for process in self._all)

    def _path(self, walk: bytes, name: bytes) -> bytes:
        return relative_to(self._root, kernel_path(walk, name))

    # -- processes --

    def _fork(self, process: _Process, event: _Event) -> None:
        parent, _pad, comm = event.fields
        process.parent, process.comm = parent, _text(comm)
        origin = self._live.get(parent)
        if origin is not None:  # until it executes something it is a copy
            process.program, process.args = origin.program, origin.args
            process.environ = origin.environ
            process.args_total, process.environ_total = origin.args_total, origin.environ_total

    def _exec(self, process: _Process, event: _Event) -> None:
        *_file, parent, walk, name, cut, args, environ, comm = event.fields
        process.parent = process.parent or parent
        process.comm = _text(comm)
        process.program = self._path(event.tail(0, walk), b"") if walk else event.tail(walk, name)
        process.args, process.environ = b"", b""
        process.args_total, process.environ_total = args, environ
        process.cut |= bool(cut)

    def _area(self, process: _Process, event: _Event) -> None:
        _offset, length, _total, _pad = event.fields
        if event.type == 3:
            process.args += event.tail(0, length)
        else:
            process.environ += event.tail(0, length)

    def _exit(self, process: _Process, event: _Event) -> None:
        status, _pad, comm = event.fields
        process.exitcode, process.comm, process.ended = exit_code(status), _text(comm), True

    # -- files --

    def _write(self, process: _Process, event: _Event) -> None:
        *_file, size, _call, walk, cut, _summed = event.fields
        path = self._path(event.tail(0, walk), b"")
        process.cut |= bool(cut)
        process.writes.append(FileWrite(path, size, event.time_ns))

    def _fileop(self, process: _Process, event: _Event) -> None:
        value, call, cut = event.fields[6:9]
        walk0, name0, walk1, name1 = event.fields[9:13]
        name = trace_names.CALLS[call]
        first_name = event.tail(walk0, name0)
        first = self._path(event.tail(0, walk0), first_name)
        at = walk0 + name0
        second = self._path(event.tail(at, walk1), event.tail(at + walk1, name1))
        time_ns = event.time_ns
        process.cut |= bool(cut)
        if name.startswith("rename"):
            process.renames.append(Rename(first, second, time_ns))
        elif name.startswith("symlink"):
            process.links.append(Link(first_name, second, True, time_ns))
        elif name.startswith("link"):
            process.links.append(Link(first, second, False, time_ns))
        elif "chmod" in name:
            mode = value & 0o7777
            process.perms.append(PermChange(first, mode, bool(mode & 0o111), time_ns))
        elif name.endswith("truncate"):
            process.truncations.append(Truncation(first, value, time_ns))
        else:
            process.deletes.append(Delete(first, time_ns))

    # -- network --

    def _socket(self, process: _Process, event: _Event) -> None:
        _fd, family, kind, protocol = event.fields
        made = Socket(trace_names.family(family), trace_names.socket_type(kind), protocol)
        if made not in process.sockets:
            process.sockets.append(made)

    def _address(self, process: _Process, event: _Event) -> None:
        call, fd, result, _kind, _protocol, length, raw = event.fields
        family, address, port = socket_address(bytes(raw)[:length])
        name, time_ns = trace_names.CALLS[call], event.time_ns
        if name == "bind":
            process.binds.append(Bind(family, address, port, fd, result, time_ns))
            return
        process.connections.append(Connection(name, family, address, port, fd, result, time_ns))
        if port == _DNS_PORT:
            process.dns.append(DnsLookup(name, address, "", time_ns))

    def _payload(self, process: _Process, event: _Event) -> None:
        call, fd, kind, length = event.fields
        data = event.tail(0, length)
        peer = next((item for item in reversed(process.connections) if item.fd == fd), None)
        if kind == _CONN_DNS:
            name = trace_payload.dns_question(data, stream=False)
            name = name or trace_payload.dns_question(data, stream=True)
            server = peer.address if peer else ""
            if name:
                lookup = DnsLookup(trace_names.CALLS[call], server, name, event.time_ns)
                process.dns.append(lookup)
            return
        hostname = trace_payload.tls_server_name(data)
        if hostname and peer is not None:
            index = len(process.connections) - 1 - process.connections[::-1].index(peer)
            process.connections[index] = dataclasses.replace(peer, hostname=hostname)

    # -- other calls --

    def _call(self, process: _Process, event: _Event) -> None:
        args, result = event.fields[:6], event.fields[6]
        call, name_length, cut, repeats = event.fields[19:23]
        name = trace_names.CALLS[call]
        details = _details(name, args)
        text = event.tail(0, name_length)
        if text:
            key = "name" if name in ("memfd_create", "prctl", "fsopen") else "path"
            details[key] = plain_text(text)
        for label, at in (("source", 7), ("destination", 13)):
            ino, dev = event.fields[at], event.fields[at + 1]
            if ino and name not in ("dup2", "dup3", "memfd_create"):
                details[f"{label}Inode"], details[f"{label}Device"] = ino, dev
        process.cut |= bool(cut)
        ordered = tuple(sorted(details.items()))
        process.calls.append(SyscallEvent(name, result, ordered, event.time_ns, count=1 + repeats))


def _details(name: str, args: Tuple[int, ...]) -> Dict[str, Union[int, str]]:
    """The arguments worth keeping, by name."""
    if name in ("clone", "unshare", "clone3", "setns"):
        value = args[{"clone": 0, "unshare": 0, "clone3": 5, "setns": 1}[name]]
        if name == "clone":
            value &= ~0xFF  # the low byte is a signal
        return {"namespaces": trace_names.flags(value, trace_names.NAMESPACES)}
    if name == "ptrace":
        request = args[0]
        return {"request": trace_names.PTRACE.get(request, str(request)), "pid": args[1]}
    if name == "prctl":
        option = trace_names.PRCTL.get(args[0], str(args[0]))
        return {"option": option} if args[0] == 15 else {"option": option, "value": args[1]}
    if name in ("dup2", "dup3"):
        return {"from": args[0], "to": args[1]}
    if name in ("mmap", "mprotect"):
        writable = "yes" if args[2] & 2 else "no"
        anonymous = "yes" if name == "mprotect" or args[3] & 0x20 else "no"
        return {"writable": writable, "anonymous": anonymous}
    if name == "process_vm_writev":
        return {"pid": args[0]}
    if name == "memfd_create":
        return {"flags": args[1]}
    if name == "io_uring_setup":
        return {"entries": args[0]}
    if name in ("mount", "umount2"):
        return {"flags": args[3 if name == "mount" else 1]}
    return {}


def socket_address(raw: bytes) -> Tuple[str, str, int]:
    """Family, address and port of a sockaddr; empty and 0 where it has none."""
    if len(raw) < 2:
        return "AF_UNSPEC", "", 0
    number = int.from_bytes(raw[:2], "little")
    family = trace_names.family(number)
    if family == "AF_INET" and len(raw) >= 8:
        return family, str(ipaddress.IPv4Address(raw[4:8])), int.from_bytes(raw[2:4], "big")
    if family == "AF_INET6" and len(raw) >= 24:
        return family, str(ipaddress.IPv6Address(raw[8:24])), int.from_bytes(raw[2:4], "big")
    if family == "AF_UNIX":
        path = raw[2:]
        if path.startswith(b"\0"):  # abstract: the name is all the bytes after the NUL
            return family, "@" + plain_text(path[1:]), 0
        return family, plain_text(path.split(b"\0", 1)[0]), 0
    return family, "", 0
