"""The JSON form of what a trace backend saw (docs/predicate.md): shapes and rendering. Pure.

Text in `process_trace` is path text already (docs/formats.md, Paths); the shapes check that.
"""

from __future__ import annotations

import datetime
from typing import Dict, List, Mapping

from rootseal import canonical, schema
from rootseal.errors import StatementError
from rootseal.process_trace import (
    Bind,
    Connection,
    DnsLookup,
    Environ,
    FileOps,
    Link,
    Network,
    ProcessTrace,
    Socket,
    SyscallEvent,
)

EVENTS_MAX = 1 << 20
ENVIRONMENTS_MAX = 1 << 20
DETAILS_MAX = 16
_RESULT = schema.integer(minimum=-canonical.INTEGER_MAX)
_WORD = schema.text(64)
_TEXT = schema.path_text
_PORT = schema.integer(65535)
_FD = schema.integer((1 << 31) - 1, -1)


def _list(**fields: schema.Shape) -> schema.Shape:
    return schema.list_of(schema.object_of(fields), EVENTS_MAX)


def _timed(**fields: schema.Shape) -> schema.Shape:
    return _list(timestamp=schema.time_text, **fields)


def _detail(value: object, where: str) -> None:
    """A number or path text."""
    if type(value) is int:
        _RESULT(value, where)
    else:
        _TEXT(value, where)


_NETWORK = schema.object_of(
    {
        "sockets": _list(family=_WORD, type=_WORD, protocol=schema.integer((1 << 32) - 1)),
        "connections": _timed(
            syscall=_WORD,
            family=_WORD,
            address=_TEXT,
            port=_PORT,
            fd=_FD,
            result=_RESULT,
            hostname=_TEXT,
        ),
        "binds": _timed(family=_WORD, address=_TEXT, port=_PORT, fd=_FD, result=_RESULT),
        "dnsLookups": _timed(syscall=_WORD, server=_TEXT, name=_TEXT),
    }
)
_FILE_OPS = schema.object_of(
    {
        "writes": _timed(path=_TEXT, bytes=schema.integer()),
        "renames": _timed(**{"from": _TEXT, "to": _TEXT}),
        "deletes": _timed(path=_TEXT),
        "permChanges": _timed(path=_TEXT, mode=schema.integer(0o7777), setExec=schema.boolean),
        "links": _timed(target=_TEXT, path=_TEXT, symbolic=schema.boolean),
        "truncations": _timed(path=_TEXT, bytes=schema.integer()),
    }
)
ENVIRONMENTS_SHAPE = schema.list_of(
    _list(name=_TEXT, valueDigest=schema.digest_text), ENVIRONMENTS_MAX
)
TRACE_FIELDS: Mapping[str, schema.Shape] = {
    "environ": schema.integer(ENVIRONMENTS_MAX - 1),
    "specbypassisvuln": schema.nullable(schema.boolean),
    "truncated": schema.boolean,
    "network": _NETWORK,
    "fileOps": _FILE_OPS,
    "syscallEvents": _timed(
        syscall=_WORD,
        result=schema.nullable(_RESULT),
        details=schema.map_of(_detail, DETAILS_MAX),
        count=schema.integer(minimum=1),
        verdict=schema.one_of(("ran", "denied", "skipped")),
    ),
}


class Environments:
    """The distinct environments of an action's processes, numbered as they are met.

    Most processes have that of their parent, so that each is there once for all of them.
    """

    def __init__(self) -> None:
        self._numbers: Dict[Environ, int] = {}

    def number(self, environ: Environ) -> int:
        """The place of an environment in `document`."""
        return self._numbers.setdefault(environ, len(self._numbers))

    def document(self) -> List[object]:
        """Names and value digests of each."""
        return [
            [
                {"name": canonical.path_text(name), "valueDigest": value.hex()}
                for name, value in environ
            ]
            for environ in self._numbers
        ]


def check_environments(document: Mapping[str, object]) -> None:
    """Every environment is of a process, and every process's is there.

    Raises:
        StatementError: Names the field.
    """
    processes = [schema.as_object(item) for item in schema.as_list(document["processes"])]
    used = {schema.as_integer(item["environ"]) for item in processes if "environ" in item}
    count = len(schema.as_list(document["environments"]))
    if used != set(range(count)):
        raise StatementError(
            f"predicate.environments has {count} entries, its processes name others"
        )


def trace_document(trace: ProcessTrace, environments: Environments) -> Dict[str, object]:
    """The fields of `TRACE_FIELDS` for one process."""
    return {
        "environ": environments.number(trace.environ),
        "specbypassisvuln": trace.specbypassisvuln,
        "truncated": trace.truncated,
        "network": _network(trace.network),
        "fileOps": _file_ops(trace.file_ops),
        "syscallEvents": [_syscall(event) for event in trace.syscall_events],
    }


def time_text(time_ns: int) -> str:
    """Nanoseconds since the epoch as RFC 3339 in UTC."""
    seconds, nanoseconds = divmod(time_ns, 10**9)
    moment = datetime.datetime.fromtimestamp(seconds, datetime.timezone.utc)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{nanoseconds:09d}Z"


def _network(network: Network) -> Dict[str, object]:
    return {
        "sockets": [_socket(item) for item in network.sockets],
        "connections": [_connection(item) for item in network.connections],
        "binds": [_bind(item) for item in network.binds],
        "dnsLookups": [_lookup(item) for item in network.dns_lookups],
    }


def _socket(item: Socket) -> Dict[str, object]:
    return {"family": item.family, "type": item.type, "protocol": item.protocol}


def _connection(item: Connection) -> Dict[str, object]:
    return {
        "syscall": item.syscall,
        "family": item.family,
        "address": item.address,
        "port": item.port,
        "fd": item.fd,
        "result": item.result,
        "hostname": item.hostname,
        "timestamp": time_text(item.time_ns),
    }


def _bind(item: Bind) -> Dict[str, object]:
    return {
        "family": item.family,
        "address": item.address,
        "port": item.port,
        "fd": item.fd,
        "result": item.result,
        "timestamp": time_text(item.time_ns),
    }


def _lookup(item: DnsLookup) -> Dict[str, object]:
    return {
        "syscall": item.syscall,
        "server": item.server,
        "name": item.name,
        "timestamp": time_text(item.time_ns),
    }


def _file_ops(ops: FileOps) -> Dict[str, object]:
    return {
        "writes": [_op(op.time_ns, path=op.path, bytes=op.size) for op in ops.writes],
        "renames": [
            _op(op.time_ns, **{"from": op.source, "to": op.destination}) for op in ops.renames
        ],
        "deletes": [_op(op.time_ns, path=op.path) for op in ops.deletes],
        "permChanges": [
            _op(op.time_ns, path=op.path, mode=op.mode, setExec=op.set_exec)
            for op in ops.perm_changes
        ],
        "links": [_link(op) for op in ops.links],
        "truncations": [_op(op.time_ns, path=op.path, bytes=op.size) for op in ops.truncations],
    }


def _link(op: Link) -> Dict[str, object]:
    return _op(op.time_ns, target=op.target, path=op.path, symbolic=op.symbolic)


def _op(time_ns: int, **fields: object) -> Dict[str, object]:
    document: Dict[str, object] = {
        name: canonical.path_text(value) if isinstance(value, bytes) else value
        for name, value in fields.items()
    }
    document["timestamp"] = time_text(time_ns)
    return document


def _syscall(event: SyscallEvent) -> Dict[str, object]:
    return {
        "syscall": event.syscall,
        "result": event.result,
        "details": dict(event.details),
        "count": event.count,
        "verdict": event.verdict,
        "timestamp": time_text(event.time_ns),
    }
