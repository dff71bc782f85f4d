"""What each subcommand of the fixture `syscalls` must show, for every capture backend: one table.

A row says what is wanted; where a backend shows something else, `Unlike` says what and why, and
docs/backends.md lists it (a test compares them).
"""

from __future__ import annotations

import dataclasses
import errno
from typing import Any, Dict, List, Mapping, Optional, Set, Tuple, Union

from rootseal.observation import LeafKind, ProcessRecord
from rootseal.predicate_trace import Environments, trace_document

FANOTIFY, PTRACE, EBPF = "fanotify", "ptrace", "ebpf"
BOTH, BESIDE = "fanotify+ebpf", "fanotify+ptrace"
WALK = "walk"
HELD = (FANOTIFY, PTRACE, BOTH, BESIDE)  # those that hold an opener
BACKENDS = (*HELD, EBPF, WALK)
BCC = "bcc"  # the other loader of eBPF: in its rows beside the backend's own
BURST = 200
IN = "input\n"
Fields = Dict[str, Union[int, str, bool]]
Expected = Tuple[Tuple[str, Fields], ...]
Content = Union[str, Tuple[str]]


@dataclasses.dataclass(frozen=True)
class Unlike:
    """How a row differs under some backends.

    Attributes:
        backends: Which.
        why: One line, as in docs/backends.md.
        changes: Fields of `Wanted` with other values.
    """

    backends: Tuple[str, ...]
    why: str
    changes: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Wanted:
    """What must be seen of a subcommand, beside the fixture's own start.

    Attributes:
        materials: Paths relative to the root and the content that was opened; no others there.
        products: Paths and the content left behind; a tuple is a symlink's target. None: any.
        ops: Kind of file operation (docs/predicate.md, fileOps) and fields of it.
        calls: Names of calls with details that must be there.
        network: Kind (docs/predicate.md, network) and fields of it.
        code: Exit status; None: any, because the call may be refused.
        processes: How many.
        losses: Counters that must not be zero; all others are.
        perhaps: Counters that may be not zero; materials may be missing if they count them.
        unlike: Differences by backend.
        since: The kernel that has the call first.
    """

    materials: Mapping[str, str] = dataclasses.field(default_factory=dict)
    products: Optional[Mapping[str, Content]] = dataclasses.field(default_factory=dict)
    ops: Expected = ()
    calls: Expected = ()
    network: Expected = ()
    code: Optional[int] = 0
    processes: int = 1
    losses: Tuple[str, ...] = ()
    perhaps: Tuple[str, ...] = ()
    unlike: Tuple[Unlike, ...] = ()
    since: Tuple[int, int] = (5, 10)


def some(kind: str, /, **fields: Union[int, str, bool]) -> Expected:
    """One thing that must be there, with these fields."""
    return ((kind, fields),)


def wrote(path: str, size: int) -> Expected:
    return some("writes", path=path, bytes=size)


def truncated(path: str, size: int) -> Expected:
    return some("truncations", path=path, bytes=size)


def asked(digit: int) -> Expected:
    return some("dnsLookups", server="127.0.0.1", name=f"{digit}xample.org")


def burst_text(number: int) -> str:
    return f"burst file number {number} with about fifty bytes in it\n"


def like(row: Wanted, **changes: Any) -> Wanted:
    return dataclasses.replace(row, **changes)


FANOTIFIED = (FANOTIFY, BOTH, BESIDE)
TRACERS = (PTRACE, BESIDE)
READS = Wanted(materials={"in": IN})
MADE = {"out": "made\n"}
D_MADE = {"d/out": "made\n"}
WROTE = wrote("out", 5)
GUARDED = "counted as a loss: it leads away from the marked mounts"
LEFT = Unlike(FANOTIFIED, GUARDED, {"losses": ("namespaceEscapes",)})
MOUNTED = Unlike(FANOTIFIED, GUARDED, {"losses": ("namespaceEscapes", "unmarkedMounts")})
NO_CLONE3 = Unlike(
    FANOTIFIED, "clone3 fails with ENOSYS, so that C libraries use clone", {"code": 77}
)
UNFOLLOWED = "CLONE_UNTRACED is refused (EPERM): nobody could follow the child"
NO_RINGS = Unlike(
    TRACERS,
    "io_uring_setup is refused (deniedIoUringCalls), so that programs use ordinary calls",
    {"code": 77, "calls": some("io_uring_setup", entries=4, verdict="denied")},
)
UNTOLD = Unlike(
    (BCC,),
    "what a ring does is not told; without fanotify its ring is counted as lost",
    {"calls": (), "perhaps": ("unhashedOpensTotal",)},
)
OPEN = {"in": IN}
FILTERED = some("seccomp", operation=1, flags=0)
TOLD = Unlike(TRACERS, "the call `seccomp` is told too", {"calls": FILTERED})
NO_LISTENER = (
    Unlike(
        (FANOTIFY, BOTH), "refused (EBUSY): a process has one listener, the guard's", {"code": 77}
    ),
    Unlike(
        TRACERS,
        "refused (EINVAL): a listener could let calls pass unseen",
        {"code": 77, "calls": some("seccomp", operation=1, verdict="denied")},
    ),
)
DNS = some("dnsLookups", server="127.0.0.1", name="example.org")
TLS = some("connections", address="127.0.0.1", hostname="packages.example.org", result=0)


TABLE: Mapping[str, Wanted] = {
    "open": READS,
    "creat": Wanted(products=MADE, ops=WROTE),
    "openat": READS,
    "openat2": READS,
    "openat2_write": Wanted(products=MADE, ops=WROTE),
    "open_rdwr": Wanted(
        materials={"in": IN},
        products={"in": "Input\n"},
        ops=wrote("in", 1),
        unlike=(
            Unlike(TRACERS, "bytes: the file's size at the end", {"ops": wrote("in", len(IN))}),
            Unlike(
                (EBPF,),
                "what is written right after it was opened is hashed in time, or counted as lost",
                {"perhaps": ("unhashedOpensTotal",)},
            ),
        ),
    ),
    "open_wronly": Wanted(
        products={"in": "made\n"},
        ops=wrote("in", 5),
        unlike=(
            Unlike(
                FANOTIFIED,
                "what was there is a material: its event has no flags",
                {"materials": OPEN},
            ),
        ),
    ),
    "open_append_read": Wanted(products=MADE, ops=WROTE),  # an intermediate is no material
    "open_by_handle_at": Wanted(materials={"in": IN}, calls=some("open_by_handle_at"), code=None),
    "o_path": Wanted(),
    "o_path_reopen": READS,
    "o_tmpfile": Wanted(products=MADE),
    "fifo": Wanted(calls=some("mknod", path="fifo")),
    "proc_file": Wanted(),
    "write_at_exit": Wanted(products=MADE, ops=WROTE),
    "mmap_write": Wanted(products=MADE, ops=some("truncations", path="out", bytes=5)),
    "io_uring_setup": Wanted(
        calls=some("io_uring_setup", entries=4),
        unlike=(
            NO_RINGS,
            Unlike(
                (BCC,),
                "without fanotify each ring is counted as lost: its opens are not told",
                {"perhaps": ("unhashedOpensTotal",)},
            ),
        ),
    ),
    "io_uring_openat": Wanted(
        materials={"in": IN},
        calls=some("io_uring_open"),
        unlike=(
            NO_RINGS,
            Unlike(
                (EBPF,),
                "counted as lost: an open by a ring is told, but not of which file",
                {"materials": {}, "losses": ("unhashedOpensTotal",)},
            ),
            Unlike(
                (BCC,),
                "an open by a ring is not told; without fanotify its ring is counted as lost",
                {"calls": ()},
            ),
        ),
    ),
    "io_uring_connect": Wanted(
        calls=some("io_uring_request", operation="IORING_OP_CONNECT", count=1),
        unlike=(NO_RINGS, UNTOLD),
    ),
    "io_uring_unlinkat": Wanted(
        calls=some("io_uring_request", operation="IORING_OP_UNLINKAT", count=1),
        unlike=(NO_RINGS, UNTOLD),
    ),
    "memfd_create": Wanted(calls=some("memfd_create", name="secret")),
    "execve": READS,
    "execveat": READS,
    "exec_script": Wanted(
        materials={"in": IN},
        products={"script": "#!{self} openat\n"},
        ops=some("writes", path="script"),
    ),
    "exec_memfd": Wanted(
        materials={"in": IN},
        calls=some("memfd_create", name="program"),
        unlike=(
            Unlike(
                (EBPF,),
                "the loader of a program in memory that has ended is not known: counted as lost",
                {"perhaps": ("unhashedOpensTotal",)},
            ),
        ),
    ),
    "fork": like(READS, processes=2),
    "vfork_exec": like(READS, processes=2),
    "clone3": like(READS, processes=2, unlike=(NO_CLONE3,)),
    "clone_untraced": like(
        READS,
        processes=2,
        unlike=(
            Unlike(TRACERS, UNFOLLOWED, {"code": 77, "calls": some("clone", verdict="denied")}),
        ),
    ),
    "clone3_untraced": like(
        READS,
        processes=2,
        unlike=(
            NO_CLONE3,
            Unlike((PTRACE,), UNFOLLOWED, {"code": 77, "calls": some("clone3", verdict="denied")}),
        ),
    ),
    "double_fork": like(READS, processes=3, calls=some("setsid")),
    "thread": READS,
    "thread_exec": READS,
    "setsid": Wanted(calls=some("setsid"), processes=2),
    "signal_death": Wanted(code=143),
    "stop_continue": like(READS, processes=2),
    "rename": Wanted(products=MADE, ops=some("renames", **{"from": "tmp", "to": "out"})),
    "renameat": Wanted(products=D_MADE, ops=some("renames", **{"from": "tmp", "to": "d/out"})),
    "renameat2": Wanted(products=MADE, ops=some("renames", **{"from": "tmp", "to": "out"})),
    "rename_exchange": Wanted(
        products={"a": "second\n", "b": "first\n"},
        ops=some("renames", **{"from": "a", "to": "b"}),
    ),
    "rename_directory": Wanted(
        products={"e/out": "made\n"}, ops=some("renames", **{"from": "d", "to": "e"})
    ),
    "link": Wanted(
        products={"tmp": "made\n", **MADE},
        ops=some("links", target="tmp", path="out", symbolic=False),
    ),
    "linkat": Wanted(
        products={"d/out": IN},
        ops=some("links", target="in", path="d/out", symbolic=False),
        unlike=(
            Unlike(
                (WALK,),
                "a file that gets another link has changed: it is a product too",
                {"products": {"d/out": IN, "in": IN}},
            ),
        ),
    ),
    "symlink": Wanted(
        products={"out": ("in",)}, ops=some("links", target="in", path="out", symbolic=True)
    ),
    "symlinkat": Wanted(
        products={"d/out": ("../in",)},
        ops=some("links", target="../in", path="d/out", symbolic=True),
    ),
    "unlink": Wanted(
        ops=(*WROTE, ("deletes", {"path": "out"})),
        unlike=(
            Unlike(
                TRACERS,
                "bytes: 0 where the file was gone at the end",
                {"ops": (*wrote("out", 0), ("deletes", {"path": "out"}))},
            ),
        ),
    ),
    "unlinkat": Wanted(ops=some("deletes", path="d/out")),
    "rmdir": Wanted(ops=some("deletes", path="d")),
    "truncate": Wanted(products={"in": "in"}, ops=some("truncations", path="in", bytes=2)),
    "ftruncate": Wanted(products={"out": "\0\0\0"}, ops=some("truncations", path="out", bytes=3)),
    "chmod": Wanted(products=MADE, ops=some("permChanges", path="out", mode=0o755, setExec=True)),
    "fchmod": Wanted(products={"out": ""}, ops=some("permChanges", path="out", mode=0o755)),
    "fchmod_directory": Wanted(ops=some("permChanges", path="d", mode=0o700, setExec=True)),
    "fchmodat": Wanted(products=D_MADE, ops=some("permChanges", path="d/out", mode=0o755)),
    "fchmodat2": Wanted(
        products=D_MADE, ops=some("permChanges", path="d/out", mode=0o750), since=(6, 6)
    ),
    "mknod": Wanted(products={"out": ""}, calls=some("mknod", path="out")),
    "mknodat": Wanted(products={"d/out": ""}, calls=some("mknod", path="d/out")),
    "socket": Wanted(network=some("sockets", family="AF_INET6", type="SOCK_STREAM")),
    "connect": Wanted(network=some("connections", address="127.0.0.1", port=1, result=-111)),
    "connect_unix": Wanted(
        network=some("connections", family="AF_UNIX", address="no-such-socket", result=-2)
    ),
    "connect_dns": Wanted(network=some("dnsLookups", syscall="connect", server="127.0.0.1")),
    "bind": Wanted(network=some("binds", family="AF_INET6", address="::1", result=0)),
    "sendto_dns": Wanted(network=DNS),
    "send_dns": Wanted(network=DNS),
    "send_dns_often": Wanted(
        network=tuple(question for digit in range(10) for question in asked(digit))
    ),
    "sendto_dns_sockets": Wanted(
        network=tuple(question for digit in range(3) for question in asked(digit))
    ),
    "sendmsg_dns_pieces": Wanted(network=DNS),
    "sendmmsg_dns": Wanted(network=DNS),
    "sendmsg_dns": Wanted(network=DNS),
    "tls_write": Wanted(network=TLS),
    "tls_writev": Wanted(network=TLS),
    "tls_send": Wanted(network=TLS),
    "tls_sendmsg": Wanted(network=TLS),
    "tls_pieces": Wanted(network=TLS),
    "tls_fastopen": Wanted(network=TLS),
    "tls_thread": Wanted(network=TLS),
    "plain_send": Wanted(network=some("connections", address="127.0.0.1", hostname="")),
    "dup2_socket": Wanted(calls=some("dup2", to=0)),
    "dup3_socket": Wanted(calls=some("dup3", to=1)),
    "dup_socket": Wanted(calls=some("dup", **{"from": 3}, to=0, count=1)),
    "fcntl_socket": Wanted(calls=some("fcntl", **{"from": 3}, to=1, count=1)),
    "ptrace": Wanted(
        calls=some("ptrace", request="PTRACE_TRACEME"),
        processes=2,
        unlike=(Unlike(TRACERS, "refused: a process has one tracer", {"code": 77}),),
    ),
    "seccomp_filter": like(READS, unlike=(TOLD,)),
    "seccomp_prctl": READS,
    "seccomp_trap": like(READS, unlike=(TOLD,)),  # the call that traps opened nothing: no loss
    "seccomp_trace": Wanted(
        code=errno.ENOSYS,
        unlike=(
            Unlike(
                TRACERS,
                "a call that the program's own filter leaves to a tracer goes on: there is one",
                {"code": 0, "materials": OPEN, "calls": FILTERED},
            ),
        ),
    ),
    "seccomp_listener": like(READS, processes=2, unlike=NO_LISTENER),
    "seccomp_addfd": like(READS, processes=2, unlike=NO_LISTENER),
    "unshare": Wanted(
        calls=some("unshare", namespaces="CLONE_NEWNS|CLONE_NEWUSER"), code=None, unlike=(LEFT,)
    ),
    "mount": Wanted(
        calls=some("mount", target="d", type="tmpfs", source="none"), code=None, unlike=(MOUNTED,)
    ),
    "umount2": Wanted(calls=some("umount2", target="d", flags=2), code=None, unlike=(LEFT,)),
    "fsopen": Wanted(calls=some("fsopen", type="tmpfs"), code=None, unlike=(LEFT,)),
    "fsmount": Wanted(
        calls=(
            ("fsopen", {"type": "tmpfs"}),
            ("fsconfig", {"command": 6}),
            ("fsmount", {}),
            ("move_mount", {"target": "d"}),
        ),
        code=None,
        unlike=(MOUNTED,),
    ),
    "open_tree": Wanted(calls=some("open_tree", path="d"), code=None, unlike=(MOUNTED,)),
    "open_tree_attr": Wanted(
        calls=some("open_tree_attr", path="d"), code=None, unlike=(MOUNTED,), since=(6, 15)
    ),
    "fspick": Wanted(calls=some("fspick", path="/"), code=None, unlike=(LEFT,)),
    "mount_setattr": Wanted(
        calls=some("mount_setattr", path="d"), code=None, unlike=(LEFT,), since=(5, 12)
    ),
    "pivot_root": Wanted(calls=some("pivot_root", new="d", old="d"), code=None, unlike=(LEFT,)),
    "chroot": Wanted(calls=some("chroot", path="d"), code=None, unlike=(LEFT,)),
    "setns": Wanted(calls=some("setns", namespaces="CLONE_NEWUSER")),
    "clone_namespace": Wanted(
        calls=some("clone", namespaces="CLONE_NEWUSER"), code=None, processes=2
    ),
    "clone3_namespace": Wanted(
        calls=some("clone3", namespaces="CLONE_NEWUSER"), code=None, processes=2
    ),
    "mprotect": Wanted(calls=some("mprotect", writable="no")),
    "mmap_exec": Wanted(calls=some("mmap", writable="no", anonymous="yes")),
    "prctl_name": Wanted(calls=some("prctl", option="PR_SET_NAME", name="renamed")),
    "prctl_repeated": Wanted(calls=some("prctl", name="again", count=4)),
    "prctl_dumpable": Wanted(
        materials={"in": IN}, calls=some("prctl", option="PR_SET_DUMPABLE", value=0)
    ),
    "prctl_no_new_privs": Wanted(calls=some("prctl", option="PR_SET_NO_NEW_PRIVS", value=1)),
    "init_module": Wanted(calls=some("init_module")),
    "finit_module": Wanted(materials={"in": IN}, calls=some("finit_module", path="in")),
    "copy_file_range": Wanted(
        materials={"in": IN},
        products={"out": IN},
        ops=wrote("out", len(IN)),
        calls=some("copy_file_range", source="in", destination="out"),
    ),
    "splice": Wanted(materials={"in": IN}, calls=some("splice", source="in", destination="pipe")),
    "sendfile": Wanted(
        materials={"in": IN},
        products={"out": IN},
        ops=wrote("out", len(IN)),
        calls=some("sendfile", source="in", destination="out"),
    ),
    "process_vm_writev": Wanted(calls=some("process_vm_writev")),
    "burst": Wanted(materials={f"burst/{i}": burst_text(i) for i in range(BURST)}),
    "memfd_secret": Wanted(calls=some("memfd_secret"), since=(5, 14)),
    "int80_open": READS,
    "int80_umount": Wanted(calls=some("umount2", target="d", flags=0)),
    "int80_mmap": Wanted(calls=some("mmap", writable="no", anonymous="yes")),
    "int80_truncate64": Wanted(
        products={"in": "in"},
        ops=(*truncated("in", 2**32 + 3), *truncated("in", 2)),
    ),
    "int80_ftruncate64": Wanted(
        products={"out": "\0\0\0"},
        ops=(*truncated("out", 2**32 + 3), *truncated("out", 3)),
    ),
    "int80_bind": Wanted(network=some("binds", family="AF_INET", address="127.0.0.1", result=0)),
    "int80_connect": Wanted(
        network=(
            *some("sockets", family="AF_INET", type="SOCK_STREAM"),
            *some("connections", address="127.0.0.1", port=1, result=-111),
        )
    ),
    "int80_send_dns": Wanted(network=DNS),
    "int80_sendto_dns": Wanted(network=DNS),
    "int80_sendmsg_dns": Wanted(network=DNS),
    "int80_sendmmsg_dns": Wanted(network=DNS),
}
RACES = ("clone3_race", "exit_in_open")  # tests/native/test_ptrace_programs.py
X32 = "x32_open"  # a row of its own in docs/backends.md: most kernels have no x32


WALKED = {"in": IN, **TABLE["burst"].materials}


def wanted(name: str, *backends: str) -> Wanted:
    """A row as a backend must show it, perhaps with another loader.

    A walk tells what was there before, opened or not, and what is there after; no deeds.
    """
    row = TABLE[name]
    if WALK in backends:
        row = dataclasses.replace(row, materials=WALKED)
    for unlike in row.unlike:
        if set(backends) & set(unlike.backends):
            row = dataclasses.replace(row, **unlike.changes)
    return row


@dataclasses.dataclass(frozen=True)
class Seen:
    """What a backend saw of one run.

    Attributes:
        code: The action's exit status.
        stderr: For messages.
        processes: As in the predicate.
        losses: Gating counters that are not zero.
        materials: Path and hex digests of what was opened in the root; None: not told.
        products: Path to hex digest, size and kind; None: not told.
    """

    code: int
    stderr: str
    processes: List[Dict[str, Any]]
    losses: Mapping[str, int]
    materials: Optional[Mapping[str, Set[str]]]
    products: Optional[Mapping[str, Tuple[str, int, int]]]


def document_of(process: ProcessRecord) -> Dict[str, Any]:
    """A process of a backend as the predicate has it, as far as the table looks."""
    assert process.trace is not None
    return {"comm": process.comm.decode(), **trace_document(process.trace, Environments())}


def check(seen: Seen, row: Wanted, program: str, sha256: Any) -> None:
    """Compare a run with its row.

    Args:
        seen: The run.
        row: `wanted` of its name and backend.
        program: Path of the fixture.
        sha256: Hex digest of a text.
    """
    assert row.code is None or seen.code == row.code, (seen.code, seen.stderr)
    row = without_lost(seen, row)
    assert set(seen.losses) == set(row.losses) or seen.code == 77, seen.losses
    if seen.code != 77:
        check_materials(seen, row, sha256)
        check_products(seen, row, program, sha256)
    # Beside ptrace fanotify sees the launcher too, which opens files again to hash them.
    traced = [process for process in seen.processes if "fileOps" in process]
    if traced:
        check_deeds(dataclasses.replace(seen, processes=traced), row)


def without_lost(seen: Seen, row: Wanted) -> Wanted:
    """The row without what the run may have lost: it must have counted all of that."""
    lost = set(row.perhaps) & set(seen.losses)
    found = {path: text for path, text in row.materials.items() if path in (seen.materials or ())}
    if not lost or len(row.materials) - len(found) > sum(seen.losses[name] for name in lost):
        return row
    return dataclasses.replace(row, materials=found, losses=(*row.losses, *lost))


def check_materials(seen: Seen, row: Wanted, sha256: Any) -> None:
    if seen.materials is None:
        return
    assert set(seen.materials) == set(row.materials)
    for path, content in row.materials.items():
        assert seen.materials[path] == {sha256(content)}, path


def check_products(seen: Seen, row: Wanted, program: str, sha256: Any) -> None:
    if seen.products is None or row.products is None:
        return
    assert set(seen.products) == set(row.products)
    for path, content in row.products.items():
        digest, size, kind = seen.products[path]
        assert (kind == LeafKind.SYMLINK) == isinstance(content, tuple)
        text = content[0] if isinstance(content, tuple) else content.replace("{self}", program)
        assert (digest, size) == (sha256(text), len(text)), path


def check_deeds(seen: Seen, row: Wanted) -> None:
    possible = seen.code != 77
    if possible:
        assert len(seen.processes) == row.processes, [p["comm"] for p in seen.processes]
    for kind, fields in row.ops if possible else ():
        assert_some(fields, [op for p in seen.processes for op in p["fileOps"][kind]], kind)
    for kind, fields in row.network:
        assert_some(fields, [one for p in seen.processes for one in p["network"][kind]], kind)
    for name, fields in row.calls:
        events = [event for p in seen.processes for event in p["syscallEvents"]]
        same = [
            {**event["details"], "verdict": event["verdict"], "count": event["count"]}
            for event in events
            if event["syscall"] == name
        ]
        assert_some(fields, same, name)


def assert_some(fields: Fields, found: List[Dict[str, Any]], what: str) -> None:
    assert any(fields.items() <= one.items() for one in found), (what, fields, found)
