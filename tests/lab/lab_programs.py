"""The fixture programs of the kernel group, compiled here for the guests."""

from __future__ import annotations

import runpy
from pathlib import Path

from lab_apt import LAB, REPO

PROGRAMS = LAB / "programs"


def build_programs(directory: Path, *flags: str, compiler: str = "gcc") -> None:
    """Compile all of them into a directory; a compiler takes half a minute in a guest."""
    builders = runpy.run_path(str(REPO / "tests/fixture_programs.py"))
    builders["build_all"](directory, *flags, compiler=compiler)
