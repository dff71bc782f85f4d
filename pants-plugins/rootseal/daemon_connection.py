"""One client's connection: frames with deadlines, and signs of life while the client waits."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
from typing import Dict, Iterator, Mapping, Optional, Tuple

from rootseal import canonical, wire
from rootseal.daemon_peer import Peer, peer_of, receive_credentials, receive_some
from rootseal.errors import EncodingError
from rootseal.wire import Frame, FrameType, Tag

FRAME_SECONDS = 10.0  # for a frame that has begun, and for READY
PULSE_SECONDS = 5.0
SEND_SECONDS = 60
MESSAGE_BYTES_MAX = 2048
_LARGE_BYTES = 1 << 20
_TIMEVAL = struct.Struct("ll")


class Pulse:
    """Sends PROGRESS to every client that waits, so that a waiting launcher knows we live."""

    def __init__(self) -> None:
        """Start the one thread that does it."""
        self._waiting: Dict[int, Tuple[Connection, bytes]] = {}
        self._lock = threading.Lock()
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name="pulse", daemon=True)
        self._thread.start()

    @contextlib.contextmanager
    def of(self, connection: Connection, message: bytes) -> Iterator[None]:
        """Send signs of life as long as the block lasts."""
        with self._lock:
            before = self._waiting.get(id(connection))
            self._waiting[id(connection)] = (connection, message)
        try:
            yield
        finally:
            with self._lock:
                if before is None:
                    del self._waiting[id(connection)]
                else:
                    self._waiting[id(connection)] = before

    def close(self) -> None:
        """End the thread."""
        self._end.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._end.wait(PULSE_SECONDS):
            with self._lock:
                for connection, message in self._waiting.values():
                    connection.beat(message)


class Connection:
    """A client's socket. One thread owns it; only the pulse also sends on it."""

    def __init__(self, sock: socket.socket, pulse: Pulse, large: threading.Semaphore) -> None:
        """Ask the kernel who the client is.

        Args:
            sock: The accepted socket; owned from here on.
            pulse: Signs of life.
            large: Held while a large payload is in memory, so that many clients cannot fill it.
        """
        self._sock = sock
        self._pulse = pulse
        self._large = large
        self._send_lock = threading.Lock()
        self._wait_seconds = 0.0
        self.peer: Peer = peer_of(sock)

    def receive(self, begin_seconds: Optional[float]) -> Frame:
        """Read a frame.

        Args:
            begin_seconds: How long to wait for it to begin; None: for ever.

        Raises:
            EncodingError: Garbage, or too large.
            EOFError: The client closed.
            TimeoutError: It did not begin, or did not end, in time.
        """
        self._wait_at_most(begin_seconds or 0.0)
        first = receive_some(self._sock, wire.HEADER_BYTES)
        deadline = time.monotonic() + FRAME_SECONDS
        header = self._rest(first, wire.HEADER_BYTES, deadline)
        kind, length = wire.decode_header(header)
        if length > _limit(kind):
            raise EncodingError(f"a {kind.name} frame of {length} bytes is too large")
        if length <= _LARGE_BYTES:
            return wire.decode_payload(kind, self._rest(b"", length, deadline))
        with self._large:
            deadline = time.monotonic() + FRAME_SECONDS + length / 2**23
            return wire.decode_payload(kind, self._rest(b"", length, deadline))

    def _wait_at_most(self, seconds: float) -> None:
        """How long the kernel lets a read wait; 0: for ever."""
        if seconds != self._wait_seconds:
            limit = _TIMEVAL.pack(int(seconds), int(seconds % 1 * 10**6))
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)
            self._wait_seconds = seconds

    def _rest(self, first: bytes, count: int, deadline: float) -> bytes:
        """The other bytes of what `first` begins: nearly always there already, in one read."""
        missing = count - len(first)
        if missing:
            with contextlib.suppress(BlockingIOError):
                first += self._sock.recv(min(missing, _LARGE_BYTES), socket.MSG_DONTWAIT)
        if len(first) == count:
            return first
        try:
            return first + wire.read_exactly(self._sock, count - len(first), deadline)
        finally:
            self._sock.settimeout(None)

    def receive_ready(self, deadline: float) -> Tuple[FrameType, Peer]:
        """Read READY and who sent it; see `receive_credentials`."""
        self._wait_at_most(FRAME_SECONDS)
        return receive_credentials(self._sock, deadline)

    def send(self, frame: Frame) -> None:
        """Send a frame; a client that does not read for a minute is given up.

        Raises:
            OSError: The connection broke, or the client does not read.
        """
        data = wire.encode(frame)
        with self._send_lock:
            sent = 0
            with contextlib.suppress(BlockingIOError):
                sent = self._sock.send(data, socket.MSG_DONTWAIT)
            if sent == len(data):
                return
            self._sock.settimeout(SEND_SECONDS)
            try:
                self._sock.sendall(memoryview(data)[sent:])
            except socket.timeout:
                raise TimeoutError("the client does not read") from None
            finally:
                self._sock.settimeout(None)

    def send_error(self, code: str, message: str, data: Optional[Mapping[str, object]]) -> None:
        """Send an ERROR frame, if the client still is there."""
        text = message.encode("utf-8", "backslashreplace")[:MESSAGE_BYTES_MAX]
        tlvs = [(Tag.CODE, code.encode("ascii")), (Tag.MESSAGE, text)]
        if data:
            tlvs.append((Tag.JSON, canonical.encode(dict(data))))
        with contextlib.suppress(OSError):
            self.send(Frame(FrameType.ERROR, tuple(tlvs)))

    def pulse(self, message: bytes) -> contextlib.AbstractContextManager[None]:
        """Signs of life while a block lasts."""
        return self._pulse.of(self, message)

    def beat(self, message: bytes) -> None:
        """Send one PROGRESS frame, unless the client's buffer is full or it is gone."""
        data = wire.encode(Frame(FrameType.PROGRESS, ((Tag.MESSAGE, message),)))
        if not self._send_lock.acquire(blocking=False):
            return  # a frame is on its way: that is a sign of life
        try:
            with contextlib.suppress(OSError):
                self._sock.send(data, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        finally:
            self._send_lock.release()

    def is_gone(self) -> bool:
        """Whether the client has closed, or `cut` was called; reads nothing."""
        try:
            return not self._sock.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        except OSError:
            return True

    def cut(self) -> None:
        """Wake the thread that owns the connection: its reads end with EOFError."""
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RD)

    def close(self) -> None:
        """Close the socket; what was sent before still arrives."""
        self._sock.close()


def _limit(kind: FrameType) -> int:
    if kind == FrameType.CHECK:
        return wire.PAYLOAD_BYTES_MAX
    return wire.PAYLOAD_TO_DAEMON_BYTES_MAX
