"""From the records of the ptrace tracer to the process table of an observation."""

from __future__ import annotations

from typing import Dict, List, Optional, Sequence, Tuple

from rootseal import canonical
from rootseal.capture.call_details import FILE_CALLS, call_details, call_name
from rootseal.capture.network_log import NetworkLog
from rootseal.capture.paths import relative_to
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
    Delete,
    FileOps,
    FileWrite,
    Link,
    PermChange,
    ProcessTrace,
    Rename,
    SyscallEvent,
    Truncation,
)

_NET_SOCKET = 1
_NET_CALLS = {2: "connect", 3: "bind", 4: "sendto", 5: "sendmsg", 6: "sendmmsg"}
_NET_CALLS.update({7: "write", 8: "writev"})
_PAYLOAD_DNS = 2
_OP_WRITE, _OP_RENAME, _OP_LINK, _OP_SYMLINK, _OP_DELETE, _OP_TRUNCATE, _OP_CHMOD = range(1, 8)
_OP_MKNOD, _OP_RMDIR = 8, 9
_CALL_DENIED, _CALL_SKIPPED = 1, 2
_PATH_BYTES_MAX = 4096


class _Parts:
    """What is collected for one process."""

    def __init__(self) -> None:
        self.network = NetworkLog()
        self.writes: List[FileWrite] = []
        self.renames: List[Rename] = []
        self.deletes: List[Delete] = []
        self.perm_changes: List[PermChange] = []
        self.links: List[Link] = []
        self.truncations: List[Truncation] = []
        self.calls: List[SyscallEvent] = []


def process_table(stream: TraceStream, root: bytes) -> Tuple[ProcessRecord, ...]:
    """The processes of a whole stream, in its order.

    Args:
        stream: Fed to its end.
        root: The action's root; paths inside it are given relative to it.

    Raises:
        EncodingError: A record names what does not exist.
    """
    parts = [_Parts() for _ in stream.processes]
    sizes = {path: fields[1] for path, fields in zip(stream.product_paths, stream.products)}
    for net in stream.net_events:
        _add_net(parts[net.process].network, net)
    for op in stream.op_events:
        _add_op(parts[op.process], op, sizes, root)
    for call in stream.call_events:
        parts[call.process].calls.append(_call(call, root))
    pairs = zip(stream.processes, parts)
    return tuple(_record(process, stream, collected) for process, collected in pairs)


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
            network=parts.network.record(),
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


def _add_op(parts: _Parts, event: OpEvent, sizes: Dict[bytes, int], root: bytes) -> None:
    path = event.path if event.op == _OP_SYMLINK else relative_to(root, event.path)
    second, time_ns = relative_to(root, event.second), event.time_ns
    if event.op == _OP_WRITE:
        parts.writes.append(FileWrite(path, sizes.get(event.path, 0), time_ns))
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


def _add_net(log: NetworkLog, event: NetEvent) -> None:
    if event.call == _NET_SOCKET:
        log.socket(event.family, event.type, event.protocol)
        return
    call = _NET_CALLS.get(event.call)
    if call is None:
        raise EncodingError(f"unknown network call {event.call}")
    if event.address:
        log.address(call, event.address, event.fd, event.result, event.time_ns)
    if event.payload:
        dns = event.payload == _PAYLOAD_DNS
        log.payload(call, event.data, event.fd, event.time_ns, dns=dns)


def _call(event: CallEvent, root: bytes) -> SyscallEvent:
    name = call_name(event.name)
    texts = event.text.split(b"\0")[:-1]
    if name in FILE_CALLS:
        texts = [relative_to(root, text) for text in texts]
    details = call_details(name, event.arguments, texts)
    verdict = {_CALL_DENIED: "denied", _CALL_SKIPPED: "skipped"}.get(event.flags, "ran")
    return SyscallEvent(name, event.result, details, event.time_ns, event.count, verdict)
