"""eBPF alone: what is opened is hashed after the fact, and nobody waits for it.

    trace → the C core finds and hashes each file (native/trace/content.c) → materials
    root before and after → what changed, hashed when the action has ended → products

A digest counts only where the file is proved not to have changed since its open; what cannot be
proved is `unhashed` in the ledger, by reason. So the posture is `observed`, and what is lost is a
number.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import os
import struct
from typing import (
    AbstractSet,
    ContextManager,
    Dict,
    Iterable,
    List,
    Mapping,
    Optional,
    Sequence,
    Set,
    Tuple,
)

from rootseal import diagnostics, leaf_table, opens_table
from rootseal._native_trace import Content
from rootseal.capture.ebpf import Contents, EbpfScope, EbpfTracer, TraceObservation
from rootseal.capture.paths import relative_to
from rootseal.capture.root_state import Changed, RootState, own_names
from rootseal.capture.scope import CaptureLimits, RecordRoom
from rootseal.capture.traced import names_told
from rootseal.capture.walk import declared_leaves, leaves_of
from rootseal.errors import CaptureError, EncodingError
from rootseal.leaf_table import Domain, Leaf
from rootseal.observation import (
    MUTATIONS_MAX,
    DigestSource,
    LeafKind,
    Ledger,
    MountMark,
    Mutation,
    Mutations,
    MutationTime,
    Observation,
    Posture,
    ProcessRecord,
)

_PAIR = struct.Struct("=QQ")
_EXECUTED = 4
# Reasons of which a counter of its own tells more than `unhashedOpensTotal`.
_COUNTERS: Mapping[str, str] = {
    "unreadable": "fallbackHashFailures",
    "cap": "fanotifyDigestsCapHit",
    "bytesCap": "hashedBytesCapHit",
}


class ObservedScope:
    """One action under eBPF alone. Ended by `finish` or `abort`."""

    def __init__(
        self,
        tracer: EbpfTracer,
        trace: EbpfScope,
        root: bytes,
        before: RootState,
        caps: CaptureLimits,
    ) -> None:
        """Take over the trace of one process."""
        self._tracer = tracer
        self._trace = trace
        self._root = root
        self._before = before
        self._limits = caps

    @property
    def mounts(self) -> Tuple[MountMark, ...]:
        """None: a trace marks no mounts."""
        return ()

    def known_processes(self) -> Sequence[Tuple[int, int]]:
        """All that live, as the trace says, and surely the action's."""
        return [(pid, 0) for pid in self._trace.members()]

    def progress(self) -> Mapping[str, int]:
        """Nothing is known before the end."""
        return {}

    def finish(
        self, *, outputs_files: Sequence[bytes], outputs_dirs: Sequence[bytes]
    ) -> Observation:
        """End the trace, then look at what was made; the action's processes must be gone.

        Args:
            outputs_files: Declared output files, relative to the root.
            outputs_dirs: Declared output directories, relative to the root.

        Raises:
            CaptureError: The scope was ended before, or its tables could not be built.
        """
        try:
            return self._observation(outputs_files, outputs_dirs)
        except EncodingError as error:
            raise CaptureError(f"the files of the action cannot be recorded: {error}") from None
        finally:
            self.abort()

    def abort(self) -> None:
        """Drop the scope. Does nothing when it has ended."""
        self._trace.abort()

    def _observation(self, files: Sequence[bytes], directories: Sequence[bytes]) -> Observation:
        trace = self._trace.finish()
        seen = trace.contents
        if seen is None:
            raise CaptureError("the trace hashed nothing")
        counters: Dict[str, int] = collections.Counter(diagnostics.zeros())
        counters.update(trace.counters)
        counters["bytesHashed"] = seen.hashed_bytes
        counters["digestCacheHits"] = seen.cache_hits
        hashed = b"".join(_PAIR.pack(item.dev, item.ino) for item in seen.files if item.stands)
        ledger = self._ledger(trace, seen, hashed)
        _count(counters, seen, ledger, self._trace.block_devices)
        room = RecordRoom(self._limits, counters)
        places, materials = self._materials(seen.files, room)
        products = room.keep(self._products(trace, seen, files, directories, counters))
        mutations = self._mutations(seen.files)
        counters["mutatedAfterOpen"] = len(mutations.found) + mutations.left_out
        top = diagnostics.COUNTER_VALUE_MAX
        return Observation(
            backend="ebpf",
            posture=Posture.OBSERVED,
            materials=leaf_table.encode(Domain.MATERIAL, materials),
            products=leaf_table.encode(Domain.PRODUCT, products),
            opens=_opens(trace.processes, seen, places),
            processes=_with_digests(trace.processes, seen),
            mounts=(),
            counters={name: min(value, top) for name, value in counters.items()},
            hashed_files=hashed,
            ledger=ledger,
            ebpf=self._tracer.used,
            mutations=mutations,
        )

    def _ledger(self, trace: TraceObservation, seen: Contents, hashed: bytes) -> Ledger:
        """The trace's opens against its own digests: the same judgement as with fanotify."""
        ledger = self._trace.reconcile(hashed)
        left = ledger.unhashed["noDigest"]
        changed = min(seen.failures["changed"], left)
        gone = min(seen.failures["gone"], left - changed)
        by_ring, untold = self._opens_by_rings(trace.processes), seen.failures["untold"]
        unhashed = {
            "noDigest": left - changed - gone,
            "changed": changed,
            "gone": gone,
            "byRing": by_ring,
            "unresolved": ledger.unhashed["unresolved"] + untold,
        }
        return dataclasses.replace(ledger, files=ledger.files + by_ring + untold, unhashed=unhashed)

    def _opens_by_rings(self, processes: Iterable[ProcessRecord]) -> int:
        """Opens of which no file is known; each ring, where not even they are told."""
        if self._tracer.used.opens == "lsm/file_open":
            return 0
        wanted = "io_uring_open" if self._tracer.tells_of_rings else "io_uring_setup"
        return sum(
            event.count
            for process in processes
            if process.trace is not None
            for event in process.trace.syscall_events
            if event.syscall == wanted and (event.result or 0) >= 0
        )

    def _materials(
        self, files: Sequence[Content], room: RecordRoom
    ) -> Tuple[List[Optional[int]], List[Leaf]]:
        """For each file its index in the table, if it fits; the leaves in the table's order."""
        leaves = [
            Leaf(
                relative_to(self._root, item.path),
                item.digest,
                item.size,
                item.mode,
                int(_kind(item)),
                int(DigestSource.OPENAT_PATH_HASH),
            )
            for item in files
        ]
        ordered = room.keep(sorted(set(leaves)))
        places = {leaf: index for index, leaf in enumerate(ordered)}
        return [places.get(leaf) for leaf in leaves], ordered

    def _mutations(self, files: Sequence[Content]) -> Mutations:
        found = [
            Mutation(
                relative_to(self._root, item.path),
                item.digest,
                item.later or None,
                MutationTime.END,
            )
            for item in files
            if item.later is not None
        ]
        return Mutations(tuple(found[:MUTATIONS_MAX]), max(0, len(found) - MUTATIONS_MAX))

    def _products(
        self,
        trace: TraceObservation,
        seen: Contents,
        files: Sequence[bytes],
        directories: Sequence[bytes],
        counters: Dict[str, int],
    ) -> List[Leaf]:
        """What changed in the root, what was written elsewhere, and the declared outputs."""
        changed = self._before.changed()
        counters["fallbackHashFailures"] += self._before.unreadable
        told = frozenset(names_told(trace.processes).split(b"\0"))
        written = {seen.written[at : at + 16] for at in range(0, len(seen.written), 16)}
        counters["foreignProducts"] += sum(
            item.content and not _is_own(item, told, written) for item in changed
        )
        inside = [self._root.rstrip(b"/") + b"/" + item.path for item in changed]
        paths = {*inside, *self._elsewhere(trace.processes, seen.outputs)}
        made = [
            leaf._replace(source=int(DigestSource.OPENAT_PATH_HASH))
            for leaf in leaves_of(
                sorted(paths), root=self._root, limits=self._limits, counters=counters
            )
        ]
        return made + declared_leaves(
            self._root,
            files=files,
            directories=directories,
            known={leaf.path for leaf in made},
            limits=self._limits,
            counters=counters,
        )

    def _elsewhere(
        self, processes: Iterable[ProcessRecord], outputs: Iterable[bytes]
    ) -> Iterable[bytes]:
        """Paths outside the root to which the action gave content or a name."""
        for process in processes:
            if process.trace is None:
                continue
            deeds = process.trace.file_ops
            for path in (
                *(rename.destination for rename in deeds.renames),
                *(link.path for link in deeds.links),
                *(cut.path for cut in deeds.truncations),
            ):
                if path.startswith(b"/") and b".." not in path.split(b"/"):
                    yield path
        below = self._root.rstrip(b"/") + b"/"
        yield from (path for path in outputs if not path.startswith(below))


def _count(counters: Dict[str, int], seen: Contents, ledger: Ledger, block_devices: int) -> None:
    """Add what was lost. Unresolved opens are counted by the trace already, but untold ones."""
    unhashed = ledger.unhashed
    counters["unhashedOpensTotal"] += (
        unhashed["noDigest"]
        + unhashed["changed"]
        + unhashed["gone"]
        + unhashed["byRing"]
        + seen.failures["untold"]
    )
    for reason, name in _COUNTERS.items():
        counters[name] += seen.failures[reason]
    counters["blockDeviceOpens"] = block_devices


def _is_own(item: Changed, told: AbstractSet[bytes], written: Set[bytes]) -> bool:
    """Whether somebody of the action is seen to have made it."""
    name = item.path.rsplit(b"/", 1)[-1]
    if b"u" in told or own_names(told, item.path):
        return True
    if item.is_symlink or (not item.size and b"s" + name in told):
        return b"s" + name in told
    if b"t" + name in told:
        return True
    pairs = (_PAIR.pack(item.device, item.inode), _PAIR.pack(0, item.inode))
    return any(pair in written for pair in pairs)


def _indices(processes: Sequence[ProcessRecord]) -> Dict[int, int]:
    """By process id the index of the last process that had it."""
    return {process.processid: index for index, process in enumerate(processes)}


def _opens(
    processes: Sequence[ProcessRecord], seen: Contents, places: Sequence[Optional[int]]
) -> bytes:
    opened: List[List[int]] = [[] for _ in processes]
    indices = _indices(processes)
    for tgid, number, _access in seen.opens:
        index, place = indices.get(tgid), places[number]
        if index is not None and place is not None:
            opened[index].append(place)
    return opens_table.encode(opened)


def _with_digests(processes: Sequence[ProcessRecord], seen: Contents) -> Tuple[ProcessRecord, ...]:
    """Each process with the digest of its program, where it was hashed."""
    digests = {
        (tgid, seen.files[number].path): seen.files[number].digest
        for tgid, number, access in seen.opens
        if access & _EXECUTED
    }
    return tuple(
        dataclasses.replace(process, programdigest=found, exedigest=found)
        for process in processes
        for found in (digests.get((process.processid, process.program)),)
    )


class ObservedEngine:
    """Opens scopes of eBPF alone."""

    def __init__(self, tracer: EbpfTracer) -> None:
        """Use a tracer; it stays the caller's."""
        self._tracer = tracer

    def open_scope(
        self,
        *,
        pid: int,
        root: bytes,
        limits: CaptureLimits,
        reading: ContextManager[None] = contextlib.nullcontext(),  # noqa: B008  keeps no state
    ) -> ObservedScope:
        """Start for a process that has not been let run yet.

        Args:
            pid: The process, blocked.
            root: The action's root directory, absolute.
            limits: Caps of this action.
            reading: Entered while the root is read: with the rights of the action's user. The
                process itself may be closed to its own user (it is not dumpable).

        Raises:
            CaptureError: The root cannot be read, or the trace has no room.
        """
        with reading:
            real = os.path.realpath(root)
            before = RootState(real)
        trace = self._tracer.add_scope(pid, root=real, hashing=limits)
        return ObservedScope(self._tracer, trace, real, before, limits)

    def close(self) -> None:
        """The tracer is closed by its owner."""


def _kind(item: Content) -> LeafKind:
    if item.access & _EXECUTED:
        return LeafKind.EXECUTABLE
    return LeafKind.CODE if item.code else LeafKind.FILE
