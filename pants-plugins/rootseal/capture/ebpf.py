"""The eBPF trace backend: who did what, seen by programs in the kernel.

It is the second witness beside fanotify, or by itself (observed.py), when the C core hashes what it
sees being opened. Programs are attached once per daemon; a scope is a set of processes that the
kernel side keeps by itself (bpf/trace_process.h).
"""

from __future__ import annotations

import dataclasses
import errno
import os
import pathlib
import time
from typing import Dict, Mapping, Optional, Tuple

from rootseal import _native_trace, diagnostics
from rootseal.capture.ebpf_bcc import BccLoader
from rootseal.capture.scope import CaptureLimits
from rootseal.capture.trace_events import Reader, StoreBypass
from rootseal.errors import BackendUnavailable, CaptureError, ConfigError, NativeError
from rootseal.executable import system_daemon_command
from rootseal.observation import Ledger, ProcessRecord, TracePrograms
from rootseal.privileges import ALLOW_CALL, CAP_BPF, has_capability
from rootseal.trace_ring import RING_BYTES_DEFAULT, RING_BYTES_MIN, check_size

OPENS_MAX = 1 << 22  # (process, file) pairs of one scope, 56 bytes each
EVENT_BYTES_MAX = 1 << 26  # of kept events of one scope
PROCESSES_MAX = 1 << 18
LOADER_VARIABLE = "ROOTSEAL_TRACE_LOADER"
LOADERS = ("auto", "co-re", "bcc")

_OBJECT = pathlib.Path(__file__).resolve().parent.parent / "bin" / "trace.bpf.o"
_LSM_PROGRAM = "trace_file_open"
_KERNEL_BTF = pathlib.Path("/sys/kernel/btf/vmlinux")
_STATUS = pathlib.Path("/proc/thread-self/status")
_PID_NAMESPACE = pathlib.Path("/proc/self/ns/pid")
_INITIAL_PID_NAMESPACE = 0xEFFFFFFC

# Counter of native/trace/api.h -> counter of rootseal.diagnostics.
_COUNTER_NAMES: Mapping[str, str] = {
    "opens": "tracedOpens",
    "open": "ringbufOpenatDrops",
    "exec": "ringbufExecDrops",
    "fork": "ringbufForkDrops",
    "fileop": "ringbufFileOpDrops",
    "network": "ringbufNetworkDrops",
    "call": "ringbufSyscallDrops",
    "map_full": "traceMapFull",
    "unresolved": "unhashedOpensTotal",
    "truncated": "traceTruncated",
    "unreadable": "traceTruncated",
    "program_misses": "traceProgramMisses",
    "opens_cap_hit": "recordBytesCapHit",
    "events_cap_hit": "recordBytesCapHit",
    "processes_cap_hit": "processTableCapHit",
    "malformed": "handlerErrors",
    "undrained": "handlerErrors",
}
_EXCLUDED = {
    "not_regular": "notRegular",
    "no_content": "noContent",
    "pseudo_filesystem": "pseudoFilesystem",
    "memory_file": "memoryFile",
    "created": "created",
    "write_only": "writeOnly",
}
_UNHASHED = {"unhashed": "noDigest", "unresolved": "unresolved"}


@dataclasses.dataclass(frozen=True)
class Contents:
    """What was hashed after its open.

    Attributes:
        files: Each file in each state that was hashed.
        opens: Process id, index in `files`, and how (4: executed).
        failures: Files that could not be hashed, by `_native_trace.CONTENT_REASONS`.
        hashed_bytes: How much was read.
        cache_hits: Digests that were known from earlier actions.
        written: Pairs of native u64 (st_dev, st_ino) of what was opened to write.
        outputs: Paths of these.
    """

    files: Tuple[_native_trace.Content, ...]
    opens: Tuple[Tuple[int, int, int], ...]
    failures: Mapping[str, int]
    hashed_bytes: int
    cache_hits: int
    written: bytes = dataclasses.field(repr=False)
    outputs: Tuple[bytes, ...]


@dataclasses.dataclass(frozen=True)
class TraceObservation:
    """What the trace saw of one scope.

    Attributes:
        processes: In the order in which they were first seen; digests are None.
        opened_files: Pairs of native u64 (st_dev, st_ino) of what was opened, not distinct.
        counters: The counters of `diagnostics` that this backend owns.
        opens: How many successful opens there were.
        contents: What was hashed after its open; None where nothing is.
    """

    processes: Tuple[ProcessRecord, ...]
    opened_files: bytes = dataclasses.field(repr=False)
    counters: Mapping[str, int]
    opens: int
    contents: Optional[Contents] = None


def unavailable(reason: str, remedy: str) -> BackendUnavailable:
    """The one error of this backend when it cannot run."""
    return BackendUnavailable("ebpf", reason, remedy)


def _check_host() -> None:
    try:
        _native_trace.load()
    except NativeError as error:
        raise unavailable(
            f"the trace core is not built or libbpf is missing ({error})",
            "Install them: apt-get install libbpf-dev clang, then `make build`.",
        ) from error
    if _PID_NAMESPACE.stat().st_ino != _INITIAL_PID_NAMESPACE:
        raise unavailable(
            "the daemon is in a pid namespace, where the kernel's process ids are not its own",
            "Run the daemon outside of the container, or with its host's pid namespace.",
        )


def _explain(error: NativeError) -> BackendUnavailable:
    if error.errno == errno.EPERM and has_capability(CAP_BPF):
        reason = f"the kernel refused a program: {error}"
        return unavailable(reason, ALLOW_CALL.format(call="bpf"))
    if error.errno == errno.EPERM:
        return unavailable(
            f"the kernel refused a program: {error}",
            f"Run the system daemon as root: {system_daemon_command()}",
        )
    if error.errno == errno.EACCES:  # a privilege that is missing is EPERM
        return unavailable(
            f"the kernel's verifier does not accept a program: {error}",
            "Programs for eBPF need kernel 5.12; `--capture-mode trace:ptrace` traces without.",
        )
    return unavailable(str(error), "Run `rootseal doctor` and report its output.")


class EbpfScope:
    """One action. Ended by `finish` or `abort`."""

    def __init__(self, tracer: EbpfTracer, number: int, root: bytes, *, hashes: bool) -> None:
        """Take over a scope that `EbpfTracer.add_scope` opened."""
        self._tracer = tracer
        self._hashes = hashes
        self._number: Optional[int] = number
        self._root = root
        self._result: Optional[_native_trace.Result] = None
        self.block_devices = 0
        """How many were opened; known after `reconcile`."""

    def finish(self) -> TraceObservation:
        """Drain what the action did; its processes must be gone.

        Raises:
            CaptureError: The scope was ended before, or its counters could not be read.
        """
        if self._number is None:
            raise CaptureError("the trace scope was ended before")
        number, self._number = self._number, None
        self._result = self._tracer.native.finish_scope(number)
        self._tracer.check_attached()
        counters = self._result.counters()
        reader = Reader(
            root=self._root,
            clock_offset_ns=self._tracer.clock_offset_ns,
            bypass=self._tracer.bypass,
        )
        processes = reader.read(self._result.events())
        found = _diagnostics(counters)
        found["tracerDetaches"] = sum(_is_foreign(process) for process in processes)
        return TraceObservation(
            processes=processes,
            opened_files=self._result.files(),
            counters=found,
            opens=counters["opens"],
            contents=_contents(self._result) if self._hashes else None,
        )

    def reconcile(self, hashed_files: bytes) -> Ledger:
        """Compare with the files that another backend hashed. After `finish`, once.

        Args:
            hashed_files: Pairs of native u64 (st_dev, st_ino).

        Raises:
            CaptureError: `finish` has not been called.
        """
        if self._result is None:
            raise CaptureError("the trace scope has no result to compare")
        with self._result as result:
            self._result = None
            found, _ = result.reconcile(hashed_files, self._tracer.memory_device)
        self.block_devices = found["block_devices"]
        return Ledger(
            files=found["files"],
            hashed=found["hashed"],
            excluded={text: found[name] for name, text in _EXCLUDED.items()},
            unhashed={text: found[name] for name, text in _UNHASHED.items()},
        )

    def members(self) -> Tuple[int, ...]:
        """Process ids of those that live; none after the end."""
        return () if self._number is None else self._tracer.native.members(self._number)

    def abort(self) -> None:
        """Drop the scope and all it saw. May be called at any time."""
        number, self._number = self._number, None
        if number is not None:
            self._tracer.native.abort_scope(number)
        result, self._result = self._result, None
        if result is not None:
            result.close()


class EbpfTracer:
    """Trace programs of one daemon, attached once."""

    def __init__(self, *, ring_bytes: int = RING_BYTES_DEFAULT, loader: str = "") -> None:
        """Load and attach the programs.

        Args:
            ring_bytes: Size of the ring buffer, a power of two; what it cannot hold is counted.
            loader: `co-re`, `bcc`, or `auto`: CO-RE where the kernel has BTF, else BCC.
                Empty: what ROOTSEAL_TRACE_LOADER says, else `auto`.

        Raises:
            BackendUnavailable: Why not on this host, and what to do.
            ConfigError: No ring has this size, or there is no such loader.
        """
        check_size(ring_bytes, "the trace ring")
        self.ring_bytes = ring_bytes
        _check_host()
        self.loader, self.loader_reason = _choose_loader(loader or os.environ.get(LOADER_VARIABLE))
        self._bcc: Optional[BccLoader] = None
        if self.loader == "bcc":
            self._bcc = _load_bcc(ring_bytes, self.loader_reason)
            self.native = self._bcc.tracer
        else:
            self.native = _load_core(ring_bytes)
        self.clock_offset_ns = time.time_ns() - time.monotonic_ns()
        self.bypass = _store_bypass()
        self.memory_device = _memory_device()

    @property
    def programs(self) -> Tuple[_native_trace.Program, ...]:
        """Which programs run, and why the others do not."""
        return self._bcc.programs if self._bcc is not None else self.native.programs()

    @property
    def used(self) -> TracePrograms:
        """How opens are told, and why not by the security module."""
        by_name = {program.name: program for program in self.programs}
        better = by_name.get(_LSM_PROGRAM)
        if better is not None and better.attached:
            return TracePrograms(self.loader, "lsm/file_open", "")
        reason = "BCC loads none" if better is None else better.reason
        return TracePrograms(self.loader, "sys_exit", f"lsm/file_open: {reason}")

    def check_attached(self) -> None:
        """Make sure that the programs are still there.

        Raises:
            CaptureError: The BCC helper has ended, and the programs with it.
        """
        if self._bcc is not None and not self._bcc.alive():
            raise CaptureError("the BCC helper has ended; start the daemon again")

    @classmethod
    def probe(cls) -> None:
        """Load, attach and drop the programs.

        Raises:
            BackendUnavailable: Why not on this host, and what to do.
        """
        cls(ring_bytes=RING_BYTES_MIN).close()

    def add_scope(
        self, pid: int, *, root: bytes = b"/", hashing: Optional[CaptureLimits] = None
    ) -> EbpfScope:
        """Follow a process that has not been let run yet, and all its descendants.

        Args:
            pid: The action's first process, blocked, with one thread.
            root: The action's root directory; paths inside it are given relative to it.
            hashing: Hash what is opened, within these caps; None: do not.

        Raises:
            CaptureError: Too many scopes are open, or the map of members is full.
        """
        self.check_attached()
        limits = _native_trace.Limits(OPENS_MAX, EVENT_BYTES_MAX, PROCESSES_MAX)
        if hashing is not None:
            limits = dataclasses.replace(
                limits,
                content=True,
                max_files=hashing.max_digests,
                max_hashed_bytes=hashing.max_hashed_bytes,
            )
        number = self.native.open_scope(pid, limits)
        return EbpfScope(self, number, os.path.realpath(root), hashes=hashing is not None)

    @property
    def tells_of_rings(self) -> bool:
        """Whether an open that an io_uring was asked for is told of, if not of which file."""
        rings = ("trace_ring", "trace_ring_sqe", "trace_ring_old")
        return any(item.attached and item.name in rings for item in self.programs)

    def close(self) -> None:
        """Detach the programs. May be called twice."""
        self.native.close()
        loader, self._bcc = self._bcc, None
        if loader is not None:
            loader.close()


def _choose_loader(asked: Optional[str]) -> Tuple[str, str]:
    """The loader and why.

    Raises:
        ConfigError: There is none of this name.
    """
    if asked and asked not in LOADERS:
        raise ConfigError(f"{LOADER_VARIABLE} is one of {', '.join(LOADERS)}, not {asked!r}")
    if asked and asked != "auto":
        return asked, f"{asked} was asked for"
    if _KERNEL_BTF.exists():
        return "co-re", "the kernel has BTF"
    return "bcc", "the kernel has no BTF"


def _load_bcc(ring_bytes: int, why: str) -> BccLoader:
    try:
        return BccLoader(ring_bytes)
    except BackendUnavailable as error:
        raise unavailable(f"{why}; {error.reason}", error.remedy) from error


def _load_core(ring_bytes: int) -> _native_trace.Tracer:
    if not _OBJECT.exists():
        raise unavailable(
            f"{_OBJECT.name} is missing from the installation",
            "Install clang and libbpf-dev, then `make build`.",
        )
    try:
        return _native_trace.Tracer.open_core(str(_OBJECT), ring_bytes)
    except NativeError as error:
        raise _explain(error) from error


def _contents(result: _native_trace.Result) -> Contents:
    result.settle()
    failures, hashed_bytes, cache_hits = result.content_failures()
    return Contents(
        files=tuple(result.contents()),
        opens=tuple(result.content_opens()),
        failures=failures,
        hashed_bytes=hashed_bytes,
        cache_hits=cache_hits,
        written=result.written(),
        outputs=result.outputs(),
    )


def _diagnostics(counters: Mapping[str, int]) -> Dict[str, int]:
    found: Dict[str, int] = {}
    for name, target in _COUNTER_NAMES.items():
        total = found.get(target, 0) + counters[name]
        found[target] = min(total, diagnostics.COUNTER_VALUE_MAX)
    return found


def _is_foreign(process: ProcessRecord) -> bool:
    """Whether it used a system call ABI that the programs cannot read (x32; 32-bit under BCC)."""
    events = process.trace.syscall_events if process.trace is not None else ()
    return any(event.syscall == "foreign_abi" for event in events)


def _store_bypass() -> StoreBypass:
    try:
        return StoreBypass.read(_STATUS.read_text("utf-8", "replace"))
    except OSError:
        return StoreBypass(None)


def _memory_device() -> int:
    """st_dev of the kernel's own tmpfs, where memfd files live."""
    descriptor = os.memfd_create("rootseal-probe", os.MFD_CLOEXEC)
    try:
        return os.fstat(descriptor).st_dev
    finally:
        os.close(descriptor)
