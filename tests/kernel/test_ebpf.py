"""The eBPF backend on the real kernel: processes, opens, file operations, the ledger."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path
from typing import Iterator

import pytest
from fanotify_action import gives_file_handles
from rootseal import _native_trace, digest
from rootseal.capture import trace_events
from rootseal.capture.ebpf import EbpfTracer
from rootseal.errors import BackendUnavailable, CaptureError, ConfigError
from trace_action import Traced, TraceLab, build_trace_fixture, info_bytes, trace_of

pytestmark = pytest.mark.requires("root", "ebpf")


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TraceLab]:
    tracer = EbpfTracer()
    try:
        yield TraceLab(build_trace_fixture(tmp_path_factory.mktemp("bin")), tracer)
    finally:
        tracer.close()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "a").write_bytes(b"content of a\n")
    return tmp_path


def test_layouts_are_those_of_the_header() -> None:
    for kind, layout in trace_events.LAYOUTS.items():
        size = _native_trace.event_size(kind)
        assert layout.size <= size < layout.size + 8, kind  # padding at the end only
        assert size <= trace_events.TAIL


def test_needed_programs_are_attached(lab: TraceLab) -> None:
    programs = {program.name: program for program in lab.tracer.programs}
    for name in ("trace_fork", "trace_exec", "trace_exit", "trace_call"):
        assert programs[name].required and programs[name].attached
    for program in programs.values():
        assert program.attached != bool(program.reason)


# --- processes -------------------------------------------------------------------------------


def test_process_has_its_exec_arguments_environment_and_exit(lab: TraceLab, root: Path) -> None:
    words = ["/usr/bin/env", "-i", "SECRET=value=with=equals", "EMPTY=", "/bin/sh", "-c"]
    seen = lab.run(root, [*words, "exit 42", "", "x y"])
    process = seen.first
    assert process.cmdline == (b"/bin/sh", b"-c", b"exit 42", b"", b"x y")
    assert process.program == os.fsencode(os.path.realpath("/bin/sh"))
    assert process.parentpid == os.getpid()
    assert (process.comm, process.exitcode) == (b"sh", 42)
    assert seen.trace.environ == (
        (b"SECRET", digest.sha256(b"value=with=equals")),
        (b"EMPTY", digest.sha256(b"")),
    )
    assert not seen.trace.truncated


def test_death_by_signal_is_128_and_the_signal(lab: TraceLab, root: Path) -> None:
    seen = lab.run(root, [lab.fixture, "signal", int(signal.SIGUSR1)])
    assert seen.first.exitcode == 128 + signal.SIGUSR1


def test_children_belong_to_their_parents(lab: TraceLab, root: Path) -> None:
    seen = lab.do(root, "fork", 20, lab.fixture, "openat", "a")
    children = [item for item in seen.processes if item.parentpid == seen.first.processid]
    assert len(seen.processes) == 21 and len(children) == 20
    assert all(child.cmdline[1:] == (b"openat", b"a") for child in children)
    assert all(child.exitcode == 0 for child in children)


def test_arguments_of_a_megabyte_are_complete(lab: TraceLab, root: Path) -> None:
    words = [f"{number:06}" + "x" * 9994 for number in range(90)]
    seen = lab.run(root, ["/bin/true", *words])
    assert seen.first.cmdline == (b"/bin/true", *(word.encode() for word in words))
    assert not seen.trace.truncated and seen.losses() == {}


def test_arguments_beyond_the_bound_are_marked(lab: TraceLab, root: Path) -> None:
    seen = lab.run(root, ["/bin/true", *["y" * 100_000] * 15])
    assert seen.trace.truncated
    assert len(b"\0".join(seen.first.cmdline)) >= 1_000_000


def test_double_fork_and_setsid_do_not_escape(lab: TraceLab, root: Path) -> None:
    seen = lab.do(root, "daemon", "a")
    assert seen.opened("a")
    assert len(seen.processes) == 3


def test_threads_are_their_process(lab: TraceLab, root: Path) -> None:
    seen = lab.do(root, "thread", "a")
    assert seen.opened("a") and len(seen.processes) == 1


def test_others_are_not_seen(lab: TraceLab, root: Path) -> None:
    (root / "b").write_bytes(b"other")
    action = lab.start(root, ["/bin/sh", "-c", "cat a >/dev/null; sleep 0.2"])
    subprocess.run(["/bin/cat", str(root / "b")], check=True, stdout=subprocess.DEVNULL)
    seen = action.finish()
    assert seen.opened("a") and not seen.opened("b")


def test_scopes_at_once_see_only_their_own(lab: TraceLab, root: Path) -> None:
    names = [f"f{number}" for number in range(16)]
    for name in names:
        (root / name).write_text(name)
    actions = [lab.start(root, [lab.fixture, "open_loop", name, 500]) for name in names]
    for name, action in zip(names, actions):
        seen = action.finish()
        assert seen.losses() == {} and seen.exit_code == 0
        assert [seen.opened(other) for other in names] == [other == name for other in names]
        assert seen.observation.opens >= 500


# --- opens -----------------------------------------------------------------------------------


@pytest.mark.parametrize("call", ["open", "openat", "openat2", "open_by_handle_at"])
def test_every_kind_of_open_is_seen(lab: TraceLab, root: Path, call: str) -> None:
    if call == "open_by_handle_at" and not gives_file_handles(root):
        pytest.skip("optional: no file handles on overlayfs")
    seen = lab.do(root, call, "a")
    assert seen.opened("a")
    assert seen.ledger.unhashed["noDigest"] >= 1
    if call == "open_by_handle_at":
        assert len(seen.calls(call)) == 1


def test_an_open_through_links_is_one_of_the_file_behind_them(lab: TraceLab, root: Path) -> None:
    """By the hook and by the exit of the call alike; its path: test_ebpf_daemon.py."""
    (root / "real").mkdir()
    (root / "real" / "file").write_bytes(b"behind two links")
    (root / "folder").symlink_to("real")
    (root / "link").symlink_to("folder/file")
    seen = lab.do(root, "openat", "link")
    assert seen.pairs_of("real/file") & seen.pairs()
    itself = info_bytes((root / "link").lstat())
    assert not {itself, bytes(8) + itself[8:]} & seen.pairs()


def test_creat_is_an_open_of_a_file_the_action_made(lab: TraceLab, root: Path) -> None:
    seen = lab.do(root, "creat", "new")
    assert seen.opened("new") and seen.ledger.excluded["created"] == 1


def test_opath_has_no_content(lab: TraceLab, root: Path) -> None:
    assert lab.do(root, "opath", "a").ledger.excluded["noContent"] == 1


def test_memfd_reopened_is_a_memory_file(lab: TraceLab, root: Path) -> None:
    seen = lab.do(root, "memfd_create", "scratch")
    assert seen.ledger.excluded["memoryFile"] == 1
    (event,) = seen.calls("memfd_create")
    assert dict(event.details)["name"] == "scratch" and event.result >= 3


def test_executed_file_and_loader_are_opens(lab: TraceLab, root: Path) -> None:
    seen = lab.do(root, "openat", "a")
    assert seen.opened(lab.fixture)


@pytest.mark.heavy
def test_a_hundred_thousand_opens_are_all_counted(lab: TraceLab, root: Path) -> None:
    seen = lab.do(root, "open_loop", "a", 100_000)
    assert 100_000 <= seen.observation.opens < 100_100


@pytest.mark.heavy
def test_many_distinct_files_are_all_there(lab: TraceLab, root: Path) -> None:
    directory = root / "many"
    directory.mkdir()
    for number in range(5000):
        (directory / str(number)).write_bytes(b"x")
    seen = lab.do(root, "open_many", "many", 5000)
    pairs = seen.pairs()
    assert all(info_bytes((directory / str(n)).stat()) in pairs for n in range(5000))


def test_ledger_wants_a_digest_for_each_file(lab: TraceLab, root: Path) -> None:
    all_files = lab.do(root, "openat", "a")
    known = b"".join(all_files.pairs() - all_files.pairs_of("a"))
    seen = lab.do(root, "openat", "a", hashed=known)
    assert seen.ledger.unhashed == {"noDigest": 1, "unresolved": 0}
    full = lab.do(root, "openat", "a", hashed=known + info_bytes((root / "a").stat()))
    assert full.ledger.unhashed == {"noDigest": 0, "unresolved": 0}
    parts = full.ledger.hashed + sum(full.ledger.excluded.values())
    assert full.ledger.files == parts


# --- files -----------------------------------------------------------------------------------


def test_writes_are_summed_per_file(lab: TraceLab, root: Path) -> None:
    seen = lab.do(root, "write", "out")
    (write,) = seen.trace.file_ops.writes
    assert (write.path, write.size) == (b"out", 100 * 10 + 1 + 3)


@pytest.mark.parametrize("call", ["rename", "renameat2"])
def test_rename(lab: TraceLab, root: Path, call: str) -> None:
    seen = lab.do(root, call, "a", root / "b")
    (rename,) = seen.trace.file_ops.renames
    assert (rename.source, rename.destination) == (b"a", b"b")


def test_links(lab: TraceLab, root: Path) -> None:
    (hard,) = lab.do(root, "link", "a", "hard").trace.file_ops.links
    assert (hard.target, hard.path, hard.symbolic) == (b"a", b"hard", False)
    (soft,) = lab.do(root, "symlink", "../x", "soft").trace.file_ops.links
    assert (soft.target, soft.path, soft.symbolic) == (b"../x", b"soft", True)


def test_deletes(lab: TraceLab, root: Path) -> None:
    (root / "d").mkdir()
    (root / "d" / "x").write_bytes(b"")
    for words, path in (
        (("unlink", "a"), b"a"),
        (("unlinkat", "d", "x"), b"d/x"),
        (("rmdir", "d"), b"d"),
    ):
        (delete,) = lab.do(root, *words).trace.file_ops.deletes
        assert delete.path == path


def test_permissions_and_lengths(lab: TraceLab, root: Path) -> None:
    (change,) = lab.do(root, "chmod", "a").trace.file_ops.perm_changes
    assert (change.path, change.mode, change.set_exec) == (b"a", 0o755, True)
    (change,) = lab.do(root, "fchmod", "a").trace.file_ops.perm_changes
    assert (change.path, change.mode, change.set_exec) == (b"a", 0o600, False)
    (cut,) = lab.do(root, "truncate", "a").trace.file_ops.truncations
    assert (cut.path, cut.size) == (b"a", 3)
    (cut,) = lab.do(root, "ftruncate", "a").trace.file_ops.truncations
    assert (cut.path, cut.size) == (b"a", 2)


def test_paths_of_any_bytes(lab: TraceLab, root: Path) -> None:
    name = b"new\nline \xff\xfe " + b"n" * 230
    (root / os.fsdecode(name)).write_bytes(b"")
    (delete,) = lab.do(root, "unlink", os.fsdecode(name)).trace.file_ops.deletes
    assert delete.path == name


def test_deep_directories_are_complete(lab: TraceLab, root: Path) -> None:
    """Nearly 4,096 bytes, and far more components than a fixed buffer would hold."""
    depth = (4000 - len(os.fsencode(root))) // 2
    seen = lab.do(root, "deep", "d", depth)
    (delete,) = seen.trace.file_ops.deletes
    assert delete.path == b"d/" * depth + b"x"
    # pytest's own removal recurses and would end the session with a RecursionError.
    subprocess.run(["rm", "-rf", str(root / "d")], check=True)


def test_a_path_beyond_the_bound_is_counted(lab: TraceLab, root: Path) -> None:
    seen = lab.run(root, [lab.fixture, "deep", "d" * 250, 30])
    assert seen.exit_code == 0 and seen.trace.truncated
    assert seen.losses()["traceTruncated"] >= 1


# --- limits and errors -----------------------------------------------------------------------


def test_a_full_ring_is_counted_for_its_scope_only(root: Path, lab: TraceLab) -> None:
    small = EbpfTracer(ring_bytes=1 << 16)
    try:
        other = TraceLab(lab.fixture, small)
        victim = other.start(root, [lab.fixture, "openat", "a"]).finish()
        assert victim.losses() == {}
        flood = other.start(root, [lab.fixture, "fork", 60, "/bin/true", *["z" * 90_000] * 8])
        seen = flood.finish()
        assert seen.losses()["ringbufExecDrops"] > 0
        again = other.start(root, [lab.fixture, "openat", "a"]).finish()
        assert again.losses() == {}
    finally:
        small.close()


def test_abort_forgets_the_processes(lab: TraceLab, root: Path) -> None:
    action = lab.start(root, ["/bin/sh", "-c", "sleep 0.1; cat a"])
    action.scope.abort()
    action.scope.abort()
    action.process.wait()
    with pytest.raises(CaptureError):
        action.scope.finish()
    assert lab.do(root, "openat", "a").opened("a")


def test_many_scopes_one_after_the_other(lab: TraceLab, root: Path) -> None:
    """More than there are places: they are used again, counters start at zero."""
    for _ in range(1100):
        read, write = os.pipe()
        os.close(read)
        scope = lab.tracer.add_scope(os.getpid() ^ 0x3FFFFF)  # no such process: no event
        os.close(write)
        scope.abort()
    assert lab.do(root, "openat", "a").opened("a")


def test_ring_size_must_be_a_power_of_two() -> None:
    with pytest.raises(ConfigError, match="power of two"):
        EbpfTracer(ring_bytes=100_000)


def test_missing_object_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("rootseal.capture.ebpf._OBJECT", tmp_path / "trace.bpf.o")
    with pytest.raises(BackendUnavailable) as caught:
        EbpfTracer()
    assert "make build" in caught.value.remedy


def test_broken_object_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "trace.bpf.o").write_bytes(b"\x7fELF not really")
    monkeypatch.setattr("rootseal.capture.ebpf._OBJECT", tmp_path / "trace.bpf.o")
    with pytest.raises(BackendUnavailable):
        EbpfTracer()


def test_real_programs(lab: TraceLab, root: Path) -> None:
    (root / "m.c").write_text("#include <stdio.h>\nint main(void) { return 0; }\n")
    seen: Traced = lab.run(root, ["/usr/bin/gcc", "-O1", "m.c", "-o", "m"])
    assert seen.exit_code == 0 and seen.losses() == {}
    assert seen.opened("m.c") and seen.opened("/usr/include/stdio.h")
    programs = {item.program.rpartition(b"/")[2] for item in seen.processes}
    assert b"cc1" in programs and programs & {b"ld", b"x86_64-linux-gnu-ld.bfd", b"collect2"}
    writes = {w.path for item in seen.processes for w in trace_of(item).file_ops.writes}
    assert b"m" in writes
