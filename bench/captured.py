"""A daemon of one's own, and commands below the launcher, for benchmarks of whole programs."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Dict, Iterator, List, Mapping, Sequence, Tuple

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

    def start(self) -> Mapping[str, Any]:
        """Have it run; its status."""
        place = ("--socket", self.socket, "--state-dir", self._state)
        status: Mapping[str, Any] = json.loads(rootseal("daemon", "ensure", "--json", *place))
        self._runs = True
        return status

    def stop(self) -> None:
        """Have it not run."""
        if self._runs:
            rootseal("daemon", "stop", "--socket", self.socket)
        self._runs = False


@contextlib.contextmanager
def daemon(directory: Path) -> Iterator[Tuple[str, Mapping[str, Any]]]:
    """Socket and status of a daemon that lives as long as this."""
    made = Daemon(directory)
    status = made.start()
    try:
        yield made.socket, status
    finally:
        made.stop()


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
    return {**ways, **walk}


def below_launcher(
    socket: str, record: Path, argv: Sequence[str], options: Sequence[str] = ()
) -> List[str]:
    """The command, captured as a user gets it; it fails if anything is lost."""
    fixed = [f"--action={KEY}", "--root=.", f"--record={record}", f"--socket={socket}"]
    return [str(LAUNCHER), *fixed, "--option=require-zero-drops=1", *options, "--", *argv]
