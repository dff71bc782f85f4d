"""What does it cost to capture one action? A wrapped /bin/true against a bare one.

Needs `make build`. As root: what a user gets without asking (`auto`: fanotify and eBPF where the
kernel has them), fanotify alone, ptrace, and the walk; else what there is. The sandbox is clean
before each run, as a build tool's is. A private daemon is started and ended here.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Mapping, Sequence

from harness import REPO, Variant, compare

PROGRAM = "import sys; from rootseal.cli import main; sys.exit(main())"
LAUNCHER = REPO / "pants-plugins" / "rootseal" / "bin" / "rootseal-exec"
KEY = "ab" * 32
RECORD = ".rootseal-record"


def rootseal(*arguments: str) -> bytes:
    """Run the command line with this interpreter."""
    environment = {**os.environ, "PYTHONPATH": str(REPO / "pants-plugins")}
    argv = [sys.executable, "-c", PROGRAM, *arguments]
    return subprocess.run(argv, env=environment, check=True, stdout=subprocess.PIPE).stdout


def spawn(argv: list[str], directory: str) -> None:
    """Start a process and wait for it, the cheapest way Python has."""
    os.chdir(directory)
    pid = os.posix_spawn(argv[0], argv, {"PATH": "/usr/bin:/bin"})
    status = os.waitpid(pid, 0)[1]
    if status != 0:
        sys.exit(f"{argv[0]} ended with wait status {status}")


def wrapped(socket: str, options: Sequence[str]) -> list[str]:
    """/bin/true under the launcher, called as the Pants plugin calls it."""
    fixed = [f"--action={KEY}", "--root=.", f"--record={RECORD}", f"--socket={socket}"]
    return [str(LAUNCHER), *fixed, "--stdio-only", *options, "--", "/bin/true"]


def backends(status: Mapping[str, Any]) -> dict[str, Sequence[str]]:
    """Name and options of each way of capture that this daemon has."""
    ways: dict[str, Sequence[str]] = {"walk": ["--option=capture-mode=walk"]}
    if status["backend"] != "walk":
        ways = {"ptrace": ["--option=capture-mode=trace:ptrace"], **ways}
    if status["backend"] == "fanotify":
        alone = ["--option=capture-mode=walk", "--option=fanotify=on"]
        traced = " + eBPF" if status["trace"]["loader"] else ""
        ways = {f"auto (fanotify{traced})": (), "fanotify alone": alone, **ways}
    return ways


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=200)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        sandbox = Path(directory) / "sandbox"
        sandbox.mkdir()
        socket = str(Path(directory) / "run" / "daemon.sock")
        place = ("--socket", socket, "--state-dir", str(Path(directory) / "state"))
        status = json.loads(rootseal("daemon", "ensure", "--json", *place))
        variants = [Variant("bare /bin/true", lambda: spawn(["/bin/true"], str(sandbox)))]
        for name, options in backends(status).items():
            run = functools.partial(spawn, wrapped(socket, options), str(sandbox))
            clean = functools.partial((sandbox / RECORD).unlink, missing_ok=True)
            variants.append(Variant(f"captured by {name}", run, clean))
        try:
            compare(
                "action_cost",
                "What does it cost to capture one action?",
                variants,
                runs=arguments.runs,
                warmups=10,
            )
        finally:
            rootseal("daemon", "stop", "--socket", socket)
            os.chdir("/")


if __name__ == "__main__":
    main()
