"""Network and other calls as the eBPF backend sees them."""

from __future__ import annotations

import socket
import ssl
import threading
from pathlib import Path
from typing import Iterator

import pytest
from rootseal.capture.ebpf import EbpfTracer
from trace_action import NOT_HERE, TraceLab, build_trace_fixture

pytestmark = pytest.mark.requires("root", "ebpf")


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TraceLab]:
    tracer = EbpfTracer()
    try:
        yield TraceLab(build_trace_fixture(tmp_path_factory.mktemp("bin")), tracer)
    finally:
        tracer.close()


@pytest.fixture
def server() -> Iterator[int]:
    """A TCP server on a free port that reads and drops."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                peer, _ = listener.accept()
            except OSError:
                return
            with peer:
                while peer.recv(65536):
                    pass

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    yield listener.getsockname()[1]
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    thread.join()


def client_hello(name: str) -> bytes:
    """What a real TLS client sends first."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = ssl.create_default_context().wrap_bio(incoming, outgoing, server_hostname=name)
    with pytest.raises(ssl.SSLWantReadError):
        tls.do_handshake()
    return outgoing.read()


@pytest.mark.parametrize("how", ["write", "writev", "send", "sendmsg"])
def test_server_name_of_a_tls_connection(
    lab: TraceLab, tmp_path: Path, server: int, how: str
) -> None:
    (tmp_path / "hello").write_bytes(client_hello("packages.example.org"))
    network = lab.do(tmp_path, "connect_send", server, "hello", how).trace.network
    (connection,) = network.connections
    assert (connection.syscall, connection.family) == ("connect", "AF_INET")
    assert (connection.address, connection.port) == ("127.0.0.1", server)
    assert (connection.result, connection.hostname) == (0, "packages.example.org")
    assert [(item.family, item.type) for item in network.sockets] == [("AF_INET", "SOCK_STREAM")]


def test_other_first_bytes_have_no_name(lab: TraceLab, tmp_path: Path, server: int) -> None:
    (tmp_path / "hello").write_bytes(b"GET / HTTP/1.0\r\n\r\n")
    (connection,) = lab.do(
        tmp_path, "connect_send", server, "hello", "send"
    ).trace.network.connections
    assert connection.hostname == ""


def test_refused_and_local_connections(lab: TraceLab, tmp_path: Path) -> None:
    with socket.socket(socket.AF_INET6) as unused:
        unused.bind(("::1", 0))
        port = unused.getsockname()[1]
    (connection,) = lab.do(tmp_path, "connect_refused", port).trace.network.connections
    assert (connection.family, connection.address, connection.port) == ("AF_INET6", "::1", port)
    assert connection.result == -111
    (local,) = lab.do(tmp_path, "connect_unix", "no/such").trace.network.connections
    assert (local.family, local.address, local.result) == ("AF_UNIX", "no/such", -2)


def test_bind(lab: TraceLab, tmp_path: Path) -> None:
    network = lab.do(tmp_path, "bind").trace.network
    (bound,) = network.binds
    assert (bound.family, bound.address, bound.port, bound.result) == ("AF_INET", "127.0.0.1", 0, 0)
    assert network.sockets[0].type == "SOCK_DGRAM"


@pytest.mark.parametrize("how", ["sendto", "send", "sendmmsg"])
def test_dns_question(lab: TraceLab, tmp_path: Path, how: str) -> None:
    lookups = lab.do(tmp_path, "dns", how).trace.network.dns_lookups
    assert ("127.0.0.1", "example.org") in [(item.server, item.name) for item in lookups]


def test_name_and_privileges(lab: TraceLab, tmp_path: Path) -> None:
    seen = lab.do(tmp_path, "prctl", "renamed")
    details = [dict(event.details) for event in seen.calls("prctl")]
    assert {"option": "PR_SET_NAME", "name": "renamed"} in details
    assert {"option": "PR_SET_DUMPABLE", "value": 0} in details
    assert {"option": "PR_SET_NO_NEW_PRIVS", "value": 1} in details
    assert seen.first.comm == b"renamed"


def test_namespaces_sessions_and_descriptors(lab: TraceLab, tmp_path: Path) -> None:
    (event,) = lab.do(tmp_path, "unshare").calls("unshare")
    assert dict(event.details) == {"namespaces": "CLONE_NEWNS|CLONE_NEWUTS"}
    assert len(lab.do(tmp_path, "setsid").calls("setsid")) == 1
    seen = lab.do(tmp_path, "dup_socket")
    (event,) = seen.calls("dup2") + seen.calls("dup3")  # aarch64 has only the latter
    assert dict(event.details)["to"] == 0


def test_memory_and_processes(lab: TraceLab, tmp_path: Path) -> None:
    assert lab.do(tmp_path, "mprotect").calls("mprotect")
    (event,) = lab.do(tmp_path, "ptrace").calls("ptrace")
    assert dict(event.details)["request"] == "PTRACE_TRACEME"
    assert len(lab.do(tmp_path, "process_vm_writev").calls("process_vm_writev")) == 1


def test_refused_mount_is_an_attempt(lab: TraceLab, tmp_path: Path) -> None:
    (event,) = lab.do(tmp_path, "mount", str(tmp_path)).calls("mount")
    assert event.result < 0 and dict(event.details)["target"] == str(tmp_path)


@pytest.mark.parametrize("how", ["sendfile", "copy_file_range"])
def test_copies_have_source_and_destination(lab: TraceLab, tmp_path: Path, how: str) -> None:
    (tmp_path / "a").write_bytes(b"x" * 100)
    seen = lab.do(tmp_path, "copy", "a", "b", how)
    (event,) = seen.calls(how)
    assert dict(event.details) == {"source": "a", "destination": "b"}
    assert [(w.path, w.size) for w in seen.trace.file_ops.writes] == [(b"b", 100)]


def test_io_uring(lab: TraceLab, tmp_path: Path) -> None:
    seen = lab.run(tmp_path, [lab.fixture, "io_uring_setup"])
    if seen.exit_code == NOT_HERE:
        pytest.skip("optional: this kernel has no io_uring")
    assert len(seen.calls("io_uring_setup")) == 1
