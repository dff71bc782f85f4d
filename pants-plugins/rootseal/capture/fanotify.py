"""The fanotify backend: every open of an action is held until its file is hashed."""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import pathlib
import struct
from typing import Dict, Iterable, List, Mapping, Optional, Sequence, Tuple

from rootseal import _native, diagnostics
from rootseal.capture import digest_cache_file
from rootseal.capture.scope import CaptureLimits
from rootseal.errors import BackendUnavailable, CaptureError, GroupsTaken, NativeError
from rootseal.executable import system_daemon_command
from rootseal.observation import (
    LeafTable,
    MountMark,
    Mutation,
    Mutations,
    MutationTime,
    Observation,
    Posture,
    ProcessRecord,
)
from rootseal.privileges import ALLOW_CALL, CAP_SYS_ADMIN, has_capability

_GROUPS_PATH = pathlib.Path("/proc/sys/fs/fanotify/max_user_groups")
_GROUPS_DEFAULT = 128
GROUPS_REMEDY = "sudo sysctl fs.fanotify.max_user_groups=1024"
AWAKE_CPUS_MAX = 16
"""More idle CPUs kept awake cost more power than a build gains."""
DIGEST_CACHE_ENTRIES_DEFAULT = 2**20

# C counter -> counter of rootseal.diagnostics; what is not here is for progress() only.
_COUNTER_NAMES: Mapping[str, str] = {
    "fanotify_events_hashed": "fanotifyEventsHashed",
    "digest_cache_hits": "digestCacheHits",
    "bytes_hashed": "bytesHashed",
    "partial_read_fallbacks": "partialReadFallbacks",
    "fanotify_queue_overflows": "fanotifyQueueOverflows",
    "fanotify_digests_cap_hit": "fanotifyDigestsCapHit",
    "record_bytes_cap_hit": "recordBytesCapHit",
    "hashed_bytes_cap_hit": "hashedBytesCapHit",
    "process_table_cap_hit": "processTableCapHit",
    "unhashed_opens_total": "unhashedOpensTotal",
    "fallback_hash_failures": "fallbackHashFailures",
    "mutated_after_open": "mutatedAfterOpen",
    "unstable_files": "unstableFiles",
    "namespace_escapes": "namespaceEscapes",
    "unmarked_mounts": "unmarkedMounts",
    "excluded_mounts": "excludedMounts",
    "handler_errors": "handlerErrors",
    "late_events": "lateEvents",
    "foreign_products": "foreignProducts",
    "block_device_opens": "blockDeviceOpens",
}


def _unavailable(error: NativeError) -> BackendUnavailable:
    if error.errno == errno.EPERM and has_capability(CAP_SYS_ADMIN):
        reason = "the call fanotify_init is not permitted"
        return BackendUnavailable("fanotify", reason, ALLOW_CALL.format(call="fanotify_init"))
    if error.errno == errno.EPERM:
        return BackendUnavailable(
            "fanotify",
            "permission events need CAP_SYS_ADMIN",
            f"Run the system daemon as root: {system_daemon_command()}",
        )
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return GroupsTaken(
            "fanotify",
            "all fanotify groups of this user are taken",
            f"Raise the limit: {GROUPS_REMEDY}",
        )
    if error.errno in (errno.ENOSYS, errno.EINVAL):
        return BackendUnavailable(
            "fanotify",
            "this kernel has no fanotify permission events",
            "Use a kernel >= 5.10 with CONFIG_FANOTIFY_ACCESS_PERMISSIONS=y.",
        )
    return BackendUnavailable("fanotify", str(error), "Run `rootseal doctor`.")


class _Reader:
    """Reads the length-prefixed encodings of the C core, which is trusted to be well formed."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def u8(self) -> int:
        self._at += 1
        return self._data[self._at - 1]

    def u32(self) -> int:
        (value,) = struct.unpack_from(">I", self._data, self._at)
        self._at += 4
        return int(value)

    def take(self, length: int) -> bytes:
        self._at += length
        return self._data[self._at - length : self._at]

    def field(self) -> bytes:
        return self.take(self.u32())


@functools.lru_cache(maxsize=64)  # actions of one host have the same mounts again and again
def _mounts(data: bytes) -> Tuple[MountMark, ...]:
    reader = _Reader(data)
    marks: List[MountMark] = []
    for _ in range(reader.u32()):
        point, fstype, reason = reader.field(), reader.field(), reader.field()
        marks.append(
            MountMark(
                mount_point=point,
                filesystem=fstype.decode("ascii", "backslashreplace"),
                marked=reader.u8() == 1,
                compared_at_access=reader.u8() == 1,
                reason=reason.decode("utf-8", "backslashreplace"),
            )
        )
    return tuple(marks)


def _process(reader: _Reader) -> ProcessRecord:
    processid, parentid = reader.u32(), reader.u32()
    program, comm, cmdline = reader.field(), reader.field(), reader.field()
    flags = reader.u8()
    arguments = cmdline[:-1] if cmdline.endswith(b"\0") else cmdline
    return ProcessRecord(
        processid=processid,
        parentpid=parentid,
        program=program,
        comm=comm,
        cmdline=tuple(arguments.split(b"\0")) if cmdline else (),
        programdigest=reader.take(32) if flags & 1 else None,
        exedigest=reader.take(32) if flags & 2 else None,
    )


def _processes(data: bytes) -> Tuple[ProcessRecord, ...]:
    reader = _Reader(data)
    return tuple(_process(reader) for _ in range(reader.u32()))


def _mutation(reader: _Reader) -> Mutation:
    when, readable = MutationTime(reader.u8()), reader.u8() == 1
    path, at_open = reader.field(), reader.take(32)
    return Mutation(path, at_open, reader.take(32) if readable else None, when)


def _mutations(raw: _native.RawObservation) -> Mutations:
    reader = _Reader(raw.mutations)
    found = tuple(_mutation(reader) for _ in range(raw.mutations_count))
    return Mutations(found, raw.mutations_left_out)


def _diagnostics(raw: _native.RawObservation) -> Dict[str, int]:
    counters = diagnostics.zeros()
    for native_name, name in _COUNTER_NAMES.items():
        counters[name] = min(raw.counters[native_name], diagnostics.COUNTER_VALUE_MAX)
    counters["fanotifyAvailable"] = 1
    counters["fanotifyDigestsMerged"] = raw.materials_count
    return counters


def _posture(raw: _native.RawObservation) -> Posture:
    if raw.counters["remote_files"]:  # content that others serve may change after its hash
        return Posture.OBSERVED
    # One material that the kernel would let somebody change is one too many for `sealed`.
    return Posture.SEALED if raw.materials_count and not raw.unsealed else Posture.HELD


def _observation(raw: _native.RawObservation) -> Observation:
    return Observation(
        backend="fanotify",
        posture=_posture(raw),
        materials=LeafTable(raw.materials, raw.materials_root, raw.materials_count),
        products=LeafTable(raw.products, raw.products_root, raw.products_count),
        opens=raw.opens,
        processes=_processes(raw.processes),
        mounts=_mounts(raw.mounts),
        counters=_diagnostics(raw),
        hashed_files=raw.files,
        fanotify_only=raw.unwitnessed,
        mutations=_mutations(raw),
    )


class FanotifyScope:
    """The capture of one action through its own fanotify group."""

    def __init__(self, scope: _native.Scope) -> None:
        """Take over a scope that `FanotifyEngine.open_scope` made."""
        self._scope = scope
        self._mounts = _mounts(scope.mounts())

    @property
    def mounts(self) -> Tuple[MountMark, ...]:
        """Mounts of the action's namespace when the scope was opened."""
        return self._mounts

    def group(self) -> int:
        """A duplicate of the group's descriptor; while it is open, waiting openers wait."""
        return self._scope.group()

    def known_processes(self) -> Sequence[Tuple[int, int]]:
        """Pid and start time of the processes that have opened something here.

        Without those that began before the action: somebody looked at /proc/PID/root.
        """
        seen = self._scope.processes()
        return [(pid, start) for pid, start in seen if start >= seen[0][1] > 0]

    def progress(self) -> Mapping[str, int]:
        """Counters of the C core so far (`events`, `bytes_hashed`, ...); empty after the end."""
        return self._scope.progress()

    def witness(self, opened_files: bytes) -> None:
        """Say what a trace backend saw being opened; before `finish`.

        Materials that it did not see get the digest source `fanotify-only`, and the observation
        tells which files have a digest, for the ledger.

        Args:
            opened_files: Pairs of native u64 (st_dev, st_ino).

        Raises:
            NativeError: The scope was ended before.
        """
        self._scope.witness(opened_files)

    def named(self, names: bytes) -> None:
        """Say what a trace backend saw being renamed, linked, made and truncated; before `finish`.

        Args:
            names: As `traced.names_told` gives them.

        Raises:
            NativeError: The scope was ended before.
        """
        self._scope.named(names)

    def finish(
        self, *, outputs_files: Sequence[bytes], outputs_dirs: Sequence[bytes]
    ) -> Observation:
        """End the capture; the action's processes must be gone.

        Args:
            outputs_files: Declared output files, relative to the root.
            outputs_dirs: Declared output directories, relative to the root.

        Raises:
            CaptureError: The scope was ended before, or its tables could not be built.
        """
        for path in (*outputs_files, *outputs_dirs):
            if b"\0" in path:
                raise CaptureError("a declared output path contains a NUL byte")
        return _observation(self._scope.finish(outputs_files, outputs_dirs))

    def abort(self) -> None:
        """Drop the scope; openers that wait are let go. Does nothing after the end."""
        self._scope.abort()


class FanotifyEngine:
    """Serves all scopes of a daemon from a few C threads."""

    def __init__(
        self,
        *,
        shards: Optional[int] = None,
        digest_cache_entries: int = DIGEST_CACHE_ENTRIES_DEFAULT,
        hash_once_after: Optional[int] = None,
        stay_awake: Optional[bool] = None,
        compare_at_access: bool = True,
    ) -> None:
        """Start the threads.

        Args:
            shards: Threads that handle events; None: one per CPU this process may use.
            digest_cache_entries: Bound of the digest cache (80 bytes each, used as it fills).
            hash_once_after: Let the kernel pass a file that one process opens again, once it has
                made so many opens in a row (docs/decisions/0008-hash-once.md); 0: never; None:
                after 4,096.
            stay_awake: Keep the host's idle CPUs awake while opens are dense
                (docs/decisions/0011-awake.md); None: on hosts with few CPUs, where it is possible.
            compare_at_access: Where the kernel can, compare a file that was changed since its open
                when it is read or mapped (docs/decisions/0012-compare-at-access.md).

        Raises:
            BackendUnavailable: This host or user cannot use permission events.
            NativeError: A number out of range, no memory, or `stay_awake` is not possible.
        """
        # All groups taken, now: whatever else could be missing is refused before that is noticed.
        with contextlib.suppress(GroupsTaken):
            self.probe()
        count = shards if shards is not None else min(len(os.sched_getaffinity(0)), 256)
        self._engine = _native.Engine(shards=count, digest_cache_entries=digest_cache_entries)
        if hash_once_after is not None:
            self._engine.set_hash_once(hash_once_after)
        self.awake = ""
        """Why CPUs do not stay awake; empty if they do."""
        self._stay_awake(stay_awake)
        self.compares_at_access = False
        if compare_at_access:
            with contextlib.suppress(NativeError):  # each record says for which mounts it was done
                self._engine.set_compare(True)
                self.compares_at_access = True

    def _stay_awake(self, wanted: Optional[bool]) -> None:
        cpus = os.cpu_count() or 1
        if wanted is False:
            self.awake = "switched off"
        elif wanted is None and cpus > AWAKE_CPUS_MAX:
            self.awake = f"{cpus} CPUs: only asked for with at most {AWAKE_CPUS_MAX}"
        else:
            try:
                self._engine.stay_awake()
            except NativeError as error:
                if wanted:
                    self._engine.close()
                    raise
                self.awake = str(error)

    @classmethod
    def probe(cls) -> None:
        """Find out whether permission events can be used here and now.

        Raises:
            BackendUnavailable: They cannot; says why and what to do.
        """
        try:
            _native.probe()
        except NativeError as error:
            raise _unavailable(error) from error

    @classmethod
    def probe_access(cls) -> Optional[str]:
        """Why files cannot be compared at an access by this kernel or process; None if they can."""
        try:
            _native.probe_access()
        except NativeError as error:
            return os.strerror(error.errno)
        return None

    @classmethod
    def group_limit(cls) -> int:
        """Groups that one user may have at once: the limit of concurrent scopes."""
        try:
            return int(_GROUPS_PATH.read_text(encoding="ascii"))
        except (OSError, ValueError):
            return _GROUPS_DEFAULT  # kernels before 5.13 have no setting, and this limit

    def trust_sealed(self, files: Iterable[Tuple[bytes, bytes, int]]) -> None:
        """Measure these files, as long as they are sealed, in place of hashing them.

        Args:
            files: fs-verity digest, SHA-256 and size of each, from trusted toolchain manifests.

        Raises:
            NativeError: Called before, or too many files.
        """
        self._engine.trust_sealed(files)

    def set_descriptors(self, *, ceiling: int, events_per_read: int, long_hashes: int) -> None:
        """Bound what events and walks take of this process's descriptors. Before the first scope.

        Args:
            ceiling: A directory of a walk that would get this number or a higher one is not read.
            events_per_read: Descriptors that one read of events installs at most.
            long_hashes: Files that may wait, open, for a long hash.

        Raises:
            NativeError: Out of range.
        """
        self._engine.set_descriptors(
            ceiling=ceiling, events_per_read=events_per_read, long_hashes=long_hashes
        )

    def settle(self) -> None:
        """Wait until the scopes that ended have given back their group and descriptors."""
        self._engine.settle()

    def open_scope(self, *, pid: int, root: bytes, limits: CaptureLimits) -> FanotifyScope:
        """Mark every mount of a blocked process's private namespace.

        Args:
            pid: The process, in this process's pid namespace.
            root: The action's root directory as that process sees it, absolute.
            limits: Caps of this action.

        Raises:
            GroupsTaken: No group is free now.
            BackendUnavailable: Permission was lost.
            CaptureError: The process is gone, or its root or mounts cannot be read.
        """
        if b"\0" in root:
            raise CaptureError("the root contains a NUL byte")
        caps = (
            limits.max_digests,
            limits.max_record_bytes,
            limits.max_hashed_bytes,
            limits.max_processes,
        )
        try:
            scope = self._engine.open_scope(pid=pid, root=root, limits=caps)
        except NativeError as error:
            if error.operation == "fanotify_init":
                raise _unavailable(error) from error
            raise
        return FanotifyScope(scope)

    def cache_entries(self) -> int:
        """Digests in the shared cache."""
        return self._engine.cache_entries()

    def set_memory(self, budget_bytes: int, directory: pathlib.Path) -> None:
        """Bound the memory of records; what is beyond goes to unlinked files.

        Args:
            budget_bytes: For the records of all actions together.
            directory: Where the files are; only this process needs to write there.

        Raises:
            NativeError: Set before, or the directory cannot be used.
        """
        self._engine.set_memory(budget_bytes, os.fsencode(directory))

    def memory(self) -> Mapping[str, int]:
        """Bytes of records: `budget`, `used`, `spilled` (in files); `failures`: no room."""
        return self._engine.memory()

    def cache_learned(self) -> int:
        """Digests that this engine took itself and entered, ever."""
        return self._engine.cache_learned()

    def save_cache(self, path: pathlib.Path) -> int:
        """Write the digest cache for a later daemon of this boot; entries written.

        Raises:
            OSError: It cannot be written; what was there before stays.
        """
        return digest_cache_file.save(path, self._engine)

    def load_cache(self, path: pathlib.Path) -> digest_cache_file.Loaded:
        """Take what an earlier daemon of this boot knew. Never raises: a cache is not needed."""
        return digest_cache_file.load(path, self._engine)

    def close(self) -> None:
        """Abort open scopes and stop the threads. May be called twice."""
        self._engine.close()
