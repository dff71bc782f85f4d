"""fanotify and a trace, together: content by one witness, deeds by the other, and the ledger."""

from __future__ import annotations

import dataclasses
from typing import Dict, Iterable, List, Mapping, Sequence, Set, Tuple

from rootseal import canonical, diagnostics, opens_table
from rootseal.capture.ebpf import EbpfScope, EbpfTracer, TraceObservation
from rootseal.capture.fanotify import FanotifyEngine, FanotifyScope
from rootseal.capture.scope import CaptureLimits
from rootseal.observation import Ledger, MountMark, Observation, ProcessRecord, TracePrograms


class TracedScope:
    """One action under both witnesses. Ended by `finish` or `abort`."""

    def __init__(self, content: FanotifyScope, trace: EbpfScope, programs: TracePrograms) -> None:
        """Take over the two scopes of one process."""
        self._content = content
        self._trace = trace
        self._programs = programs

    @property
    def mounts(self) -> Tuple[MountMark, ...]:
        """As fanotify says."""
        return self._content.mounts

    def group(self) -> int:
        """A duplicate of the group; its openers wait while it is open."""
        return self._content.group()

    def known_processes(self) -> Sequence[Tuple[int, int]]:
        """All that live, as the trace says: no process of the action is unknown to it."""
        return [(pid, 0) for pid in self._trace.members()] + list(self._content.known_processes())

    def progress(self) -> Mapping[str, int]:
        """As fanotify says."""
        return self._content.progress()

    def finish(
        self, *, outputs_files: Sequence[bytes], outputs_dirs: Sequence[bytes]
    ) -> Observation:
        """End both, the trace first: fanotify then knows what only it saw.

        Args:
            outputs_files: Declared output files, relative to the root.
            outputs_dirs: Declared output directories, relative to the root.

        Raises:
            CaptureError: A scope was ended before, or its tables could not be built.
        """
        try:
            trace = self._trace.finish()
            self._content.witness(trace.opened_files)
            self._content.named(names_told(trace.processes))
            seen = self._content.finish(outputs_files=outputs_files, outputs_dirs=outputs_dirs)
            ledger = self._trace.reconcile(seen.hashed_files)
            merged = merge(seen, trace, ledger, self._trace.block_devices)
            return dataclasses.replace(merged, ebpf=self._programs)
        except BaseException:
            self.abort()
            raise

    def abort(self) -> None:
        """Drop both scopes. Does nothing when they have ended."""
        self._trace.abort()
        self._content.abort()


class TracedEngine:
    """Opens scopes of both backends for the same process."""

    def __init__(self, content: FanotifyEngine, tracer: EbpfTracer) -> None:
        """Use two engines; they stay the caller's."""
        self._content = content
        self._tracer = tracer
        self._programs = tracer.used

    def open_scope(self, *, pid: int, root: bytes, limits: CaptureLimits) -> TracedScope:
        """Start both witnesses for a process that has not been let run yet.

        Args:
            pid: The process, in its private namespace.
            root: The action's root directory as that process sees it, absolute.
            limits: Caps of this action.

        Raises:
            CaptureError: One of them cannot; the other is ended again.
        """
        trace = self._tracer.add_scope(pid, root=root)
        try:
            content = self._content.open_scope(pid=pid, root=root, limits=limits)
            return TracedScope(content, trace, self._programs)
        except BaseException:
            trace.abort()
            raise

    def close(self) -> None:
        """The engines are closed by their owner."""


def merge(
    seen: Observation, trace: TraceObservation, ledger: Ledger, block_devices: int = 0
) -> Observation:
    """One observation of the two.

    Args:
        seen: What fanotify saw.
        trace: What the trace saw.
        ledger: The comparison.
        block_devices: That the trace saw being opened; fanotify sees those of marked mounts.
    """
    processes, opens = merge_processes(seen, trace.processes)
    counters = dict(seen.counters)
    for name, value in trace.counters.items():
        counters[name] = min(counters[name] + value, diagnostics.COUNTER_VALUE_MAX)
    counters["unhashedOpensTotal"] = min(
        counters["unhashedOpensTotal"] + ledger.unhashed["noDigest"], diagnostics.COUNTER_VALUE_MAX
    )
    counters["blockDeviceOpens"] = max(counters["blockDeviceOpens"], block_devices)
    return dataclasses.replace(
        seen,
        backend=f"{seen.backend}+ebpf",
        processes=processes,
        opens=opens,
        counters=counters,
        ledger=ledger,
    )


def names_told(processes: Iterable[ProcessRecord]) -> bytes:
    """What processes gave names to, as the content's witness wants it (api.h, rs_scope_named).

    Only the last part of each path: how a path leads there may have changed since.
    """
    told: Set[bytes] = set()
    for process in processes:
        if process.trace is None:
            continue
        deeds = process.trace.file_ops
        for rename in deeds.renames:  # both: they may have changed places
            told.update((b"m" + _last(rename.source), b"m" + _last(rename.destination)))
        told.update((b"s" if link.symbolic else b"m") + _last(link.path) for link in deeds.links)
        told.update(b"t" + _last(cut.path) for cut in deeds.truncations)
        for event in process.trace.syscall_events:
            if event.syscall == "mknod":
                path = canonical.path_bytes(str(dict(event.details).get("path", "")))
                told.add(b"s" + _last(path))
            elif event.syscall == "io_uring_setup" and event.verdict == "ran":
                told.add(b"u")  # a ring renames and links, too
    return b"".join(name + b"\0" for name in sorted(told))


def _last(path: bytes) -> bytes:
    return path.rstrip(b"/").rsplit(b"/", 1)[-1]


def merge_processes(
    seen: Observation, traced: Sequence[ProcessRecord]
) -> Tuple[Tuple[ProcessRecord, ...], bytes]:
    """fanotify's processes first, so that the opens table still refers to them, then the others.

    fanotify knows digests, the trace everything else. A pid that was used twice stands for two
    processes in the same order in both.
    """
    by_pid: Dict[int, List[ProcessRecord]] = {}
    for process in traced:
        by_pid.setdefault(process.processid, []).append(process)
    merged = []
    for process in seen.processes:
        same = by_pid.get(process.processid)
        merged.append(_enrich(process, same.pop(0)) if same else process)
    left = {id(process) for processes in by_pid.values() for process in processes}
    rest = [process for process in traced if id(process) in left]
    return tuple(merged + rest), opens_table.extend(seen.opens, len(rest))


def _enrich(content: ProcessRecord, trace: ProcessRecord) -> ProcessRecord:
    return dataclasses.replace(
        content,
        parentpid=trace.parentpid or content.parentpid,
        program=content.program or trace.program,
        comm=trace.comm or content.comm,
        cmdline=trace.cmdline or content.cmdline,
        exitcode=trace.exitcode,
        trace=trace.trace,
    )
