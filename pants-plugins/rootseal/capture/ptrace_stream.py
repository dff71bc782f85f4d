"""Reads the record stream of the ptrace tracer (native/trace_event.h), in pieces as they come.

The stream comes from the launcher, a program of the user whose action it is: every length, index
and count is checked, and everything that grows has a limit. Files and opens, of which there are
many, are taken in batches; nothing is interpreted per open.
"""

from __future__ import annotations

import array
import dataclasses
import enum
import struct
import sys
from typing import Callable, Dict, List, Mapping, Optional, Tuple

from rootseal.capture import mountinfo
from rootseal.capture.scope import CaptureLimits
from rootseal.errors import EncodingError
from rootseal.observation import MUTATIONS_MAX, MountMark, Mutation, Mutations, MutationTime

NONE = 0xFFFFFFFF
RECORD_BYTES_MAX = 16 << 20
EVENTS_MAX = 1 << 20  # network, file operations and system calls of one action
OPENS_MAX = 1 << 24
ENVIRONMENTS_MAX = 4096
MOUNTS_MAX = 1024
FILE_BORN, FILE_ANONYMOUS, FILE_FOREIGN, FILE_REMOTE = 1, 2, 4, 8
EXEC_SETUID, EXEC_SPEC_VULNERABLE, EXEC_SPEC_KNOWN = 1, 2, 4

_HEADER = struct.Struct(">HHI")
_FILE = struct.Struct(">32sQIHBBQQ")
_PROCESS = struct.Struct(">IIQ")
_EXEC = struct.Struct(">IIIIQBBHII")
_EXIT = struct.Struct(">IIQ")
_NET = struct.Struct(">IBBHIIiiQHH")
_OP = struct.Struct(">IBBHQQHH")
_CALL = struct.Struct(">IIII4QqQBBH")
_LOSS = struct.Struct(">IIH")
_MUTATION = struct.Struct(">BBH32s32s")
_COUNT = struct.Struct(">I")
_ENV = struct.Struct(">H")


class Record(enum.IntEnum):
    """Types of records."""

    PROCESS = 1
    EXEC = 2
    EXIT = 3
    FILES = 4
    OPENS = 5
    PRODUCTS = 6
    ENVIRONMENT = 7
    NETWORK = 8
    FILE_OP = 9
    SYSCALL = 10
    LOSS = 11
    COUNTERS = 12
    MUTATION = 13
    MOUNT = 14


class Loss(enum.IntEnum):
    """Why something was missed; also the number of its counter."""

    DENIED = 1
    GONE = 2
    PATH = 3
    READ = 4
    UNSTABLE = 5
    FILES_CAP = 6
    BYTES_CAP = 7
    PROCESS_CAP = 8
    INTERPRETER = 9
    NAMESPACE = 10
    TRACER = 11
    MEMORY = 12
    ARGUMENT = 13
    MUTATED = 14
    BLOCK_DEVICE = 15


class Count(enum.IntEnum):
    """Counters behind those of `Loss`."""

    OPENS = 16
    HASHED = 17
    CACHE_HITS = 18
    BYTES_HASHED = 19
    EXCLUDED_PATH_ONLY = 20
    EXCLUDED_IRREGULAR = 21
    EXCLUDED_PSEUDO = 22
    EXCLUDED_ANONYMOUS = 23
    EXCLUDED_WRITE_ONLY = 24
    EXCLUDED_IO_URING = 25
    EXECS = 26
    TASKS = 27
    STOPS = 28


COUNTER_COUNT = 29

# digest, size, mode, kind, flags, device, inode
FileFields = Tuple[bytes, int, int, int, int, int, int]


@dataclasses.dataclass
class TracedProcess:
    """One process while the stream is read; the last exec counts."""

    pid: int
    parent: Optional[int]
    started_ns: int
    program: bytes = b""
    comm: bytes = b""
    cmdline: bytes = b""
    program_file: int = NONE
    exe_file: int = NONE
    environment: int = NONE
    flags: int = 0
    truncated: bool = False
    wait_status: Optional[int] = None


@dataclasses.dataclass(frozen=True)
class NetEvent:
    """A record NETWORK."""

    process: int
    call: int
    family: int
    type: int
    protocol: int
    fd: int
    result: int
    time_ns: int
    address: bytes
    payload: int
    data: bytes


@dataclasses.dataclass(frozen=True)
class OpEvent:
    """A record FILE_OP."""

    process: int
    op: int
    mode: int
    size_bytes: int
    time_ns: int
    path: bytes
    second: bytes


@dataclasses.dataclass(frozen=True)
class CallEvent:
    """A record SYSCALL; `result` is None where the tracer did not wait for it."""

    process: int
    name: str
    arguments: Tuple[int, int, int, int]
    result: Optional[int]
    count: int
    time_ns: int
    flags: int
    text: bytes


class TraceStream:
    """Takes the pieces of one action's stream and keeps what they say."""

    def __init__(self, limits: CaptureLimits) -> None:
        """Start with nothing seen.

        Args:
            limits: Caps of the action; the tracer has the same and counts what is beyond them.
        """
        self.processes: List[TracedProcess] = []
        self.paths: List[bytes] = []
        self.files: List[FileFields] = []
        self.opens = array.array("I")  # process, file, process, file, …
        self.product_paths: List[bytes] = []
        self.products: List[FileFields] = []
        self.environments: List[Tuple[Tuple[bytes, bytes], ...]] = []
        self.net_events: List[NetEvent] = []
        self.op_events: List[OpEvent] = []
        self.call_events: List[CallEvent] = []
        self.losses: List[Tuple[Loss, bytes]] = []
        self.mutations: List[Mutation] = []
        self.mounts: List[MountMark] = []
        self.counters: Tuple[int, ...] = ()
        self.events_dropped = 0
        self._limits = limits
        self._rest = b""
        self._readers: Mapping[int, Callable[[bytes], None]] = {
            Record.PROCESS: self._process,
            Record.EXEC: self._exec,
            Record.EXIT: self._exit,
            Record.FILES: self._files,
            Record.OPENS: self._opens,
            Record.PRODUCTS: self._products,
            Record.ENVIRONMENT: self._environment,
            Record.NETWORK: self._network,
            Record.FILE_OP: self._file_op,
            Record.SYSCALL: self._syscall,
            Record.LOSS: self._loss,
            Record.COUNTERS: self._counters,
            Record.MUTATION: self._mutation,
            Record.MOUNT: self._mount,
        }

    def feed(self, data: bytes) -> None:
        """Take the next piece; a record may be cut anywhere.

        Raises:
            EncodingError: Not such a stream, or beyond a limit.
        """
        data = self._rest + data
        position, end = 0, len(data)
        while end - position >= _HEADER.size:
            kind, zero, length = _HEADER.unpack_from(data, position)
            if zero != 0 or length > RECORD_BYTES_MAX or kind not in self._readers:
                raise EncodingError("the trace holds a malformed or unknown record")
            if self.counters:
                raise EncodingError("the trace goes on after its end")
            body = position + _HEADER.size
            if end - body < length:
                break
            try:
                self._readers[kind](data[body : body + length])
            except struct.error as error:
                raise EncodingError(f"a {Record(kind).name} record is malformed: {error}") from None
            position = body + length
        self._rest = data[position:]

    def finish(self) -> Dict[int, int]:
        """The counters, once all has been fed.

        Raises:
            EncodingError: The stream was cut before its end.
        """
        if self._rest or not self.counters:
            raise EncodingError("the trace is cut short")
        if len(self.mutations) > self.counters[Loss.MUTATED]:
            raise EncodingError("the trace tells of more changed files than it counts")
        return dict(enumerate(self.counters))

    def mutated(self, relative: Callable[[bytes], bytes]) -> Mutations:
        """The files that others changed; after `finish`.

        Args:
            relative: Turns an absolute path into that of a leaf.
        """
        found = [dataclasses.replace(item, path=relative(item.path)) for item in self.mutations]
        return Mutations(tuple(found), self.counters[Loss.MUTATED] - len(found))

    def _process(self, body: bytes) -> None:
        pid, parent, started_ns = _PROCESS.unpack(body)
        if len(self.processes) >= self._limits.max_processes:
            raise EncodingError("the trace holds more processes than its cap")
        process = TracedProcess(pid, None, started_ns)
        if parent != NONE:
            process.parent = self._known(parent)
            inherit(process, self.processes[parent])
        self.processes.append(process)

    def _known(self, process: int) -> int:
        if process >= len(self.processes):
            raise EncodingError("the trace names a process that it did not begin")
        return process

    def _exec(self, body: bytes) -> None:
        fixed = _EXEC.unpack_from(body)
        number, program_file, exe_file, environment, _, flags = fixed[:6]
        comm_size, program_size, cmdline_size, cmdline_full = fixed[6:]
        at = _EXEC.size
        if len(body) != at + comm_size + program_size + cmdline_size:
            raise EncodingError("an EXEC record has another length than its parts")
        process = self.processes[self._known(number)]
        process.program_file, process.exe_file = program_file, exe_file
        process.environment, process.flags = environment, flags
        process.comm = body[at : at + comm_size]
        process.program = body[at + comm_size : at + comm_size + program_size]
        process.cmdline = body[at + comm_size + program_size :]
        process.truncated = cmdline_full != cmdline_size

    def _exit(self, body: bytes) -> None:
        number, status, _ = _EXIT.unpack(body)
        self.processes[self._known(number)].wait_status = status

    def _files(self, body: bytes) -> None:
        _file_list(body, self.paths, self.files)
        if len(self.files) > self._limits.max_digests:
            raise EncodingError("the trace holds more files than its cap")

    def _products(self, body: bytes) -> None:
        _file_list(body, self.product_paths, self.products)
        if len(self.products) > self._limits.max_digests:
            raise EncodingError("the trace holds more products than its cap")

    def _opens(self, body: bytes) -> None:
        pairs = array.array("I")
        if pairs.itemsize != 4 or len(body) % 8 != 0:
            raise EncodingError("an OPENS record is malformed")
        pairs.frombytes(body)
        if sys.byteorder == "little":
            pairs.byteswap()
        if len(self.opens) + len(pairs) > 2 * OPENS_MAX:
            raise EncodingError("the trace holds more opens than its cap")
        self.opens.extend(pairs)

    def _environment(self, body: bytes) -> None:
        (count,) = _COUNT.unpack_from(body)
        at, found = _COUNT.size, []
        for _ in range(count):
            (length,) = _ENV.unpack_from(body, at)
            name, value = body[at + 2 : at + 2 + length], body[at + 2 + length : at + 34 + length]
            if len(value) != 32:
                raise EncodingError("an ENVIRONMENT record is cut short")
            found.append((name, value))
            at += 34 + length
        if at != len(body) or len(self.environments) >= ENVIRONMENTS_MAX:
            raise EncodingError("an ENVIRONMENT record is malformed, or there are too many")
        self.environments.append(tuple(found))

    def _room(self) -> bool:
        """Whether one more event is kept; if not it is counted, and so a loss."""
        kept = len(self.net_events) + len(self.op_events) + len(self.call_events)
        if kept >= EVENTS_MAX:
            self.events_dropped += 1
        return kept < EVENTS_MAX

    def _network(self, body: bytes) -> None:
        number, call, payload, family, kind, protocol, fd, result, time_ns, size, data_size = (
            _NET.unpack_from(body)
        )
        at = _NET.size
        if len(body) != at + size + data_size:
            raise EncodingError("a NETWORK record has another length than its parts")
        if not self._attributed(number) or not self._room():
            return
        address, data = body[at : at + size], body[at + size :]
        event = (number, call, family, kind, protocol, fd, result, time_ns, address, payload, data)
        self.net_events.append(NetEvent(*event))

    def _attributed(self, number: int) -> bool:
        """False for a process beyond the process cap, which is a loss already."""
        return number != NONE and self._known(number) == number

    def _file_op(self, body: bytes) -> None:
        number, op, _, mode, size, time_ns, length, second = _OP.unpack_from(body)
        at = _OP.size
        if len(body) != at + length + second:
            raise EncodingError("a FILE_OP record has another length than its parts")
        if not self._attributed(number) or not self._room():
            return
        paths = body[at : at + length], body[at + length :]
        self.op_events.append(OpEvent(number, op, mode, size, time_ns, *paths))

    def _syscall(self, body: bytes) -> None:
        number, _, _, count, a, b, c, d, result, time_ns, flags, name_size, text_size = (
            _CALL.unpack_from(body)
        )
        at = _CALL.size
        if len(body) != at + name_size + text_size or count == 0:
            raise EncodingError("a SYSCALL record has another length than its parts")
        if not self._attributed(number) or not self._room():
            return
        name = body[at : at + name_size].decode("ascii", "replace")
        waited = None if result == -(2**63) else result
        text = body[at + name_size :]
        event = CallEvent(number, name, (a, b, c, d), waited, count, time_ns, flags, text)
        self.call_events.append(event)

    def _loss(self, body: bytes) -> None:
        reason, _, length = _LOSS.unpack_from(body)
        if len(body) != _LOSS.size + length or reason not in _LOSSES or len(self.losses) >= 64:
            raise EncodingError("a LOSS record is malformed, or there are too many")
        self.losses.append((Loss(reason), body[_LOSS.size :]))

    def _mutation(self, body: bytes) -> None:
        readable, zero, length, at_open, later = _MUTATION.unpack_from(body)
        path = body[_MUTATION.size :]
        if readable > 1 or zero or len(path) != length or len(self.mutations) >= MUTATIONS_MAX:
            raise EncodingError("a MUTATION record is malformed, or there are too many")
        found = Mutation(path, at_open, later if readable else None, MutationTime.END)
        self.mutations.append(found)

    def _mount(self, body: bytes) -> None:
        found = mountinfo.read_line(body)
        if found is None or len(self.mounts) >= MOUNTS_MAX:
            raise EncodingError("a MOUNT record is malformed, or there are too many")
        self.mounts.append(MountMark(*found, True, mountinfo.SERVED_BY_OTHERS))

    def _counters(self, body: bytes) -> None:
        self.counters = struct.unpack(f">{COUNTER_COUNT}Q", body)


_LOSSES = frozenset(int(loss) for loss in Loss)


def inherit(process: TracedProcess, parent: TracedProcess) -> None:
    """A new process runs its parent's program until it executes another."""
    process.program, process.comm, process.cmdline = parent.program, parent.comm, parent.cmdline
    process.program_file, process.exe_file = parent.program_file, parent.exe_file
    process.environment, process.flags = parent.environment, parent.flags
    process.truncated = parent.truncated


def _file_list(body: bytes, paths: List[bytes], files: List[FileFields]) -> None:
    (count,) = _COUNT.unpack_from(body)
    fixed = _COUNT.size + count * _FILE.size
    if fixed > len(body):
        raise EncodingError("a list of files is cut short")
    at = fixed
    for digest, size, mode, length, kind, flags, device, inode in _FILE.iter_unpack(
        body[_COUNT.size : fixed]
    ):
        paths.append(body[at : at + length])
        files.append((digest, size, mode, kind, flags, device, inode))
        at += length
    if at != len(body):
        raise EncodingError("a list of files has another length than its paths")
