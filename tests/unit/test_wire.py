"""The protocol codec: any bytes give a frame or its one error, and C has the same constants."""

from __future__ import annotations

import re
import socket
import threading
import time
from pathlib import Path
from typing import Callable, Dict

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rootseal import wire
from rootseal.errors import EncodingError
from rootseal.wire import Frame, FrameType, Tag

PROTOCOL_H = Path(__file__).parents[2] / "native" / "protocol.h"


def _constants_of_c() -> Dict[str, int]:
    lines = re.findall(r"^#define RS_(\w+)\s+(\d+)$", PROTOCOL_H.read_text(), re.MULTILINE)
    return {name: int(value) for name, value in lines}


def test_protocol_h_has_the_same_constants() -> None:
    expected = {f"FRAME_{kind.name}": int(kind) for kind in FrameType}
    expected.update({f"TAG_{tag.name}": int(tag) for tag in Tag})
    for name in (
        "PROTOCOL_VERSION",
        "HEADER_BYTES",
        "TLV_HEADER_BYTES",
        "PAYLOAD_TO_DAEMON_BYTES_MAX",
        "PAYLOAD_BYTES_MAX",
        "TLV_COUNT_MAX",
        "SILENCE_SECONDS_MAX",
    ):
        expected[name] = getattr(wire, name)
    assert _constants_of_c() == expected


def test_every_define_of_protocol_h_is_compared() -> None:
    assert len(re.findall(r"^#define", PROTOCOL_H.read_text(), re.MULTILINE)) == len(
        _constants_of_c()
    )


def _frames() -> st.SearchStrategy[Frame]:
    def tlvs(kind: FrameType) -> st.SearchStrategy[Frame]:
        tags = sorted(wire.ALLOWED_TAGS[kind])
        if not tags:
            return st.just(Frame(kind))
        entry = st.tuples(st.sampled_from(tags), st.binary(max_size=64))
        return st.lists(entry, max_size=6, unique_by=lambda item: item[0]).map(
            lambda items: Frame(kind, tuple(items))
        )

    return st.sampled_from(list(FrameType)).flatmap(tlvs)


@given(_frames())
def test_what_is_encoded_is_decoded(frame: Frame) -> None:
    data = wire.encode(frame)
    kind, length = wire.decode_header(data[:8])
    assert length == len(data) - 8
    assert wire.decode_payload(kind, data[8:]) == frame


@given(st.binary(max_size=200))
def test_any_header_gives_a_type_or_an_encoding_error(data: bytes) -> None:
    try:
        kind, length = wire.decode_header(data)
    except EncodingError:
        return
    assert data[:8] == length.to_bytes(4, "big") + bytes((kind, 1, 0, 0))


@given(st.sampled_from(list(FrameType)), st.binary(max_size=300))
def test_any_payload_gives_a_frame_or_an_encoding_error(kind: FrameType, data: bytes) -> None:
    try:
        frame = wire.decode_payload(kind, data)
    except EncodingError:
        return
    assert wire.encode(frame)[8:] == data


@pytest.mark.parametrize(
    "tlvs",
    [
        ((Tag.RECORD, b""),),
        ((Tag.CWD, b"/"), (Tag.CWD, b"/")),
    ],
    ids=["a tag of another frame", "twice"],
)
def test_a_tag_that_does_not_belong_is_refused(tlvs: tuple[tuple[Tag, bytes], ...]) -> None:
    with pytest.raises(EncodingError):
        Frame(FrameType.ANNOUNCE, tlvs)


def test_a_missing_tag_is_named() -> None:
    with pytest.raises(EncodingError, match="lacks the tag CWD"):
        Frame(FrameType.ANNOUNCE).one(Tag.CWD)


@pytest.mark.parametrize("text", [b"[1]", b"{", b"\xff", b"[" * 100_000])
def test_json_that_is_not_an_object_is_refused(text: bytes) -> None:
    with pytest.raises(EncodingError):
        Frame(FrameType.CHECKED, ((Tag.JSON, text),)).json()


def _pair() -> tuple[socket.socket, socket.socket]:
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)


def test_frames_are_read_exactly_and_leave_the_rest() -> None:
    left, right = _pair()
    with left, right:
        left.sendall(wire.encode(Frame(FrameType.STATUS)) + wire.encode(Frame(FrameType.STOP)))
        for kind in (FrameType.STATUS, FrameType.STOP):
            assert wire.read_frame(right, payload_bytes_max=0).type == kind


def test_a_frame_that_is_too_large_is_refused_before_it_is_read() -> None:
    left, right = _pair()
    with left, right:
        left.sendall((100).to_bytes(4, "big") + bytes((FrameType.CHECK, 1, 0, 0)))
        with pytest.raises(EncodingError, match="too large"):
            wire.read_frame(right, payload_bytes_max=99)


@pytest.mark.parametrize("sent", [0, 3, 8, 12])
def test_a_peer_that_closes_gives_eof(sent: int) -> None:
    left, right = _pair()
    frame = wire.encode(Frame(FrameType.PROGRESS, ((Tag.MESSAGE, b"hashing"),)))
    with right:
        with left:
            left.sendall(frame[:sent])
        with pytest.raises(EOFError):
            wire.read_frame(right, payload_bytes_max=100)


def test_a_stalled_peer_meets_the_deadline() -> None:
    left, right = _pair()
    with left, right:
        left.sendall(b"\0\0")
        with pytest.raises(TimeoutError):
            wire.read_frame(right, payload_bytes_max=100, deadline=time.monotonic() + 0.01)


def _serve_once(path: Path, answer: Callable[[socket.socket], None]) -> threading.Thread:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(str(path))
    listener.listen()

    def serve() -> None:
        with listener:
            connection, _ = listener.accept()
            with connection:
                answer(connection)

    thread = threading.Thread(target=serve)
    thread.start()
    return thread


def test_an_error_frame_becomes_a_daemon_error(tmp_path: Path) -> None:
    def answer(connection: socket.socket) -> None:
        wire.read_frame(connection, payload_bytes_max=0)
        tlvs = ((Tag.CODE, b"NotAllowed"), (Tag.MESSAGE, b"not you"), (Tag.JSON, b'{"uid":7}'))
        connection.sendall(wire.encode(Frame(FrameType.ERROR, tlvs)))

    thread = _serve_once(tmp_path / "s", answer)
    with pytest.raises(wire.DaemonError, match="not you") as caught:
        wire.status(str(tmp_path / "s"))
    thread.join()
    assert (caught.value.code, caught.value.data) == ("NotAllowed", {"uid": 7})


def test_signs_of_life_come_before_an_answer(tmp_path: Path) -> None:
    def answer(client: socket.socket) -> None:
        wire.read_frame(client, payload_bytes_max=1 << 20)
        alive = Frame(FrameType.PROGRESS, ((Tag.MESSAGE, b"checking a record"),))
        accepted = Frame(FrameType.CHECKED, ((Tag.JSON, b'{"accepted": true}'),))
        client.sendall(2 * wire.encode(alive) + wire.encode(accepted))

    server = _serve_once(tmp_path / "s", answer)
    request = {"record": b"r", "outputs": [], "action": {}}
    reply = wire.check(str(tmp_path / "s"), action_key=b"k" * 32, **request)  # type: ignore[arg-type]
    server.join()
    assert reply == {"accepted": True}


@pytest.mark.parametrize("reply", [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\0\0\0\1"])
def test_a_server_that_talks_something_else_is_one_clear_error(
    tmp_path: Path, reply: bytes
) -> None:
    thread = _serve_once(tmp_path / "s", lambda connection: connection.sendall(reply))
    with pytest.raises(wire.DaemonError, match="rootseal daemon ensure"):
        wire.status(str(tmp_path / "s"))
    thread.join()


def test_no_daemon_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(wire.DaemonError, match="no daemon answers") as caught:
        wire.status(str(tmp_path / "absent"))
    assert caught.value.code == "Unavailable"
    assert wire.find_daemon([str(tmp_path / "absent")]) is None


def test_a_directory_counts_as_private_only_if_it_is(tmp_path: Path) -> None:
    uid = tmp_path.stat().st_uid
    directory = tmp_path / "d"
    directory.mkdir(mode=0o700)
    link = tmp_path / "link"
    link.symlink_to(directory)
    assert wire.is_private_directory(str(directory), uid)
    assert not wire.is_private_directory(str(directory), uid + 1)
    assert not wire.is_private_directory(str(link), uid)
    assert not wire.is_private_directory(str(tmp_path / "absent"), uid)
    directory.chmod(0o750)
    assert not wire.is_private_directory(str(directory), uid)
