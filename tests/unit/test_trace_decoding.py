"""What the trace backend reads from hostile bytes: names of peers, paths, addresses, events."""

from __future__ import annotations

import ssl

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rootseal import _native_trace
from rootseal.capture import trace_events, trace_payload
from rootseal.errors import NativeError


def client_hello(name: str) -> bytes:
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = ssl.create_default_context().wrap_bio(incoming, outgoing, server_hostname=name)
    with pytest.raises(ssl.SSLWantReadError):
        tls.do_handshake()
    return outgoing.read()


def test_server_name() -> None:
    hello = client_hello("a-host.example")
    assert trace_payload.tls_server_name(hello) == "a-host.example"
    for length in range(len(hello)):  # cut anywhere: the name or nothing
        assert trace_payload.tls_server_name(hello[:length]) in ("", "a-host.example")


def test_dns_question() -> None:
    question = b"\x07example\x03org\x00\x00\x01\x00\x01"
    query = b"\x12\x34\x01\x00\x00\x01" + bytes(6) + question
    assert trace_payload.dns_question(query, stream=False) == "example.org"
    framed = len(query).to_bytes(2, "big") + query
    assert trace_payload.dns_question(framed, stream=True) == "example.org"
    answer = query[:2] + b"\x81\x80" + query[4:]
    assert trace_payload.dns_question(answer, stream=False) == ""


@given(st.binary(max_size=300))
def test_names_are_total(data: bytes) -> None:
    for text in (
        trace_payload.tls_server_name(b"\x16\x03\x01" + data),
        trace_payload.tls_server_name(data),
        trace_payload.dns_question(data, stream=False),
        trace_payload.dns_question(data, stream=True),
    ):
        assert len(text) <= 255 and text.isprintable()


@given(st.binary(max_size=140))
def test_addresses_are_total(raw: bytes) -> None:
    family, _address, port = trace_events.socket_address(raw)
    assert family and 0 <= port <= 65535


def test_paths() -> None:
    assert trace_events.kernel_path(b"c\0b\0a\0", b"x/./y") == b"/a/b/c/x/y"
    assert trace_events.kernel_path(b"c\0", b"/abs") == b"/abs"
    assert trace_events.kernel_path(b"", b"") == b"/"
    assert trace_events.relative_to(b"/r", b"/r/a") == b"a"
    assert trace_events.relative_to(b"/r", b"/rx/a") == b"/rx/a"
    assert trace_events.relative_to(b"/r", b"/r/../x") == b"/r/../x"


def test_exit_codes() -> None:
    assert [trace_events.exit_code(status) for status in (0, 0x300, 9, 0x8B)] == [0, 3, 137, 139]


@given(st.lists(st.binary(max_size=600), max_size=8))
def test_the_aggregator_takes_any_bytes(events: list[bytes]) -> None:
    """Lengths and types are chosen so that many come close to being events."""
    try:
        _native_trace.load()
    except NativeError as error:
        pytest.skip(f"optional: {error}")
    data = b""
    for number, body in enumerate(events):
        size = 32 + len(body)
        head = (number % 14).to_bytes(4, "little") + size.to_bytes(4, "little") + bytes(24)
        data += size.to_bytes(2, "big") + head + body
    assert _native_trace.feed_bytes(data) >= len(events)
