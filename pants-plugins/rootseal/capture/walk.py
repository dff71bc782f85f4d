"""The `walk` backend: snapshots of directories before and after the action. No privilege needed.

Materials are the files that were there before (in the root, behind symlinked directories at its top
level, and in the inputs that were named); products are the files of the root that are new or
changed afterwards. What the action really read is not known, so the posture is `walked` and nothing
more.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import hashlib
import os
import stat
import threading
import time
from typing import (
    AbstractSet,
    Dict,
    FrozenSet,
    Iterable,
    Iterator,
    List,
    Mapping,
    Optional,
    Sequence,
    Set,
    Tuple,
)

from rootseal import diagnostics, leaf_table, opens_table
from rootseal.capture.paths import relative_to
from rootseal.capture.scope import LEAF_BYTES, CaptureLimits
from rootseal.errors import CaptureError, EncodingError
from rootseal.leaf_table import Domain, Leaf
from rootseal.observation import DigestSource, LeafKind, LeafTable, MountMark, Observation, Posture

CACHE_ENTRIES_DEFAULT = 262_144
DEPTH_MAX = 512
HASH_TRIES = 4
SETTLED_SECONDS = 0.02  # older than any clock's granularity: a later change must show in ctime
_READ_BYTES = 1 << 20
_Identity = Tuple[int, int, int, int, int]


@dataclasses.dataclass(frozen=True)
class _Found:
    """A file as the snapshot saw it."""

    identity: _Identity
    mode: int
    digest: bytes
    is_symlink: bool
    size: int


@dataclasses.dataclass(frozen=True)
class WalkInputs:
    """What the walk looks at beside the root.

    Attributes:
        program: Absolute path of the program that the action executes; empty if unknown.
        paths: Absolute paths of further files and directories.
    """

    program: bytes = b""
    paths: Tuple[bytes, ...] = ()


class DigestCache:
    """Digests by file identity, shared by all scopes, bounded; the oldest entry makes room."""

    def __init__(self, entries_max: int) -> None:
        """Args: entries_max: How many digests are kept."""
        self._entries: collections.OrderedDict[_Identity, bytes] = collections.OrderedDict()
        self._entries_max = entries_max
        self._lock = threading.Lock()

    def get(self, identity: _Identity) -> Optional[bytes]:
        """The digest of a file that has not changed since."""
        with self._lock:
            return self._entries.get(identity)

    def put(self, identity: _Identity, digest: bytes, hashed_at: float) -> None:
        """Keep a digest, if a change after `hashed_at` (seconds since 1970) must have shown."""
        if identity[4] > (hashed_at - SETTLED_SECONDS) * 1e9:
            return
        with self._lock:
            self._entries[identity] = digest
            while len(self._entries) > self._entries_max:
                self._entries.popitem(last=False)


class WalkEngine:
    """Opens walk scopes. Thread-safe; holds nothing but the digest cache."""

    def __init__(self, *, digest_cache_entries: int = CACHE_ENTRIES_DEFAULT) -> None:
        """Args: digest_cache_entries: Bound of the digest cache."""
        self._cache = DigestCache(digest_cache_entries)

    def open_scope(
        self,
        *,
        pid: int,
        root: bytes,
        limits: CaptureLimits,
        inputs: Optional[WalkInputs] = None,
    ) -> WalkScope:
        """Take the snapshot before the action; see `Engine.open_scope`.

        Args:
            pid: Not used: the walk needs no process.
            root: The action's root directory, absolute.
            limits: Caps of this action.
            inputs: What else to look at.

        Raises:
            CaptureError: The root is not a directory that can be read.
        """
        return WalkScope(root, limits, inputs or WalkInputs(), self._cache)

    def close(self) -> None:
        """Nothing to end."""


class WalkScope:
    """One action between its two snapshots."""

    def __init__(
        self, root: bytes, limits: CaptureLimits, inputs: WalkInputs, cache: DigestCache
    ) -> None:
        """Take the first snapshot."""
        self._root = root
        self._top = root.rstrip(b"/") + b"/"
        self._reader = _Reader(limits, cache)
        self._lock = threading.Lock()
        self._open = True
        if not os.path.isdir(root) or not os.access(root, os.R_OK | os.X_OK, effective_ids=True):
            raise CaptureError(f"the root {os.fsdecode(root)} is not a directory that can be read")
        self._program = os.path.realpath(inputs.program) if inputs.program else b""
        self._before = self._snapshot()
        self._inputs = self._read_inputs(inputs.paths)

    @property
    def mounts(self) -> Tuple[MountMark, ...]:
        """Empty: the walk marks nothing."""
        return ()

    def progress(self) -> Mapping[str, int]:
        """Files and bytes hashed so far."""
        return {"files": self._reader.files, "bytesHashed": self._reader.counters["bytesHashed"]}

    def finish(
        self, *, outputs_files: Sequence[bytes], outputs_dirs: Sequence[bytes]
    ) -> Observation:
        """Take the second snapshot and compare; see `Scope.finish`."""
        self._end()
        declared = _Declared(outputs_files, outputs_dirs)
        self._reader.begin_table()
        products = [
            _leaf(path, found, LeafKind.FILE)
            for path, found in self._snapshot().items()
            if self._before.get(path) != found or declared.holds(path)
        ]
        materials = [
            _leaf(path, found, self._kind(self._top + path)) for path, found in self._before.items()
        ]
        return Observation(
            backend="walk",
            posture=Posture.WALKED,
            materials=_table(Domain.MATERIAL, materials + self._inputs),
            products=_table(Domain.PRODUCT, products),
            opens=opens_table.encode(()),
            processes=(),
            mounts=(),
            counters=dict(self._reader.counters),
        )

    def abort(self) -> None:
        """Drop the snapshot."""
        with self._lock:
            self._open = False
        self._before = {}
        self._inputs = []

    def _end(self) -> None:
        with self._lock:
            if not self._open:
                raise CaptureError("the scope has ended already")
            self._open = False

    def _snapshot(self) -> Dict[bytes, _Found]:
        """Every file below the root, by its path relative to the root."""
        found: Dict[bytes, _Found] = {}
        for path in self._reader.walk(self._root):
            item = self._reader.read(path)
            if item is not None:
                found[path[len(self._top) :]] = item
        return found

    def _read_inputs(self, paths: Sequence[bytes]) -> List[Leaf]:
        """Leaves of what lies outside the root, each file by its real absolute path."""
        leaves: List[Leaf] = []
        seen: Set[bytes] = set()
        wanted = [self._program, *map(os.path.realpath, paths), *self._linked_directories()]
        for start in filter(None, wanted):
            for path in self._reader.walk(start):
                if path in seen or path.startswith(self._top):
                    continue
                seen.add(path)
                item = self._reader.read(path)
                if item is not None:
                    leaves.append(_leaf(path, item, self._kind(path)))
        return leaves

    def _kind(self, path: bytes) -> LeafKind:
        return LeafKind.EXECUTABLE if path == self._program else LeafKind.FILE

    def _linked_directories(self) -> List[bytes]:
        """Directories that symlinks at the root's top level lead to (immutable inputs)."""
        with os.scandir(self._root) as entries:
            return [
                os.path.realpath(entry.path)
                for entry in entries
                if entry.is_symlink() and os.path.isdir(entry.path)  # no error for a loop
            ]


DECLARED_MAX = 1 << 20
Declared = FrozenSet[Tuple[bytes, int]]


def declared_state(
    root: bytes, files: Sequence[bytes], directories: Sequence[bytes]
) -> Optional[Declared]:
    """Path and inode number of each declared output that there is; None if there are too many.

    Args:
        root: The action's root directory, absolute.
        files: Declared output files, relative to the root.
        directories: Declared output directories, relative to the root.
    """
    reader = _Reader(CaptureLimits(), DigestCache(0))
    top = root.rstrip(b"/") + b"/"
    found: Set[Tuple[bytes, int]] = set()
    for start in (*files, *directories):
        for path in reader.walk(os.path.normpath(top + start)):
            if len(found) >= DECLARED_MAX:
                return None
            with contextlib.suppress(OSError):  # gone meanwhile
                found.add((path[len(top) :], os.lstat(path).st_ino))
    return frozenset(found)


def declared_leaves(
    root: bytes,
    *,
    files: Sequence[bytes],
    directories: Sequence[bytes],
    known: AbstractSet[bytes],
    limits: CaptureLimits,
    counters: Dict[str, int],
) -> List[Leaf]:
    """Leaves of the declared outputs that another backend has not seen change.

    A declared output may have been there before; the result of the action holds it all the same.

    Args:
        root: The action's root directory, absolute.
        files: Declared output files, relative to the root.
        directories: Declared output directories, relative to the root.
        known: Paths, relative to the root, that have a leaf already.
        limits: Caps of this action.
        counters: What could not be done, and the bytes hashed, are added here.
    """
    reader = _Reader(limits, DigestCache(0))
    top = root.rstrip(b"/") + b"/"
    found: Dict[bytes, _Found] = {}
    for start in (*files, *directories):
        for path in reader.walk(os.path.normpath(top + start)):
            relative = path[len(top) :]
            if relative in known or relative in found:
                continue
            item = reader.read(path)
            if item is not None:
                found[relative] = item
    for name, value in reader.counters.items():
        counters[name] += value
    return [_leaf(path, item, LeafKind.FILE) for path, item in found.items()]


def leaves_of(
    paths: Iterable[bytes], *, root: bytes, limits: CaptureLimits, counters: Dict[str, int]
) -> List[Leaf]:
    """Leaves of these files and symlinks as they are now; what is gone has none.

    Args:
        paths: Absolute.
        root: The action's root directory, absolute; paths inside it become relative to it.
        limits: Caps of this action.
        counters: What could not be done, and the bytes hashed, are added here.
    """
    reader = _Reader(limits, DigestCache(0))
    leaves = []
    for path in paths:
        item = reader.read(path)
        if item is not None:
            leaves.append(_leaf(relative_to(root, path), item, LeafKind.FILE))
    for name, value in reader.counters.items():
        counters[name] += value
    return leaves


class _Declared:
    """Which paths are declared outputs: those are products whether they changed or not."""

    def __init__(self, files: Sequence[bytes], directories: Sequence[bytes]) -> None:
        self._files = frozenset(map(_normal, files))
        self._directories = tuple(_normal(path) for path in directories)

    def holds(self, path: bytes) -> bool:
        if path in self._files:
            return True
        return any(d == b"." or path.startswith(d + b"/") for d in self._directories)


class _Reader:
    """Walks and hashes within the limits of one action, and counts what it could not do."""

    def __init__(self, limits: CaptureLimits, cache: DigestCache) -> None:
        self.counters = diagnostics.zeros()
        self.files = 0
        self._limits = limits
        self._cache = cache
        self._leaf_bytes = 0

    def begin_table(self) -> None:
        """The caps on leaves count anew: each of the two tables may have that many."""
        self.files = 0
        self._leaf_bytes = 0

    def walk(self, start: bytes) -> Iterator[bytes]:
        """Paths of regular files and symlinks below `start` (itself, if it is one); no symlink
        is followed.
        """
        pending = [(start, 0)]
        while pending:
            directory, depth = pending.pop()
            try:
                with os.scandir(directory) as entries:
                    children = sorted(entries, key=lambda entry: entry.name)
            except NotADirectoryError:
                yield directory
                continue
            except FileNotFoundError:
                continue  # removed by the action
            except OSError:
                self.counters["fallbackHashFailures"] += 1
                continue
            for child in children:
                if child.is_dir(follow_symlinks=False):
                    if depth == DEPTH_MAX:
                        self.counters["fallbackHashFailures"] += 1
                    else:
                        pending.append((child.path, depth + 1))
                elif child.is_file(follow_symlinks=False) or child.is_symlink():
                    yield child.path

    def read(self, path: bytes) -> Optional[_Found]:
        """A file's digest, or None if it is gone, or was counted as not readable or over a cap."""
        if self.files >= self._limits.max_digests:
            self.counters["fanotifyDigestsCapHit"] += 1
            return None
        if self._leaf_bytes + len(path) + LEAF_BYTES > self._limits.max_record_bytes:
            self.counters["recordBytesCapHit"] += 1
            return None
        try:
            found = self._read_once_stable(path)
        except FileNotFoundError:
            return None
        except OSError:
            self.counters["fallbackHashFailures"] += 1
            return None
        if found is not None:
            self.files += 1
            self._leaf_bytes += len(path) + LEAF_BYTES
        return found

    def _read_once_stable(self, path: bytes) -> Optional[_Found]:
        link = os.lstat(path)
        if stat.S_ISLNK(link.st_mode):
            target = os.readlink(path)
            digest = hashlib.sha256(target).digest()
            return _Found(_identity(link), 0o777, digest, True, len(target))
        if not stat.S_ISREG(link.st_mode):
            return None
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            return self._hash_stable(descriptor)
        finally:
            os.close(descriptor)

    def _hash_stable(self, descriptor: int) -> Optional[_Found]:
        for _ in range(HASH_TRIES):
            before = os.fstat(descriptor)
            identity, hashed_at = _identity(before), time.time()
            digest = self._cache.get(identity)
            if digest is not None:
                self.counters["digestCacheHits"] += 1
            elif self.counters["bytesHashed"] + before.st_size > self._limits.max_hashed_bytes:
                self.counters["hashedBytesCapHit"] += 1
                return None
            else:
                digest = self._hash(descriptor)
            if _identity(os.fstat(descriptor)) == identity:
                self._cache.put(identity, digest, hashed_at)
                mode = stat.S_IMODE(before.st_mode)
                return _Found(identity, mode, digest, False, before.st_size)
        self.counters["unstableFiles"] += 1
        return None

    def _hash(self, descriptor: int) -> bytes:
        hasher, position = hashlib.sha256(), 0
        while True:
            data = os.pread(descriptor, _READ_BYTES, position)
            if not data:
                self.counters["bytesHashed"] += position
                return hasher.digest()
            hasher.update(data)
            position += len(data)


def _identity(found: os.stat_result) -> _Identity:
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _leaf(path: bytes, found: _Found, kind: LeafKind) -> Leaf:
    if found.is_symlink:
        kind = LeafKind.SYMLINK
    return Leaf(path, found.digest, found.size, found.mode, int(kind), int(DigestSource.WALK))


def _table(domain: Domain, leaves: Sequence[Leaf]) -> LeafTable:
    try:
        return leaf_table.encode(domain, leaves)
    except EncodingError as error:
        raise CaptureError(f"the files of the action cannot be recorded: {error}") from None


def _normal(path: bytes) -> bytes:
    return os.path.normpath(path)
