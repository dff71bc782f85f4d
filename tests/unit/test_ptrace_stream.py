"""The reader of the ptrace tracer's records: total on any bytes, bounded, exact."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rootseal import diagnostics, leaf_table
from rootseal.capture import ptrace_stream
from rootseal.capture.paths import relative_to
from rootseal.capture.ptrace import LOSS_COUNTERS, PtraceScope, mode_text
from rootseal.capture.ptrace_stream import (
    COUNTER_COUNT,
    FILE_BORN,
    FILE_REMOTE,
    MOUNTS_MAX,
    NONE,
    Loss,
    Record,
    TraceStream,
)
from rootseal.capture.scope import CaptureLimits
from rootseal.errors import CaptureError, EncodingError
from rootseal.leaf_table import Domain
from rootseal.observation import (
    MUTATIONS_MAX,
    MountMark,
    Mutation,
    MutationTime,
    Observation,
    Posture,
)

HEADER = Path(__file__).resolve().parents[2] / "native" / "trace_event.h"
LIMITS = CaptureLimits(max_digests=100, max_processes=10)
DIGEST = bytes(range(32))


def record(kind: int, body: bytes) -> bytes:
    return struct.pack(">HHI", kind, 0, len(body)) + body


def process(pid: int = 7, parent: int = NONE) -> bytes:
    return record(Record.PROCESS, struct.pack(">IIQ", pid, parent, 1))


def files(*paths: bytes, kind: int = Record.FILES, flags: int = 0) -> bytes:
    fixed = b"".join(
        struct.pack(">32sQIHBBQQ", DIGEST, 3, 0o644, len(path), 0, flags, 1, 2) for path in paths
    )
    return record(kind, struct.pack(">I", len(paths)) + fixed + b"".join(paths))


def opens(*pairs: tuple[int, int]) -> bytes:
    return record(Record.OPENS, b"".join(struct.pack(">II", *pair) for pair in pairs))


def counters(**losses: int) -> bytes:
    values = [0] * COUNTER_COUNT
    for name, value in losses.items():
        values[Loss[name]] = value
    return record(Record.COUNTERS, struct.pack(f">{COUNTER_COUNT}Q", *values))


def observe(data: bytes, limits: CaptureLimits = LIMITS) -> Observation:
    scope = PtraceScope(root=b"/r", limits=limits)
    scope.feed(data)
    return scope.finish(outputs_files=(), outputs_dirs=())


GOOD = process() + process(8, 0) + files(b"/r/a", b"/etc/b") + opens((0, 0), (1, 1)) + counters()


def test_good_stream() -> None:
    found = observe(GOOD)
    leaves = list(leaf_table.iter_leaves(found.materials.raw, Domain.MATERIAL))
    assert [leaf.path for leaf in leaves] == [b"/etc/b", b"a"]
    assert found.posture == Posture.HELD
    assert [p.parentpid for p in found.processes] == [0, 7]


MOUNT = rb"36 35 0:50 / /mnt/a\040b rw shared:1 - fuse.sshfs host: rw"
SERVED = "served by others: content can change after it was hashed"


def test_what_others_serve_is_observed_and_its_mount_named() -> None:
    data = process() + files(b"/mnt/a b/x", flags=FILE_REMOTE) + record(Record.MOUNT, MOUNT)
    found = observe(data + counters())
    assert found.posture is Posture.OBSERVED
    assert found.mounts == (MountMark(b"/mnt/a b", "fuse.sshfs", True, SERVED),)


def test_what_the_action_made_there_itself_is_no_material() -> None:
    made = files(b"/mnt/x", flags=FILE_REMOTE | FILE_BORN)
    assert observe(process() + made + counters()).posture is Posture.HELD


@pytest.mark.parametrize("line", [b"", b"36 35 0:50 / /x", MOUNT.replace(b" - ", b"   ")])
def test_a_mount_that_is_none_is_refused(line: bytes) -> None:
    with pytest.raises(CaptureError, match="MOUNT record is malformed"):
        observe(record(Record.MOUNT, line) + counters())


def test_mounts_have_a_limit() -> None:
    with pytest.raises(CaptureError, match="too many"):
        observe(record(Record.MOUNT, MOUNT) * (MOUNTS_MAX + 1) + counters())


def mutation(path: bytes, readable: int = 1, zero: int = 0, length: int = -1) -> bytes:
    size = len(path) if length < 0 else length
    later = DIGEST[::-1] if readable else bytes(32)
    body = struct.pack(">BBH32s32s", readable, zero, size, DIGEST, later)
    return record(Record.MUTATION, body + path)


def test_both_digests_of_changed_files_and_how_many_more() -> None:
    data = mutation(b"/r/a") + mutation(b"/etc/b", 0)
    found = observe(data + counters(MUTATED=5))
    assert found.counters["mutatedAfterOpen"] == 5
    assert found.mutations.left_out == 3
    assert found.mutations.found == (
        Mutation(b"a", DIGEST, DIGEST[::-1], MutationTime.END),
        Mutation(b"/etc/b", DIGEST, None, MutationTime.END),
    )


@pytest.mark.parametrize(
    "data",
    [
        mutation(b"/r/a") + counters(),  # told, but not counted
        mutation(b"/r/a", 2) + counters(MUTATED=1),
        mutation(b"/r/a", zero=1) + counters(MUTATED=1),
        mutation(b"/r/a", length=3) + counters(MUTATED=1),
        mutation(b"/r/a") * (MUTATIONS_MAX + 1) + counters(MUTATED=MUTATIONS_MAX + 1),
    ],
)
def test_mutations_that_are_malformed_or_too_many(data: bytes) -> None:
    with pytest.raises(CaptureError):
        observe(data)


def test_any_cut_is_refused() -> None:
    for length in range(len(GOOD)):
        with pytest.raises(CaptureError):
            observe(GOOD[:length])


def test_pieces_of_any_size_are_one_stream() -> None:
    whole = observe(GOOD)
    for size in (1, 3, 7, 64):
        scope = PtraceScope(root=b"/r", limits=LIMITS)
        for start in range(0, len(GOOD), size):
            scope.feed(GOOD[start : start + size])
        found = scope.finish(outputs_files=(), outputs_dirs=())
        assert found.materials == whole.materials and found.opens == whole.opens


def test_written_by_the_action_is_no_material() -> None:
    assert observe(files(b"/r/a", flags=1) + counters()).materials.tree_size == 0


@pytest.mark.parametrize(
    "data",
    [
        record(99, b""),
        struct.pack(">HHI", 1, 1, 16),
        struct.pack(">HHI", 4, 0, 1 << 30),
        record(Record.PROCESS, b"short"),
        process(parent=3),
        record(Record.EXIT, struct.pack(">IIQ", 0, 0, 0)),
        record(Record.FILES, struct.pack(">I", 1 << 31)),
        files(b"/a")[:-1] + b"",
        record(Record.OPENS, b"1234567"),
        record(Record.ENVIRONMENT, struct.pack(">IH", 1, 5) + b"name"),
        record(Record.LOSS, struct.pack(">IIH", 99, 0, 0)),
        counters() + process(),
        b"".join(process(pid) for pid in range(1, 12)),
        files(*[b"/%d" % number for number in range(101)]),
    ],
)
def test_malformed_stream_is_refused(data: bytes) -> None:
    stream = TraceStream(LIMITS)
    with pytest.raises(EncodingError):
        stream.feed(data)
        stream.finish()


@pytest.mark.parametrize("pair", [(1, 0), (0, 5), (NONE, 0)])
def test_open_of_what_was_not_sent_is_refused(pair: tuple[int, int]) -> None:
    with pytest.raises(CaptureError):
        observe(process() + files(b"/a") + opens(pair) + counters())


def test_path_without_bytes_is_refused() -> None:
    with pytest.raises(CaptureError):
        observe(files(b"") + counters())


@given(st.binary(max_size=400))
def test_any_bytes_are_a_stream_or_an_error(data: bytes) -> None:
    stream = TraceStream(LIMITS)
    try:
        stream.feed(data)
        stream.finish()
    except EncodingError:
        return
    assert stream.counters


@given(st.integers(0, len(GOOD) - 1), st.integers(1, 255))
def test_any_changed_byte_is_read_or_refused(place: int, change: int) -> None:
    data = bytearray(GOOD)
    data[place] ^= change
    try:
        found = observe(bytes(data))
    except CaptureError:
        return
    assert set(found.counters) == set(diagnostics.NAMES)


@pytest.mark.parametrize("loss", list(Loss))
def test_every_loss_gates(loss: Loss) -> None:
    """Each way to miss something is a gating counter of the predicate."""
    found = observe(counters(**{loss.name: 3}))
    assert diagnostics.losses(found.counters) == {LOSS_COUNTERS[loss]: 3}


def test_events_beyond_the_cap_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ptrace_stream, "EVENTS_MAX", 2)
    op = struct.pack(">IBBHQQHH", 0, 5, 0, 0, 0, 1, 2, 0) + b"/a"
    found = observe(process() + record(Record.FILE_OP, op) * 5 + counters())
    trace = found.processes[0].trace
    assert trace is not None and len(trace.file_ops.deletes) == 2
    assert diagnostics.losses(found.counters) == {"recordBytesCapHit": 3}


def test_feeding_after_the_end_is_refused() -> None:
    scope = PtraceScope(root=b"/r", limits=LIMITS)
    scope.abort()
    with pytest.raises(CaptureError):
        scope.feed(GOOD)
    with pytest.raises(CaptureError):
        scope.finish(outputs_files=(), outputs_dirs=())


def test_relative_paths() -> None:
    assert relative_to(b"/r", b"/r/a/b") == b"a/b"
    assert relative_to(b"/r", b"/ra") == b"/ra"
    assert relative_to(b"/r", b"/r") == b"/r"
    assert relative_to(b"/", b"/a") == b"a"


def test_mode_text_names_the_caps() -> None:
    limits = CaptureLimits(max_digests=1, max_hashed_bytes=2, max_processes=3)
    assert mode_text(limits) == "ptrace:1:2:3"


def enumerators(name: str) -> dict[str, int]:
    """Values of an enum of trace_event.h, counting as C does."""
    text = HEADER.read_text("utf-8").split(f"enum {name} {{")[1].split("};")[0]
    values: dict[str, int] = {}
    number = 0
    for line in text.splitlines():
        word = line.strip().split(",")[0]
        if not word.startswith("RS_TRACE_"):
            continue
        key, _, value = (part.strip() for part in word.partition("="))
        if value:
            number = 16 if value == "RS_TRACE_LOSS_COUNT" else int(value)
        values[key] = number
        number += 1
    return values


def test_numbers_are_those_of_the_header() -> None:
    assert "#define RS_TRACE_LOSS_COUNT 16" in HEADER.read_text("utf-8")
    records = {name[len("RS_TRACE_") :]: n for name, n in enumerators("rs_trace_record").items()}
    assert records == {item.name: item.value for item in Record}
    losses = enumerators("rs_trace_loss")
    assert {name[len("RS_TRACE_LOSS_") :]: n for name, n in losses.items()} == {
        item.name: item.value for item in Loss
    }
    flags = enumerators("rs_trace_file_flag")
    assert {name.replace("RS_TRACE_", ""): n for name, n in flags.items()} == {
        name: value for name, value in vars(ptrace_stream).items() if name.startswith("FILE_")
    }
    assert f"#define RS_TRACE_MOUNTS_MAX    {MOUNTS_MAX}u" in HEADER.read_text("utf-8")
    counts = enumerators("rs_trace_counter")
    assert counts.pop("RS_TRACE_COUNTER_COUNT") == COUNTER_COUNT
    assert {name[len("RS_TRACE_C_") :]: n for name, n in counts.items()} == {
        item.name: item.value for item in ptrace_stream.Count
    }
