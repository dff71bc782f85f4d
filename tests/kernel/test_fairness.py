"""Many openers in one action do not keep another action waiting: in numbers of events, not time."""

from __future__ import annotations

from pathlib import Path
from typing import Iterator, Tuple

import pytest
from fanotify_action import Action, Lab, build_fixture
from rootseal import diagnostics

pytestmark = pytest.mark.requires("root", "fanotify", "gcc", "core")

FLOODERS = 8
QUIET_OPENS = 200
# One turn of a thread is 64 events (native/capture/serve.c). An opener that the scheduler keeps
# from its CPU meanwhile explains some turns more; being served last of all does not fit in.
EVENTS_BETWEEN_MAX = 64 * 4


@pytest.fixture(params=[1, 2, 3], ids=lambda shards: f"{shards}-shards")
def lab(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Lab]:
    made = Lab(build_fixture(tmp_path), shards=request.param, digest_cache_entries=65536)
    yield made
    made.engine.close()


def make_root(directory: Path, count: int) -> Path:
    directory.mkdir()
    for number in range(count):
        (directory / str(number)).write_bytes(b"%d" % number)
    return directory


def flood(lab: Lab, root: Path) -> Tuple[Action, Path]:
    """An action whose processes open files without a pause until the stop file is there."""
    loop = f"while [ ! -e stop ]; do {lab.fixture} read-many . 200; done"
    command = " & ".join(f"({loop})" for _ in range(FLOODERS)) + " & wait"
    return lab.start(root, ["/bin/sh", "-c", command]), root / "stop"


def test_a_flood_in_one_action_starves_no_other(lab: Lab, tmp_path: Path) -> None:
    flooded, stop = flood(lab, make_root(tmp_path / "flood", 200))
    while flooded.scope.progress()["events"] < 2000:
        pass
    quiet_root = make_root(tmp_path / "quiet", QUIET_OPENS)
    before = flooded.scope.progress()["events"]
    quiet = lab.start(quiet_root, [lab.fixture, "read-many", ".", str(QUIET_OPENS)])
    assert quiet.process.wait() == 0
    between = flooded.scope.progress()["events"] - before
    stop.touch()
    seen, flood_seen = quiet.finish(), flooded.finish()
    assert between / QUIET_OPENS < EVENTS_BETWEEN_MAX
    assert len([leaf for leaf in seen.materials if not leaf.path.startswith(b"/")]) == QUIET_OPENS
    for observed in (seen, flood_seen):
        assert diagnostics.losses(observed.counters) == {}


def test_several_floods_at_once_all_end(lab: Lab, tmp_path: Path) -> None:
    """Threads that are turned away leave no event behind that nobody reads."""
    actions = []
    for number in range(4):
        root = make_root(tmp_path / str(number), 200)
        readers = " & ".join(f"{lab.fixture} read-many . 200" for _ in range(FLOODERS))
        actions.append(lab.start(root, ["/bin/sh", "-c", readers + " & wait"]))
    for action in actions:
        seen = action.finish()
        assert seen.exit_code == 0
        inside = [leaf for leaf in seen.materials if not leaf.path.startswith(b"/")]
        assert len(inside) == 200
        assert diagnostics.losses(seen.counters) == {}
