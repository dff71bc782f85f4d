"""Each loss counter is raised by what it is there for: a failing system call, a full ring, a cap.

Counters that have their cause elsewhere are named in `ELSEWHERE`; no gating counter has none.
"""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Callable, Set

import pytest
from full_map import filled, map_of
from injected import attached, attached_to, strace
from rootseal import diagnostics
from rootseal.capture.ebpf import EbpfTracer
from running_daemon import Done, RunningDaemon, is_alive, one_line, until
from trace_action import TraceLab, build_trace_fixture

NEEDS = ("root", "fanotify", "launcher", "core", "strace")
pytestmark = pytest.mark.requires(*NEEDS)
HELD = "--option=capture-mode=walk", "--option=fanotify=on"  # fanotify alone
TRACED = "--option=capture-mode=trace:ebpf", "--option=fanotify=on"
ZERO = "--option=require-zero-drops=1"
FANOTIFY_MARK = {"x86_64": 301, "aarch64": 263}
VISITOR = """
import sys
print("ready", flush=True)
sys.stdin.read()
open(sys.argv[1])
print("opened", flush=True)
"""

# Call that fails in the daemon, the error, and the counter that says so.
FAILURES = {
    "fallbackHashFailures": ("pread64", "error=EIO"),
    "handlerErrors": ("statx", "error=EIO"),
    "unhashedOpensTotal": ("readlinkat", "error=ENAMETOOLONG"),
}
# What fills the ring while nobody reads it.
FLOODS = {
    "ringbufOpenatDrops": "for _ in range(4000): os.close(os.open('a', 0))",
    "ringbufForkDrops": "for _ in range(1500):\n    if os.fork() == 0: os._exit(0)\n    os.wait()",
    "ringbufFileOpDrops": "for n in range(3000): os.rename('a', 'b'); os.rename('b', 'a')",
    "ringbufNetworkDrops": "import socket\nfor _ in range(3000):\n"
    "    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s: s.connect(('127.0.0.1', 9))",
    "ringbufSyscallDrops": "for _ in range(4000): os.close(os.memfd_create('x'))",
}
# Tests of other files that raise a counter and fail if it stays zero.
ELSEWHERE = {
    "fanotifyDigestsCapHit": "test_daemon.py::test_a_loss_fails_the_action_and_nothing_is_signed",
    "recordBytesCapHit": "test_fanotify_materials.py::test_caps_mark_only_their_action",
    "hashedBytesCapHit": "test_fanotify_materials.py::test_caps_mark_only_their_action",
    "processTableCapHit": "test_fanotify_materials.py::test_caps_mark_only_their_action",
    "ringbufExecDrops": "test_ebpf.py::test_a_full_ring_is_counted_for_its_scope_only",
    "traceTruncated": "test_ebpf.py::test_a_path_beyond_the_bound_is_counted",
    "mutatedAfterOpen": "test_fanotify_materials.py::test_a_material_changed_by_others_is_counted",
    "unstableFiles": "test_fanotify_materials.py::test_a_file_that_keeps_growing_is_counted",
    "unmarkedMounts": "test_fanotify_products.py::test_mounts_are_listed_and_late_ones_counted",
    "namespaceEscapes": "../adversarial/test_leaving_the_namespace.py::"
    "test_a_way_into_another_mount_namespace_is_counted",
    "foreignProducts": "../adversarial/test_foreign_products.py::"
    "test_a_product_that_another_overwrites_is_counted_and_gated",
    "blockDeviceOpens": "../adversarial/test_other_ways_to_read.py::"
    "test_reading_a_block_device_is_counted_and_gated",
}
HERE = ("tracerDetaches", "traceMapFull", "lateEvents")  # tests of their own, below
NATIVE = {"fanotifyQueueOverflows": "test_queue_overflow.c"}
# No test can raise these; docs/predicate.md says why not, and what their zero is worth.
ONLY_IN_DISTRESS = {"traceProgramMisses"}


def test_every_gating_counter_has_a_cause() -> None:
    always_zero = {c.name for c in diagnostics.COUNTERS if c.meaning.endswith("so always 0.")}
    known = {*FAILURES, *FLOODS, *ELSEWHERE, *HERE, *NATIVE, *ONLY_IN_DISTRESS, *always_zero}
    assert {counter.name for counter in diagnostics.COUNTERS if counter.gating} == known
    for file in NATIVE.values():
        assert (Path(__file__).parents[1] / "native" / file).exists()


def asserted_in(function: ast.FunctionDef) -> Set[str]:
    """The texts in a function's assertions, but for those that say that something is zero."""
    checks = [node.test for node in ast.walk(function) if isinstance(node, ast.Assert)]
    raised = [check for check in checks if not says_zero(check)]
    nodes = [node for check in raised for node in ast.walk(check)]
    texts = [node.value for node in nodes if isinstance(node, ast.Constant)]
    return {word for text in texts if isinstance(text, str) for word in text.split()}


def says_zero(check: ast.expr) -> bool:
    return isinstance(check, ast.Compare) and any(
        isinstance(operator, (ast.Eq, ast.Is))
        and isinstance(value, ast.Constant)
        and not value.value
        for operator, value in zip(check.ops, check.comparators)
    )


def test_causes_elsewhere_are_tests_that_assert_their_counter() -> None:
    """Each is collected, and would fail if its counter stayed zero."""
    directory = Path(__file__).parent
    places = sorted({str((directory / place).resolve()) for place in ELSEWHERE.values()})
    collect = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider"]
    done = subprocess.run([*collect, *places], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:]
    for name, place in ELSEWHERE.items():
        file, _, test = place.partition("::")
        tree = ast.parse((directory / file).read_text())
        (function,) = [
            node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == test
        ]
        assert name in asserted_in(function), place


def in_call(daemon: RunningDaemon, number: int) -> bool:
    """Whether a thread of the daemon is in this system call."""
    tasks = Path(f"/proc/{daemon.process.pid}/task").iterdir()
    return any((task / "syscall").read_text().startswith(f"{number} ") for task in tasks)


@pytest.mark.parametrize("name", FAILURES)
def test_a_call_that_fails_is_counted_and_gated(
    daemon: RunningDaemon, tmp_path: Path, name: str
) -> None:
    (tmp_path / "in").write_text(f"never seen before: {name} {time.time_ns()}\n")
    action = ["/bin/sh", "-c", "echo ready; read go; read line < in"]
    words = strace(FAILURES[name][0], "1+", FAILURES[name][1])
    for option in ("--option=require-zero-drops=0", ZERO):
        process = daemon.start(tmp_path, action, *HELD, option)
        assert process.stdout.readline() == b"ready\n"
        with attached(daemon, words):
            done = daemon.end(process, tmp_path / "the-record", b"go\n")
        if option == ZERO:
            assert done.returncode == 125 and name in one_line(done.stderr)
        else:
            assert done.returncode == 0, done.stderr
            assert done.verified().losses[name] > 0
            done.record.unlink()


@pytest.mark.requires(*NEEDS, "ebpf", "gcc")
@pytest.mark.parametrize("name", FLOODS)
def test_a_ring_that_nobody_reads_is_counted(tmp_path: Path, name: str) -> None:
    (tmp_path / "a").write_text("a")
    fixture = build_trace_fixture(tmp_path)
    before = {thread.native_id for thread in threading.enumerate()}
    tasks = {int(task.name) for task in Path("/proc/self/task").iterdir()}
    tracer = EbpfTracer(ring_bytes=1 << 16)
    try:
        (reader,) = {int(task.name) for task in Path("/proc/self/task").iterdir()} - tasks - before
        lab = TraceLab(fixture, tracer)
        words = strace("epoll_wait", "1+", "delay_enter=3000000")
        with attached_to(words, ["-p", str(reader)]):
            action = lab.start(tmp_path, ["/usr/bin/python3", "-c", f"import os\n{FLOODS[name]}"])
            assert action.process.wait() == 0
        assert action.finish().losses()[name] > 0
    finally:
        tracer.close()


def both_ways(name: str, run: Callable[[str], Done]) -> None:
    """Counted in the record; and where nothing may be lost, the action fails and leaves none."""
    counted = run("--option=require-zero-drops=0")
    assert counted.returncode == 0, counted.stderr
    assert counted.verified().losses[name] > 0
    counted.record.unlink()
    refused = run(ZERO)
    assert refused.returncode == 125 and name in one_line(refused.stderr)
    assert not refused.record.exists()


@pytest.mark.requires(*NEEDS, "ebpf")
def test_a_call_of_an_unknown_abi_is_gated(daemon: RunningDaemon, tmp_path: Path) -> None:
    """x32: also on kernels that refuse it, because the number alone is what the trace sees."""
    call = "import ctypes; ctypes.CDLL(None).syscall(0x40000000 | 39)"

    def run(option: str) -> Done:
        return daemon.run(tmp_path, ["/usr/bin/python3", "-c", call], *TRACED, option)

    both_ways("tracerDetaches", run)


@pytest.mark.requires(*NEEDS, "ebpf")
def test_a_full_map_of_processes_is_gated(daemon: RunningDaemon, tmp_path: Path) -> None:
    """As if 131,072 processes of other actions ran; only so many there cannot be here."""

    def run(option: str) -> Done:
        words = ["/bin/sh", "-c", "echo ready; read go; (true); (true)"]
        process = daemon.start(tmp_path, words, *TRACED, option)
        assert process.stdout.readline() == b"ready\n"
        with filled(map_of(daemon, b"rs_members")):
            return daemon.end(process, tmp_path / "the-record", b"go\n")

    both_ways("traceMapFull", run)


def test_an_open_after_the_end_is_gated(daemon: RunningDaemon, tmp_path: Path) -> None:
    """By somebody outside who has entered the namespace: all processes of the action are gone."""
    (tmp_path / "in").write_text("in")

    def run(option: str) -> Done:
        words = ["/bin/sh", "-c", "echo ready $$; read go"]
        process = daemon.start(tmp_path, words, *HELD, option)
        pid = process.stdout.readline().split()[1].decode()
        entered = [
            "nsenter",
            f"--mount=/proc/{pid}/ns/mnt",
            "--",
            "/usr/bin/python3",
            "-c",
            VISITOR,
        ]
        with subprocess.Popen(
            [*entered, str(tmp_path / "in")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as visitor:
            assert visitor.stdin is not None and visitor.stdout is not None
            assert visitor.stdout.readline() == b"ready\n"
            # The one mark call at the end takes the marks away; it goes on when strace has gone.
            with attached(daemon, strace("fanotify_mark", 1, "delay_enter=1000000000")):
                process.stdin.write(b"go\n")
                process.stdin.flush()
                until(lambda: not is_alive(int(pid)), "the action has ended")
                until(
                    lambda: in_call(daemon, FANOTIFY_MARK[os.uname().machine]),
                    "its marks are to go",
                )
                visitor.stdin.close()
                assert visitor.stdout.read() == b"opened\n"
            return daemon.end(process, tmp_path / "the-record")

    both_ways("lateEvents", run)
