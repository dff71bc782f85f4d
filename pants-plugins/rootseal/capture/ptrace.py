"""The ptrace backend: the launcher hashes each file while its opener is held.

    launcher (native/launcher/trace_*.c) → frames TRACE → PtraceScope.feed → finish → Observation

It needs no privilege, so it is the capture of an ordinary user. The launcher is a program of that
user: what it says is as trustworthy as the user, which the record shows by naming the backend.
"""

from __future__ import annotations

import collections
import dataclasses
import os
import subprocess
from pathlib import Path
from typing import (
    AbstractSet,
    Dict,
    List,
    Mapping,
    Optional,
    Protocol,
    Sequence,
    Tuple,
    runtime_checkable,
)

from rootseal import diagnostics, leaf_table, opens_table
from rootseal.capture.paths import relative_to
from rootseal.capture.ptrace_process import process_table
from rootseal.capture.ptrace_stream import (
    FILE_ANONYMOUS,
    FILE_BORN,
    FILE_FOREIGN,
    FILE_REMOTE,
    Count,
    FileFields,
    Loss,
    TraceStream,
)
from rootseal.capture.scope import CaptureLimits, RecordRoom
from rootseal.capture.walk import Declared, declared_leaves
from rootseal.errors import BackendUnavailable, CaptureError, EncodingError
from rootseal.leaf_table import Domain, Leaf
from rootseal.observation import (
    DigestSource,
    MountMark,
    Mutations,
    Observation,
    Posture,
    ProcessRecord,
)

PROBE_SECONDS = 30.0
YAMA_ADMIN = 2  # only with CAP_SYS_PTRACE
YAMA_FOR_GOOD = 3  # nobody, until the machine boots again
REPORT = "Run `rootseal doctor` and report the kernel and this reason."
_YAMA = Path("/proc/sys/kernel/yama/ptrace_scope")
_REFUSALS = {
    "traced": (
        "another program traces the action already, and a task has one tracer",
        "Run it without strace or gdb around it, or capture with fanotify.",
    ),
    "no-filter": (
        "a seccomp filter cannot be installed",
        "Allow the seccomp call in the container's seccomp profile.",
    ),
}

# Every way to miss something, and the counter of the predicate that says so.
LOSS_COUNTERS: Mapping[Loss, str] = {
    Loss.DENIED: "unhashedOpensTotal",
    Loss.GONE: "unhashedOpensTotal",
    Loss.PATH: "unhashedOpensTotal",
    Loss.READ: "fallbackHashFailures",
    Loss.UNSTABLE: "unstableFiles",
    Loss.FILES_CAP: "fanotifyDigestsCapHit",
    Loss.BYTES_CAP: "hashedBytesCapHit",
    Loss.PROCESS_CAP: "processTableCapHit",
    Loss.INTERPRETER: "unhashedOpensTotal",
    Loss.NAMESPACE: "namespaceEscapes",
    Loss.TRACER: "tracerDetaches",
    Loss.MEMORY: "handlerErrors",
    Loss.ARGUMENT: "handlerErrors",
    Loss.MUTATED: "mutatedAfterOpen",
    Loss.BLOCK_DEVICE: "blockDeviceOpens",
}
_COUNTERS: Mapping[Count, str] = {
    Count.CACHE_HITS: "digestCacheHits",
    Count.BYTES_HASHED: "bytesHashed",
    Count.OPENS: "tracedOpens",
    Count.EXCLUDED_PATH_ONLY: "excludedPathOnlyOpens",
    Count.EXCLUDED_IRREGULAR: "excludedIrregularOpens",
    Count.EXCLUDED_PSEUDO: "excludedPseudoFileOpens",
    Count.EXCLUDED_ANONYMOUS: "excludedAnonymousOpens",
    Count.EXCLUDED_WRITE_ONLY: "excludedWriteOnlyOpens",
    Count.EXCLUDED_IO_URING: "deniedIoUringCalls",
}


def probe(launcher: Path) -> None:
    """Find out whether the launcher can trace here and now.

    Raises:
        BackendUnavailable: It cannot; says why and what to do.
    """
    try:
        done = subprocess.run(
            [str(launcher), "--probe-trace"],
            capture_output=True,
            timeout=PROBE_SECONDS,
            check=False,
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise BackendUnavailable(
            "ptrace", f"the launcher cannot be run ({error})", "Run `make build`."
        ) from None
    if done.returncode != 0:
        said = done.stdout.decode("utf-8", "replace").strip()
        raise refused(said or f"broken: the launcher ended with {done.returncode}")


def refused(said: str, yama: Optional[int] = None) -> BackendUnavailable:
    """Why a launcher cannot trace, and what to do.

    Args:
        said: What it said (docs/protocol.md, TRACE_REFUSED).
        yama: kernel.yama.ptrace_scope; None: as it is on this host.
    """
    word, _, detail = said.partition(":")
    if word == "not-permitted":
        return _not_permitted(_yama() if yama is None else yama)
    if word == "broken":
        return BackendUnavailable("ptrace", detail.strip()[:256], REPORT)
    if word not in _REFUSALS:
        return BackendUnavailable("ptrace", f"the launcher says {said[:256]!r}", REPORT)
    return BackendUnavailable("ptrace", *_REFUSALS[word])


def _not_permitted(yama: int) -> BackendUnavailable:
    reason = f"ptrace is not permitted by kernel.yama.ptrace_scope={yama}"
    if yama == YAMA_FOR_GOOD:
        remedy = "No process can change that: boot with `sysctl.kernel.yama.ptrace_scope=1`."
    elif yama == YAMA_ADMIN:
        remedy = "Allow it: `sudo sysctl kernel.yama.ptrace_scope=1`."
    else:
        reason = "the ptrace call is not permitted (a container's seccomp filter, or SELinux)"
        remedy = "Allow it: `--cap-add SYS_PTRACE`, or a seccomp profile that permits it."
    return BackendUnavailable("ptrace", reason, remedy)


def _yama() -> int:
    try:
        return int(_YAMA.read_text("ascii"))
    except (OSError, ValueError):
        return 0  # a kernel without Yama


def mode_text(limits: CaptureLimits) -> str:
    """MODE of PREPARED for an action that the launcher shall trace (docs/protocol.md)."""
    return f"ptrace:{limits.max_digests}:{limits.max_hashed_bytes}:{limits.max_processes}"


@runtime_checkable
class TracedByLauncher(Protocol):
    """A scope that takes what its launcher traces."""

    def feed(self, data: bytes) -> None:
        """Take the EVENTS of one TRACE frame.

        Raises:
            CaptureError: Not a trace, more than the caps allow, or the scope has ended.
        """
        ...


@dataclasses.dataclass(frozen=True)
class Told:
    """What the tracer says of an action whose content another backend has.

    Attributes:
        processes: With their deeds.
        files: What was opened or executed.
        counted: By number of `Loss` and `Count`.
        counters: Every counter of `diagnostics.NAMES`.
        mutations: Files that others changed after it had hashed them.
    """

    processes: Tuple[ProcessRecord, ...]
    files: Tuple[FileFields, ...]
    counted: Mapping[int, int]
    counters: Mapping[str, int]
    mutations: Mutations


class PtraceScope:
    """The capture of one action that its launcher traces."""

    def __init__(
        self, *, root: bytes, limits: CaptureLimits, before: Optional[Declared] = None
    ) -> None:
        """Wait for the stream.

        Args:
            root: The action's root directory, absolute; its real path.
            limits: Caps of the action.
            before: What declared outputs there were before it (`walk.declared_state`).
        """
        self._root = root
        self._before = before
        self._limits = limits
        self._stream = TraceStream(limits)
        self._bytes = 0
        self._ended = False

    @property
    def mounts(self) -> Tuple[MountMark, ...]:
        """The mounts so far that others serve; of the rest the tracer does not tell."""
        return tuple(self._stream.mounts)

    def progress(self) -> Mapping[str, int]:
        """How much has come."""
        return {"files": len(self._stream.files), "processes": len(self._stream.processes)}

    def feed(self, data: bytes) -> None:
        """Take the EVENTS of one TRACE frame.

        Raises:
            CaptureError: Not a trace, more than the caps allow, or the scope has ended.
        """
        if self._ended:
            raise CaptureError("the trace goes on after the end of the action")
        try:
            self._stream.feed(data)
        except EncodingError as error:
            raise CaptureError(f"the launcher's trace cannot be read: {error}") from None

    def finish(
        self, *, outputs_files: Sequence[bytes], outputs_dirs: Sequence[bytes]
    ) -> Observation:
        """Turn the stream into tables.

        Args:
            outputs_files: Declared output files, relative to the root; those that the action did
                not write are hashed now.
            outputs_dirs: Declared output directories, relative to the root.

        Raises:
            CaptureError: The stream is cut, or contradicts itself.
        """
        if self._ended:
            raise CaptureError("the scope was ended before")
        self._ended = True
        try:
            return self._observation(outputs_files, outputs_dirs)
        except EncodingError as error:
            raise CaptureError(f"the launcher's trace cannot be read: {error}") from None

    def told(self) -> Told:
        """End the scope beside fanotify, which has the content: what the tracer says of the rest.

        Raises:
            CaptureError: The stream is cut, or contradicts itself.
        """
        if self._ended:
            raise CaptureError("the scope was ended before")
        self._ended = True
        try:
            counted = self._stream.finish()
            processes = process_table(self._stream, self._root)
        except EncodingError as error:
            raise CaptureError(f"the launcher's trace cannot be read: {error}") from None
        files, counters = tuple(self._stream.files), self._diagnostics(counted)
        return Told(processes, files, counted, counters, self._mutations())

    def abort(self) -> None:
        """Forget what came."""
        self._ended = True
        self._stream = TraceStream(self._limits)

    def _observation(
        self, outputs_files: Sequence[bytes], outputs_dirs: Sequence[bytes]
    ) -> Observation:
        stream = self._stream
        counters = self._diagnostics(stream.finish())
        room = RecordRoom(self._limits, counters)
        numbers, materials = self._materials(room)
        products = [
            self._leaf(path, fields, DigestSource.OPENAT_PATH_HASH)
            for path, fields in zip(stream.product_paths, stream.products)
        ]
        known = {leaf.path for leaf in products}
        declared = declared_leaves(
            self._root,
            files=outputs_files,
            directories=outputs_dirs,
            known=known,
            limits=self._limits,
            counters=counters,
        )
        counters["foreignProducts"] += sum(
            not leaf.path.startswith(b"/") and bool(fields[4] & FILE_FOREIGN)
            for leaf, fields in zip(products, stream.products)
        )
        counters["foreignProducts"] += self._came(declared, known)
        products = room.keep(products + declared)
        return Observation(
            backend="ptrace",
            posture=self._posture(),
            materials=leaf_table.encode(Domain.MATERIAL, materials),
            products=leaf_table.encode(Domain.PRODUCT, products),
            opens=self._opens(numbers),
            processes=process_table(stream, self._root),
            mounts=self.mounts,
            counters=counters,
            mutations=self._mutations(),
        )

    def _posture(self) -> Posture:
        """What others serve can change between its hash and a read, though the opener was held."""
        remote = (
            fields[4] & FILE_REMOTE and not fields[4] & FILE_BORN for fields in self._stream.files
        )
        return Posture.OBSERVED if any(remote) else Posture.HELD

    def _mutations(self) -> Mutations:
        return self._stream.mutated(lambda path: relative_to(self._root, path))

    def _came(self, declared: Sequence[Leaf], known: AbstractSet[bytes]) -> int:
        """How many declared outputs were not there before, nor made by the action."""
        came = 0
        for path in (leaf.path for leaf in declared):
            place = self._root.rstrip(b"/") + b"/" + path
            # Not where it leads: a link to a directory is an output, what is in there is none.
            if not self._was_there(path, place):
                directory, name = os.path.split(place)
                real = os.path.realpath(directory) + b"/" + name
                came += relative_to(self._root, real) not in known
        return came

    def _was_there(self, path: bytes, place: bytes) -> bool:
        """Whether a declared output was there before, or is gone meanwhile."""
        try:
            return self._before is None or (path, os.lstat(place).st_ino) in self._before
        except (FileNotFoundError, NotADirectoryError):
            return True
        except OSError:
            return False  # nobody can tell

    def _leaf(self, path: bytes, fields: FileFields, source: DigestSource) -> Leaf:
        digest, size, mode, kind = fields[:4]
        return Leaf(relative_to(self._root, path), digest, size, mode, kind, int(source))

    def _materials(self, room: RecordRoom) -> Tuple[Dict[int, int], List[Leaf]]:
        """Index in the table for each file of the stream, and the leaves in the table's order."""
        stream = self._stream
        leaves = {
            number: self._leaf(path, fields, DigestSource.PTRACE_OPEN_TIME)
            for number, (path, fields) in enumerate(zip(stream.paths, stream.files))
            if not fields[4] & (FILE_BORN | FILE_ANONYMOUS)
        }
        ordered = room.keep(sorted(set(leaves.values())))
        places = {leaf: index for index, leaf in enumerate(ordered)}
        kept = {number: places[leaf] for number, leaf in leaves.items() if leaf in places}
        return kept, ordered

    def _opens(self, numbers: Dict[int, int]) -> bytes:
        opened: List[List[int]] = [[] for _ in self._stream.processes]
        pairs = iter(self._stream.opens)
        file_count = len(self._stream.files)
        for process, file in zip(pairs, pairs):
            if process >= len(opened) or file >= file_count:
                raise EncodingError("an open names a process or file that was not sent")
            index = numbers.get(file)
            if index is not None:
                opened[process].append(index)
        return opens_table.encode(opened)

    def _diagnostics(self, counted: Dict[int, int]) -> Dict[str, int]:
        counters: Dict[str, int] = collections.Counter(diagnostics.zeros())
        for loss, name in LOSS_COUNTERS.items():
            counters[name] += counted[loss]
        for count, name in _COUNTERS.items():
            counters[name] += counted[count]
        counters["recordBytesCapHit"] += self._stream.events_dropped
        return {name: min(value, diagnostics.COUNTER_VALUE_MAX) for name, value in counters.items()}
