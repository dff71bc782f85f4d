"""Reads names out of the first bytes of a connection: TLS server name, DNS question.

The bytes come from the action and are hostile: both readers are total and give an empty text for
whatever is not well formed.
"""

from __future__ import annotations

from typing import List, Optional

NAME_CHARACTERS_MAX = 255


class _Bytes:
    """A reader that runs out with IndexError instead of giving less."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0

    def take(self, length: int) -> bytes:
        if length < 0 or self.at + length > len(self.data):
            raise IndexError
        self.at += length
        return self.data[self.at - length : self.at]

    def number(self, length: int) -> int:
        return int.from_bytes(self.take(length), "big")

    def rest(self) -> int:
        return len(self.data) - self.at


def tls_server_name(data: bytes) -> str:
    """The server name of a TLS ClientHello (RFC 8446 4.1.2, RFC 6066 3), or an empty text."""
    try:
        return _host(_client_hello_extensions(_Bytes(data)))
    except IndexError:
        return ""


def _client_hello_extensions(reader: _Bytes) -> Optional[_Bytes]:
    if reader.number(1) != 22 or reader.number(1) != 3:  # handshake record, major version
        return None
    reader.take(1 + 2)  # minor version, record length
    if reader.number(1) != 1:  # client_hello
        return None
    reader.take(3 + 2 + 32)  # length, version, random
    reader.take(reader.number(1))  # session id
    reader.take(reader.number(2))  # cipher suites
    reader.take(reader.number(1))  # compression methods
    length = reader.number(2)
    # The bytes may be cut after the name: take what there is.
    return _Bytes(reader.take(min(length, reader.rest())))


def _host(extensions: Optional[_Bytes]) -> str:
    while extensions is not None and extensions.rest():
        kind, length = extensions.number(2), extensions.number(2)
        body = _Bytes(extensions.take(length))
        if kind != 0:  # server_name
            continue
        body.take(2)  # list length
        if body.number(1) != 0:  # host_name
            return ""
        return _name(body.take(body.number(2)))
    return ""


def dns_question(data: bytes, *, stream: bool) -> str:
    """The name asked for in a DNS query (RFC 1035 4.1), or an empty text.

    Args:
        data: The bytes that were sent.
        stream: Whether a length of two bytes precedes the message (TCP).
    """
    reader = _Bytes(data)
    try:
        if stream:
            reader.take(2)
        reader.take(2)  # id
        if reader.number(2) & 0xF800 or reader.number(2) == 0:  # a query, with a question
            return ""
        reader.take(6)
        labels: List[bytes] = []
        while True:
            length = reader.number(1)
            if length == 0:
                return _name(b".".join(labels))
            if length > 63:  # a pointer: not in a question
                return ""
            labels.append(reader.take(length))
    except IndexError:
        return ""


def _name(raw: bytes) -> str:
    """A host name as text, if it is one."""
    text = raw.decode("ascii", "replace")
    if not text or len(text) > NAME_CHARACTERS_MAX:
        return ""
    return text if all(c.isalnum() or c in "-._" for c in text) else ""
