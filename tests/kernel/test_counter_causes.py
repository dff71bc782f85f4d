"""Each loss counter is raised by what it is there for: a failing system call, a full ring, a cap.

Counters that have their cause elsewhere are named in `ELSEWHERE`; no gating counter has none.
"""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest
from injected import attached, attached_to, strace
from rootseal import diagnostics
from rootseal.capture.ebpf import EbpfTracer
from running_daemon import RunningDaemon, one_line
from trace_action import TraceLab, build_trace_fixture

NEEDS = ("root", "fanotify", "launcher", "core", "strace")
pytestmark = pytest.mark.requires(*NEEDS)
HELD = "--option=capture-mode=walk", "--option=fanotify=on"  # fanotify alone
ZERO = "--option=require-zero-drops=1"

# Call that fails in the daemon, the error, and the counter that says so.
FAILURES = {
    "fallbackHashFailures": ("pread64", "error=EIO"),
    "handlerErrors": ("statx", "error=EIO"),
    "unhashedOpensTotal": ("readlink", "error=ENAMETOOLONG"),
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
ELSEWHERE = {
    "fanotifyDigestsCapHit": "test_daemon.py",
    "recordBytesCapHit": "test_fanotify_materials.py",
    "hashedBytesCapHit": "test_fanotify_materials.py",
    "processTableCapHit": "test_fanotify_materials.py",
    "fsVeritySealFailures": "test_fsverity_run.py",
    "ringbufExecDrops": "test_ebpf.py",
    "traceTruncated": "test_ebpf.py",
    "mutatedAfterOpen": "test_fanotify_materials.py",
    "unstableFiles": "test_fanotify_materials.py",
    "unmarkedMounts": "test_fanotify_products.py",
    "namespaceEscapes": "test_ebpf_daemon.py",
}
# Nothing but the kernel's own distress raises these, so no test can.
ONLY_IN_DISTRESS = {
    "fanotifyQueueOverflows": "the queue has no limit; the kernel had no memory for an event",
    "traceMapFull": "more members at once than the kernel has process ids",
    "traceProgramMisses": "a program that interrupts itself",
    "tracerDetaches": "x32 code, which few kernels run",
    "lateEvents": "an event of the action after all its processes are gone",
}


def test_every_gating_counter_has_a_cause() -> None:
    always_zero = {c.name for c in diagnostics.COUNTERS if c.meaning.endswith("so always 0.")}
    known = {*FAILURES, *FLOODS, *ELSEWHERE, *ONLY_IN_DISTRESS, *always_zero}
    assert {counter.name for counter in diagnostics.COUNTERS if counter.gating} == known
    for name, file in ELSEWHERE.items():
        assert name in (Path(__file__).parent / file).read_text()


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
