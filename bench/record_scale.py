"""How large is the record of an action with many materials, how long does it take, and who waits?

    python bench/record_scale.py [--materials 100000]

Two parts. Alone: from what a capture saw to the bytes of the signed record (tables compressed,
predicate built and signed), by the real encoders. In a daemon: an action that reads so many files,
while small actions run one after the other; how long it takes from the end of its process to its
record, and what the slowest small action took in that time and before. Needs root for the second.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Dict, List, Tuple

REPO = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(REPO / "pants-plugins"), str(REPO / "tests" / "unit")]

import core_factory as factory
from rootseal import keys, leaf_table, opens_table, record
from rootseal.leaf_table import Domain, Leaf
from soak import LAUNCHER, private_daemon

FILES_PER_DIRECTORY = 500
RUNS = 5
READ_ALL = "tar -C many -cf - . | cat > /dev/null; echo over; exec >&-"


def path_of(number: int) -> bytes:
    """As long as those of real trees are."""
    directory, name = divmod(number, FILES_PER_DIRECTORY)
    return b"third_party/library%d/src/main/component%d/source_%d.c" % (
        directory % 7,
        directory,
        name,
    )


def alone(materials: int) -> Dict[str, float]:
    """Seconds and bytes of one record."""
    leaves = [
        Leaf(path_of(number), hashlib.sha256(b"%d" % number).digest(), number, 0o644, 0, 0)
        for number in range(materials)
    ]
    table = leaf_table.encode(Domain.MATERIAL, leaves)
    opens = opens_table.encode([range(materials)])
    seen = dataclasses.replace(factory.observation(), materials=table, opens=opens)
    signer, described = keys.generate("ed25519"), factory.description()
    seconds, before = [], time.process_time()
    for _ in range(RUNS):
        started = time.perf_counter()
        data = record.sign_record(seen, described, signer).data
        seconds.append(time.perf_counter() - started)
    return {
        "medianSeconds": round(statistics.median(seconds), 3),
        "processorSeconds": round((time.process_time() - before) / RUNS, 3),
        "recordBytes": len(data),
    }


def make_tree(root: Path, materials: int) -> None:
    """The files that the action reads."""
    for number in range(materials):
        path = root / "many" / path_of(number).decode()
        if number % FILES_PER_DIRECTORY == 0:
            path.parent.mkdir(parents=True)
        path.write_bytes(b"%d" % number)


class SmallActions(threading.Thread):
    """One small action after the other until told to stop; when each began and ended."""

    def __init__(self, root: Path, socket: Path) -> None:
        super().__init__()
        root.mkdir()
        self.root, self.socket, self.going = root, socket, True
        self.done: List[Tuple[float, float]] = []

    def run(self) -> None:
        while self.going:
            started = time.monotonic()
            subprocess.run(argv_of(self.socket, "small", ["/bin/true"]), cwd=self.root, check=True)
            self.done.append((started, time.monotonic()))

    def slowest(self, since: float, until: float) -> float:
        """Of those that ran within this time, in part at least."""
        return max((b - a for a, b in self.done if b > since and a < until), default=0.0)


def argv_of(socket: Path, name: str, command: List[str]) -> List[str]:
    """The launcher's command line."""
    key = hashlib.sha256(name.encode()).hexdigest()
    fixed = [f"--action={key}", "--root=.", "--record=the-record", f"--socket={socket}"]
    return [str(LAUNCHER), *fixed, "--option=require-zero-drops=1", "--", *command]


def in_a_daemon(materials: int) -> Dict[str, float]:
    """The end of a large action, with small ones beside it."""
    with tempfile.TemporaryDirectory(prefix="rootseal-scale-") as name:
        directory = Path(name)
        root = directory / "large"
        make_tree(root, materials)
        with private_daemon(directory) as (_, socket):
            small = SmallActions(directory / "small", socket)
            small.start()
            try:
                time.sleep(1)
                began = time.monotonic()
                argv = argv_of(socket, "large", ["/bin/sh", "-c", READ_ALL])
                with subprocess.Popen(argv, cwd=root, stdout=subprocess.PIPE) as process:
                    assert process.stdout is not None
                    process.stdout.readline()
                    over = time.monotonic()
                    code = process.wait()
                finished = time.monotonic()
            finally:
                small.going = False
                small.join()
        if code != 0:
            sys.exit(f"record_scale: the large action ended with {code}")
        return {
            "recordBytes": (root / "the-record").stat().st_size,
            "processSeconds": round(over - began, 3),
            "endSeconds": round(finished - over, 3),
            "slowestSmallBefore": round(small.slowest(0, began), 3),
            "slowestSmallMeanwhile": round(small.slowest(began, over), 3),
            "slowestSmallAtTheEnd": round(small.slowest(over, finished), 3),
        }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--materials", type=int, default=100_000)
    materials = parser.parse_args().materials
    result = {
        "materials": materials,
        "alone": alone(materials),
        "inADaemon": in_a_daemon(materials),
    }
    print(json.dumps(result, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
