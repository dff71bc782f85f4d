"""An action whose capture lost something: run again, and never taken from a cache."""

from __future__ import annotations

import contextlib
import threading
from pathlib import Path
from typing import Iterator, List

import pytest
from pants_repo import PantsRepo

RIGHT = "//:right-archive"
COMMAND = "cat twice.txt right.txt"


class Disturber:
    """Changes a file while the action that has read it still runs, as often as is wanted."""

    def __init__(self, directory: Path) -> None:
        self.shared = directory / "shared"
        self.shared.write_text("as the action read it")
        self.runs = 0
        self.times = 0
        """How many of the next runs are disturbed."""
        self._ready, self._go = directory / "ready", directory / "go"
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def command(self, name: str) -> str:
        """What the action runs: it reads the file and waits for this side.

        Each side removes what the other has made, so that a late one takes nothing for the next.
        """
        wait = f": > {self._ready}; until [ -e {self._go} ]; do :; done; rm {self._go}"
        return f"cat {self.shared} > seen.{name}; {wait}; {COMMAND}"

    def _serve(self) -> None:
        while not self._ended.wait(0.002):
            if not self._ready.exists():
                continue
            self.runs += 1
            if self.times > 0:
                self.times -= 1
                self.shared.write_text(f"changed in run {self.runs}")
            self._ready.unlink()
            self._go.touch()

    def stop(self) -> None:
        self._ended.set()
        self._thread.join()


@pytest.fixture
def disturber(tmp_path: Path) -> Iterator[Disturber]:
    directory = tmp_path / "outside"
    directory.mkdir()
    made = Disturber(directory)
    yield made
    made.stop()


def use(repo: PantsRepo, disturber: Disturber, name: str) -> None:
    """Have the right command wait for the disturber; each name is another action."""
    build = (repo.root / "BUILD").read_text("utf-8")
    lines: List[str] = []
    for line in build.splitlines(keepends=True):
        if COMMAND in line:
            head, tail = line.split('"', 1)[0], line.rsplit(COMMAND, 1)[1]
            line = f'{head}"{disturber.command(name)}{tail}'
        lines.append(line)
    repo.write({"BUILD": "".join(lines).replace('tools=["cat"]', 'tools=["cat", "rm"]')})


@contextlib.contextmanager
def disturbed(disturber: Disturber, times: int, runs: int) -> Iterator[None]:
    """Within: the next `times` runs are disturbed, and `runs` are what it takes."""
    before, disturber.times = disturber.runs, times
    yield
    assert (disturber.runs - before, disturber.times) == (runs, 0)


@pytest.mark.parametrize("pantsd", ["--pantsd", "--no-pantsd"])
def test_it_is_run_again_and_not_taken_from_memory_or_a_cache(
    repo: PantsRepo, disturber: Disturber, pantsd: str
) -> None:
    build = (pantsd, "package", RIGHT)
    use(repo, disturber, "first")
    with disturbed(disturber, times=1, runs=2):
        again = repo.run(*build).succeeded()
    assert "lost something: mutatedAfterOpen 1. It is run again." in again.output
    repo.verify()
    with disturbed(disturber, times=0, runs=0):  # the good result is remembered, or cached
        repo.run(*build).succeeded()
    repo.verify()

    use(repo, disturber, "second")
    for _ in range(2):  # run again once in each build, not for ever; the loss is told
        with disturbed(disturber, times=2, runs=2):
            lost = repo.run(*build).succeeded()
        assert "LOSSES mutatedAfterOpen: `rootseal verify` refuses it" in lost.output
    with disturbed(disturber, times=0, runs=1):  # nobody takes it from the cache
        repo.run(*build).succeeded()
    repo.verify()
    with disturbed(disturber, times=0, runs=0):
        repo.run(*build).succeeded()
    repo.verify()


def test_it_is_run_again_where_losses_fail_the_action(
    repo: PantsRepo, disturber: Disturber
) -> None:
    build = ("--rootseal-require-zero-drops", "package", RIGHT)
    use(repo, disturber, "first")
    with disturbed(disturber, times=2, runs=2):
        refused = repo.run(*build).failed()
    assert "mutatedAfterOpen 1" in refused.output
    with disturbed(disturber, times=1, runs=2):
        again = repo.run(*build).succeeded()
    assert "lost something: mutatedAfterOpen 1. Build again. It is run again." in again.output
    repo.verify()
