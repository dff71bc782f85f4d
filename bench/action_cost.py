"""What does it cost to capture one action? A wrapped /bin/true against a bare one.

Needs `make build`; fanotify is measured as root, the walk backend always. A private daemon is
started and ended here.
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

from harness import REPO, Variant, compare

PROGRAM = "import sys; from rootseal.cli import main; sys.exit(main())"
LAUNCHER = REPO / "pants-plugins" / "rootseal" / "bin" / "rootseal-exec"
KEY = "ab" * 32


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


def wrapped(socket: str, fanotify: str) -> list[str]:
    """/bin/true under the launcher."""
    options = [f"--action={KEY}", "--root=.", "--record=.rootseal-record", f"--socket={socket}"]
    return [str(LAUNCHER), *options, f"--option=fanotify={fanotify}", "--", "/bin/true"]


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
        for fanotify in ("on", "off") if status["backend"] == "fanotify" else ("off",):
            argv = wrapped(socket, fanotify)
            name = "captured by " + ("fanotify" if fanotify == "on" else "walk")
            variants.append(Variant(name, functools.partial(spawn, argv, str(sandbox))))
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
