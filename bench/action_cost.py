"""What does it cost to capture one action? A wrapped /bin/true against a bare one.

Needs `make build`. As root: what a user gets without asking (`auto`: fanotify and eBPF where the
kernel has them), fanotify alone, ptrace, and the walk; else what there is. The sandbox is clean
before each run, as a build tool's is. A private daemon is started and ended here.
"""

from __future__ import annotations

import argparse
import functools
import os
import sys
import tempfile
from pathlib import Path
from typing import Sequence

from captured import LAUNCHER, backends, daemon
from harness import Goal, Variant, compare

KEY = "ab" * 32
RECORD = ".rootseal-record"


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


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=200)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        sandbox = Path(directory) / "sandbox"
        sandbox.mkdir()
        with daemon(Path(directory)) as (socket, status):
            variants = [Variant("bare /bin/true", lambda: spawn(["/bin/true"], str(sandbox)))]
            for name, options in backends(status).items():
                run = functools.partial(spawn, wrapped(socket, options), str(sandbox))
                clean = functools.partial((sandbox / RECORD).unlink, missing_ok=True)
                variants.append(Variant(f"captured by {name}", run, clean))
            compare(
                "action_cost",
                "What does it cost to capture one action?",
                variants,
                runs=arguments.runs,
                warmups=10,
                goals=[Goal(variant.name, 0.005, "s more") for variant in variants[1:]],
            )
            os.chdir("/")


if __name__ == "__main__":
    main()
