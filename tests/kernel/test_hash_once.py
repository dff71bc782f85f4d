"""Hash-once: repeated opens are passed without events, and nothing may be missed uncounted."""

from __future__ import annotations

import hashlib
import mmap
import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Dict, Iterator, List, Set, Tuple

import pytest
from fanotify_action import Lab, Seen, build_fixture
from rootseal import diagnostics

pytestmark = pytest.mark.requires("root", "fanotify", "gcc", "core")

SOON = 16  # opens in a row until a process gets marks, where the test wants them early
CLOCK_REALTIME_COARSE = 5  # what file timestamps are taken from

# Runs the operations that it is given as arguments, in one process, in the directory DIR.
ACTOR = """
import mmap, os, sys
os.chdir(sys.argv[1])
def read(name):
    with open(name, 'rb') as file: file.read()
def write(name, text):
    with open(name, 'r+b') as file: file.write(text.encode())
def truncate(name):
    with open(name, 'r+b') as file: file.truncate(3)
def store(name, text):
    with open(name, 'r+b') as file:
        with mmap.mmap(file.fileno(), 0) as area: area[0:2] = text.encode()[:2]
def replace(name, text):
    if not os.path.exists(name): return
    with open(name + '.new', 'wb') as file: file.write(text.encode() * 3)
    os.rename(name + '.new', name)
def spawn(name):
    if os.fork() == 0: os.execv('/bin/cat', ['cat', name])
    os.wait()
known = dict(read=read, write=write, store=store, replace=replace, spawn=spawn, rename=os.rename,
    link=os.link, unlink=os.unlink, truncate=truncate, cut=lambda name: os.truncate(name, 2),
    chmod=lambda name: os.chmod(name, 0o640))
for step in sys.argv[2:]:
    word, *rest = step.split(':')
    try: known[word](*rest)
    except FileNotFoundError: pass
"""
STEPS_THAT_TELL = ("write", "truncate", "spawn")
STEPS_THAT_DO_NOT = ("replace", "rename", "link", "unlink", "chmod", "store", "cut")


@pytest.fixture(scope="module")
def fixture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_fixture(tmp_path_factory.mktemp("fixture"))


@pytest.fixture(scope="module")
def once(fixture: Path) -> Iterator[Lab]:
    made = Lab(fixture, digest_cache_entries=65536, hash_once_after=SOON)
    yield made
    made.engine.close()


@pytest.fixture(scope="module")
def always(fixture: Path) -> Iterator[Lab]:
    made = Lab(fixture, digest_cache_entries=65536, hash_once_after=0)
    yield made
    made.engine.close()


def make_files(directory: Path, count: int) -> None:
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir()
    for number in range(count):
        (directory / f"f{number}").write_bytes(b"content of %d" % number)
    made = time.time_ns()
    while time.clock_gettime_ns(CLOCK_REALTIME_COARSE) <= made:
        pass  # made in the tick in which the scope begins, they could be the action's own


def act(lab: Lab, root: Path, directory: Path, steps: List[str]) -> Tuple[Seen, Dict[str, int]]:
    """Run the steps under a scope; what was seen, and the core's own counters."""
    action = lab.start(root, [sys.executable, "-c", ACTOR, directory, *steps])
    assert action.process.wait() == 0
    counters = dict(action.scope.progress())
    return action.finish(), counters


def leaves(seen: Seen, directory: Path) -> Set[Tuple[bytes, bytes, int, int]]:
    prefix = os.fsencode(directory) + b"/"
    return {
        (leaf.path, leaf.digest, leaf.size, leaf.mode)
        for leaf in seen.materials
        if leaf.path.startswith(prefix)
    }


def read_often(count: int, times: int) -> List[str]:
    return [f"read:f{number}" for _ in range(times) for number in range(count)]


def test_repeated_opens_make_no_further_events(once: Lab, root: Path, outside: Path) -> None:
    make_files(outside, 50)
    few, few_counters = act(once, root, outside, read_often(50, 2))
    many, many_counters = act(once, root, outside, read_often(50, 12))
    assert many_counters["hash_once_marks"] >= 50
    assert many_counters["events"] < few_counters["events"] + 100, "of 500 opens more"
    assert leaves(few, outside) == leaves(many, outside)
    assert len(leaves(many, outside)) == 50
    assert diagnostics.losses(many.counters) == {}


def test_content_that_write_changes_is_hashed_again(once: Lab, root: Path, outside: Path) -> None:
    make_files(outside, 20)
    steps = [*read_often(20, 4), "write:f3:WRITTEN", *read_often(20, 4), "truncate:f3"]
    seen, counters = act(once, root, outside, [*steps, *read_often(20, 2)])
    assert counters["hash_once_marks"] >= 20
    texts = (b"content of 3", b"WRITTEN of 3", b"WRI")
    found = {leaf.digest for leaf in seen.material(os.fsencode(outside / "f3"))}
    assert found == {hashlib.sha256(text).digest() for text in texts}
    assert diagnostics.losses(seen.counters) == {}


def test_what_others_write_is_hashed_again_and_counted(
    once: Lab, root: Path, outside: Path
) -> None:
    make_files(outside, 20)
    script = (
        f"import os\nos.chdir({str(outside)!r})\n"
        "def again():\n"
        "    for _ in range(30): open('f7', 'rb').read()\n"
        "again()\n"
        f"open({str(root / 'ready')!r}, 'w').close()\n"
        "while not os.path.exists('go'): pass\n"
        "again()\n"
    )
    action = once.start(root, [sys.executable, "-c", script])
    while not (root / "ready").exists():
        pass
    assert action.scope.progress()["hash_once_marks"] >= 1
    with (outside / "f7").open("r+b") as file:
        file.write(b"CHANGED")
    (outside / "go").touch()
    seen = action.finish()
    assert seen.exit_code == 0
    assert len(seen.material(os.fsencode(outside / "f7"))) == 2
    assert seen.counters["mutatedAfterOpen"] == 1


@pytest.mark.parametrize("change", ["store", "touch", "rename", "link"])
def test_what_no_event_tells_is_found_at_the_end(
    once: Lab, root: Path, outside: Path, change: str
) -> None:
    """Others store through a mapping, or play with names, while the file's opens are ignored."""
    make_files(outside, 20)
    file = outside / "f7"
    script = (
        f"import os\n"
        f"for _ in range(30): open({str(file)!r}, 'rb').read()\n"
        f"open({str(root / 'ready')!r}, 'w').close()\n"
        f"while not os.path.exists({str(outside / 'go')!r}): pass\n"
    )
    action = once.start(root, [sys.executable, "-c", script])
    while not (root / "ready").exists():
        pass
    if change == "store":
        with file.open("r+b") as opened, mmap.mmap(opened.fileno(), 0) as area:
            area[0:7] = b"STORED!"
    elif change == "touch":
        os.utime(file, ns=(1, 1))
    elif change == "rename":
        file.rename(outside / "elsewhere")
    else:
        os.link(file, outside / "alias")
    (outside / "go").touch()
    seen = action.finish()
    unsure = {"unstableFiles": 1}  # it may have been opened under another name
    lost = {"store": {"mutatedAfterOpen": 1}, "touch": {}, "rename": unsure, "link": unsure}
    assert diagnostics.losses(seen.counters) == lost[change]


def test_a_process_that_opens_few_files_gets_no_marks(
    fixture: Path, root: Path, outside: Path
) -> None:
    """So a link that another action makes of a file in a shared cache loses it nothing."""
    make_files(outside, 40)
    lab = Lab(fixture, digest_cache_entries=65536)
    script = (
        f"import os\n"
        f"for turn in range(20):\n"
        f"    for n in range(40): open(f'{outside}/f{{n}}', 'rb').read()\n"
        f"open({str(root / 'ready')!r}, 'w').close()\n"
        f"while not os.path.exists({str(outside / 'go')!r}): pass\n"
    )
    try:
        action = lab.start(root, [sys.executable, "-c", script])
        while not (root / "ready").exists():
            pass
        for number in range(40):
            os.link(outside / f"f{number}", outside / f"alias{number}")
        assert action.scope.progress()["hash_once_marks"] == 0
        (outside / "go").touch()
        seen = action.finish()
        later, counters = act(lab, root, outside, read_often(40, 150))
    finally:
        lab.engine.close()
    assert diagnostics.losses(seen.counters) == {}
    assert len(seen.materials) >= 40
    assert counters["hash_once_marks"] == 0, "each of them has two names now"
    assert diagnostics.losses(later.counters) == {}


def test_marks_come_after_so_many_opens_of_one_process(
    fixture: Path, root: Path, outside: Path
) -> None:
    make_files(outside, 50)
    lab = Lab(fixture, digest_cache_entries=65536)
    try:
        few, few_counters = act(lab, root, outside, read_often(50, 80))
        many, many_counters = act(lab, root, outside, read_often(50, 120))
    finally:
        lab.engine.close()
    assert few_counters["hash_once_marks"] == 0
    assert many_counters["hash_once_marks"] >= 50
    assert leaves(few, outside) == leaves(many, outside)
    assert diagnostics.losses(many.counters) == {}


def test_names_that_are_there_before_are_all_recorded(once: Lab, root: Path, outside: Path) -> None:
    make_files(outside, 20)
    os.link(outside / "f1", outside / "alias")
    steps = [*read_often(20, 5), "read:alias", *read_often(20, 5), "read:alias"]
    seen, counters = act(once, root, outside, steps)
    assert counters["hash_once_marks"] >= 18
    assert seen.material(os.fsencode(outside / "alias"))
    assert diagnostics.losses(seen.counters) == {}


def test_the_same_file_through_two_mounts(once: Lab, root: Path, outside: Path) -> None:
    make_files(outside, 20)
    (root / "mounted").mkdir()
    subprocess.run(["mount", "--bind", outside, root / "mounted"], check=True)
    try:
        steps = [*read_often(20, 5), f"read:{root}/mounted/f5"]
        seen, _ = act(once, root, outside, steps)
    finally:
        subprocess.run(["umount", root / "mounted"], check=True)
    assert seen.material(b"mounted/f5")
    assert seen.material(os.fsencode(outside / "f5"))
    assert diagnostics.losses(seen.counters) == {}


def test_another_process_has_its_own_list(once: Lab, root: Path, outside: Path) -> None:
    make_files(outside, 20)
    seen, _ = act(once, root, outside, [*read_often(20, 5), "spawn:f4", *read_often(20, 5)])
    readers = [
        process.comm
        for process, opened in zip(seen.observation.processes, seen.opens())
        if os.fsencode(outside / "f4") in {seen.materials[index].path for index in opened}
    ]
    assert b"cat" in readers
    assert len(readers) == 2


@pytest.mark.requires("ebpf")
def test_the_second_witness_finds_a_digest_for_each(
    fixture: Path, root: Path, outside: Path
) -> None:
    from rootseal.capture.ebpf import EbpfTracer
    from rootseal.capture.traced import TracedEngine

    make_files(outside, 50)
    lab = Lab(fixture, digest_cache_entries=65536, hash_once_after=SOON)
    tracer, content = EbpfTracer(), lab.engine
    lab.engine = TracedEngine(content, tracer)
    try:
        seen, counters = act(lab, root, outside, read_often(50, 12))
    finally:
        tracer.close()
        content.close()
    assert counters["hash_once_marks"] >= 50
    assert counters["events"] < 600, "of 600 opens of the files alone"
    ledger = seen.observation.ledger
    assert ledger is not None
    assert ledger.hashed >= 50
    assert ledger.unhashed["noDigest"] == 0
    assert diagnostics.losses(seen.counters) == {}


def random_steps(seed: int, words: Tuple[str, ...]) -> List[str]:
    chosen = random.Random(seed)
    steps = read_often(8, 3)
    for turn in range(60):
        name = f"f{chosen.randrange(8)}"
        word = chosen.choice(("read",) * 12 + words)
        extra = {
            "write": f":turn {turn}",
            "store": f":t{turn}",
            "replace": f":turn {turn}",
            "rename": f":r{chosen.randrange(3)}",
            "link": f":l{turn}",
        }
        steps.append(f"{word}:{name}{extra.get(word, '')}")
        steps.append(f"read:{chosen.choice((name, 'r0', 'r1', 'r2', f'l{turn}'))}")
    return steps


@pytest.mark.parametrize("seed", range(6))
def test_the_same_materials_with_and_without(
    once: Lab, always: Lab, root: Path, outside: Path, seed: int
) -> None:
    """Writes, truncations and other processes: no difference, and no loss."""
    steps = random_steps(seed, STEPS_THAT_TELL)
    make_files(outside, 8)
    without, plain = act(always, root, outside, steps)
    assert plain["hash_once_marks"] == 0
    make_files(outside, 8)
    with_marks, marked = act(once, root, outside, steps)
    assert marked["hash_once_marks"] > 0
    opens, all_opens = (c["events"] - c["access_events"] for c in (marked, plain))
    assert opens < all_opens
    assert leaves(with_marks, outside) == leaves(without, outside)
    assert diagnostics.losses(with_marks.counters) == diagnostics.losses(without.counters) == {}


@pytest.mark.parametrize("seed", range(10, 18))
def test_with_names_and_mappings_a_difference_is_counted(
    once: Lab, always: Lab, root: Path, outside: Path, seed: int
) -> None:
    steps = random_steps(seed, STEPS_THAT_TELL + STEPS_THAT_DO_NOT)
    make_files(outside, 8)
    without, _ = act(always, root, outside, steps)
    make_files(outside, 8)
    with_marks, _ = act(once, root, outside, steps)
    assert leaves(with_marks, outside) <= leaves(without, outside), "nothing may be made up"
    if leaves(with_marks, outside) != leaves(without, outside):
        assert with_marks.counters["unstableFiles"] > 0
