"""Runs one program under the trace backend alone, or with fanotify, for tests of it."""

from __future__ import annotations

import dataclasses
import os
import subprocess
from pathlib import Path
from typing import Sequence

import fixture_programs
from rootseal.capture.ebpf import EbpfScope, EbpfTracer, TraceObservation
from rootseal.observation import Ledger, ProcessRecord
from rootseal.process_trace import ProcessTrace, SyscallEvent

NOT_HERE = 77  # the fixture's exit code for a call that this kernel does not have


def build_trace_fixture(directory: Path, *flags: str, compiler: str = "gcc") -> Path:
    """Compile the fixture program."""
    return fixture_programs.build("trace_fixture", directory, *flags, compiler=compiler)


def build_syscalls(directory: Path) -> Path:
    """Compile the fixture with a subcommand per system call."""
    return fixture_programs.build("syscalls", directory)


def trace_of(process: ProcessRecord) -> ProcessTrace:
    assert process.trace is not None
    return process.trace


@dataclasses.dataclass(frozen=True)
class Traced:
    """What the trace of one action gave."""

    exit_code: int
    observation: TraceObservation
    ledger: Ledger
    root: Path

    @property
    def processes(self) -> tuple[ProcessRecord, ...]:
        return self.observation.processes

    @property
    def first(self) -> ProcessRecord:
        return self.processes[0]

    @property
    def trace(self) -> ProcessTrace:
        return trace_of(self.first)

    def losses(self) -> dict[str, int]:
        counters = dict(self.observation.counters)
        counters.pop("tracedOpens")  # not a loss
        return {name: value for name, value in counters.items() if value}

    def calls(self, name: str) -> list[SyscallEvent]:
        events = [event for item in self.processes for event in trace_of(item).syscall_events]
        return [event for event in events if event.syscall == name]

    def opened(self, path: Path | str) -> bool:
        """Whether any process opened this file (by device and inode)."""
        return bool(self.pairs_of(path) & self.pairs())

    def pairs_of(self, path: Path | str) -> set[bytes]:
        """How a file may be named, see native/trace/ledger.c: on overlayfs and btrfs by inode."""
        exact = info_bytes((self.root / path).stat())
        return {exact, bytes(8) + exact[8:]}

    def pairs(self) -> set[bytes]:
        data = self.observation.opened_files
        return {data[at : at + 16] for at in range(0, len(data), 16)}


def info_bytes(info: os.stat_result) -> bytes:
    """A file as pair of native u64."""
    return info.st_dev.to_bytes(8, "little") + info.st_ino.to_bytes(8, "little")


class TracedAction:
    """A process that waits to be let go, and its scope."""

    def __init__(self, lab: TraceLab, root: Path, argv: Sequence[object]) -> None:
        read, write = os.pipe()
        words = [str(lab.fixture), "enter", str(read), "--", *map(str, argv)]
        self.process = subprocess.Popen(
            words, cwd=root, pass_fds=(read,), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL
        )
        os.close(read)
        self._go = write
        self._root = root
        self.scope: EbpfScope = lab.tracer.add_scope(self.process.pid, root=os.fsencode(root))

    def go(self) -> TracedAction:
        os.write(self._go, b"x")
        os.close(self._go)
        return self

    def finish(self, hashed: bytes = b"") -> Traced:
        code = self.process.wait()
        seen = self.scope.finish()
        return Traced(code, seen, self.scope.reconcile(hashed), self._root)


class TraceLab:
    """One tracer, one fixture program, many actions."""

    def __init__(self, fixture: Path, tracer: EbpfTracer) -> None:
        self.fixture = fixture
        self.tracer = tracer

    def start(self, root: Path, argv: Sequence[object]) -> TracedAction:
        return TracedAction(self, root, argv).go()

    def run(self, root: Path, argv: Sequence[object], hashed: bytes = b"") -> Traced:
        return self.start(root, argv).finish(hashed)

    def do(self, root: Path, *words: object, hashed: bytes = b"") -> Traced:
        """Run the fixture with these words; it must succeed, and nothing may be lost."""
        seen = self.run(root, [self.fixture, *words], hashed)
        assert seen.exit_code == 0
        assert seen.losses() == {}
        return seen
