"""A daemon of one's own, and commands below the launcher, for benchmarks of whole programs."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Mapping, Sequence, Tuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "pants-plugins"))

from harness import first_line
from rootseal.keys import load_public_key
from rootseal.record_check import verify_record

REPO = Path(__file__).resolve().parent.parent
LAUNCHER = REPO / "pants-plugins" / "rootseal" / "bin" / "rootseal-exec"
PROGRAM = "import sys; from rootseal.cli import main; sys.exit(main())"
KEY = "cd" * 32


def rootseal(*arguments: str) -> bytes:
    """Run the command line with this interpreter."""
    environment = {**os.environ, "PYTHONPATH": str(REPO / "pants-plugins")}
    argv = [sys.executable, "-c", PROGRAM, *arguments]
    return subprocess.run(argv, env=environment, check=True, stdout=subprocess.PIPE).stdout


class Daemon:
    """One that comes and goes: its eBPF programs cost every process of the host a little, so what
    is compared with it must run without it. Its digest cache stays.
    """

    def __init__(self, directory: Path) -> None:
        """Start nothing yet."""
        self.socket = str(directory / "run" / "daemon.sock")
        self._state = str(directory / "state")
        self._runs = False
        self.pid = 0

    def start(self) -> Mapping[str, Any]:
        """Have it run; its status."""
        place = ("--socket", self.socket, "--state-dir", self._state)
        status: Mapping[str, Any] = json.loads(rootseal("daemon", "ensure", "--json", *place))
        self._runs = True
        self.pid = int(status["pid"])
        return status

    def stop(self) -> None:
        """Have it not run."""
        if self._runs:
            rootseal("daemon", "stop", "--socket", self.socket)
        self._runs = False
        self.pid = 0

    def cpu_seconds(self) -> float:
        """Processor time that it has used; 0 while it does not run."""
        if not self.pid:
            return 0.0
        fields = Path(f"/proc/{self.pid}/stat").read_text("utf-8").rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def peak_memory_mib(self) -> int:
        """Its largest resident size so far; 0 while it does not run."""
        if not self.pid:
            return 0
        return int(first_line(f"/proc/{self.pid}/status", "VmHWM").split()[0]) // 1024


class Costs:
    """Processor time of what is run and of the daemon beside it, and the daemon's memory."""

    def __init__(self, daemon: Daemon, facts: Dict[str, object]) -> None:
        """Keep `facts` up to date with medians."""
        self._daemon, self._facts = daemon, facts
        self._seconds: Dict[str, List[Tuple[float, float]]] = {}

    def of(self, name: str, run: Callable[[], None]) -> Callable[[], float]:
        """`run`, with its costs noted under this name; returns the seconds that it took."""

        def measured() -> float:
            command, daemon = _children_cpu_seconds(), self._daemon.cpu_seconds()
            started = time.perf_counter()
            run()
            seconds = time.perf_counter() - started
            command = _children_cpu_seconds() - command
            self._note(name, command, self._daemon.cpu_seconds() - daemon)
            return seconds

        return measured

    def _note(self, name: str, command: float, daemon: float) -> None:
        runs = self._seconds.setdefault(name, [])
        runs.append((command, daemon))
        commands, daemons = (round(statistics.median(column), 2) for column in zip(*runs))
        self._facts[f"{name}: processor seconds of the command and of the daemon"] = (
            f"{commands} and {daemons}"
        )
        peak = self._daemon.peak_memory_mib()
        if peak:
            self._facts[f"{name}: peak memory of the daemon, MiB"] = peak


def _children_cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


@contextlib.contextmanager
def daemon(directory: Path) -> Iterator[Tuple[str, Mapping[str, Any]]]:
    """Socket and status of a daemon that lives as long as this."""
    made = Daemon(directory)
    status = made.start()
    try:
        yield made.socket, status
    finally:
        made.stop()


# Its digests are taken after the open, so it may lose some: they are counted and told. They are
# kept while the daemon runs, which here comes and goes.
MAY_LOSE = "eBPF alone, digests known"


def backends(status: Mapping[str, Any]) -> Dict[str, Sequence[str]]:
    """Name and launcher options of each way of capture that this daemon has, strongest first."""
    walk = {"walk": ["--option=capture-mode=walk", "--option=fanotify=off"]}
    ways: Dict[str, Sequence[str]] = {}
    if status["backend"] == "fanotify":
        traced = " + eBPF" if status["trace"]["loader"] else ""
        ways[f"auto (fanotify{traced})"] = ()
        ways["fanotify alone"] = ["--option=capture-mode=walk", "--option=fanotify=on"]
    if status["backend"] != "walk":
        ways["ptrace"] = ["--option=capture-mode=trace:ptrace", "--option=fanotify=off"]
    if status["trace"]["loader"]:
        ways[MAY_LOSE] = ["--option=capture-mode=trace:ebpf", "--option=fanotify=off"]
    return {**ways, **walk}


def below_launcher(
    socket: str,
    record: Path,
    argv: Sequence[str],
    options: Sequence[str] = (),
    *,
    may_lose: bool = False,
) -> List[str]:
    """The command, captured as a user gets it; it fails if anything is lost, unless it may."""
    fixed = [f"--action={KEY}", "--root=.", f"--record={record}", f"--socket={socket}"]
    if not may_lose:
        fixed.append("--option=require-zero-drops=1")
    return [str(LAUNCHER), *fixed, *options, "--", *argv]


def lost_in(record: Path, status: Mapping[str, Any]) -> int:
    """What a record says was lost, all together."""
    verified = verify_record(
        record.read_bytes(),
        action_key=bytes.fromhex(KEY),
        envelope_sha256=None,
        trusted=(load_public_key(status["captureKey"]),),
    )
    return sum(verified.losses.values())
