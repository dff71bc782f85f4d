"""Turns the kept events of one scope (bpf/event.h) into processes.

The C core has checked that every length lies inside its event. There are some events per process,
not per open: opens never get here.
"""

from __future__ import annotations

import dataclasses
import struct
from typing import Callable, Dict, Iterator, List, Mapping, NamedTuple, Optional, Tuple

from rootseal import canonical, digest
from rootseal.capture import trace_names
from rootseal.capture.call_details import FILE_CALLS, Details, call_details
from rootseal.capture.network_log import NetworkLog
from rootseal.capture.paths import relative_as_given
from rootseal.observation import ProcessRecord
from rootseal.process_trace import (
    Delete,
    Environ,
    FileOps,
    FileWrite,
    Link,
    PermChange,
    ProcessTrace,
    Rename,
    SyscallEvent,
    Truncation,
)

HEAD = struct.Struct("=IIQQII")
FILE = "QIIIIQ"
LAYOUTS: Mapping[int, struct.Struct] = {
    1: struct.Struct("=32xII16s"),
    2: struct.Struct("=32x" + FILE + "IIIIIIIIIxxxx16s"),
    3: struct.Struct("=32xIIII"),
    4: struct.Struct("=32xIIII"),
    5: struct.Struct("=32xII16s"),
    6: struct.Struct("=32x" + FILE + "Ii"),
    7: struct.Struct("=32x" + FILE + "QIIII"),
    8: struct.Struct("=32x" + FILE + "QIIIIII"),
    9: struct.Struct("=32xiIII"),
    10: struct.Struct("=32xIiiIII128s"),
    11: struct.Struct("=32xIiII"),
    12: struct.Struct("=32x6Qq" + FILE + FILE + "IIIIII"),
    13: struct.Struct("=32x" + FILE + "IiIIII"),
}
TAIL = 256  # RS_HEAD_BYTES
_CONN_DNS = 2
_MODE_KINDS = {0o140000: b"socket", 0o010000: b"pipe"}
_CUT_AREA = 4 | 8
_SSB_DISABLED = 1 << 3 | 1 << 4 | 1 << 7  # PFA_SPEC_SSB_DISABLE, _FORCE_DISABLE, _NOEXEC
_NO_RESULT = (
    "io_uring_open",
    "io_uring_request",
    "mmap",
)  # of mmap only the address, which differs from run to run
_CallKey = Tuple[str, Details, bool]


def kernel_path(walk: bytes, name: bytes) -> bytes:
    """Join what the programs collected: components of a directory, leaf first, and a name."""
    if name.startswith(b"/"):
        return name
    parts = [part for part in reversed(walk.split(b"\0")) if part]
    parts += [part for part in name.split(b"/") if part not in (b"", b".")]
    return b"/" + b"/".join(parts)


def exit_code(status: int) -> int:
    """Exit code of a wait(2) status; 128 + signal when killed."""
    signal = status & 0x7F
    return 128 + signal if signal else (status >> 8) & 0xFF


def environ_digests(area: bytes) -> Environ:
    """Name and SHA-256 of the value of each `NAME=VALUE` in an environment area."""
    pairs = []
    for item in area.rstrip(b"\0").split(b"\0") if area.strip(b"\0") else ():
        name, _, value = item.partition(b"=")
        pairs.append((name, digest.sha256(value)))
    return tuple(pairs)


@dataclasses.dataclass(frozen=True)
class StoreBypass:
    """Speculative store bypass on this host.

    Attributes:
        vulnerable: Of a process that asked for nothing; None: unknown.
        by_process: Whether a process may switch it off for itself (prctl, seccomp).
    """

    vulnerable: Optional[bool]
    by_process: bool = False

    @staticmethod
    def read(status: str) -> StoreBypass:
        """From a /proc/PID/status."""
        _, _, rest = status.partition("Speculation_Store_Bypass:")
        state = rest.partition("\n")[0].strip()
        if state.startswith("thread "):
            return StoreBypass(True, by_process=True)
        known = {"vulnerable": True, "not vulnerable": False, "globally mitigated": False}
        return StoreBypass(known.get(state))

    def of(self, task_flags: int) -> Optional[bool]:
        """Of a process with these `atomic_flags`."""
        if self.by_process and task_flags & _SSB_DISABLED:
            return False
        return self.vulnerable


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
    task_flags: int = 0
    exitcode: Optional[int] = None
    ended: bool = False
    cut: bool = False
    network: NetworkLog = dataclasses.field(default_factory=NetworkLog)
    writes: List[FileWrite] = dataclasses.field(default_factory=list)
    renames: List[Rename] = dataclasses.field(default_factory=list)
    deletes: List[Delete] = dataclasses.field(default_factory=list)
    perms: List[PermChange] = dataclasses.field(default_factory=list)
    links: List[Link] = dataclasses.field(default_factory=list)
    truncations: List[Truncation] = dataclasses.field(default_factory=list)
    calls: Dict[_CallKey, SyscallEvent] = dataclasses.field(default_factory=dict)

    def call(self, event: SyscallEvent) -> None:
        """Keep a call; equal ones are one with a count, whatever they returned if all succeeded."""
        key = (event.syscall, event.details, event.result is not None and event.result < 0)
        same = self.calls.get(key)
        count = event.count + (same.count if same else 0)
        self.calls[key] = dataclasses.replace(same or event, count=count)

    def record(self, bypass: StoreBypass, environments: Dict[bytes, Environ]) -> ProcessRecord:
        """The finished record; `environments` has those that were read before."""
        if self.environ not in environments:
            environments[self.environ] = environ_digests(self.environ)
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
                environ=environments[self.environ],
                specbypassisvuln=bypass.of(self.task_flags),
                truncated=self.cut or short,
                network=self.network.record(),
                file_ops=FileOps(
                    tuple(self.writes),
                    tuple(self.renames),
                    tuple(self.deletes),
                    tuple(self.perms),
                    tuple(self.links),
                    tuple(self.truncations),
                ),
                syscall_events=tuple(self.calls.values()),
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
        bypass: What the kernel does about speculative store bypass.
    """

    def __init__(self, *, root: bytes, clock_offset_ns: int, bypass: StoreBypass) -> None:
        """Start with no process."""
        self._root = root
        self._offset = clock_offset_ns
        self._bypass = bypass
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
        environments: Dict[bytes, Environ] = {}
        return tuple(process.record(self._bypass, environments) for process in self._all)

    def _path(self, walk: bytes, name: bytes) -> bytes:
        return relative_as_given(self._root, kernel_path(walk, name))

    # -- processes --

    def _fork(self, process: _Process, event: _Event) -> None:
        parent, _pad, comm = event.fields
        process.parent, process.comm = parent, _text(comm)
        origin = self._live.get(parent)
        if origin is not None:  # until it executes something it is a copy
            process.program, process.args = origin.program, origin.args
            process.environ, process.task_flags = origin.environ, origin.task_flags
            process.args_total, process.environ_total = origin.args_total, origin.environ_total

    def _exec(self, process: _Process, event: _Event) -> None:
        *_file, parent, walk, name, cut, args, environ, _base, _script, flags, comm = event.fields
        process.parent = process.parent or parent
        process.comm, process.task_flags = _text(comm), flags
        process.program = kernel_path(event.tail(0, walk), b"") if walk else event.tail(walk, name)
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
        if name.startswith("mknod"):
            details = (("mode", value & 0o177777), ("path", canonical.path_text(first)))
            process.call(SyscallEvent("mknod", 0, details, time_ns))
        elif name.startswith("rename"):
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
        process.network.socket(family, kind, protocol)

    def _address(self, process: _Process, event: _Event) -> None:
        call, fd, result, _kind, _protocol, length, raw = event.fields
        address = bytes(raw)[:length]
        name = trace_names.CALLS[call]
        process.network.address(name, address, fd, min(result, 0), event.time_ns)

    def _payload(self, process: _Process, event: _Event) -> None:
        call, fd, kind, length = event.fields
        name, data = trace_names.CALLS[call], event.tail(0, length)
        process.network.payload(name, data, fd, event.time_ns, dns=kind == _CONN_DNS)

    # -- other calls --

    def _call(self, process: _Process, event: _Event) -> None:
        walk0, walk1, call, text_length, cut, repeats = event.fields[19:25]
        name = trace_names.CALLS[call]
        process.cut |= bool(cut)
        texts = event.tail(walk0 + walk1, text_length).split(b"\0")[:-1]
        if name in FILE_CALLS:
            texts = self._files(event, walk0, walk1)
        details = call_details(name, event.fields[:6], texts)
        result = None if name in _NO_RESULT else event.fields[6]
        process.call(SyscallEvent(name, result, details, event.time_ns, 1 + repeats))

    def _files(self, event: _Event, walk0: int, walk1: int) -> List[bytes]:
        """Paths of the files of a call; of what has none its kind."""
        found = []
        for start, length, mode in ((0, walk0, event.fields[9]), (walk0, walk1, event.fields[15])):
            walk = event.tail(start, length)
            kind = _MODE_KINDS.get(mode & 0o170000, b"?")
            found.append(self._path(walk, b"") if walk else kind)
        return found
