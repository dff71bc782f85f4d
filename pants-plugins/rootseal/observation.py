"""What a capture backend saw of one action, before any judgement.

A backend returns an `Observation`; `predicate.py` turns it into the predicate. The leaf tables are
kept in their encoded form (docs/formats.md), because an action may have hundreds of thousands of
materials and no Python object should exist for each of them.
"""

from __future__ import annotations

import dataclasses
import enum
from typing import Mapping, Optional, Tuple

from rootseal.process_trace import ProcessTrace


class Posture(enum.Enum):
    """How strong a capture was, weakest first (DESIGN 5.6)."""

    WALKED = "walked"  # directory snapshots before and after
    OBSERVED = "observed"  # events seen after the fact
    HELD = "held"  # the opener was blocked while the content was hashed
    SEALED = "sealed"  # fs-verity: the kernel refuses other content

    @property
    def rank(self) -> int:
        """0 for the weakest."""
        return list(Posture).index(self)


class LeafKind(enum.IntEnum):
    """What a leaf stands for."""

    FILE = 0  # a regular file that was opened or left behind
    EXECUTABLE = 1  # a regular file that was executed (program or its loader)
    SYMLINK = 2  # digest and size are of the link's target text
    CODE = 3  # a material of machine code (ELF, PE) that was opened: what can be mapped and run


class DigestSource(enum.IntEnum):
    """Where the digest of a leaf comes from (DESIGN 5.6)."""

    FANOTIFY_OPEN_TIME = 0
    PTRACE_OPEN_TIME = 1
    OPENAT_PATH_HASH = 2
    BPF_STREAMING = 3
    FANOTIFY_ONLY = 4
    FSVERITY_MEASURED = 5
    IMA = 6
    WALK = 7
    FANOTIFY_CLOSE_WRITE = 8

    @property
    def text(self) -> str:
        """The name used in JSON, for example `fanotify-open-time`."""
        return self.name.lower().replace("_", "-")


@dataclasses.dataclass(frozen=True)
class LeafTable:
    """An encoded, sorted leaf table and its RFC 6962 summary.

    Attributes:
        raw: The table as docs/formats.md describes it, not compressed.
        tree_root: RFC 6962 root over the leaves, 32 bytes.
        tree_size: Number of leaves.
    """

    raw: bytes
    tree_root: bytes
    tree_size: int


@dataclasses.dataclass(frozen=True)
class ProcessRecord:
    """One process of the action. Paths and arguments are bytes, as the kernel has them.

    Attributes:
        processid: Process id in the daemon's pid namespace.
        parentpid: Parent's id when the process was first seen, 0 if unknown.
        program: Path of the executed file; empty if never seen.
        comm: Command name, at most 15 bytes.
        cmdline: Arguments of the last exec that was seen; empty if never seen.
        programdigest: SHA-256 of the executed file, or None if it was not seen to be executed.
        exedigest: SHA-256 of the loaded executable as /proc/PID/exe names it, or None.
        exitcode: Exit code, 128+signal if killed, None where the backend cannot know it.
        trace: What a trace backend saw it do; None without one.
    """

    processid: int
    parentpid: int
    program: bytes
    comm: bytes
    cmdline: Tuple[bytes, ...]
    programdigest: Optional[bytes]
    exedigest: Optional[bytes]
    exitcode: Optional[int] = None
    trace: Optional[ProcessTrace] = None


@dataclasses.dataclass(frozen=True)
class MountMark:
    """One mount of the action's namespace and what was done about it.

    Attributes:
        mount_point: Path in the action's namespace.
        filesystem: Filesystem type, for example `ext4`.
        marked: Whether events of this mount are captured.
        reason: Why not, or why the posture of its files is weaker; else empty.
        compared_at_access: Whether its files are compared again at a read or mmap if they changed.
    """

    mount_point: bytes
    filesystem: str
    marked: bool
    reason: str
    compared_at_access: bool = False

    @property
    def posture(self) -> Optional[Posture]:
        """The strongest that is honest for its files; None where they are not captured."""
        if not self.marked:
            return None
        return Posture.OBSERVED if self.reason else Posture.HELD


class MutationTime(enum.IntEnum):
    """When it was noticed that a material had changed."""

    END = 0  # the action's processes were gone
    ACCESS = 1  # a read or mmap was held: the reader may have got the later content

    @property
    def text(self) -> str:
        """The name used in JSON: `end`, `access`."""
        return self.name.lower()


MUTATIONS_MAX = 1024


@dataclasses.dataclass(frozen=True)
class Mutation:
    """A material that somebody else changed after it was hashed.

    Attributes:
        path: As in its leaf.
        digest_at_open: What its leaf has, 32 bytes.
        digest_later: Of the content that was found, 32 bytes; None if it could not be read.
        when: When it was found.
    """

    path: bytes
    digest_at_open: bytes
    digest_later: Optional[bytes]
    when: MutationTime


@dataclasses.dataclass(frozen=True)
class Mutations:
    """What `mutatedAfterOpen` counted.

    Attributes:
        found: At most `MUTATIONS_MAX`.
        left_out: How many more there were.
    """

    found: Tuple[Mutation, ...] = ()
    left_out: int = 0

    def __add__(self, other: Mutations) -> Mutations:
        """Those of two witnesses, each of which counted its own."""
        both = self.found + other.found
        beyond = max(0, len(both) - MUTATIONS_MAX)
        return Mutations(both[:MUTATIONS_MAX], self.left_out + other.left_out + beyond)


@dataclasses.dataclass(frozen=True)
class Ledger:
    """Two witnesses compared: distinct files that the trace saw being opened.

    Attributes:
        files: How many.
        hashed: Those with a digest of the hashing backend.
        excluded: The others that need none, by reason.
        unhashed: What is left, by reason: a loss (`unhashedOpensTotal`).
    """

    files: int
    hashed: int
    excluded: Mapping[str, int]
    unhashed: Mapping[str, int]


@dataclasses.dataclass(frozen=True)
class TracePrograms:
    """How eBPF watched.

    Attributes:
        loader: `co-re` or `bcc`.
        opens: What told of opens: `lsm/file_open` or `sys_exit`.
        reason: Why not lsm/file_open; else empty.
    """

    loader: str
    opens: str
    reason: str


@dataclasses.dataclass(frozen=True)
class Observation:
    """Everything one scope saw.

    Attributes:
        backend: `fanotify`, `walk`, `ptrace`, `ebpf`, or several joined by `+`.
        posture: What the backend achieved.
        materials: Leaf table of domain `M`.
        products: Leaf table of domain `P`.
        opens: Opens table (which process opened which material), not compressed.
        processes: The process table; the opens table refers to it by index.
        mounts: Mounts of the namespace; of `ptrace` those that others serve, of others none.
        counters: Every counter of `diagnostics.NAMES`.
        hashed_files: Pairs of native u64 (st_dev, st_ino), each file that was given a digest, for
            the ledger; empty where the backend does not keep them. Not part of the predicate.
        fanotify_only: Materials that only fanotify saw though a trace backend watched too.
        ledger: The comparison of two witnesses; None where there was one.
        ebpf: The trace programs; None where there were none.
        mutations: The materials that others changed meanwhile.
    """

    backend: str
    posture: Posture
    materials: LeafTable
    products: LeafTable
    opens: bytes
    processes: Tuple[ProcessRecord, ...]
    mounts: Tuple[MountMark, ...]
    counters: Mapping[str, int]
    hashed_files: bytes = dataclasses.field(default=b"", repr=False)
    fanotify_only: int = 0
    ledger: Optional[Ledger] = None
    ebpf: Optional[TracePrograms] = None
    mutations: Mutations = Mutations()
