"""The trace core's functions, typed. The only module that imports that extension.

The extension is optional (it needs libbpf): `load()` says what is missing. No cffi object leaves
this module.
"""

from __future__ import annotations

import dataclasses
import os
import threading
from typing import Any, Dict, Iterator, List, Optional, Sequence, Tuple

from rootseal.errors import NativeError

LOSS_NAMES = (
    "open",
    "exec",
    "fork",
    "fileop",
    "network",
    "call",
    "map_full",
    "unresolved",
    "truncated",
    "unreadable",
)
OFFSETS_TEXT_MAX = 16384
UNHASHED_MAX = 1000  # opens without a digest that are named; all are counted
MEMBERS_MAX = 65536


@dataclasses.dataclass(frozen=True)
class Program:
    """One trace program: whether it runs, and why not."""

    name: str
    attached: bool
    required: bool
    reason: str


CONTENT_REASONS = ("changed", "gone", "unreadable", "cap", "bytesCap", "busy", "untold")
"""Why files could not be hashed after their open: native/trace/api.h, from 1 on."""


@dataclasses.dataclass(frozen=True)
class Content:
    """A file in one state that was hashed after its open (native/trace/api.h).

    Attributes:
        path: Absolute, in the action's root.
        code: Whether it is machine code by its first bytes.
        stands: Whether its digest is that of all opens of the file.
        later: What it has now if others changed it since, empty if unreadable; else None.
    """

    path: bytes
    digest: bytes
    size: int
    mode: int
    access: int
    dev: int
    ino: int
    code: bool
    stands: bool
    later: Optional[bytes]


@dataclasses.dataclass(frozen=True)
class Limits:
    """Caps of one scope, in the order of native/trace/api.h."""

    max_opens: int
    max_event_bytes: int
    max_processes: int
    content: bool = False
    max_files: int = 0
    max_hashed_bytes: int = 0


@dataclasses.dataclass(frozen=True)
class FileKey:
    """A file that a process opened (native/trace/api.h); the device in the kernel's encoding."""

    ino: int
    dev: int
    tgid: int
    mode: int
    flags: int
    fmode: int
    access: int
    count: int
    first_ns: int
    magic: int


def _extension() -> Any:
    """The extension, or why it is not there.

    Raises:
        NativeError: It was not built, or libbpf is not installed here.
    """
    try:
        from rootseal import _trace  # type: ignore[attr-defined]
    except ImportError as error:
        raise NativeError("import", 2, f"the trace core cannot be loaded: {error}") from error
    return _trace


def _error(ffi: Any, error: Any) -> NativeError:
    operation = ffi.string(error.operation).decode("ascii", "replace")
    detail = ffi.string(error.detail).decode("utf-8", "backslashreplace")
    reason = os.strerror(error.code)
    return NativeError(operation, int(error.code), f"{operation}: {reason} ({detail})")


def _file_key(entry: Any) -> FileKey:
    return FileKey(
        ino=int(entry.ino),
        dev=int(entry.dev),
        tgid=int(entry.tgid),
        mode=int(entry.mode),
        flags=int(entry.flags_any),
        fmode=int(entry.fmode_any),
        access=int(entry.access),
        count=int(entry.count),
        first_ns=int(entry.first_ns),
        magic=int(entry.magic),
    )


def _later(ffi: Any, item: Any) -> Optional[bytes]:
    if not item.mutated:
        return None
    return bytes(ffi.buffer(item.later)) if item.mutated == 1 else b""


def load() -> None:
    """Load the extension.

    Raises:
        NativeError: It was not built, or libbpf is not installed here.
    """
    _extension()


def event_size(event_type: int) -> int:
    """Bytes of an event's struct, 0 for an unknown type."""
    return int(_extension().lib.rs_trace_event_size(event_type))


def field_offsets() -> List[str]:
    """Compiler flags that tell the BCC adaptor where kernel fields are, from the kernel's BTF.

    Raises:
        NativeError: There is no BTF, or a field is not in it.
    """
    module = _extension()
    text, error = module.ffi.new(f"char[{OFFSETS_TEXT_MAX}]"), module.ffi.new("rs_trace_error *")
    if module.lib.rs_trace_offsets(text, OFFSETS_TEXT_MAX, error):
        raise _error(module.ffi, error)
    return str(module.ffi.string(text).decode("ascii")).split()


def make_maps(ring_bytes: int) -> Tuple[int, ...]:
    """Maps for another loader's programs: ring, members, losses, writes, calls, conns, scratches.

    The descriptors are the caller's to close.

    Raises:
        NativeError: The kernel refused one.
    """
    module = _extension()
    made, error = module.ffi.new("int[7]"), module.ffi.new("rs_trace_error *")
    if module.lib.rs_tracer_make_maps(ring_bytes, made, error):
        raise _error(module.ffi, error)
    return tuple(int(descriptor) for descriptor in made)


def feed_bytes(data: bytes) -> int:
    """Run arbitrary bytes through the aggregator (for tests and fuzzing); events taken."""
    module = _extension()
    return int(module.lib.rs_trace_feed_bytes(module.ffi.from_buffer(data), len(data)))


class Result:
    """What one scope saw, in the encodings of the C core. Used by one thread, then closed."""

    def __init__(self, ffi: Any, lib: Any, handle: Any) -> None:
        """Take over a result that `Tracer.finish_scope` made."""
        self._ffi = ffi
        self._lib = lib
        self._handle: Any = handle

    def __enter__(self) -> Result:
        """Close it at the end of a with statement."""
        return self

    def __exit__(self, *_: object) -> None:
        """Free it."""
        self.close()

    def events(self) -> bytes:
        """Events back to back, as bpf/event.h has them, without the opens."""
        length = self._ffi.new("size_t *")
        data = self._lib.rs_trace_events(self._handle, length)
        return bytes(self._ffi.buffer(data, length[0])) if length[0] else b""

    def opens(self) -> List[FileKey]:
        """Each file that each process opened: one Python object for each, so for tests."""
        count = self._ffi.new("size_t *")
        entries = self._lib.rs_trace_opens(self._handle, count)
        return [_file_key(entries[index]) for index in range(count[0])]

    def files(self) -> bytes:
        """Pairs of native u64 (st_dev, st_ino) of what was opened, not distinct."""
        count = self._ffi.new("size_t *")
        self._lib.rs_trace_opens(self._handle, count)
        pairs = self._ffi.new("uint64_t[]", 2 * int(count[0]))
        self._lib.rs_trace_files(self._handle, pairs)
        return bytes(self._ffi.buffer(pairs))

    def written(self) -> bytes:
        """The same of what was opened to write."""
        count = self._ffi.new("size_t *")
        self._lib.rs_trace_opens(self._handle, count)
        pairs = self._ffi.new("uint64_t[]", 2 * int(count[0]))
        found = int(self._lib.rs_trace_written(self._handle, pairs))
        return bytes(self._ffi.buffer(pairs))[: 16 * found]

    def outputs(self) -> Tuple[bytes, ...]:
        """Paths of what was opened to write; of a scope that hashes."""
        length = self._ffi.new("size_t *")
        text = self._lib.rs_trace_outputs(self._handle, length)
        found = bytes(self._ffi.buffer(text, length[0])) if length[0] else b""
        return tuple(found.split(b"\0")[:-1])

    def settle(self) -> None:
        """Wait until everything is hashed; before the functions below, and not on the tracer."""
        self._lib.rs_trace_settle(self._handle)

    def contents(self) -> Iterator[Content]:
        """The files that were hashed."""
        path, index = self._ffi.new("char **"), 0
        while True:
            item = self._lib.rs_trace_content_at(self._handle, index, path)
            if not item:
                return
            yield Content(
                path=bytes(self._ffi.buffer(path[0], item.path_length)),
                digest=bytes(self._ffi.buffer(item.digest)),
                size=int(item.size),
                mode=int(item.mode),
                access=int(item.access),
                dev=int(item.dev),
                ino=int(item.ino),
                code=bool(item.code),
                stands=bool(self._lib.rs_trace_content_stands(self._handle, index)),
                later=_later(self._ffi, item),
            )
            index += 1

    def content_opens(self) -> Iterator[Tuple[int, int, int]]:
        """Process id, index of the file, and how: 1 opened to read, 4 executed."""
        count = self._ffi.new("size_t *")
        opens = self._lib.rs_trace_content_opens(self._handle, count)
        for index in range(int(count[0])):
            yield int(opens[index].tgid), int(opens[index].content), int(opens[index].access)

    def content_failures(self) -> Tuple[Dict[str, int], int, int]:
        """Files by `CONTENT_REASONS`, bytes that were hashed, digests that were known."""
        failures = self._ffi.new("uint64_t[8]")
        hashed, hits = self._ffi.new("uint64_t *"), self._ffi.new("uint64_t *")
        self._lib.rs_trace_content_failures(self._handle, failures, hashed, hits)
        found = {name: int(failures[number]) for number, name in enumerate(CONTENT_REASONS, 1)}
        return found, int(hashed[0]), int(hits[0])

    def counters(self) -> Dict[str, int]:
        """Every counter of the scope, by name."""
        struct = self._ffi.new("rs_trace_counters *")
        self._lib.rs_trace_counters_of(self._handle, struct)
        values = {
            name: int(getattr(struct, name))
            for name, _ in self._ffi.typeof("rs_trace_counters").fields
            if name != "losses"
        }
        values.update({name: int(struct.losses[i]) for i, name in enumerate(LOSS_NAMES)})
        return values

    def reconcile(
        self, hashed_files: bytes, memory_device: int
    ) -> Tuple[Dict[str, int], Tuple[FileKey, ...]]:
        """Compare with the other witness.

        Args:
            hashed_files: Pairs of native u64 (st_dev, st_ino) of files that have a digest.
            memory_device: st_dev of memory files (memfd).

        Returns:
            The ledger by name, and at most `UNHASHED_MAX` of the files without a digest.
        """
        ledger = self._ffi.new("rs_trace_ledger *")
        left = self._ffi.new("rs_trace_open[]", UNHASHED_MAX)
        pairs = self._ffi.from_buffer("uint64_t[]", hashed_files)
        number = self._lib.rs_trace_reconcile(
            self._handle,
            pairs,
            len(hashed_files) // 16,
            memory_device,
            ledger,
            left,
            UNHASHED_MAX,
        )
        if number < 0:
            raise NativeError("reconcile", int(-number), "no memory to compare the witnesses")
        fields = [name for name, _ in self._ffi.typeof("rs_trace_ledger").fields]
        named = min(int(number), UNHASHED_MAX)
        return (
            {name: int(getattr(ledger, name)) for name in fields},
            tuple(_file_key(left[index]) for index in range(named)),
        )

    def close(self) -> None:
        """Free it. May be called twice."""
        handle, self._handle = self._handle, self._ffi.NULL
        self._lib.rs_trace_result_free(handle)


class Tracer:
    """Attached programs, the ring, and its thread."""

    def __init__(self, ffi: Any, lib: Any, handle: Any) -> None:
        """Take over a tracer that `open_core` or `adopt` made."""
        self._ffi = ffi
        self._lib = lib
        self._handle: Optional[Any] = handle
        self._lock = threading.RLock()

    @classmethod
    def open_core(cls, object_path: str, ring_bytes: int) -> Tracer:
        """Load and attach the CO-RE object.

        Raises:
            NativeError: What was refused, and the kernel's or libbpf's last words.
        """
        module = _extension()
        made, error = module.ffi.new("rs_tracer **"), module.ffi.new("rs_trace_error *")
        if module.lib.rs_tracer_open(os.fsencode(object_path), ring_bytes, made, error):
            raise _error(module.ffi, error)
        return cls(module.ffi, module.lib, made[0])

    @classmethod
    def adopt(cls, map_fds: Sequence[int], ring_bytes: int) -> Tracer:
        """Use maps of another loader: ring, members, losses, writes, calls. They are duplicated.

        Raises:
            NativeError: A descriptor is not such a map.
        """
        module = _extension()
        made, error = module.ffi.new("rs_tracer **"), module.ffi.new("rs_trace_error *")
        fds = module.ffi.new("int[]", list(map_fds))
        if module.lib.rs_tracer_adopt(fds, ring_bytes, made, error):
            raise _error(module.ffi, error)
        return cls(module.ffi, module.lib, made[0])

    def _live(self) -> Any:
        if self._handle is None:
            raise NativeError("trace", 9, "the tracer is closed")
        return self._handle

    def programs(self) -> Tuple[Program, ...]:
        """Each program of the object, attached or not."""
        with self._lock:
            handle = self._live()
            found = []
            for index in range(self._lib.rs_tracer_programs(handle)):
                item = self._ffi.new("rs_trace_program *")
                self._lib.rs_tracer_program(handle, index, item)
                found.append(
                    Program(
                        name=self._ffi.string(item.name).decode("ascii", "replace"),
                        attached=bool(item.attached),
                        required=bool(item.required),
                        reason=self._ffi.string(item.reason).decode("utf-8", "replace"),
                    )
                )
        return tuple(found)

    def late_events(self) -> int:
        """Events of scopes that had ended."""
        with self._lock:
            return int(self._lib.rs_tracer_late_events(self._live()))

    def open_scope(self, pid: int, limits: Limits) -> int:
        """Make a held process the first member of a new scope.

        Raises:
            NativeError: Too many scopes, or a full map.
        """
        with self._lock:
            handle = self._live()
            made, error = self._ffi.new("uint64_t *"), self._ffi.new("rs_trace_error *")
            caps = self._ffi.new("rs_trace_limits *", dataclasses.astuple(limits))
            if self._lib.rs_tracer_scope_open(handle, pid, caps, made, error):
                raise _error(self._ffi, error)
            return int(made[0])

    def finish_scope(self, scope: int) -> Result:
        """Drain and read a scope whose processes are gone; other Python threads run meanwhile.

        Raises:
            NativeError: The scope had ended, or its counters could not be read.
        """
        with self._lock:
            handle = self._live()
            made, error = self._ffi.new("rs_trace_result **"), self._ffi.new("rs_trace_error *")
            if self._lib.rs_tracer_scope_finish(handle, scope, made, error):
                raise _error(self._ffi, error)
        return Result(self._ffi, self._lib, made[0])

    def abort_scope(self, scope: int) -> None:
        """Forget a scope; does nothing if it has ended."""
        with self._lock:
            if self._handle is not None:
                self._lib.rs_tracer_scope_abort(self._handle, scope)

    def members(self, scope: int) -> Tuple[int, ...]:
        """Process ids of a scope's processes that live, as far as `MEMBERS_MAX` goes.

        Raises:
            NativeError: The map of members cannot be read.
        """
        with self._lock:
            pids = self._ffi.new("uint32_t[]", MEMBERS_MAX)
            count = self._lib.rs_tracer_scope_members(self._live(), scope, pids, MEMBERS_MAX)
        if count < 0:
            raise NativeError("members", -count, f"members: {os.strerror(-count)}")
        return tuple(int(pids[i]) for i in range(count))

    def close(self) -> None:
        """Detach everything; open scopes are forgotten. May be called twice."""
        with self._lock:
            handle, self._handle = self._handle, None
            if handle is not None:
                self._lib.rs_tracer_close(handle)
