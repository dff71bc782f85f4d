"""The daemon: one per host or per user, many actions at once (docs/protocol.md).

A thread per connection (daemon_workers), at most `CONNECTIONS_MAX` of them; `daemon_action` has the
life of one action.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import json
import logging
import math
import os
import select
import signal
import socket
import threading
import time
from pathlib import Path
from typing import Callable, Dict, Iterator, Mapping, Optional, Set, Tuple

from rootseal import __version__, daemon_action, diagnostics, digest, keys
from rootseal.build_id import build_digest
from rootseal.daemon_backends import GROUP_WAIT_SECONDS, Backends
from rootseal.daemon_check import MadeRecords, answer_check
from rootseal.daemon_connection import FRAME_SECONDS, Connection, Pulse
from rootseal.daemon_limits import EventShare, event_share, raise_limit
from rootseal.daemon_line import leaves_room
from rootseal.daemon_peer import Allowed, Peer
from rootseal.daemon_place import Listener, Place, listen, prepare_directories
from rootseal.daemon_tools import ToolCache
from rootseal.daemon_workers import Workers
from rootseal.errors import (
    BackendUnavailable,
    CaptureError,
    CaptureLost,
    ConfigError,
    EncodingError,
    Error,
    KeyExposedError,
    PostureError,
    ToolchainError,
)
from rootseal.executable import rootseal_command
from rootseal.wire import Frame, FrameType, Tag

CONNECTIONS_MAX = 1024
MEMORY_BYTES_DEFAULT = 512 * 2**20  # about two and a half million materials at once
LARGE_PAYLOADS_MAX = 4
PATIENT_REFUSALS_MAX = 8  # clients that are not served and are listened to, at once
STOP_SECONDS = 10.0
SOCKET_CHECK_SECONDS = 2.0  # so long may clients miss a socket whose file was removed
LAUNCHER = Path(__file__).resolve().parent / "bin" / "rootseal-exec"
_GC_THRESHOLD = 20_000  # some actions' objects; nearly all are gone without a collection
_STOPPED = "the Rootseal daemon was stopped; build again."
_log = logging.getLogger("rootseal.daemon")


@dataclasses.dataclass(frozen=True)
class DaemonOptions:
    """How a daemon runs.

    Attributes:
        place: Its socket and state directory.
        allowed: Other users that it serves.
        fanotify: Whether fanotify may be used.
        idle_exit_seconds: End after this long without a client; 0: never.
        slots: Actions at once; 0: as many as the kernel's fanotify group limit allows.
        clients: Connections at once; who comes later is told to try again.
        sealed: fs-verity digest, SHA-256 and size of the files that are measured, not hashed.
        memory_bytes: Memory for records of running actions; what is beyond goes to the disk.
        trace_ring_bytes: Of eBPF; 0: the default.
        compare_at_access: Compare files that changed since their open when they are accessed.
        stay_awake: Whether idle CPUs stay awake while opens are dense; None: on hosts with few.
        group_wait_seconds: How long an action waits when no fanotify group is free.
    """

    place: Place
    allowed: Allowed
    fanotify: bool
    idle_exit_seconds: int
    slots: int
    clients: int = CONNECTIONS_MAX
    sealed: Tuple[Tuple[bytes, bytes, int], ...] = ()
    memory_bytes: int = MEMORY_BYTES_DEFAULT
    given: Tuple[str, ...] = ()
    trace_ring_bytes: int = 0
    compare_at_access: bool = True
    stay_awake: Optional[bool] = None
    group_wait_seconds: int = GROUP_WAIT_SECONDS

    @property
    def shared(self) -> bool:
        """Whether other users may connect: always to a root daemon, to be told no if need be."""
        return os.getuid() == 0 or self.allowed != Allowed()


class Counts:
    """What became of the actions and clients; in the status, for whoever wonders."""

    NAMES = ("recorded", "refused", "aborted", "lost", "failed", "checked", "notAllowed", "garbage")

    def __init__(self) -> None:
        """All zero."""
        self._values = dict.fromkeys(self.NAMES, 0)
        self._lock = threading.Lock()

    def add(self, name: str) -> None:
        """Count one."""
        with self._lock:
            self._values[name] += 1

    def all(self) -> Dict[str, int]:
        """A copy."""
        with self._lock:
            return dict(self._values)


class Daemon:
    """The running daemon."""

    def __init__(
        self,
        options: DaemonOptions,
        signer: keys.KeyFileSigner,
        key_sha256: bytes,
        events: EventShare,
    ) -> None:
        """Start the backends, within the descriptors that there are; raises what they raise.

        `key_sha256` is of the signer's file.
        """
        build_digest()  # of the files as they are now, not of an update
        self._options = options
        self._signer = signer
        self._key_sha256 = key_sha256
        self._backends = Backends(
            launcher=LAUNCHER,
            fanotify=options.fanotify,
            slots=options.slots,
            clients=options.clients,
            events=events,
            cache_file=options.place.digest_cache,
            memory_bytes=options.memory_bytes,
            trace_ring_bytes=options.trace_ring_bytes,
            compare_at_access=options.compare_at_access,
            stay_awake=options.stay_awake,
            group_wait_seconds=options.group_wait_seconds,
        )
        self._clients = self._backends.shares.clients
        self._ceiling = self._backends.shares.events.ceiling
        self._backends.trust_sealed(options.sealed)
        self._pulse = Pulse()
        self._large = threading.BoundedSemaphore(LARGE_PAYLOADS_MAX)
        self._patience = threading.BoundedSemaphore(PATIENT_REFUSALS_MAX)
        self._counts = Counts()
        self._known_tools = ToolCache()
        self._made = MadeRecords(signer.public_key.keyid)
        self._connections: Set[Connection] = set()
        self._running: Set[Connection] = set()  # of actions, until their outcome is counted
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._wake_read, self._wake_write = socket.socketpair()
        self._stopping = False

    def stop(self) -> None:
        """Ask the daemon to end; safe in a signal handler."""
        self._stopping = True
        with contextlib.suppress(OSError):
            self._wake_write.send(b"x", socket.MSG_DONTWAIT)

    def serve(self, listener: Listener) -> bool:
        """Serve until `stop` is called, or nobody came for the idle time: then False.

        True if clients cannot find the socket any more: it must be made again.
        """
        workers = Workers(listener.socket, self._own)
        idle_seconds: float = self._options.idle_exit_seconds or math.inf
        lost = False
        try:
            while not (self._stopping or lost):
                left = workers.came + idle_seconds - time.monotonic()
                if left <= 0 and not self._busy():
                    break
                wait = min(SOCKET_CHECK_SECONDS, left if left > 0 else idle_seconds)
                if select.select([self._wake_read], [], [], wait)[0]:
                    break
                lost = listener.is_lost()
        finally:
            self._stopping = self._stopping or not lost
            workers.stop()
        return lost and not self._stopping

    def drain(self) -> None:
        """Wait for the clients that there are, or for `stop`."""
        while not self._stopping and self._busy():
            select.select([self._wake_read], [], [], SOCKET_CHECK_SECONDS)

    def close(self) -> None:
        """Tell the running actions, wait for their threads a little, end the backends."""
        with self._lock:
            connections = list(self._connections)
        for connection in connections:
            connection.send_error("Stopping", _STOPPED, None)
            connection.cut()
        with self._changed:
            self._changed.wait_for(lambda: not self._connections, STOP_SECONDS)
        self._pulse.close()
        self._backends.close()

    def _busy(self) -> bool:
        with self._lock:
            return bool(self._connections)

    def _own(self, sock: socket.socket) -> None:
        """All that a thread does for one client."""
        connection = Connection(sock, self._pulse, self._large)
        if not self._options.allowed.serves(connection.peer):
            self._turn_away(connection)
            return
        with self._lock:
            stopping = self._stopping
            full = self._why_full(connection.peer, sock.fileno())
            if not full and not stopping:
                self._connections.add(connection)
        if full or stopping:
            connection.send_error(*(("Stopping", _STOPPED) if stopping else ("Busy", full)), None)
            connection.close()
            return
        try:
            self._serve_one(connection)
        finally:
            connection.close()
            with self._changed:
                self._connections.discard(connection)
                self._running.discard(connection)
                self._changed.notify_all()

    def _why_full(self, peer: Peer, descriptor: int) -> str:
        """Why there is no place for a client, with the lock held; empty if there is one."""
        taken = len(self._connections)
        if taken >= self._clients or descriptor >= self._ceiling:
            return f"the Rootseal daemon serves {self._clients} clients already; try again later."
        if self._options.allowed.sharing(peer) is None:
            return ""
        held = sum(connection.peer.uid == peer.uid for connection in self._connections)
        if leaves_room(held, taken, self._clients):
            return ""
        return (
            f"the Rootseal daemon serves {held} clients of uid {peer.uid} already and leaves the "
            "other places to other users; try again later."
        )

    def _serve_one(self, connection: Connection) -> None:
        peer = connection.peer
        try:
            self._answer(connection, connection.receive(FRAME_SECONDS))
        except (EOFError, ConnectionError):
            self._counts.add("aborted")
        except (EncodingError, TimeoutError) as error:
            self._counts.add("garbage")
            _log.warning("client %d of uid %d: %s", peer.pid, peer.uid, error)
            connection.send_error("ProtocolError", f"the daemon gave this client up: {error}", None)
        except (Error, OSError) as error:
            self._fail(connection, error)
        except Exception as error:  # noqa: BLE001 - the process edge: a fault ends one action only
            _log.exception("internal error")
            self._counts.add("failed")
            text = f"internal error of the daemon ({type(error).__name__}); see its log, report it."
            connection.send_error("InternalError", text, None)

    def _answer(self, connection: Connection, frame: Frame) -> None:
        answers: Mapping[FrameType, Callable[[Connection, Frame], None]] = {
            FrameType.ANNOUNCE: self._action,
            FrameType.CHECK: self._check,
            FrameType.STATUS: self._status,
            FrameType.STOP: self._stop_request,
        }
        answer = answers.get(frame.type)
        if answer is None:
            raise EncodingError(f"a connection does not begin with {frame.type.name}")
        answer(connection, frame)

    def _turn_away(self, connection: Connection) -> None:
        """Refuse a client that is not served: it takes no place of those that are."""
        self._counts.add("notAllowed")
        patient = self._patience.acquire(blocking=False)
        try:
            self._refuse(connection, patient)
        finally:
            connection.close()
            if patient:
                self._patience.release()

    def _refuse(self, connection: Connection, patient: bool) -> None:
        """Read what the client says first, so that it reads our answer and not a reset."""
        uid = connection.peer.uid
        if patient:
            with contextlib.suppress(EncodingError, TimeoutError, EOFError, OSError):
                connection.receive(FRAME_SECONDS)
        text = (
            f"the daemon at {self._options.place.socket} does not serve uid {uid}. As its owner: "
            f"`{rootseal_command('daemon', 'ensure', '--allow-uid', str(uid))}`, or run your own."
        )
        connection.send_error("NotAllowed", text, {"uid": uid})

    def _fail(self, connection: Connection, error: Exception) -> None:
        code, data = _error_frame(error)
        self._counts.add("lost" if isinstance(error, CaptureLost) else "refused")
        _log.warning("action refused: %s: %s", code, error)
        connection.send_error(code, str(error), data)

    def _action(self, connection: Connection, frame: Frame) -> None:
        with self._lock:
            self._running.add(connection)
        signed = daemon_action.run_action(
            connection,
            frame,
            backends=self._backends,
            signer=self._signer,
            key_sha256=self._key_sha256,
            known_tools=self._known_tools,
            user=self._options.allowed.sharing(connection.peer),
        )
        self._counts.add("recorded")
        self._made.add(signed)
        with self._lock:
            self._running.discard(connection)
        self._backends.cache.save_if_grown()  # takes long: nobody is busy for it

    def _check(self, connection: Connection, frame: Frame) -> None:
        with connection.pulse(b"checking a record"):
            reply = answer_check(frame, self._signer.public_key, self._made)
        self._counts.add("checked")
        connection.send(Frame(FrameType.CHECKED, ((Tag.JSON, json.dumps(reply).encode()),)))

    def _status(self, connection: Connection, frame: Frame) -> None:
        text = json.dumps(self.status()).encode("utf-8")
        connection.send(Frame(FrameType.STATUS_REPLY, ((Tag.JSON, text),)))

    def _stop_request(self, connection: Connection, frame: Frame) -> None:
        if connection.peer.uid not in (0, os.getuid()):
            raise ConfigError("only root and the daemon's own user may stop it")
        connection.send(Frame(FrameType.STOPPED))
        self.stop()

    def counts(self) -> Dict[str, int]:
        """What became of the actions and clients; after `close` too."""
        return self._counts.all()

    def status(self) -> Dict[str, object]:
        """What the daemon says of itself."""
        place, unavailable = self._options.place, self._backends.unavailable
        with self._lock:
            running = len(self._running)
        return {
            "socket": str(place.socket),
            "version": __version__,
            "build": build_digest(),
            "options": list(self._options.given),
            "pid": os.getpid(),
            "uid": os.getuid(),
            "launcher": str(LAUNCHER),
            "backend": self._backends.name,
            "posture": self._backends.posture.value,
            "reason": unavailable.reason if unavailable else "",
            "remedy": unavailable.remedy if unavailable else "",
            "trace": self._backends.trace_status(),
            "comparesAtAccess": self._backends.compares_at_access,
            "captureKey": str(keys.public_key_path(place.capture_key)),
            "captureKeyId": self._signer.public_key.keyid,
            "stateDirectory": str(place.state),
            "slots": self._backends.slots,
            "descriptors": self._backends.shares.status(),
            "awake": {"on": not self._backends.awake, "reason": self._backends.awake},
            "digestCache": self._backends.cache.status(),
            "recordMemory": self._backends.memory_status(),
            "actions": {"running": running, "queued": self._backends.queued},
            "groupsAwaited": self._backends.groups_awaited,
            "orphansKilled": self._backends.orphans_killed,
            "activity": self._backends.activity(),
            "counts": self._counts.all(),
        }


def run(options: DaemonOptions, ready: Optional[Callable[[Daemon], None]] = None) -> None:
    """Run a daemon in this process until it is stopped.

    Args:
        options: How.
        ready: Called once clients can connect.

    Raises:
        ConfigError: It cannot start; says why.
    """
    events = event_share(raise_limit(), os.cpu_count() or 1)
    with contextlib.ExitStack() as place:
        listener: Optional[Listener] = place.enter_context(_listen(options))
        signer = keys.load_or_create_capture_key(options.place.capture_key)
        key_sha256 = digest.sha256(options.place.capture_key.read_bytes())
        daemon = Daemon(options, signer, key_sha256, events)
        with _stopped_by_signals(daemon):
            _log.info("listening at %s with %s", options.place.socket, daemon.status()["backend"])
            gc.freeze()  # what is there by now stays: no collection need look at it again
            gc.set_threshold(_GC_THRESHOLD)
            if ready is not None:
                ready(daemon)
            while listener is not None and daemon.serve(listener):
                listener = _listen_again(daemon, options, place)
            if listener is not None:
                listener.socket.close()  # who comes now looks elsewhere, and does not wait for us
            daemon.close()
    _log.info("ended: %s", daemon.counts())


def _listen(options: DaemonOptions) -> contextlib.AbstractContextManager[Listener]:
    prepare_directories(options.place, os.getuid())
    return listen(options.place, shared=options.shared)


def _listen_again(
    daemon: Daemon, options: DaemonOptions, place: contextlib.ExitStack
) -> Optional[Listener]:
    """The socket's file was removed: make it again, or end with the actions that still run."""
    _log.warning("%s was removed: it is made again", options.place.socket)
    place.close()
    try:
        return place.enter_context(_listen(options))
    except ConfigError as error:  # another daemon was quicker, or there is no place for it
        _log.warning("this daemon ends after the actions that it has: %s", error)
        daemon.drain()
        return None


@contextlib.contextmanager
def _stopped_by_signals(daemon: Daemon) -> Iterator[None]:
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    before = {number: signal.signal(number, lambda *_: daemon.stop()) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _error_frame(error: Exception) -> Tuple[str, Optional[Mapping[str, object]]]:
    """Code and JSON of the ERROR frame for an error."""
    if isinstance(error, CaptureLost):
        return "ZeroDropsError", diagnostics.loss_details(error.counters)
    if isinstance(error, PostureError):
        return "PostureError", {"requested": error.requested, "achieved": error.achieved}
    if isinstance(error, KeyExposedError):
        return "KeyExposedError", error.data
    if isinstance(error, ToolchainError):
        return "ToolchainError", error.data
    if isinstance(error, BackendUnavailable):
        return "BackendUnavailable", {"backend": error.backend, "remedy": error.remedy}
    if isinstance(error, ConfigError):
        return "ConfigError", None
    return ("CaptureError" if isinstance(error, (CaptureError, OSError)) else "InternalError"), None
