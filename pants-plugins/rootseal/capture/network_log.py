"""Collects what one process did with sockets: the same rules for every trace backend. Pure."""

from __future__ import annotations

import dataclasses
import ipaddress
from typing import List, Optional, Set, Tuple

from rootseal import canonical
from rootseal.capture import trace_names, trace_payload
from rootseal.process_trace import Bind, Connection, DnsLookup, Network, Socket

DNS_PORT = 53


class NetworkLog:
    """Takes events in their order."""

    def __init__(self) -> None:
        """Start with nothing."""
        self._sockets: List[Socket] = []
        self._connections: List[Connection] = []
        self._binds: List[Bind] = []
        self._lookups: List[DnsLookup] = []
        self._peers: Set[Tuple[str, str, str, int, int]] = set()

    def socket(self, family: int, kind: int, protocol: int) -> None:
        """A socket was made; equal ones are one."""
        made = Socket(trace_names.family(family), trace_names.socket_type(kind), protocol)
        if made not in self._sockets:
            self._sockets.append(made)

    def address(self, call: str, raw: bytes, fd: int, result: int, time_ns: int) -> None:
        """A call with a socket address: connect, bind, or a send that names its peer."""
        family, address, port = socket_address(raw)
        if call == "bind":
            self._binds.append(Bind(family, address, port, fd, result, time_ns))
            return
        peer = (call, family, address, port, fd)
        if call != "connect" and peer in self._peers:
            return  # a datagram more to the same peer
        self._peers.add(peer)
        self._connections.append(Connection(call, family, address, port, fd, result, time_ns))
        if port == DNS_PORT:
            self._lookups.append(DnsLookup(call, address, "", time_ns))

    def payload(self, call: str, data: bytes, fd: int, time_ns: int, *, dns: bool) -> None:
        """The first bytes that were sent on a descriptor, or a datagram to port 53."""
        index = self._last(fd)
        if dns:
            server = "" if index is None else self._connections[index].address
            self._question(call, data, server, time_ns)
            return
        hostname = trace_payload.tls_server_name(data)
        if hostname and index is not None:
            found = self._connections[index]
            self._connections[index] = dataclasses.replace(found, hostname=hostname)

    def record(self) -> Network:
        """All of it."""
        return Network(
            tuple(self._sockets),
            tuple(self._connections),
            tuple(self._binds),
            tuple(self._lookups),
        )

    def _last(self, fd: int) -> Optional[int]:
        """The last connection of a descriptor."""
        for index in range(len(self._connections) - 1, -1, -1):
            if self._connections[index].fd == fd:
                return index
        return None

    def _question(self, call: str, data: bytes, server: str, time_ns: int) -> None:
        name = trace_payload.dns_question(data, stream=False)
        name = name or trace_payload.dns_question(data, stream=True)
        last = self._lookups[-1] if self._lookups else None
        if last is not None and (last.syscall, last.server, last.name) == (call, server, ""):
            self._lookups[-1] = dataclasses.replace(last, name=name)  # of the same send
        elif name:
            self._lookups.append(DnsLookup(call, server, name, time_ns))


def socket_address(raw: bytes) -> Tuple[str, str, int]:
    """Family, address (path text) and port of a sockaddr; empty and 0 where it has none."""
    if len(raw) < 2:
        return "AF_UNSPEC", "", 0
    family = trace_names.family(int.from_bytes(raw[:2], "little"))
    if family == "AF_INET" and len(raw) >= 8:
        return family, str(ipaddress.IPv4Address(raw[4:8])), int.from_bytes(raw[2:4], "big")
    if family == "AF_INET6" and len(raw) >= 24:
        return family, str(ipaddress.IPv6Address(raw[8:24])), int.from_bytes(raw[2:4], "big")
    if family == "AF_UNIX":
        name = raw[2:]
        # An abstract name is all the bytes after the NUL.
        path = b"@" + name[1:] if name[:1] == b"\0" else name.split(b"\0", 1)[0]
        return family, canonical.path_text(path), 0
    return family, "", 0
