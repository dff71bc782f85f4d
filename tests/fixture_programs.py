"""The C programs that several tests run as actions, and how each is compiled."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

FIXTURES = Path(__file__).resolve().parent / "fixtures"
FLAGS = ("-std=gnu11", "-D_GNU_SOURCE", "-O1", "-Wall", "-Wextra", "-Werror")
PROGRAMS = {  # name -> (sources, what is linked)
    "files_fixture": ("files_fixture.c", ()),
    "syscalls": ("syscalls*.c", ("-pthread",)),
    "trace_fixture": ("trace_fixture.c", ("-lpthread",)),
}


def build(name: str, directory: Path, *flags: str, compiler: str = "gcc") -> Path:
    """Compile a program into a directory.

    Machines of the kernel lab find it compiled by their host: there a compiler takes half a minute.
    """
    program = directory / name
    ready = os.environ.get("ROOTSEAL_LAB_PROGRAMS")
    if ready and not flags and compiler == "gcc":
        return Path(shutil.copy(Path(ready, name), program))
    pattern, libraries = PROGRAMS[name]
    sources = map(str, sorted(FIXTURES.glob(pattern)))
    command = [compiler, *FLAGS, *sources, "-o", str(program), *libraries, *flags]
    subprocess.run(command, check=True)
    return program


def build_all(directory: Path, *flags: str, compiler: str = "gcc") -> None:
    """Compile all of them into a directory, which is made."""
    directory.mkdir(parents=True, exist_ok=True)
    for name in PROGRAMS:
        build(name, directory, *flags, compiler=compiler)
