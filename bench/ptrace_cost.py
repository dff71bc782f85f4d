"""What capture by ptrace costs, against the bare work and against strace.

Two workloads: a compilation, and distinct small files opened and read by a program that does
nothing else. The driver of the tests runs the tracer without a daemon, so this is the tracer alone.

    python bench/ptrace_cost.py [--files N] [--runs N]
"""

from __future__ import annotations

import argparse
import random
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Sequence

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "pants-plugins"))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "native"))

from harness import REPO, Variant, compare
from ptrace_action import build_driver, compile_c

FILE_BYTES = (512, 16384)
UNITS = 12
SOURCE = "#include <stdio.h>\n#include <stdlib.h>\n#include <string.h>\n#include <unistd.h>\n"


def make_files(directory: Path, count: int) -> None:
    """`count` files in directories of a hundred, of 0.5 to 16 KiB."""
    generator = random.Random(1)
    for number in range(count):
        place = directory / str(number % 100)
        place.mkdir(parents=True, exist_ok=True)
        (place / f"f{number}").write_bytes(generator.randbytes(generator.randint(*FILE_BYTES)))


def make_units(directory: Path) -> str:
    """Sources, and the shell command that compiles and links them."""
    directory.mkdir()
    for number in range(UNITS):
        body = f'int f{number}(void) {{ return (int)strlen("{number}"); }}\n'
        (directory / f"u{number}.c").write_text(SOURCE + body)
    (directory / "main.c").write_text("int main(void) { return 0; }\n")
    return f"cd {directory} && gcc -O1 -c *.c && gcc -o out *.o"


def run(command: Sequence[str]) -> None:
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True)


def variants(driver: Path, command: Sequence[str]) -> list[Variant]:
    found = [
        Variant("bare", lambda: run(command)),
        Variant("ptrace", lambda: run([str(driver), "-", *command])),
    ]
    if shutil.which("strace"):
        quiet = ["strace", "-f", "-o", "/dev/null"]
        files = [*quiet, "-e", "trace=%file"]
        found.append(Variant("strace -f -e trace=%file", lambda: run([*files, *command])))
        found.append(Variant("strace -f", lambda: run([*quiet, *command])))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=20000)
    parser.add_argument("--runs", type=int, default=5)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        base = Path(name)
        driver = build_driver(base, "-O2", "-static")
        opener = compile_c(base / "open_many", REPO / "bench" / "open_many.c", flags=("-O2",))
        make_files(base / "files", arguments.files)
        script = make_units(base / "units")
        opens = [str(opener), str(base / "files"), str(arguments.files), "1", "1"]
        compare(
            "ptrace_compile",
            f"What does the ptrace tracer add to compiling and linking {UNITS + 1} C files?",
            variants(driver, ["sh", "-c", script]),
            runs=arguments.runs,
        )
        compare(
            "ptrace_open",
            f"What does it add to {arguments.files} distinct opens of 0.5 to 16 KiB, all hashed?",
            variants(driver, opens),
            runs=arguments.runs,
        )


if __name__ == "__main__":
    main()
