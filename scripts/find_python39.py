"""Print the path of a CPython 3.9 for .venv-pants, making one reachable or fetching one if need be.

Pants 2.17 runs on CPython 3.9, which newer distributions no longer carry. In this order:
the interpreter that ROOTSEAL_PYTHON39 names; python3.9 of PATH, of pyenv, of uv; a 3.9 that `uv`
downloads. One in a directory that only root can enter (root's pyenv) is copied to build/python39,
because builds and tests also run as other users. Stdlib only; runs on any Python >= 3.9.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Iterator, Optional

REPO = Path(__file__).resolve().parent.parent
COPY = REPO / "build" / "python39"
UV_REQUIREMENT = "uv==0.13.8"
DOWNLOAD_TIMEOUT_SECONDS = 600
FAILED = REPO / "build" / "python39.failed"  # do not try the download again each time
NOT_COPIED = ("test", "__pycache__", "idlelib", "site-packages", "*.a", "share")

NO_PYTHON = 3  # exit code
HELP = """\
setup: Pants 2.17.1 needs CPython 3.9; none was found, and downloading one with uv failed.
setup: Install one (`pyenv install 3.9`; on Ubuntu the deadsnakes packages python3.9 and
setup: python3.9-venv), or name one: ROOTSEAL_PYTHON39=/path/to/python3.9 make setup
setup: To try the download again, remove build/python39.failed."""


def candidates() -> Iterator[Path]:
    """Places where a 3.9 may be, best first."""
    named = os.environ.get("ROOTSEAL_PYTHON39")
    if named:
        yield Path(named)
        return
    yield COPY / "bin" / "python3.9"
    found = shutil.which("python3.9")
    if found:
        yield Path(found)
    pyenv = Path(os.environ.get("PYENV_ROOT", str(Path.home() / ".pyenv")))
    yield from sorted(pyenv.glob("versions/3.9.*/bin/python3.9"), reverse=True)
    share = Path(os.environ.get("XDG_DATA_HOME", str(Path.home() / ".local" / "share")))
    yield from sorted(share.glob("uv/python/cpython-3.9.*/bin/python3.9"), reverse=True)


def real_interpreter(python: Path) -> Optional[Path]:
    """The interpreter itself behind shims and links, if it is a 3.9 that can make a venv."""
    code = (
        "import sys, venv, ensurepip, ctypes, ssl; assert sys.version_info[:2] == (3, 9);"
        "print(sys.base_prefix)"
    )
    try:
        done = subprocess.run(
            [str(python), "-c", code], capture_output=True, text=True, timeout=60, check=False
        )
    except OSError:
        return None
    if done.returncode != 0:
        return None
    inside = Path(done.stdout.strip()) / "bin" / "python3.9"
    return inside if inside.exists() else python


def reachable_by_all(path: Path) -> bool:
    """Whether every user may enter all directories above a file."""
    return all(parent.stat().st_mode & 0o001 for parent in path.resolve().parents)


def copy_for_all(python: Path) -> Path:
    """Copy an interpreter and its library below build/, so that other users can run it."""
    prefix = python.parent.parent
    print(f"setup: copying {prefix}, which only root can enter, to build/python39", file=sys.stderr)
    shutil.rmtree(COPY, ignore_errors=True)
    ignore = shutil.ignore_patterns(*NOT_COPIED)
    shutil.copytree(prefix, COPY, symlinks=True, ignore=ignore, ignore_dangling_symlinks=True)
    (COPY / "lib" / "python3.9" / "site-packages").mkdir(exist_ok=True)
    copied = COPY / "bin" / "python3.9"
    find_library_beside(copied, prefix / "lib")
    if real_interpreter(copied) is None:
        raise SystemExit(f"setup: the copy of {prefix} does not run; install CPython 3.9 elsewhere")
    return copied


def find_library_beside(python: Path, old: Path) -> None:
    """Make the dynamic linker look for libpython beside the copy.

    The search path in the ELF string table is overwritten in place: the new one is shorter.
    """
    wanted = b"$ORIGIN/../lib\0"
    before = os.fsencode(old) + b"\0"
    data = python.read_bytes()
    if before in data and len(before) >= len(wanted):
        python.write_bytes(data.replace(before, wanted.ljust(len(before), b"\0")))


def download() -> Optional[Path]:
    """Let uv fetch a 3.9 (its own builds, from its own host); None if it cannot."""
    print("setup: no CPython 3.9 here; asking uv to download one", file=sys.stderr)
    target = REPO / "build" / "uv-python"
    with tempfile.TemporaryDirectory() as directory:
        venv = Path(directory) / "venv"
        environment = {**os.environ, "UV_PYTHON_INSTALL_DIR": str(target)}
        steps = (
            [sys.executable, "-m", "venv", str(venv)],
            [str(venv / "bin" / "pip"), "install", "-q", UV_REQUIREMENT],
            [str(venv / "bin" / "uv"), "python", "install", "3.9"],
        )
        for step in steps:
            try:
                done = subprocess.run(
                    step,
                    env=environment,
                    stdout=sys.stderr,
                    timeout=DOWNLOAD_TIMEOUT_SECONDS,
                    check=False,
                )
            except (OSError, subprocess.TimeoutExpired):
                return None
            if done.returncode != 0:
                return None
    return next(iter(sorted(target.glob("cpython-3.9.*/bin/python3.9"), reverse=True)), None)


def main() -> int:
    """Print the path; or say what to do, with exit code 3 if there is no 3.9 to be had."""
    for candidate in candidates():
        python = real_interpreter(candidate)
        if python is not None:
            break
    else:
        named = os.environ.get("ROOTSEAL_PYTHON39")
        if named:
            sys.exit(f"setup: ROOTSEAL_PYTHON39={named} is not a CPython 3.9 with venv and ssl")
        python = None if FAILED.exists() else download()
        if python is None:
            FAILED.touch()
            print(HELP, file=sys.stderr)
            return NO_PYTHON
    if os.geteuid() == 0 and not reachable_by_all(python) and reachable_by_all(REPO / "build"):
        python = copy_for_all(python)
    print(python)
    return 0


if __name__ == "__main__":
    sys.exit(main())
