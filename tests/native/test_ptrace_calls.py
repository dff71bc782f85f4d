"""The ptrace backend against the fixture: each system call is seen for what it is.

The driver is built with ASan and UBSan, so the tracer's own code is checked on the way.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
from pathlib import Path
from typing import Dict, Iterator, List, Mapping, Optional, Tuple, Union

import pytest
from ptrace_action import (
    SANITIZERS,
    Traced,
    build_driver,
    build_fixture,
    run_traced,
    sha256_text,
)
from rootseal.observation import DigestSource, LeafKind
from rootseal.process_trace import FileOps, Network, SyscallEvent

NOBODY = 65534
BURST = 200
IN = "input\n"
Detail = Union[int, str]


def burst_text(number: int) -> str:
    return f"burst file number {number} with about fifty bytes in it\n"


@dataclasses.dataclass(frozen=True)
class Wanted:
    """What must be seen of a subcommand, beside the fixture's own start.

    Attributes:
        materials: Paths relative to the root and the content that was opened.
        products: Paths and the content left behind; a tuple is a symlink's target.
        ops: Kind of file operation, and its paths relative to the root.
        calls: Names of calls with the details that must be there.
        network: Kind, and fields that must have these values.
        code: Exit status; None: any, because the call may be refused.
        processes: How many.
        only: No other call is noted than those in `calls` and what a start brings.
    """

    materials: Mapping[str, str] = dataclasses.field(default_factory=dict)
    products: Mapping[str, Union[str, Tuple[str]]] = dataclasses.field(default_factory=dict)
    ops: Tuple[Tuple[str, ...], ...] = ()
    calls: Tuple[Tuple[str, Dict[str, Detail]], ...] = ()
    network: Tuple[Tuple[str, Dict[str, Detail]], ...] = ()
    code: Optional[int] = 0
    processes: int = 1


READS = Wanted(materials={"in": IN})
MADE = {"out": "made\n"}
WROTE = (("writes", "out"),)


def call(name: str, /, **details: Detail) -> Tuple[Tuple[str, Dict[str, Detail]], ...]:
    return ((name, details),)


def net(kind: str, /, **fields: Detail) -> Tuple[Tuple[str, Dict[str, Detail]], ...]:
    return ((kind, fields),)


TABLE: Mapping[str, Wanted] = {
    "open": READS,
    "creat": Wanted(products=MADE, ops=WROTE),
    "openat": READS,
    "openat2": READS,
    "openat2_write": Wanted(products=MADE, ops=WROTE),
    "open_rdwr": Wanted(materials={"in": IN}, products={"in": "Input\n"}, ops=(("writes", "in"),)),
    "open_append_read": Wanted(products=MADE, ops=WROTE),  # an intermediate is no material
    "open_by_handle_at": Wanted(materials={"in": IN}, calls=call("open_by_handle_at"), code=None),
    "o_path": Wanted(),
    "o_path_reopen": READS,
    "o_tmpfile": Wanted(products=MADE),
    "fifo": Wanted(calls=call("mknod")),
    "proc_file": Wanted(),
    "write_at_exit": Wanted(products=MADE, ops=WROTE),
    "mmap_write": Wanted(products=MADE, ops=(*WROTE, ("truncations", "out"))),
    "io_uring_setup": Wanted(calls=call("io_uring_setup", verdict="denied"), code=77),
    "memfd_create": Wanted(calls=call("memfd_create", name="secret")),
    "execve": READS,
    "execveat": READS,
    "exec_script": Wanted(
        materials={"in": IN}, products={"script": "#!{self} openat\n"}, ops=(("writes", "script"),)
    ),
    "exec_memfd": Wanted(materials={"in": IN}, calls=call("memfd_create", name="program")),
    "fork": dataclasses.replace(READS, processes=2),
    "vfork_exec": dataclasses.replace(READS, processes=2),
    "clone3": dataclasses.replace(READS, processes=2),
    "double_fork": dataclasses.replace(READS, processes=3, calls=call("setsid")),
    "thread": READS,
    "thread_exec": READS,
    "setsid": Wanted(calls=call("setsid"), processes=2),
    "signal_death": Wanted(code=143),
    "stop_continue": dataclasses.replace(READS, processes=2),
    "rename": Wanted(products=MADE, ops=(("renames", "tmp", "out"),)),
    "renameat": Wanted(products={"d/out": "made\n"}, ops=(("renames", "tmp", "d/out"),)),
    "renameat2": Wanted(products=MADE, ops=(("renames", "tmp", "out"),)),
    "rename_exchange": Wanted(
        products={"a": "second\n", "b": "first\n"}, ops=(("renames", "a", "b"),)
    ),
    "rename_directory": Wanted(products={"e/out": "made\n"}, ops=(("renames", "d", "e"),)),
    "link": Wanted(products={"tmp": "made\n", **MADE}, ops=(("links", "tmp", "out"),)),
    "linkat": Wanted(products={"d/out": IN}, ops=(("links", "in", "d/out"),)),
    "symlink": Wanted(products={"out": ("in",)}, ops=(("symlinks", "out"),)),
    "symlinkat": Wanted(products={"d/out": ("../in",)}, ops=(("symlinks", "d/out"),)),
    "unlink": Wanted(ops=(*WROTE, ("deletes", "out"))),
    "unlinkat": Wanted(ops=(("writes", "d/out"), ("deletes", "d/out"))),
    "rmdir": Wanted(ops=(("deletes", "d"),)),
    "truncate": Wanted(products={"in": "in"}, ops=(("truncations", "in"),)),
    "ftruncate": Wanted(products={"out": "\0\0\0"}, ops=(*WROTE, ("truncations", "out"))),
    "chmod": Wanted(products=MADE, ops=(*WROTE, ("perm_changes", "out"))),
    "fchmod": Wanted(products={"out": ""}, ops=(*WROTE, ("perm_changes", "out"))),
    "fchmodat": Wanted(products={"d/out": "made\n"}, ops=(("perm_changes", "d/out"),)),
    "mknod": Wanted(products={"out": ""}, calls=call("mknod")),
    "mknodat": Wanted(products={"d/out": ""}, calls=call("mknod")),
    "socket": Wanted(network=net("sockets", family="AF_INET6", type="SOCK_STREAM")),
    "connect": Wanted(network=net("connections", address="127.0.0.1", port=1, result=-111)),
    "connect_unix": Wanted(network=net("connections", family="AF_UNIX", address="no-such-socket")),
    "connect_dns": Wanted(network=net("dns_lookups", syscall="connect", server="127.0.0.1")),
    "bind": Wanted(network=net("binds", family="AF_INET6", address="::1", result=0)),
    "sendto_dns": Wanted(network=net("dns_lookups", syscall="sendto", server="127.0.0.1")),
    "dup2_socket": Wanted(calls=call("dup2", newfd=0)),
    "dup3_socket": Wanted(calls=call("dup3", newfd=1)),
    "ptrace": Wanted(calls=call("ptrace", request=0), code=77, processes=2),  # one tracer at a time
    "unshare": Wanted(calls=call("unshare", flags=0x10020000), code=None),
    "mount": Wanted(calls=call("mount", target="d", type="tmpfs"), code=None),
    "fsopen": Wanted(calls=call("fsopen", type="tmpfs"), code=None),
    "setns": Wanted(calls=call("setns", type=0x10000000)),
    "clone_namespace": Wanted(calls=call("clone", flags=0x10000000), code=None, processes=2),
    "clone3_namespace": Wanted(calls=call("clone3", flags=0x10000000), code=None, processes=2),
    "mprotect": Wanted(calls=call("mprotect", prot=5)),
    "mmap_exec": Wanted(calls=call("mmap", prot=5, flags=0x22)),
    "prctl_name": Wanted(calls=call("prctl", option="PR_SET_NAME", name="renamed")),
    "prctl_dumpable": Wanted(
        materials={"in": IN}, calls=call("prctl", option="PR_SET_DUMPABLE", verdict="skipped")
    ),
    "prctl_no_new_privs": Wanted(calls=call("prctl", option="PR_SET_NO_NEW_PRIVS", value=1)),
    "init_module": Wanted(calls=call("init_module")),
    "finit_module": Wanted(materials={"in": IN}, calls=call("finit_module", path="{root}/in")),
    "copy_file_range": Wanted(
        materials={"in": IN},
        products={"out": IN},
        calls=call("copy_file_range", source="{root}/in", destination="{root}/out"),
    ),
    "splice": Wanted(materials={"in": IN}, calls=call("splice", source="{root}/in")),
    "sendfile": Wanted(
        materials={"in": IN},
        products={"out": IN},
        calls=call("sendfile", source="{root}/in", destination="{root}/out"),
    ),
    "process_vm_writev": Wanted(calls=call("process_vm_writev")),
    "burst": Wanted(materials={f"burst/{i}": burst_text(i) for i in range(BURST)}),
    "int80_open": dataclasses.replace(READS, code=None),
}
REFUSED = {"x32_open"}  # the action is killed: test_x32_is_refused
USER_ONLY_77 = {"open_by_handle_at"}  # needs a capability


@pytest.fixture(scope="module")
def tools(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    directory = tmp_path_factory.mktemp("ptrace")
    build_driver(directory, *SANITIZERS)
    build_fixture(directory)
    yield directory


@pytest.fixture
def place(tmp_path: Path, tools: Path) -> Iterator[Path]:
    """A directory that an ordinary user can work in: below /tmp, with its own copy of the tools."""
    base = Path("/tmp") / f"rootseal-ptrace-{os.getpid()}-{tmp_path.name}"
    shutil.rmtree(base, ignore_errors=True)
    base.mkdir(mode=0o755)
    shutil.copy(tools / "trace_driver", base)
    shutil.copy(tools / "syscalls", base)
    fill(base / "root")
    yield base
    shutil.rmtree(base, ignore_errors=True)


def fill(root: Path) -> None:
    (root / "d").mkdir(parents=True)
    (root / "burst").mkdir()
    (root / "in").write_text(IN)
    for number in range(BURST):
        (root / "burst" / str(number)).write_text(burst_text(number))


def give(base: Path, uid: int) -> None:
    for path in (base, *base.rglob("*")):
        os.chown(path, uid, uid)


def run_fixture(base: Path, name: str, user: Optional[int] = None) -> Traced:
    root = base / "root"
    return run_traced(base / "trace_driver", root, str(base / "syscalls"), name, ".", user=user)


def check(traced: Traced, wanted: Wanted, base: Path) -> None:
    assert wanted.code is None or traced.code == wanted.code, traced.stderr
    possible = traced.code != 77
    if possible:
        check_files(traced, wanted, base)
        assert len(traced.processes) == wanted.processes
    assert traced.losses == {}, traced.examples
    check_ops(traced, wanted, possible)
    check_calls(traced, wanted, base)
    check_network(traced, wanted)


def check_files(traced: Traced, wanted: Wanted, base: Path) -> None:
    for path, content in wanted.materials.items():
        assert traced.material_digests(path.encode()) == {sha256_text(content)}, path
    inside = {leaf.path for leaf in traced.materials() if not leaf.path.startswith(b"/")}
    assert inside == {path.encode() for path in wanted.materials}
    assert all(leaf.source == DigestSource.PTRACE_OPEN_TIME for leaf in traced.materials())
    products = traced.products()
    assert set(products) == {path.encode() for path in wanted.products}
    for path, content in wanted.products.items():
        leaf = products[path.encode()]
        if isinstance(content, tuple):
            assert leaf.kind == LeafKind.SYMLINK
            content = content[0]
        content = content.replace("{self}", str(base / "syscalls"))
        assert leaf.digest.hex() == sha256_text(content), path
        assert leaf.size == len(content)


def ops_of(traced: Traced, kind: str) -> List[Tuple[str, ...]]:
    """Operations of one kind, their paths relative to the root."""

    def short(path: bytes) -> str:
        return path.decode().replace(f"{traced.root}/", "", 1)

    found: List[Tuple[str, ...]] = []
    for process in traced.processes:
        assert process.trace is not None
        ops: FileOps = process.trace.file_ops
        if kind == "renames":
            found += [(short(op.source), short(op.destination)) for op in ops.renames]
        elif kind == "links":
            found += [(short(op.target), short(op.path)) for op in ops.links if not op.symbolic]
        elif kind == "symlinks":
            found += [(short(op.path),) for op in ops.links if op.symbolic]
        else:
            found += [(short(op.path),) for op in getattr(ops, kind)]
    return found


def check_ops(traced: Traced, wanted: Wanted, possible: bool) -> None:
    for kind, *paths in wanted.ops if possible else ():
        assert tuple(paths) in ops_of(traced, kind), (kind, paths)


def calls_of(traced: Traced) -> List[SyscallEvent]:
    return [
        event
        for process in traced.processes
        if process.trace is not None
        for event in process.trace.syscall_events
    ]


def check_calls(traced: Traced, wanted: Wanted, base: Path) -> None:
    for name, details in wanted.calls:
        events = [event for event in calls_of(traced) if event.syscall == name]
        assert events, f"{name} was not seen: {calls_of(traced)}"
        have = [{**dict(event.details), "verdict": event.verdict} for event in events]
        want = {
            key: value.replace("{root}", str(traced.root)) if isinstance(value, str) else value
            for key, value in details.items()
        }
        assert any(want.items() <= one.items() for one in have), (want, have)


def check_network(traced: Traced, wanted: Wanted) -> None:
    for kind, fields in wanted.network:
        found = []
        for process in traced.processes:
            assert process.trace is not None
            network: Network = process.trace.network
            found += [dataclasses.asdict(item) for item in getattr(network, kind)]
        assert any(fields.items() <= item.items() for item in found), (fields, found)


@pytest.mark.parametrize("name", sorted(TABLE))
def test_call_is_seen(place: Path, name: str) -> None:
    check(run_fixture(place, name), TABLE[name], place)


@pytest.mark.requires("gcc", "root")
@pytest.mark.parametrize("name", sorted(TABLE))
def test_call_is_seen_by_an_ordinary_user(place: Path, name: str) -> None:
    give(place, NOBODY)
    wanted = TABLE[name]
    if name in USER_ONLY_77:
        wanted = Wanted(calls=wanted.calls, code=77)
    check(run_fixture(place, name, user=NOBODY), wanted, place)


def test_every_subcommand_has_a_row(place: Path) -> None:
    done = run_traced(place / "trace_driver", place / "root", str(place / "syscalls"), "--list")
    assert set(done.stdout.split()) - REFUSED == set(TABLE)


def test_burst_is_complete_100_times_of_100(place: Path) -> None:
    wanted = {
        f"burst/{number}".encode(): sha256_text(burst_text(number)) for number in range(BURST)
    }
    for _ in range(100):
        traced = run_fixture(place, "burst")
        found = {leaf.path: leaf.digest.hex() for leaf in traced.materials()}
        assert {path: found.get(path) for path in wanted} == wanted
        assert traced.losses == {}
