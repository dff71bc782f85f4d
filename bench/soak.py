"""Keep one daemon busy for a long time: nothing may be lost, and nothing may grow.

Usage: bench/soak.py [--minutes M] [--actions N] [--opens N] [--concurrency N]
                     [--growth-mib N]

Each action has its own sandbox, reads a few files, writes one and forks; every second one also
reads thousands of files that all share, through tar. It ends when the time is over and so many
actions and opens are done. Its exit code must be its
own, it must leave a record, and after a warm-up the daemon's memory and its open descriptors must
stay where they were. Exit code 0 if all of that held.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import contextlib
import dataclasses
import hashlib
import itertools
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Iterator

REPO = Path(__file__).resolve().parent.parent
ROOTSEAL = REPO / ".venv" / "bin" / "rootseal"
LAUNCHER = REPO / "pants-plugins" / "rootseal" / "bin" / "rootseal-exec"
WARM_UP_SHARE = 0.25
MEMORY_GROWTH_MIB_MAX = 32
DESCRIPTOR_GROWTH_MAX = 8
ACTION_TIMEOUT_SECONDS = 120
SCRIPT = "cat in/* > out/$0; (cat in/1; true) > /dev/null; exit $(($0 % 7))"
SCRIPT_WITH_TAR = "tar -C $1 -cf - . | cat > /dev/null; " + SCRIPT
SHARED_FILES = 4000
OWN_OPENS = 20


@dataclasses.dataclass(frozen=True)
class Sample:
    """What the daemon holds at one moment."""

    memory_bytes: int
    descriptors: int


def sample(pid: int) -> Sample:
    """Resident memory and open descriptors of a process."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return Sample(pages * 4096, len(list(Path(f"/proc/{pid}/fd").iterdir())))


@contextlib.contextmanager
def private_daemon(directory: Path) -> Iterator[tuple[int, Path]]:
    """A daemon of our own; its process id and socket."""
    socket = directory / "daemon.sock"
    state = directory / "state"
    argv = [str(ROOTSEAL), "daemon", "run", "--socket", str(socket), "--state-dir", str(state)]
    with (directory / "log").open("wb") as log:
        process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        status = [str(ROOTSEAL), "daemon", "status", "--socket", str(socket), "--json"]
        while (done := subprocess.run(status, capture_output=True, check=False)).returncode != 0:
            if process.poll() is not None:
                sys.exit("soak: the daemon ended: " + (directory / "log").read_text())
        print("soak: posture", json.loads(done.stdout).get("posture"), flush=True)
        yield process.pid, socket
    finally:
        process.terminate()
        process.wait(timeout=60)


def make_sandbox(directory: Path, number: int) -> Path:
    """Files for one action to read, and a place to write."""
    root = directory / f"sandbox{number}"
    (root / "in").mkdir(parents=True)
    (root / "out").mkdir()
    for name in range(20):
        (root / "in" / str(name)).write_bytes(bytes([name]) * 4096)
    return root


def run_action(directory: Path, socket: Path, number: int) -> str:
    """Run one action; what was wrong with it, or nothing."""
    root = make_sandbox(directory, number)
    key = hashlib.sha256(str(number).encode()).hexdigest()
    record = directory / f"record{number}"
    argv = [str(LAUNCHER), f"--action={key}", "--root=.", f"--record={record}"]
    argv += [f"--socket={socket}", f"--output-file=out/{number}", "--option=require-zero-drops=1"]
    script = SCRIPT_WITH_TAR if number % 2 else SCRIPT
    argv += ["--", "/bin/sh", "-c", script, str(number), str(directory / "shared")]
    done = subprocess.run(
        argv, cwd=root, capture_output=True, timeout=ACTION_TIMEOUT_SECONDS, check=False
    )
    if done.returncode != number % 7:
        return f"action {number} ended with {done.returncode}: {done.stderr.decode().strip()}"
    if not record.exists():
        return f"action {number} left no record"
    record.unlink()
    shutil.rmtree(root)
    return ""


def make_shared(directory: Path) -> None:
    """The files that actions read with tar."""
    (directory / "shared").mkdir()
    for number in range(SHARED_FILES):
        (directory / "shared" / str(number)).write_bytes(b"%d" % number * 200)


def opens_of(actions: int) -> int:
    """Files that so many actions opened, at least."""
    return actions * OWN_OPENS + actions // 2 * SHARED_FILES


def soak(seconds: float, actions: int, concurrency: int, growth_bytes_max: int) -> int:
    """Run actions until the time is over and so many are done; exit code."""
    with tempfile.TemporaryDirectory(prefix="rootseal-soak-") as name:
        directory = Path(name)
        make_shared(directory)
        with private_daemon(directory) as (pid, socket):
            seen = busy(pid, directory, socket, seconds, actions, concurrency)
    return 1 if seen is None else judge(seen, growth_bytes_max)


@dataclasses.dataclass(frozen=True)
class Soaked:
    """What the daemon held after the warm-up and at the end, and what was done."""

    warm: Sample | None
    last: Sample
    actions: int
    seconds: float


def busy(
    pid: int, directory: Path, socket: Path, seconds: float, actions: int, concurrency: int
) -> Soaked | None:
    """The loop itself: batches of actions, a sample after each. None: an action went wrong."""
    started = time.monotonic()
    numbers = itertools.count()
    warm: Sample | None = None
    done = 0
    with concurrent.futures.ThreadPoolExecutor(concurrency) as pool:
        while (passed := time.monotonic() - started) < seconds or done < actions:
            batch = [next(numbers) for _ in range(concurrency * 8)]
            wrong = [
                text for text in pool.map(lambda n: run_action(directory, socket, n), batch) if text
            ]
            if wrong:
                print("soak: FAILED:", wrong[0], file=sys.stderr)
                return None
            done += len(batch)
            if warm is None and passed > seconds * WARM_UP_SHARE and done > actions * WARM_UP_SHARE:
                warm = sample(pid)
    return Soaked(warm, sample(pid), done, time.monotonic() - started)


def judge(seen: Soaked, growth_bytes_max: int) -> int:
    """Print what was measured; 1 if something grew, or if there was no time to tell."""
    warm, last = seen.warm, seen.last
    if warm is None:
        print("soak: too short to tell; use more --minutes", file=sys.stderr)
        return 1
    memory, descriptors = last.memory_bytes - warm.memory_bytes, last.descriptors - warm.descriptors
    now = f"now {last.memory_bytes >> 20} MiB"
    print(
        f"soak: {seen.actions} actions and {opens_of(seen.actions)} opens in "
        f"{seen.seconds:.0f} s, none lost; since the warm-up memory "
        f"{memory / 1024:+.0f} KiB ({now}), descriptors {descriptors:+d}"
    )
    grew = memory > growth_bytes_max or descriptors > DESCRIPTOR_GROWTH_MAX
    if grew:
        print("soak: FAILED: the daemon grows", file=sys.stderr)
    return int(grew)


def main() -> int:
    """Read the command line, run."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--actions", type=int, default=1000, help="at least")
    parser.add_argument("--opens", type=int, default=2_000_000, help="at least")
    parser.add_argument("--concurrency", type=int, default=8)
    parser.add_argument("--growth-mib", type=int, default=MEMORY_GROWTH_MIB_MAX, help="at most")
    arguments = parser.parse_args()
    actions = max(arguments.actions, -(-arguments.opens // opens_of(2)) * 2)
    growth = arguments.growth_mib << 20
    return soak(arguments.minutes * 60, actions, arguments.concurrency, growth)


if __name__ == "__main__":
    sys.exit(main())
