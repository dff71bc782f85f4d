"""Runs one program under a fanotify scope, without launcher and daemon: for tests of the core."""

from __future__ import annotations

import dataclasses
import os
import subprocess
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence

import fixture_programs
from rootseal import leaf_table, opens_table
from rootseal.capture.fanotify import FanotifyEngine, FanotifyScope
from rootseal.capture.scope import CaptureLimits
from rootseal.leaf_table import Domain, Leaf
from rootseal.observation import Observation


def build_fixture(directory: Path) -> Path:
    """The fixture program, in a directory."""
    return fixture_programs.build("files_fixture", directory)


def gives_file_handles(path: Path) -> bool:
    """Whether the filesystem of a path has handles that can be opened; overlayfs has none."""
    done = subprocess.run(["stat", "-f", "-c", "%T", path], capture_output=True, check=True)
    return done.stdout.strip() != b"overlayfs"


@dataclasses.dataclass(frozen=True)
class Seen:
    """What the capture of one action gave, decoded."""

    exit_code: int
    observation: Observation

    @property
    def counters(self) -> Dict[str, int]:
        return dict(self.observation.counters)

    @property
    def materials(self) -> List[Leaf]:
        table = self.observation.materials
        assert leaf_table.verify(table.raw, Domain.MATERIAL) == (table.tree_root, table.tree_size)
        return list(leaf_table.iter_leaves(table.raw, Domain.MATERIAL))

    @property
    def products(self) -> List[Leaf]:
        table = self.observation.products
        assert leaf_table.verify(table.raw, Domain.PRODUCT) == (table.tree_root, table.tree_size)
        return list(leaf_table.iter_leaves(table.raw, Domain.PRODUCT))

    def material(self, path: bytes) -> List[Leaf]:
        return [leaf for leaf in self.materials if leaf.path == path]

    def product(self, path: bytes) -> Leaf:
        (leaf,) = [leaf for leaf in self.products if leaf.path == path]
        return leaf

    def product_paths(self) -> List[bytes]:
        return [leaf.path for leaf in self.products]

    def opens(self) -> List[List[int]]:
        seen = self.observation
        return list(
            opens_table.iter_processes(
                seen.opens,
                process_count=len(seen.processes),
                material_count=seen.materials.tree_size,
            )
        )


class Action:
    """A process that waits in its private namespace, and then its scope."""

    def __init__(self, fixture: Path, engine: FanotifyEngine, root: Path, argv: Sequence[object]):
        ready_read, ready_write = os.pipe()
        go_read, go_write = os.pipe()
        words = [str(fixture), "enter", str(ready_write), str(go_read), "--", *map(str, argv)]
        self.process = subprocess.Popen(
            words, cwd=root, pass_fds=(ready_write, go_read), stdin=subprocess.DEVNULL
        )
        os.close(ready_write)
        os.close(go_read)
        assert os.read(ready_read, 1) == b"x"
        os.close(ready_read)
        self._go = go_write
        self._root = root
        self._engine = engine
        self.scope: Optional[FanotifyScope] = None

    def arm(self, limits: CaptureLimits) -> FanotifyScope:
        self.scope = self._engine.open_scope(
            pid=self.process.pid, root=os.fsencode(self._root), limits=limits
        )
        return self.scope

    def go(self) -> None:
        os.write(self._go, b"x")
        os.close(self._go)

    def finish(self, files: Sequence[bytes] = (), dirs: Sequence[bytes] = ()) -> Seen:
        assert self.scope is not None
        code = self.process.wait()
        return Seen(code, self.scope.finish(outputs_files=files, outputs_dirs=dirs))


class Lab:
    """One engine, one fixture program, many actions."""

    def __init__(self, fixture: Path, **options: Any) -> None:
        self.fixture = fixture
        self.engine = FanotifyEngine(**options)

    def start(
        self, root: Path, argv: Sequence[object], limits: Optional[CaptureLimits] = None
    ) -> Action:
        action = Action(self.fixture, self.engine, root, argv)
        action.arm(limits or CaptureLimits())
        action.go()
        return action

    def run(
        self,
        root: Path,
        argv: Sequence[object],
        *,
        limits: Optional[CaptureLimits] = None,
        files: Sequence[bytes] = (),
        dirs: Sequence[bytes] = (),
    ) -> Seen:
        return self.start(root, argv, limits).finish(files, dirs)

    def do(self, root: Path, *words: object, limits: Optional[CaptureLimits] = None) -> Seen:
        """Run the fixture program with these words; it must succeed."""
        seen = self.run(root, [self.fixture, *words], limits=limits)
        assert seen.exit_code == 0
        return seen
