"""The capture backends of a daemon: which there are, and a place in the line for each action.

The kernel limits how many fanotify groups a user may have, and how many descriptors this process.
Actions beyond that wait here; none runs uncaptured.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import threading
import time
from pathlib import Path
from typing import (
    Any,
    Callable,
    Dict,
    Iterator,
    List,
    Mapping,
    Optional,
    Sequence,
    Tuple,
)

from rootseal.capture import ptrace
from rootseal.capture.ima import ImaScope, ImaWindow
from rootseal.capture.ptrace import PtraceScope
from rootseal.capture.scope import Scope
from rootseal.capture.walk import WalkEngine, WalkInputs, declared_state
from rootseal.daemon_announce import Announcement, Missing
from rootseal.daemon_cache import CacheKeeper
from rootseal.daemon_keeper import Follower, Keeper
from rootseal.daemon_limits import EventShare, Shares, open_descriptors, shares
from rootseal.daemon_line import Line
from rootseal.errors import BackendUnavailable, CaptureError, GroupsTaken
from rootseal.observation import Posture
from rootseal.trace_ring import RING_BYTES_DEFAULT

DIGEST_CACHE_ENTRIES = 1 << 20
GROUPS_RESERVED = 8  # left to other programs of this user
ACTIVITY_ROWS_MAX = 64
SLOTS_WITHOUT_GROUPS = 256
SLOTS_MAX = 1024
GROUP_WAIT_SECONDS = 600  # for a group, when other programs of this user hold them all
_PAUSE_SECONDS = (0.02, 1.0)  # between two tries: the first, the longest


class Backends:
    """The engines of one daemon."""

    def __init__(
        self,
        *,
        launcher: Path,
        fanotify: bool,
        slots: int,
        clients: int,
        events: EventShare,
        cache_file: Path,
        memory_bytes: int,
        trace_ring_bytes: int = 0,
        compare_at_access: bool = True,
        stay_awake: Optional[bool] = None,
        group_wait_seconds: float = GROUP_WAIT_SECONDS,
    ) -> None:
        """Start what this host allows.

        Args:
            launcher: The launcher, which traces where there is no fanotify.
            fanotify: Whether fanotify may be used at all.
            slots: How many actions may run at once; 0: as many as the kernel has groups.
            clients: How many connections there may be at once.
            events: Descriptors that are set aside for events.
            cache_file: Where the digest cache outlives this daemon.
            memory_bytes: For records of all actions; more goes to files beside the cache file.
            trace_ring_bytes: Size of eBPF's ring buffer; 0: the default.
            compare_at_access: Compare files that changed since their open when they are read or
                mapped, where the kernel can.
            stay_awake: As `FanotifyEngine` has it.
            group_wait_seconds: How long an action waits when no fanotify group is free.

        Raises:
            ConfigError: The limit of descriptors is too low for one action.
        """
        self._walk = WalkEngine()
        self._fanotify: Any = None
        self.unavailable: Optional[BackendUnavailable] = None
        try:
            self._fanotify = _start_fanotify(
                fanotify, events, stay_awake=stay_awake, compare_at_access=compare_at_access
            )
        except BackendUnavailable as error:
            self.unavailable = error
        if self._fanotify is not None:
            self._fanotify.set_memory(memory_bytes, cache_file.parent)
        self.cache = CacheKeeper(self._fanotify, cache_file)
        self.follower = Follower()
        self._keeper = Keeper() if self._fanotify is not None else None
        self._tracer: Any = None
        self._traced: Any = None
        self._observed: Any = None
        self.ebpf_unavailable: Optional[BackendUnavailable] = None
        try:
            self._start_ebpf(trace_ring_bytes)
        except BackendUnavailable as error:
            self.ebpf_unavailable = error
        self.ptrace_unavailable = probe_ptrace(launcher)
        self._slots = slots
        self._group_wait_seconds = group_wait_seconds
        self.shares = self._share_out(events, clients)
        self._line = Line(lambda: self.slots)
        self._working = threading.BoundedSemaphore(self.shares.working)
        self._lock = threading.Lock()
        self.groups_awaited = 0
        self._watched: Dict[int, Scope] = {}

    def _share_out(self, events: EventShare, clients: int) -> Shares:
        """Bound everything by the descriptors that there are."""
        if self._fanotify is None:  # nobody waits for an event
            events = EventShare(events.limit, 0, 0, 0)
        else:
            self._fanotify.set_descriptors(
                ceiling=events.ceiling,
                events_per_read=events.events_per_read,
                long_hashes=events.long_hashes,
            )
        return shares(events, open_descriptors(), slots=self._slots or SLOTS_MAX, clients=clients)

    @property
    def slots(self) -> int:
        """How many actions may run at once, by the kernel's limits as they are now."""
        return min(self._slots or self._group_limit(), self.shares.slots)

    @property
    def queued(self) -> int:
        """How many actions wait for a place."""
        return self._line.queued

    @property
    def awake(self) -> str:
        """Why idle CPUs do not stay awake while opens are dense; empty if they do."""
        return "fanotify is not used" if self._fanotify is None else str(self._fanotify.awake)

    def _start_ebpf(self, ring_bytes: int) -> None:
        """Attach the trace programs."""
        ebpf = _module("ebpf")
        self._tracer = ebpf.EbpfTracer(ring_bytes=ring_bytes or RING_BYTES_DEFAULT)
        if self._fanotify is not None:
            self._traced = _module("traced").TracedEngine(self._fanotify, self._tracer)
        self._observed = _module("observed").ObservedEngine(self._tracer)

    def missing_for(self, announced: Announcement) -> Missing:
        """What this daemon, or the launcher of an action, cannot use, and why."""
        refused = self.ptrace_unavailable
        if announced.trace_refused:
            refused = ptrace.refused(announced.trace_refused)
        return Missing(self.unavailable, self.ebpf_unavailable, refused)

    def memory_status(self) -> Dict[str, int]:
        """Bytes that records take, in memory and in files."""
        return {} if self._fanotify is None else dict(self._fanotify.memory())

    def trace_status(self) -> Dict[str, object]:
        """The loader and programs of eBPF, or why there are none."""
        if self._tracer is None:
            return no_trace(self.ebpf_unavailable)
        return trace_of(self._tracer)

    @property
    def name(self) -> str:
        """The best backend that there is."""
        if self._fanotify is not None:
            return "fanotify"
        if self.ptrace_unavailable is None:
            return "ptrace"
        return "ebpf" if self.ebpf_unavailable is None else "walk"

    @property
    def posture(self) -> Posture:
        """What that backend reaches."""
        weaker = {"walk": Posture.WALKED, "ebpf": Posture.OBSERVED}
        return weaker.get(self.name, Posture.HELD)

    @property
    def compares_at_access(self) -> bool:
        """Whether files that changed are compared when they are accessed, where they can be."""
        return self._fanotify is not None and bool(self._fanotify.compares_at_access)

    def _group_limit(self) -> int:
        if self._fanotify is None:
            return SLOTS_WITHOUT_GROUPS
        limit = int(self._fanotify.group_limit())
        return max(1, limit - min(GROUPS_RESERVED, limit // 2))

    def place(self, user: Optional[int]) -> contextlib.AbstractContextManager[None]:
        """Wait for a place in the line and keep it; see `Line.place`."""
        return self._line.place(self._settle, user=user)

    def _settle(self) -> None:
        """Where descriptors are short, those of an ended action come back before its place does."""
        if self._fanotify is not None and self.shares.slots < self._group_limit():
            self._fanotify.settle()

    def working(self) -> contextlib.AbstractContextManager[object]:
        """Around arming and finishing, which need more descriptors than a running action."""
        return self._working

    @contextlib.contextmanager
    def watched(self, scope: Scope, pid: int) -> Iterator[None]:
        """Show the progress of an action, by its launcher's pid, in `activity`."""
        with self._lock:
            self._watched[pid] = scope
        try:
            yield
        finally:
            with self._lock:
                self._watched.pop(pid, None)

    def activity(self) -> List[Dict[str, int]]:
        """How far the running actions are, those that hash large files first; not all of many."""
        with self._lock:
            watched = list(self._watched.items())
        rows = [_activity(pid, scope.progress()) for pid, scope in watched]
        rows.sort(key=lambda row: (-row["longBytes"], row["launcher"]))
        return rows[:ACTIVITY_ROWS_MAX]

    def trust_sealed(self, files: Sequence[Tuple[bytes, bytes, int]]) -> None:
        """Measure these files (fs-verity digest, SHA-256, size) where fanotify would hash them."""
        if files and self._fanotify is not None:
            self._fanotify.trust_sealed(files)

    def open_fanotify(
        self,
        pid: int,
        announced: Announcement,
        *,
        traced: str,
        pause: Callable[[float], None] = time.sleep,
    ) -> Scope:
        """A fanotify scope for a process that waits in its namespace, perhaps with a witness.

        While other programs of this user hold every group, it keeps asking.

        Args:
            pid: The process.
            announced: Its action.
            traced: Who watches beside fanotify.
            pause: Sleeps so many seconds; raises what ends the waiting.

        Raises:
            BackendUnavailable: Not on this host, or no group became free in time.
            CaptureError: Not this process.
        """
        deadline = time.monotonic() + self._group_wait_seconds
        seconds, longest = _PAUSE_SECONDS
        while True:
            try:
                with self.working():
                    return self._open_fanotify(pid, announced, traced)
            except GroupsTaken as error:
                if time.monotonic() >= deadline:
                    raise self._waited_in_vain(error) from None
            with self._awaited():
                pause(seconds)
            seconds = min(2 * seconds, longest)

    def _waited_in_vain(self, error: GroupsTaken) -> BackendUnavailable:
        seconds = self._group_wait_seconds
        reason = f"{error.reason}, and none became free in {seconds:.0f} seconds (--group-wait)"
        return BackendUnavailable(error.backend, reason, error.remedy)

    @contextlib.contextmanager
    def _awaited(self) -> Iterator[None]:
        with self._lock:
            self.groups_awaited += 1
        try:
            yield
        finally:
            with self._lock:
                self.groups_awaited -= 1

    def _open_fanotify(self, pid: int, announced: Announcement, traced: str) -> Scope:
        if self._fanotify is None:
            raise self.unavailable or BackendUnavailable("fanotify", "it was not started", "")
        if traced == "ptrace":
            return self._open_both(pid, announced)
        engine = self._traced if traced == "ebpf" else self._fanotify
        scope: Scope = engine.open_scope(pid=pid, root=announced.root, limits=announced.limits)
        return scope

    def _open_both(self, pid: int, announced: Announcement) -> Scope:
        """fanotify holds, and the launcher traces too."""
        content = self._fanotify.open_scope(pid=pid, root=announced.root, limits=announced.limits)
        trace = PtraceScope(root=announced.root, limits=announced.limits)
        scope: Scope = _module("ptrace_beside").PtraceBeside(content, trace)
        return scope

    @contextlib.contextmanager
    def kept(self, scope: Any, launcher: int, namespace: int) -> Iterator[None]:
        """Keep the openers of a fanotify scope waiting even if this daemon dies meanwhile.

        If the launcher is killed instead, what is left of the action dies.

        Args:
            scope: Of the action.
            launcher: Its process id.
            namespace: Descriptor of the action's mount namespace.

        Raises:
            CaptureError: That cannot be had: the action must not start.
        """
        if self._keeper is None:
            raise CaptureError("a fanotify scope without a keeper")
        group = scope.group()
        try:
            with self._keeper.holding(group, launcher, namespace, scope.known_processes):
                os.close(group)
                group = -1
                yield
        finally:
            if group >= 0:
                os.close(group)

    @property
    def orphans_killed(self) -> int:
        """Processes of actions whose launcher was killed."""
        held = 0 if self._keeper is None else self._keeper.orphans_killed
        return held + self.follower.orphans_killed

    def open_ebpf(self, pid: int, announced: Announcement, reading: Any) -> Scope:
        """A scope of eBPF alone for a process that waits; `reading` as the engine has it.

        Raises:
            BackendUnavailable: Not on this host.
            CaptureError: Not this process, or its root cannot be read.
        """
        if self._observed is None:
            raise self.ebpf_unavailable or BackendUnavailable("ebpf", "it was not started", "")
        scope: Scope = self._observed.open_scope(
            pid=pid, root=announced.root, limits=announced.limits, reading=reading
        )
        return scope

    def open_ptrace(self, announced: Announcement) -> PtraceScope:
        """A scope for an action that its launcher traces."""
        before = declared_state(announced.root, announced.output_files, announced.output_dirs)
        return PtraceScope(root=announced.root, limits=announced.limits, before=before)

    def open_walk(self, announced: Announcement) -> Scope:
        """A walk scope; takes its first snapshot now.

        Raises:
            CaptureError: The root cannot be read.
        """
        inputs = WalkInputs(program=find_program(announced), paths=announced.inputs)
        return self._walk.open_scope(
            pid=0, root=announced.root, limits=announced.limits, inputs=inputs
        )

    def close(self) -> None:
        """End the engines."""
        self.cache.save()
        if self._tracer is not None:
            self._tracer.close()
        if self._fanotify is not None:
            self._fanotify.close()
        if self._keeper is not None:
            self._keeper.close()


def _activity(launcher: int, progress: Mapping[str, int]) -> Dict[str, int]:
    """One row of `Backends.activity`."""
    names = {
        "events": "events",
        "bytesHashed": "bytes_hashed",
        "longHashes": "long_hashes",
        "longBytes": "long_bytes",
    }
    return {"launcher": launcher, **{name: progress.get(key, 0) for name, key in names.items()}}


def open_ima(walk: Scope, announced: Announcement) -> Scope:
    """An ima scope over a walk: what the kernel measures from now on.

    Raises:
        BackendUnavailable: The kernel measures nothing, or only root may read what.
        CaptureError: The kernel's list is not genuine.
    """
    try:
        return ImaScope(walk, ImaWindow(), root=announced.root, limits=announced.limits)
    except BaseException:
        walk.abort()
        raise


def find_program(announced: Announcement) -> bytes:
    """Where the launcher's execvp will find the command; empty if nowhere."""
    program = announced.argv[0]
    if b"/" in program:
        return os.path.join(announced.cwd, program)
    search = dict(announced.environ).get(b"PATH", b"/bin:/usr/bin")
    for directory in search.split(b":"):
        path = os.path.join(announced.cwd, directory, program)
        if os.access(path, os.X_OK, effective_ids=True) and not os.path.isdir(path):
            return path
    return b""


def probe_fanotify() -> Optional[BackendUnavailable]:
    """Why fanotify cannot be used by this process; None if it can."""
    try:
        _engine_class().probe()
    except BackendUnavailable as error:
        return error
    return None


def probe_access() -> Optional[str]:
    """Why this process cannot compare files when they are accessed; None if it can."""
    try:
        reason: Optional[str] = _engine_class().probe_access()
    except BackendUnavailable as error:
        return error.reason
    return reason


def probe_ebpf() -> Dict[str, object]:
    """What a daemon of this process's user would say of eBPF (as `Backends.trace_status`)."""
    try:
        tracer = _module("ebpf").EbpfTracer()
    except BackendUnavailable as error:
        return no_trace(error)
    try:
        return trace_of(tracer)
    finally:
        tracer.close()


def no_trace(error: Optional[BackendUnavailable]) -> Dict[str, object]:
    """The status of a trace that is not there."""
    reason, remedy = (error.reason, error.remedy) if error else ("", "")
    return {"loader": None, "reason": reason, "remedy": remedy, "programs": []}


def trace_of(tracer: Any) -> Dict[str, object]:
    """The status of a tracer: its loader and its programs."""
    programs = [
        {"name": item.name, "attached": item.attached, "reason": item.reason}
        for item in tracer.programs
    ]
    return {
        "loader": tracer.loader,
        "ringBytes": tracer.ring_bytes,
        "opens": tracer.used.opens,
        "reason": tracer.loader_reason,
        "remedy": "",
        "programs": programs,
    }


def probe_ptrace(launcher: Path) -> Optional[BackendUnavailable]:
    """Why a launcher of this process's user cannot trace; None if it can."""
    try:
        ptrace.probe(launcher)
    except BackendUnavailable as error:
        return error
    return None


def _engine_class() -> Any:
    return _module("fanotify").FanotifyEngine


def _module(name: str) -> Any:
    """A backend's module, which needs the native core."""
    try:
        return importlib.import_module(f"rootseal.capture.{name}")
    except ImportError as error:
        raise BackendUnavailable(
            name, f"the native capture core is not built ({error})", "Run `make build`."
        ) from None


def _start_fanotify(
    wanted: bool, events: EventShare, *, stay_awake: Optional[bool], compare_at_access: bool
) -> Any:
    if not wanted:
        raise BackendUnavailable(
            "fanotify", "the daemon was started with --no-fanotify", "Start it without."
        )
    engine = _engine_class()
    return engine(
        shards=events.shards,
        digest_cache_entries=DIGEST_CACHE_ENTRIES,
        stay_awake=stay_awake,
        compare_at_access=compare_at_access,
    )
