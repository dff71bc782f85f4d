"""The daemon protocol (docs/protocol.md): frames, and a small client.

Standard library only and Python 3.9, because the Pants plugin talks to the daemon with it too.
native/protocol.h has the same constants for the launcher; a test compares them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import functools
import json
import os
import socket
import stat
import struct
import time
from pathlib import Path
from typing import Dict, Iterable, List, Mapping, Optional, Sequence, Tuple

from rootseal.errors import CaptureError, EncodingError

PROTOCOL_VERSION = 1
HEADER_BYTES = 8
TLV_HEADER_BYTES = 8
PAYLOAD_TO_DAEMON_BYTES_MAX = 16 * 2**20
PAYLOAD_BYTES_MAX = 512 * 2**20
TLV_COUNT_MAX = 1 << 20
SILENCE_SECONDS_MAX = 60  # between two frames while a peer waits for an answer

SYSTEM_SOCKET = "/run/rootseal/daemon.sock"
_HEADER = struct.Struct(">IBBH")
_TLV = struct.Struct(">HHI")
_READ_BYTES = 1 << 18


class FrameType(enum.IntEnum):
    """What a frame says."""

    ANNOUNCE = 1
    PREPARED = 2
    READY = 3
    ARMED = 4
    EXITED = 5
    RECORD = 6
    ERROR = 7
    PROGRESS = 8
    TRACE = 9
    CHECK = 16
    CHECKED = 17
    STATUS = 18
    STATUS_REPLY = 19
    STOP = 20
    STOPPED = 21


class Tag(enum.IntEnum):
    """What a TLV holds."""

    ACTION_KEY = 1
    ARG = 2
    ENV = 3
    CWD = 4
    ROOT = 5
    OUTPUT_FILE = 6
    OUTPUT_DIR = 7
    OPTION = 8
    NAMESPACE = 9
    MODE = 10
    WAIT_STATUS = 11
    COUNT = 12
    RECORD = 13
    CODE = 14
    MESSAGE = 15
    JSON = 16
    EVENTS = 17
    ESCAPES = 18
    MOUNTS = 19
    UNSEEN = 20
    TRACE_REFUSED = 21


_TAGS: Mapping[int, Tag] = {int(tag): tag for tag in Tag}
_ANNOUNCE_TAGS = frozenset(
    (
        Tag.ACTION_KEY,
        Tag.ARG,
        Tag.ENV,
        Tag.CWD,
        Tag.ROOT,
        Tag.OUTPUT_FILE,
        Tag.OUTPUT_DIR,
        Tag.OPTION,
        Tag.NAMESPACE,
        Tag.TRACE_REFUSED,
    )
)
ALLOWED_TAGS: Mapping[FrameType, frozenset[Tag]] = {
    FrameType.ANNOUNCE: _ANNOUNCE_TAGS,
    FrameType.PREPARED: frozenset((Tag.MODE,)),
    FrameType.READY: frozenset(),
    FrameType.ARMED: frozenset(),
    FrameType.EXITED: frozenset((Tag.WAIT_STATUS, Tag.COUNT, Tag.ESCAPES, Tag.MOUNTS, Tag.UNSEEN)),
    FrameType.RECORD: frozenset((Tag.RECORD,)),
    FrameType.ERROR: frozenset((Tag.CODE, Tag.MESSAGE, Tag.JSON)),
    FrameType.PROGRESS: frozenset((Tag.MESSAGE,)),
    FrameType.TRACE: frozenset((Tag.EVENTS,)),
    FrameType.CHECK: frozenset((Tag.ACTION_KEY, Tag.RECORD, Tag.JSON)),
    FrameType.CHECKED: frozenset((Tag.JSON,)),
    FrameType.STATUS: frozenset(),
    FrameType.STATUS_REPLY: frozenset((Tag.JSON,)),
    FrameType.STOP: frozenset(),
    FrameType.STOPPED: frozenset(),
}
_REPEATABLE = frozenset((Tag.ARG, Tag.ENV, Tag.OUTPUT_FILE, Tag.OUTPUT_DIR, Tag.OPTION))


class DaemonError(CaptureError):
    """The daemon cannot be reached, or answered with an ERROR frame.

    Attributes:
        code: The CODE of the frame, or `Unavailable` when no daemon answered.
        data: The JSON of the frame.
    """

    def __init__(self, message: str, *, code: str, data: Optional[Mapping[str, object]] = None):
        super().__init__(message)
        self.code = code
        self.data: Mapping[str, object] = dict(data or {})


@dataclasses.dataclass(frozen=True)
class Frame:
    """One frame; its TLVs fit its type."""

    type: FrameType
    tlvs: Tuple[Tuple[Tag, bytes], ...] = dataclasses.field(default=(), repr=False)

    def __post_init__(self) -> None:
        """Refuse a TLV that this type does not have, or has once only.

        Raises:
            EncodingError: Names the tag.
        """
        allowed, seen = ALLOWED_TAGS[self.type], set()
        for tag, _ in self.tlvs:
            if tag not in allowed:
                raise EncodingError(f"{self.type.name} frame has the tag {tag.name}")
            if tag in seen and tag not in _REPEATABLE:
                raise EncodingError(f"{self.type.name} frame has the tag {tag.name} twice")
            seen.add(tag)

    @functools.cached_property
    def _values(self) -> Mapping[Tag, Tuple[bytes, ...]]:
        values: Dict[Tag, List[bytes]] = {}
        for tag, value in self.tlvs:
            values.setdefault(tag, []).append(value)
        return {tag: tuple(items) for tag, items in values.items()}

    def all(self, tag: Tag) -> Tuple[bytes, ...]:
        """Values of a tag, in order."""
        return self._values.get(tag, ())

    def one(self, tag: Tag) -> bytes:
        """The value of a tag that must be there once.

        Raises:
            EncodingError: It is not there.
        """
        values = self.all(tag)
        if len(values) != 1:
            raise EncodingError(f"{self.type.name} frame lacks the tag {tag.name}")
        return values[0]

    def text(self, tag: Tag) -> str:
        """The value of a tag as text; empty if it is not there."""
        values = self.all(tag)
        return values[0].decode("utf-8", "replace") if values else ""

    def json(self) -> Dict[str, object]:
        """The JSON object of the frame; empty if there is none.

        Raises:
            EncodingError: It is not a JSON object.
        """
        values = self.all(Tag.JSON)
        if not values:
            return {}
        try:
            value = json.loads(values[0])
        except (ValueError, RecursionError) as error:
            raise EncodingError(f"{self.type.name} frame holds malformed JSON: {error}") from None
        if not isinstance(value, dict):
            raise EncodingError(f"the JSON of a {self.type.name} frame is not an object")
        return value


def encode(frame: Frame) -> bytes:
    """The bytes of a frame.

    Raises:
        EncodingError: It is larger than any reader accepts.
    """
    parts: List[bytes] = [b""]
    size = 0
    for tag, value in frame.tlvs:
        parts += (_TLV.pack(tag, 0, len(value)), value)
        size += _TLV.size + len(value)
    if size > PAYLOAD_BYTES_MAX or len(frame.tlvs) > TLV_COUNT_MAX:
        raise EncodingError(f"a {frame.type.name} frame of {size} bytes is too large")
    parts[0] = _HEADER.pack(size, frame.type, PROTOCOL_VERSION, 0)
    return b"".join(parts)


def decode_header(header: bytes) -> Tuple[FrameType, int]:
    """Type and payload length of a frame.

    Raises:
        EncodingError: Not the header of a frame of this version.
    """
    if len(header) != HEADER_BYTES:
        raise EncodingError("the frame is cut short")
    length, number, version, zero = _HEADER.unpack(header)
    if version != PROTOCOL_VERSION or zero != 0:
        raise EncodingError("not a frame of version 1 of the protocol")
    try:
        return FrameType(number), length
    except ValueError:
        raise EncodingError(f"unknown frame type {number}") from None


def decode_payload(frame_type: FrameType, payload: bytes) -> Frame:
    """Read the TLVs of a frame.

    Raises:
        EncodingError: Malformed, or a tag that this type does not have.
    """
    tlvs: List[Tuple[Tag, bytes]] = []
    position, end = 0, len(payload)
    while position < end:
        if position + _TLV.size > end:
            raise EncodingError("a TLV is cut short")
        number, zero, length = _TLV.unpack_from(payload, position)
        position += _TLV.size
        if zero != 0 or length > end - position:
            raise EncodingError("a TLV is malformed or cut short")
        if len(tlvs) == TLV_COUNT_MAX:
            raise EncodingError(f"more than {TLV_COUNT_MAX} TLVs")
        tag = _TAGS.get(number)
        if tag is None:
            raise EncodingError(f"unknown tag {number}")
        tlvs.append((tag, payload[position : position + length]))
        position += length
    return Frame(frame_type, tuple(tlvs))


def read_exactly(sock: socket.socket, count: int, deadline: Optional[float]) -> bytes:
    """Read `count` bytes, all of them before the deadline (monotonic seconds; None: no limit).

    Raises:
        EOFError: The peer closed; the argument says how many bytes had come.
        TimeoutError: The deadline passed.
        OSError: The connection broke.
    """
    parts: List[bytes] = []
    missing = count
    while missing:
        if deadline is not None:
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError("the peer is too slow")
            sock.settimeout(left)
        try:
            data = sock.recv(min(missing, _READ_BYTES))
        except socket.timeout:  # TimeoutError itself only from Python 3.10 on
            raise TimeoutError("the peer is too slow") from None
        if not data:
            raise EOFError(count - missing)
        parts.append(data)
        missing -= len(data)
    return b"".join(parts)


def read_frame(
    sock: socket.socket, *, payload_bytes_max: int, deadline: Optional[float] = None
) -> Frame:
    """Read one frame.

    Args:
        sock: A connected socket; left without a timeout.
        payload_bytes_max: Larger frames are refused before memory is taken.
        deadline: Monotonic time by which the whole frame must be there; None: no limit.

    Raises:
        EncodingError: Garbage, or too large.
        EOFError: The peer closed before the frame began (argument 0) or within it.
        TimeoutError: The deadline passed.
        OSError: The connection broke.
    """
    try:
        frame_type, length = decode_header(read_exactly(sock, HEADER_BYTES, deadline))
        if length > payload_bytes_max:
            raise EncodingError(f"a {frame_type.name} frame of {length} bytes is too large")
        return decode_payload(frame_type, read_exactly(sock, length, deadline))
    finally:
        sock.settimeout(None)


def user_socket_paths(uid: int) -> Tuple[str, str]:
    """The two places of a per-user daemon, the better one first."""
    return f"/run/user/{uid}/rootseal/daemon.sock", f"/tmp/rootseal-{uid}/daemon.sock"  # noqa: S108


def socket_places(uid: int) -> Tuple[str, ...]:
    """Where a client of this user looks for a daemon, in order."""
    return (SYSTEM_SOCKET, *user_socket_paths(uid))


def is_private_directory(path: str, uid: int) -> bool:
    """Whether a directory is the user's own, 0700 and not a symlink, so nobody else made it."""
    try:
        found = os.lstat(path)
    except OSError:
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_uid == uid and found.st_mode & 0o7777 == 0o700


def peer_ids(sock: socket.socket) -> Tuple[int, int, int]:
    """Process id, uid and gid at the other end (SO_PEERCRED)."""
    size = struct.calcsize("3i")
    pid, uid, gid = struct.unpack(
        "3I", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
    )
    return pid, uid, gid


def connect(path: str, *, timeout_seconds: float = 10.0) -> socket.socket:
    """Connect to the daemon at one place and check that root or this user runs it.

    Raises:
        DaemonError: Nobody answers there, or somebody who is not trusted.
    """
    uid = os.getuid()
    if path == user_socket_paths(uid)[1] and not is_private_directory(str(Path(path).parent), uid):
        raise DaemonError(f"{Path(path).parent} is not a private directory", code="Unavailable")
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.settimeout(timeout_seconds)
        sock.connect(path)
        owner = peer_ids(sock)[1]
    except (OSError, ValueError) as error:
        sock.close()
        reason = getattr(error, "strerror", None) or error
        raise DaemonError(f"no daemon answers at {path}: {reason}", code="Unavailable") from None
    if owner not in (0, uid):
        sock.close()
        raise DaemonError(
            f"the daemon at {path} belongs to uid {owner}; remove that socket", code="NotTrusted"
        )
    return sock


def request(path: str, frame: Frame, *, timeout_seconds: float = 60.0) -> Frame:
    """Send one frame and return the answer; PROGRESS may come before it, and is skipped.

    Args:
        path: Socket of the daemon.
        frame: The request.
        timeout_seconds: For the whole exchange.

    Raises:
        DaemonError: No daemon answers, or it answers with ERROR.
    """
    deadline = time.monotonic() + timeout_seconds
    with connect(path, timeout_seconds=timeout_seconds) as sock:
        pid = peer_ids(sock)[0]
        try:
            with contextlib.suppress(BrokenPipeError):  # an answer may be there all the same
                sock.sendall(encode(frame))
            reply = _read_answer(sock, deadline)
        except EncodingError as error:
            raise DaemonError(
                f"the daemon at {path} speaks another protocol ({error}), so it is of another "
                f"release: end it with `kill {pid}`, then run `rootseal daemon ensure`",
                code="Protocol",
            ) from None
        except (EOFError, OSError) as error:
            raise DaemonError(
                f"the daemon at {path} does not answer as it should ({error}); run "
                "`rootseal daemon stop`, then `rootseal daemon ensure`",
                code="Unavailable",
            ) from None
    if reply.type == FrameType.ERROR:
        raise DaemonError(reply.text(Tag.MESSAGE), code=reply.text(Tag.CODE), data=reply.json())
    return reply


def _read_answer(sock: socket.socket, deadline: float) -> Frame:
    """The next frame that is not only a sign of life."""
    while True:
        reply = read_frame(sock, payload_bytes_max=PAYLOAD_BYTES_MAX, deadline=deadline)
        if reply.type != FrameType.PROGRESS:
            return reply


def status(path: str, *, timeout_seconds: float = 10.0) -> Dict[str, object]:
    """What the daemon at a socket says of itself.

    Raises:
        DaemonError: No daemon answers there, or it does not serve this user.
    """
    reply = request(path, Frame(FrameType.STATUS), timeout_seconds=timeout_seconds)
    return _json_of(reply, FrameType.STATUS_REPLY)


def find_daemon(places: Sequence[str]) -> Optional[Dict[str, object]]:
    """The status of the first daemon that answers and serves this user; None if there is none."""
    for path in places:
        try:
            return status(path)
        except DaemonError:
            continue
    return None


def stop(path: str) -> None:
    """Ask a daemon to end.

    Raises:
        DaemonError: It does not answer, or this user may not stop it.
    """
    reply = request(path, Frame(FrameType.STOP))
    if reply.type != FrameType.STOPPED:
        raise DaemonError(f"unexpected answer {reply.type.name}", code="Protocol")


def check(
    path: str,
    *,
    action_key: bytes,
    record: bytes,
    outputs: Iterable[Mapping[str, object]],
    action: Mapping[str, object],
    exit_code: Optional[int] = None,
    trusted_capture_keys: Sequence[str] = (),
) -> Dict[str, object]:
    """Ask the daemon whether a result may count.

    Args:
        path: Socket of the daemon.
        action_key: The action that was asked for, 32 bytes.
        record: The record that came with the result.
        outputs: Every output of the result: `{"path", "sha256", "size"}` or `{"path", "target"}`.
        action: What was asked for: command, environment, outputs (docs/protocol.md, CHECK).
        exit_code: Of the result, negative if a signal ended it; None: not to be compared.
        trusted_capture_keys: PEM public keys that count beside the daemon's own.

    Returns:
        `{"accepted": bool, "reason": str, …}`.

    Raises:
        DaemonError: No answer, or the request was malformed.
    """
    content = {
        "outputs": list(outputs),
        "action": dict(action),
        "exitCode": exit_code,
        "trustedCaptureKeys": list(trusted_capture_keys),
    }
    tlvs = (
        (Tag.ACTION_KEY, action_key),
        (Tag.RECORD, record),
        (Tag.JSON, json.dumps(content).encode("utf-8")),
    )
    reply = request(path, Frame(FrameType.CHECK, tlvs), timeout_seconds=600.0)
    return _json_of(reply, FrameType.CHECKED)


def _json_of(reply: Frame, expected: FrameType) -> Dict[str, object]:
    if reply.type != expected:
        raise DaemonError(f"unexpected answer {reply.type.name}", code="Protocol")
    try:
        return reply.json()
    except EncodingError as error:
        raise DaemonError(str(error), code="Protocol") from None
