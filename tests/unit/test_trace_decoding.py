"""What the trace backend reads from hostile bytes: names of peers, paths, addresses, events."""

from __future__ import annotations

import ssl
from typing import Optional

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rootseal import _native_trace, canonical
from rootseal.capture import network_log, trace_events, trace_payload
from rootseal.capture.call_details import call_details, call_name
from rootseal.capture.paths import relative_as_given
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
    family, _address, port = network_log.socket_address(raw)
    assert family and 0 <= port <= 65535


def test_paths() -> None:
    assert trace_events.kernel_path(b"c\0b\0a\0", b"x/./y") == b"/a/b/c/x/y"
    assert trace_events.kernel_path(b"c\0", b"/abs") == b"/abs"
    assert trace_events.kernel_path(b"", b"") == b"/"
    assert relative_as_given(b"/r", b"/r/a") == b"a"
    assert relative_as_given(b"/r", b"/rx/a") == b"/rx/a"
    assert relative_as_given(b"/r", b"/r/../x") == b"/r/../x"


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


def test_details_have_the_same_words_for_every_backend() -> None:
    namespaces = (("namespaces", "CLONE_NEWNS|CLONE_NEWUSER"),)
    assert call_details("unshare", (0x10020000, 0, 0, 0), ()) == namespaces
    assert call_details("clone", (0x10020011, 0, 0, 0), ()) == namespaces
    mount = call_details("mount", (0, 0, 0, 4096), (b"", b"d", b"tmpfs"))
    assert dict(mount) == {"flags": 4096, "source": "", "target": "d", "type": "tmpfs"}
    assert call_name("mmap2") == "mmap"


def test_hostile_texts_become_path_text() -> None:
    (flags, name) = call_details("memfd_create", (0, 2**63, 0, 0), (b"a\xff",))
    assert flags == ("flags", hex(2**63))
    assert name == ("name", canonical.path_text(b"a\xff"))
    _, address, _ = network_log.socket_address(b"\x01\x00/\xfe\x00garbage")
    assert address == canonical.path_text(b"/\xfe")


@pytest.mark.parametrize(
    ("state", "of_others", "of_one_that_asked"),
    [
        ("vulnerable", True, True),
        ("thread vulnerable", True, False),
        ("thread force mitigated", True, False),  # of the daemon: it says nothing of others
        ("not vulnerable", False, False),
        ("globally mitigated", False, False),
        ("unknown", None, None),
        ("of a later kernel", None, None),
    ],
)
def test_store_bypass_of_a_process(
    state: str, of_others: Optional[bool], of_one_that_asked: Optional[bool]
) -> None:
    status = f"Seccomp:\t0\nSpeculation_Store_Bypass:\t{state}\nCpus_allowed:\tf\n"
    bypass = trace_events.StoreBypass.read(status)
    no_new_privs = 1
    assert bypass.of(no_new_privs) is of_others
    for flag in (3, 4, 7):  # PFA_SPEC_SSB_DISABLE, _FORCE_DISABLE, _NOEXEC
        assert bypass.of(1 << flag | no_new_privs) is of_one_that_asked


def test_store_bypass_of_a_kernel_without_the_line() -> None:
    assert trace_events.StoreBypass.read("Name:\tx\n").of(0) is None
