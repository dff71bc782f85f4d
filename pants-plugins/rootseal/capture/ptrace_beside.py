"""fanotify and ptrace together: both hold the opener; content by one, deeds by the other.

launcher ──TRACE──► PtraceBeside.feed ──┐
fanotify scope ─────────────────────────┴─► finish → one Observation with a ledger
"""

from __future__ import annotations

import dataclasses
import os
import struct
from typing import Dict, Mapping, Sequence, Set, Tuple

from rootseal import diagnostics
from rootseal.capture.fanotify import FanotifyScope
from rootseal.capture.ptrace import PtraceScope
from rootseal.capture.ptrace_stream import FILE_ANONYMOUS, FILE_BORN, Count, FileFields, Loss
from rootseal.capture.traced import merge_processes, names_told
from rootseal.observation import Ledger, MountMark, Observation

_PAIR = struct.Struct("=QQ")
# Reasons of the ledger (docs/predicate.md) that the tracer counts by open, not by file.
_EXCLUDED: Mapping[str, Count] = {
    "notRegular": Count.EXCLUDED_IRREGULAR,
    "noContent": Count.EXCLUDED_PATH_ONLY,
    "pseudoFilesystem": Count.EXCLUDED_PSEUDO,
    "memoryFile": Count.EXCLUDED_ANONYMOUS,
    "writeOnly": Count.EXCLUDED_WRITE_ONLY,
}
_UNRESOLVED = (Loss.DENIED, Loss.GONE, Loss.PATH, Loss.INTERPRETER)


class PtraceBeside:
    """One action under both. Ended by `finish` or `abort`."""

    def __init__(self, content: FanotifyScope, trace: PtraceScope) -> None:
        """Take over the two scopes of one action."""
        self._content = content
        self._trace = trace

    @property
    def mounts(self) -> Tuple[MountMark, ...]:
        """As fanotify says."""
        return self._content.mounts

    def group(self) -> int:
        """A duplicate of the group; its openers wait while it is open."""
        return self._content.group()

    def known_processes(self) -> Sequence[Tuple[int, int]]:
        """As fanotify says; whom the launcher traces dies with it (PTRACE_O_EXITKILL)."""
        return self._content.known_processes()

    def progress(self) -> Mapping[str, int]:
        """As fanotify says."""
        return self._content.progress()

    def feed(self, data: bytes) -> None:
        """Take the EVENTS of one TRACE frame.

        Raises:
            CaptureError: Not a trace, more than the caps allow, or the scope has ended.
        """
        self._trace.feed(data)

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
            trace = self._trace.told()
            self._content.witness(b"".join(_pair(fields) for fields in trace.files))
            self._content.named(names_told(trace.processes))
            seen = self._content.finish(outputs_files=outputs_files, outputs_dirs=outputs_dirs)
            ledger = compare(trace.files, trace.counted, seen.hashed_files)
            counters = diagnostics.add(seen.counters, trace.counters)
            counters["unhashedOpensTotal"] = min(
                counters["unhashedOpensTotal"] + ledger.unhashed["noDigest"],
                diagnostics.COUNTER_VALUE_MAX,
            )
            counters["blockDeviceOpens"] = max(  # not the sum: both saw the same
                seen.counters["blockDeviceOpens"], trace.counters["blockDeviceOpens"]
            )
            processes, opens = merge_processes(seen, trace.processes)
            return dataclasses.replace(
                seen,
                backend=f"{seen.backend}+ptrace",
                processes=processes,
                opens=opens,
                counters=counters,
                ledger=ledger,
                mutations=seen.mutations + trace.mutations,
            )
        except BaseException:
            self.abort()
            raise

    def abort(self) -> None:
        """Drop both scopes. Does nothing when they have ended."""
        self._trace.abort()
        self._content.abort()


def compare(files: Sequence[FileFields], counted: Mapping[int, int], hashed_files: bytes) -> Ledger:
    """The ledger of the two witnesses.

    Args:
        files: What the tracer saw being opened or executed.
        counted: Its counters.
        hashed_files: Pairs of native u64 (st_dev, st_ino), as fanotify hashed them.
    """
    digested = {hashed_files[at : at + 16] for at in range(0, len(hashed_files), 16)}
    places: Dict[str, Set[bytes]] = {"hashed": set(), "created": set(), "noDigest": set()}
    anonymous = 0
    for fields in files:
        pair = _pair(fields)
        if pair in digested:
            places["hashed"].add(pair)
        elif fields[4] & FILE_ANONYMOUS:
            anonymous += 1
        else:
            places["created" if fields[4] & FILE_BORN else "noDigest"].add(pair)
    excluded = {name: counted[count] for name, count in _EXCLUDED.items()}
    excluded["memoryFile"] += anonymous
    excluded["created"] = len(places["created"] - places["hashed"])
    unhashed = {
        "noDigest": len(places["noDigest"] - places["created"] - places["hashed"]),
        "unresolved": sum(counted[loss] for loss in _UNRESOLVED),
    }
    hashed = len(places["hashed"])
    total = hashed + sum(excluded.values()) + sum(unhashed.values())
    return Ledger(files=total, hashed=hashed, excluded=excluded, unhashed=unhashed)


def _pair(fields: FileFields) -> bytes:
    device, inode = fields[5], fields[6]
    return _PAIR.pack(os.makedev(device >> 32, device & 0xFFFFFFFF), inode)
