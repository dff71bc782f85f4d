"""From the records of the ptrace tracer to the process table of an observation."""

from __future__ import annotations

import ipaddress
import socket
from typing import Dict, List, Mapping, Optional, Sequence, Tuple, Type, Union

from rootseal import canonical
from rootseal.capture.ptrace_stream import (
    EXEC_SETUID,
    EXEC_SPEC_KNOWN,
    EXEC_SPEC_VULNERABLE,
    NONE,
    CallEvent,
    FileFields,
    NetEvent,
    OpEvent,
    TracedProcess,
    TraceStream,
)
from rootseal.errors import EncodingError
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

DNS_PORT = 53
_NET_SOCKET, _NET_CONNECT, _NET_BIND, _NET_SENDTO, _NET_SERVER_NAME = 1, 2, 3, 4, 5
_OP_WRITE, _OP_RENAME, _OP_LINK, _OP_SYMLINK, _OP_DELETE, _OP_TRUNCATE, _OP_CHMOD = range(1, 8)
_OP_MKNOD, _OP_RMDIR = 8, 9
_CALL_DENIED, _CALL_SKIPPED = 1, 2
_PATH_BYTES_MAX = 4096

# For each call: names of its arguments, then of its texts, in the order of trace_note.c.
_DETAILS: Mapping[str, Tuple[Tuple[str, ...], Tuple[str, ...]]] = {
    "mprotect": (("prot",), ()),
    "pkey_mprotect": (("prot",), ()),
    "mmap": (("prot", "flags"), ()),
    "mmap2": (("prot", "flags"), ()),
    "memfd_create": (("flags",), ("name",)),
    "prctl": (("option", "value"), ("name",)),
    "mount": (("flags",), ("source", "target", "type")),
    "umount2": ((), ("target",)),
    "umount": ((), ("target",)),
    "chroot": ((), ("path",)),
    "fsopen": ((), ("type",)),
    "uselib": ((), ("path",)),
    "pivot_root": ((), ("new", "old")),
    "open_tree": (("flags",), ("path",)),
    "open_tree_attr": (("flags",), ("path",)),
    "fspick": (("flags",), ("path",)),
    "mount_setattr": (("flags",), ("path",)),
    "move_mount": ((), ("source", "target")),
    "copy_file_range": ((), ("source", "destination")),
    "splice": ((), ("source", "destination")),
    "sendfile": ((), ("source", "destination")),
    "sendfile64": ((), ("source", "destination")),
    "finit_module": ((), ("path",)),
    "clone": (("flags",), ()),
    "clone3": (("flags",), ()),
    "unshare": (("flags",), ()),
    "setns": (("fd", "type"), ()),
    "process_vm_writev": (("pid",), ()),
    "fsconfig": (("fd",), ()),
    "fsmount": (("fd",), ()),
    "dup2": (("oldfd", "newfd"), ()),
    "dup3": (("oldfd", "newfd"), ()),
    "ptrace": (("request", "pid"), ()),
    "seccomp": (("operation", "flags"), ()),
}
_PRCTL_NAMES = {4: "PR_SET_DUMPABLE", 15: "PR_SET_NAME", 22: "PR_SET_SECCOMP"}
_PRCTL_NAMES[38] = "PR_SET_NO_NEW_PRIVS"


class _Parts:
    """What is collected for one process."""

    def __init__(self) -> None:
        self.sockets: List[Socket] = []
        self.connections: List[Connection] = []
        self.binds: List[Bind] = []
        self.lookups: List[DnsLookup] = []
        self.writes: List[FileWrite] = []
        self.renames: List[Rename] = []
        self.deletes: List[Delete] = []
        self.perm_changes: List[PermChange] = []
        self.links: List[Link] = []
        self.truncations: List[Truncation] = []
        self.calls: List[SyscallEvent] = []


def process_table(stream: TraceStream) -> Tuple[ProcessRecord, ...]:
    """The processes of a whole stream, in its order.

    Raises:
        EncodingError: A record names what does not exist.
    """
    parts = [_Parts() for _ in stream.processes]
    sizes = {path: fields[1] for path, fields in zip(stream.product_paths, stream.products)}
    for net in stream.net_events:
        _add_net(parts[net.process], net)
    for op in stream.op_events:
        _add_op(parts[op.process], op, sizes)
    for call in stream.call_events:
        parts[call.process].calls.append(_call(call))
    return tuple(
        _record(process, stream, collected) for process, collected in zip(stream.processes, parts)
    )


def _record(process: TracedProcess, stream: TraceStream, parts: _Parts) -> ProcessRecord:
    parent = 0 if process.parent is None else stream.processes[process.parent].pid
    cmdline = process.cmdline[:-1] if process.cmdline.endswith(b"\0") else process.cmdline
    return ProcessRecord(
        processid=process.pid,
        parentpid=parent,
        program=process.program[:_PATH_BYTES_MAX],
        comm=process.comm,
        cmdline=tuple(cmdline.split(b"\0")) if process.cmdline else (),
        programdigest=_digest(stream.files, process.program_file),
        exedigest=_digest(stream.files, process.exe_file),
        exitcode=_exit_code(process.wait_status),
        trace=ProcessTrace(
            environ=_environ(stream, process.environment),
            specbypassisvuln=_speculation(process.flags),
            truncated=process.truncated,
            network=Network(
                tuple(parts.sockets),
                tuple(parts.connections),
                tuple(parts.binds),
                tuple(parts.lookups),
            ),
            file_ops=_file_ops(parts),
            syscall_events=tuple(parts.calls) + _setuid_note(process),
        ),
    )


def _digest(files: Sequence[FileFields], number: int) -> Optional[bytes]:
    if number == NONE:
        return None
    if number >= len(files):
        raise EncodingError("the trace names a file that it did not send")
    return files[number][0]


def _environ(stream: TraceStream, number: int) -> Tuple[Tuple[bytes, bytes], ...]:
    if number == NONE:
        return ()
    if number >= len(stream.environments):
        raise EncodingError("the trace names an environment that it did not send")
    return stream.environments[number]


def _exit_code(status: Optional[int]) -> Optional[int]:
    if status is None:
        return None
    signal = status & 0x7F
    return 128 + signal if signal else (status >> 8) & 0xFF


def _speculation(flags: int) -> Optional[bool]:
    return bool(flags & EXEC_SPEC_VULNERABLE) if flags & EXEC_SPEC_KNOWN else None


def _setuid_note(process: TracedProcess) -> Tuple[SyscallEvent, ...]:
    """A set-user-id program ran without its privilege (no_new_privs): said, because it may fail."""
    if not process.flags & EXEC_SETUID:
        return ()
    details = (("note", "set-user-id or set-group-id without effect under ptrace capture"),)
    return (SyscallEvent("execve", None, details, process.started_ns),)


def _file_ops(parts: _Parts) -> FileOps:
    return FileOps(
        tuple(parts.writes),
        tuple(parts.renames),
        tuple(parts.deletes),
        tuple(parts.perm_changes),
        tuple(parts.links),
        tuple(parts.truncations),
    )


def _add_op(parts: _Parts, event: OpEvent, sizes: Dict[bytes, int]) -> None:
    path, second, time_ns = event.path, event.second, event.time_ns
    if event.op == _OP_WRITE:
        parts.writes.append(FileWrite(path, sizes.get(path, 0), time_ns))
    elif event.op == _OP_RENAME:
        parts.renames.append(Rename(path, second, time_ns))
    elif event.op in (_OP_LINK, _OP_SYMLINK):
        parts.links.append(Link(path, second, event.op == _OP_SYMLINK, time_ns))
    elif event.op in (_OP_DELETE, _OP_RMDIR):
        parts.deletes.append(Delete(path, time_ns))
    elif event.op == _OP_TRUNCATE:
        parts.truncations.append(Truncation(path, event.size_bytes, time_ns))
    elif event.op == _OP_CHMOD:
        mode = event.mode & 0o7777
        parts.perm_changes.append(PermChange(path, mode, bool(mode & 0o111), time_ns))
    elif event.op == _OP_MKNOD:
        details = (("mode", event.mode), ("path", canonical.path_text(path)))
        parts.calls.append(SyscallEvent("mknod", 0, details, time_ns))
    else:
        raise EncodingError(f"unknown file operation {event.op}")


def _add_net(parts: _Parts, event: NetEvent) -> None:
    family = _name(socket.AddressFamily, "AF_", event.family)
    if event.call == _NET_SOCKET:
        kind = _name(socket.SocketKind, "SOCK_", event.type)
        found = Socket(family, kind, event.protocol)
        if found not in parts.sockets:
            parts.sockets.append(found)
        return
    if event.call == _NET_SERVER_NAME:
        _name_connection(parts, event)
        return
    address, port = _address(event.family, event.address)
    result, fd, time_ns = event.result, event.fd, event.time_ns
    if event.call == _NET_BIND:
        parts.binds.append(Bind(family, address, port, fd, result, time_ns))
        return
    if event.call not in (_NET_CONNECT, _NET_SENDTO):
        raise EncodingError(f"unknown network call {event.call}")
    call = "connect" if event.call == _NET_CONNECT else "sendto"
    parts.connections.append(Connection(call, family, address, port, fd, result, time_ns))
    if port == DNS_PORT:
        parts.lookups.append(DnsLookup(call, address, "", time_ns))


def _name_connection(parts: _Parts, event: NetEvent) -> None:
    """The server name belongs to the last connection of that descriptor."""
    hostname = canonical.path_text(event.hostname)
    for index in range(len(parts.connections) - 1, -1, -1):
        found = parts.connections[index]
        if found.fd == event.fd:
            values = (found.syscall, found.family, found.address, found.port, found.fd)
            named = Connection(*values, found.result, found.time_ns, hostname)
            parts.connections[index] = named
            return


def _name(
    kind: Union[Type[socket.AddressFamily], Type[socket.SocketKind]], prefix: str, number: int
) -> str:
    try:
        name = kind(number).name
    except ValueError:
        return str(number)
    return name if name.startswith(prefix) else str(number)


def _address(family: int, raw: bytes) -> Tuple[str, int]:
    """Text and port of a sockaddr; the path of a unix socket, `@` first where it is abstract."""
    if family == socket.AF_INET and len(raw) >= 8:
        return str(ipaddress.IPv4Address(raw[4:8])), int.from_bytes(raw[2:4], "big")
    if family == socket.AF_INET6 and len(raw) >= 24:
        return str(ipaddress.IPv6Address(raw[8:24])), int.from_bytes(raw[2:4], "big")
    if family == socket.AF_UNIX:
        name = raw[2:]
        path = b"@" + name[1:] if name[:1] == b"\0" else name.split(b"\0")[0]
        return canonical.path_text(path), 0
    return raw[2:].hex(), 0


def _call(event: CallEvent) -> SyscallEvent:
    arguments, texts = _DETAILS.get(event.name, ((), ()))
    details: Dict[str, Union[int, str]] = {}
    for name, value in zip(arguments, event.arguments):
        details[name] = value if value < 2**53 else hex(value)
    if event.text:
        for name, text in zip(texts, event.text.split(b"\0")):
            details[name] = canonical.path_text(text)
    if event.name == "prctl":
        option = event.arguments[0]
        details["option"] = _PRCTL_NAMES.get(option, option)
        if "name" in details:
            del details["value"]
    verdict = {_CALL_DENIED: "denied", _CALL_SKIPPED: "skipped"}.get(event.flags, "ran")
    ordered = tuple(sorted(details.items()))
    return SyscallEvent(event.name, event.result, ordered, event.time_ns, event.count, verdict)
