"""Runs a command under the tracer's driver (no daemon) and reads what was seen of it."""

from __future__ import annotations

import dataclasses
import hashlib
import subprocess
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Sequence, Set

from rootseal import leaf_table, opens_table
from rootseal.capture.ptrace import PtraceScope
from rootseal.capture.ptrace_stream import Loss
from rootseal.capture.scope import CaptureLimits
from rootseal.diagnostics import losses
from rootseal.leaf_table import Domain, Leaf
from rootseal.observation import Observation, ProcessRecord

REPO = Path(__file__).resolve().parents[2]
TRACER = sorted((REPO / "native" / "launcher").glob("trace_*.c"))
SHA256 = sorted((REPO / "native" / "launcher").glob("sha256*.c"))
FLAGS = ("-std=gnu11", "-D_GNU_SOURCE", "-O1", "-g", "-Wall", "-Wextra", "-Werror")
SANITIZERS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all")
TIMEOUT_SECONDS = 120


def compile_c(output: Path, *sources: Path, flags: Sequence[str] = (), cc: str = "gcc") -> Path:
    """Build a program; a compiler that fails shows what it said."""
    command = [cc, *FLAGS, *flags, "-o", str(output), *map(str, sources), "-pthread"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return output


def build_driver(directory: Path, *flags: str) -> Path:
    """The driver with the whole tracer in it."""
    sources = [path for path in TRACER if path.name != "trace_plan.c"]
    return compile_c(
        directory / "trace_driver",
        REPO / "tests" / "native" / "trace_driver.c",
        *sources,
        *SHA256,
        flags=flags,
    )


def build_fixture(directory: Path) -> Path:
    """The program with a subcommand per system call."""
    sources = sorted((REPO / "tests" / "fixtures").glob("syscalls*.c"))
    return compile_c(directory / "syscalls", *sources)


@dataclasses.dataclass(frozen=True)
class Traced:
    """One traced command."""

    root: Path
    code: int
    stdout: str
    stderr: str
    observation: Observation
    examples: Sequence[tuple[Loss, bytes]]

    @property
    def losses(self) -> Dict[str, int]:
        return losses(self.observation.counters)

    def materials(self) -> List[Leaf]:
        return list(leaf_table.iter_leaves(self.observation.materials.raw, Domain.MATERIAL))

    def products(self) -> Dict[bytes, Leaf]:
        leaves = leaf_table.iter_leaves(self.observation.products.raw, Domain.PRODUCT)
        return {leaf.path: leaf for leaf in leaves}

    def material_digests(self, path: bytes) -> Set[str]:
        return {leaf.digest.hex() for leaf in self.materials() if leaf.path == path}

    def opened_by(self, index: int) -> Set[bytes]:
        """Paths of the materials that a process opened."""
        materials = self.materials()
        walk = opens_table.iter_processes(
            self.observation.opens,
            process_count=len(self.observation.processes),
            material_count=len(materials),
        )
        return {materials[number].path for number in list(walk)[index]}

    @property
    def processes(self) -> Sequence[ProcessRecord]:
        return self.observation.processes


def sha256_text(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def run_traced(
    driver: Path,
    root: Path,
    *argv: str,
    user: Optional[int] = None,
    limits: Mapping[str, int] = {},
) -> Traced:
    """Run a command in `root` under the tracer.

    Args:
        driver: Built by `build_driver`.
        root: The action's root and working directory.
        argv: The command.
        user: Uid to run tracer and command as; None: our own.
        limits: Environment of the driver: FILES_MAX, BYTES_MAX, PROCESSES_MAX.
    """
    records = root.parent / f"{root.name}.records"
    options: Dict[str, Any] = {}
    if user is not None:
        options = {"user": user, "group": user, "extra_groups": []}
    done = subprocess.run(
        [str(driver), str(records), *argv],
        cwd=root,
        env={"PATH": "/usr/bin:/bin", **{name: str(value) for name, value in limits.items()}},
        capture_output=True,
        text=True,
        errors="surrogateescape",
        timeout=TIMEOUT_SECONDS,
        check=False,
        **options,
    )
    assert done.returncode != 125, done.stderr
    scope = PtraceScope(root=str(root.resolve()).encode(), limits=CaptureLimits())
    scope.feed(records.read_bytes())
    examples = tuple(scope._stream.losses)
    observation = scope.finish(outputs_files=(), outputs_dirs=())
    return Traced(root, done.returncode, done.stdout, done.stderr, observation, examples)
