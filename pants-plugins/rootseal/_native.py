"""The capture core's functions, typed. The only module that imports the extension.

No cffi object leaves this module: callers see ints, bytes and the small classes below.
"""

from __future__ import annotations

import dataclasses
import os
import threading
from typing import Any, Dict, Iterable, List, Optional, Sequence, Set, Tuple

from rootseal import _core  # type: ignore[attr-defined]
from rootseal.errors import EncodingError, NativeError

_ffi: Any = _core.ffi
_lib: Any = _core.lib

LEAF_TABLE_BYTES_MAX = 2**30
CACHE_ENTRY_BYTES = 80


@dataclasses.dataclass(frozen=True)
class RawObservation:
    """What one scope saw, in the encodings of the C core (see native/capture/finish.c)."""

    materials: bytes
    materials_root: bytes
    materials_count: int
    products: bytes
    products_root: bytes
    products_count: int
    opens: bytes
    processes: bytes
    mounts: bytes
    files: bytes
    mutations: bytes
    mutations_count: int
    mutations_left_out: int
    unwitnessed: int
    unsealed: int
    counters: Dict[str, int]


def _native_error(error: Any) -> NativeError:
    operation = _ffi.string(error.operation).decode("ascii", "replace")
    detail = _ffi.string(error.detail).decode("utf-8", "backslashreplace")
    reason = os.strerror(error.code)
    return NativeError(operation, int(error.code), f"{operation} ({detail}): {reason}")


def _bytes(view: Any) -> bytes:
    return bytes(_ffi.buffer(view.bytes, view.length)) if view.length else b""


_COUNTERS = tuple(name for name, _ in _ffi.typeof("rs_counters").fields)


def _counters(struct: Any) -> Dict[str, int]:
    return {name: int(getattr(struct, name)) for name in _COUNTERS}


def probe() -> None:
    """Create a permission group and drop it again.

    Raises:
        NativeError: The kernel refused; `errno` says why.
    """
    error = _ffi.new("rs_error *")
    if _lib.rs_probe(error):
        raise _native_error(error)


def probe_access() -> None:
    """Find out whether this kernel tells of accesses (FAN_PRE_ACCESS).

    Raises:
        NativeError: It does not, or not this process; `errno` says why.
    """
    code = int(_lib.rs_probe_access())
    if code:
        raise NativeError("fanotify_mark", -code, f"FAN_PRE_ACCESS: {os.strerror(-code)}")


class Scope:
    """One scope of the C core. Exactly one of `finish` and `abort` ends it."""

    def __init__(self, engine: Engine, handle: Any) -> None:
        """Take over a scope that `Engine.open_scope` made."""
        self._engine = engine
        self._handle: Optional[Any] = handle
        self._lock = threading.Lock()

    def _take(self) -> Optional[Any]:
        with self._lock:
            handle, self._handle = self._handle, None
        return handle

    def mounts(self) -> bytes:
        """The encoded list of mounts (native/capture/mounts.c)."""
        with self._lock:
            if self._handle is None:
                raise NativeError("mounts", 9, "the scope has ended")
            data, length = _ffi.new("uint8_t **"), _ffi.new("size_t *")
            code = _lib.rs_scope_mounts(self._handle, data, length)
            if code:
                raise NativeError("mounts", -code, f"mounts: {os.strerror(-code)}")
        try:
            return bytes(_ffi.buffer(data[0], length[0]))
        finally:
            _lib.rs_free(data[0])

    def group(self) -> int:
        """A duplicate of the fanotify group's descriptor; the caller owns it."""
        with self._lock:
            if self._handle is None:
                raise NativeError("group", 9, "the scope has ended")
            descriptor = _ffi.new("int *")
            code = _lib.rs_scope_group(self._handle, descriptor)
        if code:
            raise NativeError("group", -code, f"group: {os.strerror(-code)}")
        return int(descriptor[0])

    def processes(self) -> List[Tuple[int, int]]:
        """Pid and start time (clock ticks) of the processes seen so far; none after the end."""
        with self._lock:
            if self._handle is None:
                return []
            room = int(_lib.rs_scope_processes(self._handle, _ffi.NULL, _ffi.NULL, 0))
            pids, starts = _ffi.new("int[]", room), _ffi.new("uint64_t[]", room)
            count = min(room, int(_lib.rs_scope_processes(self._handle, pids, starts, room)))
        return [(int(pids[i]), int(starts[i])) for i in range(count)]

    def progress(self) -> Dict[str, int]:
        """The counters so far; empty once the scope has ended."""
        with self._lock:
            if self._handle is None:
                return {}
            counters = _ffi.new("rs_counters *")
            _lib.rs_scope_progress(self._handle, counters)
        return _counters(counters)

    def witness(self, pairs: bytes) -> None:
        """Say what another witness saw: pairs of native u64 (st_dev, st_ino). Before `finish`.

        Raises:
            NativeError: The scope has ended, or there is no memory.
        """
        with self._lock:
            if self._handle is None:
                raise NativeError("witness", 9, "the scope has ended")
            view = _ffi.from_buffer("uint64_t[]", pairs)
            code = _lib.rs_scope_witness(self._handle, view, len(pairs) // 16)
        if code:
            raise NativeError("witness", -code, f"witness: {os.strerror(-code)}")

    def named(self, names: bytes) -> None:
        """Say what another witness saw being named (api.h, rs_scope_named). Before `finish`.

        Raises:
            NativeError: The scope has ended, or there is no memory.
        """
        with self._lock:
            if self._handle is None:
                raise NativeError("named", 9, "the scope has ended")
            code = _lib.rs_scope_named(self._handle, names, len(names))
        if code:
            raise NativeError("named", -code, f"named: {os.strerror(-code)}")

    def finish(self, files: Sequence[bytes], dirs: Sequence[bytes]) -> RawObservation:
        """Drain, anchor and encode; other Python threads run meanwhile.

        Raises:
            NativeError: The scope had ended before, or its tables could not be built.
        """
        handle = self._take()
        if handle is None:
            raise NativeError("finish", 9, "the scope has ended")
        files_bytes = b"".join(item + b"\0" for item in files)
        dirs_bytes = b"".join(item + b"\0" for item in dirs)
        result, error = _ffi.new("rs_result **"), _ffi.new("rs_error *")
        code = _lib.rs_scope_finish(
            handle, files_bytes, len(files_bytes), dirs_bytes, len(dirs_bytes), result, error
        )
        self._engine.forget(self)
        if code:
            raise _native_error(error)
        try:
            return _raw_observation(_lib.rs_result_observation(result[0]))
        finally:
            _lib.rs_result_free(result[0])

    def abort(self) -> None:
        """Drop the scope; does nothing if it has ended."""
        handle = self._take()
        if handle is not None:
            _lib.rs_scope_abort(handle)
            self._engine.forget(self)


def _raw_observation(seen: Any) -> RawObservation:
    return RawObservation(
        materials=_bytes(seen.materials),
        materials_root=bytes(_ffi.buffer(seen.materials_root)),
        materials_count=int(seen.materials_count),
        products=_bytes(seen.products),
        products_root=bytes(_ffi.buffer(seen.products_root)),
        products_count=int(seen.products_count),
        opens=_bytes(seen.opens),
        processes=_bytes(seen.processes),
        mounts=_bytes(seen.mounts),
        files=_bytes(seen.files),
        mutations=_bytes(seen.mutations),
        mutations_count=int(seen.mutations_count),
        mutations_left_out=int(seen.mutations_left_out),
        unwitnessed=int(seen.unwitnessed),
        unsealed=int(seen.unsealed),
        counters=_counters(seen.counters),
    )


class Engine:
    """Threads and digest cache of the C core."""

    def __init__(self, *, shards: int, digest_cache_entries: int) -> None:
        """Start the threads.

        Raises:
            NativeError: A number out of range, or no memory or descriptors.
        """
        handle, error = _ffi.new("rs_engine **"), _ffi.new("rs_error *")
        if _lib.rs_engine_open(shards, digest_cache_entries, handle, error):
            raise _native_error(error)
        self._handle: Optional[Any] = handle[0]
        self._scopes: Set[Scope] = set()
        self._opening = 0
        self._lock = threading.Lock()
        self._quiet = threading.Condition(self._lock)

    def open_scope(self, *, pid: int, root: bytes, limits: Tuple[int, int, int, int]) -> Scope:
        """Open a scope for a blocked process; limits in the order of `rs_limits`.

        Raises:
            NativeError: The engine is closed, or the step that failed and its errno.
        """
        made, error = _ffi.new("rs_scope **"), _ffi.new("rs_error *")
        with self._lock:
            if self._handle is None:
                raise NativeError("open_scope", 9, "the capture engine is closed")
            engine = self._handle
            self._opening += 1  # close() waits for it
        try:
            code = _lib.rs_scope_open(
                engine, pid, root, _ffi.new("rs_limits *", limits), made, error
            )
            if code:
                raise _native_error(error)
            scope = Scope(self, made[0])
            with self._lock:
                self._scopes.add(scope)
            return scope
        finally:
            with self._quiet:
                self._opening -= 1
                self._quiet.notify_all()

    def forget(self, scope: Scope) -> None:
        """A scope has ended (called by the scope)."""
        with self._quiet:
            self._scopes.discard(scope)
            self._quiet.notify_all()

    def trust_sealed(self, entries: Iterable[Tuple[bytes, bytes, int]]) -> None:
        """Measure these sealed files in place of hashing them.

        Args:
            entries: fs-verity digest (32 bytes), SHA-256 (32 bytes) and size of each.

        Raises:
            NativeError: Trusted before (EBUSY), or too many of them.
        """
        data = b"".join(seal + sha256 + size.to_bytes(8, "big") for seal, sha256, size in entries)
        with self._lock:
            if self._handle is None:
                raise NativeError("trust_sealed", 9, "the capture engine is closed")
            code = _lib.rs_engine_trust_sealed(self._handle, data, len(data) // 72)
        if code:
            raise NativeError("trust_sealed", -code, f"trust_sealed: {os.strerror(-code)}")

    def stay_awake(self) -> None:
        """Keep idle CPUs of the host awake while events are dense. Once, before the first scope.

        Raises:
            NativeError: This process may not (EACCES), or the kernel has no such device (ENOENT).
        """
        with self._lock:
            if self._handle is None:
                raise NativeError("stay_awake", 9, "the capture engine is closed")
            code = _lib.rs_engine_stay_awake(self._handle)
        if code:
            raise NativeError("stay_awake", -code, f"/dev/cpu_dma_latency: {os.strerror(-code)}")

    def set_descriptors(self, *, ceiling: int, events_per_read: int, long_hashes: int) -> None:
        """How events share this process's descriptors with everything else; see api.h.

        Raises:
            NativeError: Out of range, or the engine is closed.
        """
        with self._lock:
            code = -9
            if self._handle is not None:
                code = _lib.rs_engine_set_descriptors(
                    self._handle, ceiling, events_per_read, long_hashes
                )
        if code:
            raise NativeError("set_descriptors", -code, f"set_descriptors: {os.strerror(-code)}")

    def settle(self) -> None:
        """Wait until the scopes that have ended gave back their group and descriptors."""
        with self._lock:
            if self._handle is None:
                return
            engine = self._handle
            self._opening += 1  # close() waits for it
        try:
            _lib.rs_engine_settle(engine)
        finally:
            with self._quiet:
                self._opening -= 1
                self._quiet.notify_all()

    def set_hash_once(self, after: int) -> None:
        """Pass what a process opens again, once it made so many opens in a row; 0: never."""
        with self._lock:
            if self._handle is not None:
                _lib.rs_engine_set_hash_once(self._handle, after)

    def set_compare(self, on: bool) -> None:
        """Whether changed files are compared when they are accessed; for scopes opened later.

        Raises:
            NativeError: This kernel or process cannot.
        """
        with self._lock:
            code = 0 if self._handle is None else _lib.rs_engine_set_compare(self._handle, int(on))
        if code:
            raise NativeError("fanotify_mark", -code, f"FAN_PRE_ACCESS: {os.strerror(-code)}")

    def set_memory(self, budget_bytes: int, directory: bytes) -> None:
        """Keep records beyond the budget in unlinked files of this directory. Once.

        Raises:
            NativeError: Set before (EBUSY), or the directory cannot be used.
        """
        with self._lock:
            if self._handle is None:
                raise NativeError("set_memory", 9, "the capture engine is closed")
            code = _lib.rs_engine_set_memory(self._handle, budget_bytes, directory)
        if code:
            raise NativeError("set_memory", -code, f"set_memory: {os.strerror(-code)}")

    def memory(self) -> Dict[str, int]:
        """Bytes of records: `budget`, `used`, `spilled` (in files); `failures`: no room."""
        memory = _ffi.new("rs_memory *")
        with self._lock:
            if self._handle is not None:
                _lib.rs_engine_memory(self._handle, memory)
        return {name: int(getattr(memory, name)) for name, _ in _ffi.typeof("rs_memory").fields}

    def cache_entries(self) -> int:
        """Digests in the cache."""
        with self._lock:
            return 0 if self._handle is None else int(_lib.rs_engine_cache_entries(self._handle))

    def cache_learned(self) -> int:
        """Digests that were entered since the engine was opened, also those displaced since."""
        with self._lock:
            return 0 if self._handle is None else int(_lib.rs_engine_cache_learned(self._handle))

    def cache_export(self) -> bytes:
        """The entries of the digest cache, `CACHE_ENTRY_BYTES` each, in native order."""
        data, length = _ffi.new("uint8_t **"), _ffi.new("size_t *")
        with self._lock:
            if self._handle is None:
                return b""
            code = _lib.rs_engine_cache_export(self._handle, data, length)
        if code:
            raise NativeError("cache_export", -code, f"cache_export: {os.strerror(-code)}")
        try:
            return bytes(_ffi.buffer(data[0], length[0]))
        finally:
            _lib.rs_free(data[0])

    def cache_import(self, entries: bytes, devices: Sequence[int]) -> int:
        """Take entries of these devices (st_dev) only; how many were taken.

        Raises:
            NativeError: The engine is closed, or these are not entries.
        """
        with self._lock:
            if self._handle is None:
                raise NativeError("cache_import", 9, "the capture engine is closed")
            taken = _lib.rs_engine_cache_import(
                self._handle, entries, len(entries), _ffi.new("uint64_t[]", devices), len(devices)
            )
        if taken < 0:
            raise NativeError("cache_import", int(-taken), "cache_import: not cache entries")
        return int(taken)

    def close(self) -> None:
        """Abort open scopes, wait for those being finished, and stop the threads."""
        with self._lock:
            handle, self._handle = self._handle, None
            while self._opening:
                self._quiet.wait()
            scopes = list(self._scopes)
        if handle is None:
            return
        for scope in scopes:
            scope.abort()
        with self._quiet:
            while self._scopes:  # those that are being finished
                self._quiet.wait()
        _lib.rs_engine_close(handle)


def leaf_table_verify(raw: bytes, domain: int) -> Tuple[bytes, int]:
    """Check a raw leaf table strictly and compute its RFC 6962 root.

    Args:
        raw: The table as docs/formats.md describes it, not compressed.
        domain: The domain byte that it must have.

    Returns:
        The root (32 bytes) and the number of leaves.

    Raises:
        EncodingError: The bytes are not a table of that domain in its one encoding.
    """
    root, count = _ffi.new("uint8_t[32]"), _ffi.new("uint64_t *")
    code = _lib.rs_leaf_table_verify(_ffi.from_buffer(raw), len(raw), domain, root, count)
    if code == -74:  # EBADMSG
        raise EncodingError("the leaf table is not in its canonical form")
    if code:
        raise NativeError("leaf_table_verify", -code, f"leaf_table_verify: {os.strerror(-code)}")
    return bytes(_ffi.buffer(root)), int(count[0])


def merkle_root_of_hashes(hashes: bytes) -> bytes:
    """RFC 6962 root over leaf hashes, 32 bytes each, one after the other.

    Raises:
        EncodingError: The length is not a multiple of 32.
    """
    if len(hashes) % 32:
        raise EncodingError("leaf hashes must be 32 bytes each")
    root = _ffi.new("uint8_t[32]")
    code = _lib.rs_merkle_root_of_hashes(_ffi.from_buffer(hashes), len(hashes) // 32, root)
    if code:
        raise NativeError("merkle_root", -code, f"merkle_root: {os.strerror(-code)}")
    return bytes(_ffi.buffer(root))


def event_parse_all(data: bytes) -> int:
    """Number of events in bytes as read from a fanotify group (for tests and fuzzing).

    Raises:
        EncodingError: The bytes are not a whole number of events.
    """
    count = int(_lib.rs_event_parse_all(_ffi.from_buffer(data), len(data)))
    if count < 0:
        raise EncodingError("not fanotify events")
    return count
