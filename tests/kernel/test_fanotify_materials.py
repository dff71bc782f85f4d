"""Materials: what an action opened or executed, hashed while it was held."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Iterator

import pytest
from fanotify_action import Lab, build_fixture
from rootseal import diagnostics
from rootseal.capture.scope import CaptureLimits
from rootseal.errors import NativeError
from rootseal.observation import (
    MUTATIONS_MAX,
    DigestSource,
    LeafKind,
    Mutation,
    Mutations,
    MutationTime,
    Posture,
)

pytestmark = pytest.mark.requires("root", "fanotify", "gcc", "core")
# Of hostile writers: each way to write meets each file twice, or six times.
TURNS = 10 if os.environ.get("ROOTSEAL_LAB_EMULATED") else 30


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    made = Lab(build_fixture(tmp_path_factory.mktemp("fixture")), digest_cache_entries=65536)
    yield made
    made.engine.close()


def sha256(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def fill(directory: Path, count: int, size: int = 600) -> None:
    for number in range(count):
        (directory / str(number)).write_bytes(b"%d:" % number + bytes(size))


CODE = {
    "library": (b"\x7fELF" + bytes(5000), LeafKind.CODE),
    "pe": (b"MZ\x90", LeafKind.CODE),
    "nearly": (b"\x7fEL", LeafKind.FILE),
    "text": (b"M", LeafKind.FILE),
    "empty": (b"", LeafKind.FILE),
    "large": (b"\x7fELF" + bytes(3 << 20), LeafKind.CODE),
    "data": (b"no code \x7fELF", LeafKind.FILE),
}


def test_machine_code_is_known_by_its_content_also_from_the_cache(
    lab: Lab, root: Path, outside: Path
) -> None:
    for name, (content, _) in CODE.items():
        (outside / name).write_bytes(content)
    time.sleep(0.05)  # so old that the cache may take them
    for _ in range(2):
        seen = lab.do(root, "read", *(outside / name for name in CODE))
        kinds = {name: seen.material(os.fsencode(outside / name))[0].kind for name in CODE}
        assert kinds == {name: kind for name, (_, kind) in CODE.items()}
    assert seen.counters["digestCacheHits"] >= len(CODE)


def test_a_file_read_inside_and_outside_the_root(lab: Lab, root: Path, outside: Path) -> None:
    (root / "input.txt").write_bytes(b"inside")
    (outside / "header.h").write_bytes(b"outside")
    (outside / "header.h").chmod(0o640)
    seen = lab.do(root, "read", "input.txt", outside / "header.h")
    (inner,) = seen.material(b"input.txt")
    (outer,) = seen.material(os.fsencode(outside / "header.h"))
    assert (inner.digest, inner.size, inner.kind) == (sha256(b"inside"), 6, LeafKind.FILE)
    assert (outer.digest, outer.size, outer.mode) == (sha256(b"outside"), 7, 0o640)
    assert {inner.source, outer.source} == {DigestSource.FANOTIFY_OPEN_TIME}
    assert seen.observation.posture is Posture.HELD
    assert seen.products == []
    assert diagnostics.losses(seen.counters) == {}


def test_the_executed_program_and_its_process(lab: Lab, root: Path) -> None:
    (root / "a").write_bytes(b"a")
    seen = lab.do(root, "read", "a")
    (program,) = seen.material(os.fsencode(lab.fixture))
    (process,) = seen.observation.processes
    assert program.kind == LeafKind.EXECUTABLE
    assert program.digest == sha256(lab.fixture.read_bytes())
    assert process.program == os.fsencode(lab.fixture)
    assert process.programdigest == process.exedigest == program.digest
    assert process.comm == b"files_fixture"[:15]
    assert process.cmdline == (os.fsencode(lab.fixture), b"read", b"a")
    (opened,) = seen.opens()
    assert [seen.materials[index].path for index in opened].count(b"a") == 1


def test_scripts_children_and_who_opened_what(lab: Lab, root: Path) -> None:
    (root / "one").write_bytes(b"1")
    (root / "two").write_bytes(b"2")
    script = root / "script.sh"
    script.write_text("#!/bin/sh\ncat one\n./script2.sh\nexit 7\n")
    (root / "script2.sh").write_text("#!/bin/sh\nexec cat two\n")
    for path in root.glob("*.sh"):
        path.chmod(0o755)
    seen = lab.run(root, ["./script.sh"])
    assert seen.exit_code == 7
    by_file = {}
    for process, opened in zip(seen.observation.processes, seen.opens()):
        for index in opened:
            by_file.setdefault(seen.materials[index].path, []).append(process)
    (reader,) = by_file[b"two"]
    shell = seen.observation.processes[0]
    assert reader.cmdline == (b"cat", b"two")
    assert reader.parentpid == shell.processid
    assert shell.program.endswith(b"/script.sh")
    assert shell.programdigest == sha256(script.read_bytes())
    assert shell.cmdline == (b"/bin/sh", b"./script.sh")
    assert [leaf.kind for leaf in seen.material(b"script.sh")] == [LeafKind.EXECUTABLE]


def test_same_content_twice_and_one_path_with_two_contents(lab: Lab, root: Path) -> None:
    (root / "a").write_bytes(b"same")
    (root / "b").write_bytes(b"same")
    seen = lab.run(root, ["/bin/sh", "-c", "cat a b; cp a /dev/null; echo new > t; mv t a; cat a"])
    assert [leaf.digest for leaf in seen.material(b"b")] == [sha256(b"same")]
    # The second content of `a` is the action's own product, not a material.
    assert [leaf.digest for leaf in seen.material(b"a")] == [sha256(b"same")]
    assert seen.product(b"a").digest == sha256(b"new\n")


def test_hardlink_aliases_are_two_materials(lab: Lab, root: Path, outside: Path) -> None:
    (root / "a").write_bytes(b"linked")
    os.link(root / "a", root / "b")
    seen = lab.do(root, "read", "a", "b", "a")
    assert [leaf.path for leaf in seen.materials if leaf.digest == sha256(b"linked")] == [
        b"a",
        b"b",
    ]


def test_an_outside_file_linked_or_moved_into_the_root_is_a_material(
    lab: Lab, root: Path, outside: Path
) -> None:
    (outside / "secret").write_bytes(b"secret")
    (outside / "moved").write_bytes(b"moved")
    command = f"ln {outside}/secret x && mv {outside}/moved y && cat x y"
    seen = lab.run(root, ["/bin/sh", "-c", command])
    assert [leaf.digest for leaf in seen.material(b"x")] == [sha256(b"secret")]
    assert [leaf.digest for leaf in seen.material(b"y")] == [sha256(b"moved")]
    assert seen.product(b"y").digest == sha256(b"moved")


def test_a_file_made_by_others_meanwhile_is_a_material(lab: Lab, root: Path, outside: Path) -> None:
    action = lab.start(
        root, ["/bin/sh", "-c", f"while [ ! -e {outside}/late ]; do :; done; cat {outside}/late"]
    )
    (outside / "part").write_bytes(b"not by the action")
    (outside / "part").rename(outside / "late")
    seen = action.finish()
    (late,) = seen.material(os.fsencode(outside / "late"))
    assert late.digest == sha256(b"not by the action")


def test_intermediates_are_not_materials(lab: Lab, root: Path, outside: Path) -> None:
    command = f"echo x > t; cat t; echo y > {outside}/t; cat {outside}/t; rm t {outside}/t"
    seen = lab.run(root, ["/bin/sh", "-c", command])
    assert seen.material(b"t") == []
    assert seen.material(os.fsencode(outside / "t")) == []
    assert seen.products == []


def test_what_others_made_is_a_material_though_the_action_was_the_last_to_write_it(
    lab: Lab, root: Path, outside: Path
) -> None:
    for place in (outside, root):
        late = place / "late"
        wait = f"while [ ! -e {late} ]; do :; done"
        action = lab.start(root, ["/bin/sh", "-c", f"{wait}; cat {late}; echo more >> {late}"])
        (place / "part").write_bytes(b"not by the action")
        (place / "part").rename(late)
        seen = action.finish()
        digests = {leaf.digest for leaf in seen.materials if leaf.path.endswith(b"late")}
        assert sha256(b"not by the action") in digests


def test_awkward_paths(lab: Lab, root: Path) -> None:
    names = [
        b"new\nline",
        b"\xff\xfe",
        b"sp ace\t\\134",
        b"x (deleted)",
        b"percent%20",
        b"\xc3\xa9",
    ]
    for name in names:
        (root / os.fsdecode(name)).write_bytes(name)
    seen = lab.run(root, [lab.fixture, "read", *[os.fsdecode(name) for name in names]])
    assert seen.exit_code == 0
    for name in names:
        assert [leaf.digest for leaf in seen.material(name)] == [sha256(name)]


def test_the_longest_path(lab: Lab, root: Path) -> None:
    directory = root
    while len(os.fsencode(directory)) + 201 < 4095 - 256:
        directory = directory / ("d" * 200)
        directory.mkdir()
    name = "f" * (4095 - len(os.fsencode(directory)) - 1)
    while len(name) > 255:
        directory = directory / ("e" * 100)
        directory.mkdir()
        name = "f" * (4095 - len(os.fsencode(directory)) - 1)
    path = directory / name
    # One byte more than the system calls take in one piece, so it is made in two steps.
    descriptor = os.open(directory, os.O_RDONLY)
    opened = os.open(name, os.O_WRONLY | os.O_CREAT, 0o644, dir_fd=descriptor)
    os.write(opened, b"long")
    os.close(opened)
    os.close(descriptor)
    assert len(os.fsencode(path)) == 4095
    relative = os.path.relpath(path, root)
    seen = lab.do(root, "read", relative)
    assert [leaf.digest for leaf in seen.material(os.fsencode(relative))] == [sha256(b"long")]
    assert diagnostics.losses(seen.counters) == {}


def test_an_unlinked_file_that_is_still_read(lab: Lab, root: Path) -> None:
    (root / "gone").write_bytes(b"gone")
    seen = lab.run(root, ["/bin/sh", "-c", "exec 3< gone; rm gone; cat /proc/self/fd/3"])
    assert {leaf.digest for leaf in seen.material(b"gone")} == {sha256(b"gone")}


def test_special_files_do_not_strand_their_openers(lab: Lab, root: Path) -> None:
    action = lab.start(root, [lab.fixture, "special", root])
    assert action.process.wait(timeout=600) == 0
    seen = action.finish()
    assert seen.exit_code == 0
    assert seen.products == []
    assert seen.counters["unhashedOpensTotal"] == 0


def test_empty_files_and_large_files(lab: Lab, root: Path) -> None:
    (root / "empty").write_bytes(b"")
    large = bytes(range(256)) * 4096 * 9 + b"tail"
    (root / "large").write_bytes(large)
    seen = lab.do(root, "read", "empty", "large")
    assert seen.material(b"empty")[0].digest == sha256(b"")
    assert seen.material(b"large")[0].digest == sha256(large)
    assert seen.material(b"large")[0].size == len(large)


@pytest.mark.heavy
def test_a_sparse_file_of_a_gigabyte_is_hashed_whole(lab: Lab, root: Path) -> None:
    with (root / "sparse").open("wb") as file:
        file.truncate(2**30)
    progress = []
    (root / "small").write_bytes(b"small")
    big = lab.start(root, [lab.fixture, "read", "sparse"])
    other = lab.do(root, "read", "small")  # goes on while the large file is hashed
    assert other.material(b"small")
    progress.append(big.scope.progress())
    seen = big.finish()
    expected = hashlib.sha256()
    for _ in range(1024):
        expected.update(bytes(2**20))
    assert seen.material(b"sparse")[0].digest == expected.digest()
    assert progress[0]["events"] >= 1


@pytest.mark.heavy
@pytest.mark.parametrize("shards", [1, 4])
def test_a_hundred_thousand_opens_none_lost(tmp_path: Path, lab: Lab, shards: int) -> None:
    for directory in range(100):
        (tmp_path / "many" / str(directory)).mkdir(parents=True)
        fill(tmp_path / "many" / str(directory), 1000)
    root = tmp_path / "root"
    root.mkdir()
    own = Lab(lab.fixture, shards=shards, digest_cache_entries=1024)
    try:
        command = f"for d in $(seq 0 99); do {lab.fixture} read-many {tmp_path}/many/$d 1000 & "
        command += "[ $((d % 8)) = 7 ] && wait; done; wait"
        seen = own.run(root, ["/bin/sh", "-c", command])
    finally:
        own.engine.close()
    assert seen.exit_code == 0
    assert diagnostics.losses(seen.counters) == {}
    prefix = os.fsencode(tmp_path / "many") + b"/"
    found = {leaf.path: leaf.digest for leaf in seen.materials if leaf.path.startswith(prefix)}
    assert len(found) == 100_000
    for directory in (0, 57, 99):
        for number in range(1000):
            path = os.fsencode(tmp_path / "many" / str(directory) / str(number))
            assert found[path] == sha256(b"%d:" % number + bytes(600))


def test_scopes_see_only_their_own(lab: Lab, tmp_path: Path) -> None:
    actions = []
    for number in range(8):
        root = tmp_path / f"root{number}"
        root.mkdir()
        fill(root, 500)
        (root / "mark").write_bytes(b"%d" % number)
        command = f"{lab.fixture} read-many . 500; cat mark; echo {number} > out"
        actions.append((number, lab.start(root, ["/bin/sh", "-c", command])))
    for number, action in actions:
        seen = action.finish()
        inside = [leaf for leaf in seen.materials if not leaf.path.startswith(b"/")]
        assert len(inside) == 501
        assert seen.material(b"mark")[0].digest == sha256(b"%d" % number)
        assert seen.product_paths() == [b"out"]
        assert not [leaf.path for leaf in seen.materials if b"/root" in leaf.path[1:]]
        assert diagnostics.losses(seen.counters) == {}


@pytest.mark.heavy
def test_a_file_that_keeps_growing_is_counted(lab: Lab, root: Path, outside: Path) -> None:
    log, stop = outside / "log", outside / "stop"
    with log.open("wb") as file:
        file.truncate(2**29)  # long enough to hash that the writer gets its turn meanwhile
    writer = subprocess.Popen([str(lab.fixture), "growing", str(log), str(stop)])
    try:
        size = log.stat().st_size
        while log.stat().st_size == size:
            pass
        seen = lab.do(root, "read", log)
    finally:
        stop.touch()
        writer.wait()
    assert seen.counters["unstableFiles"] >= 1
    assert seen.material(os.fsencode(log))


def test_a_material_changed_by_others_is_counted(lab: Lab, root: Path, outside: Path) -> None:
    shared = outside / "shared"
    shared.write_bytes(b"before")
    (outside / "touched").write_bytes(b"touched only")
    (outside / "replaced").write_bytes(b"replaced")
    command = f"cat {outside}/*; touch {root}/read; while [ ! -e {outside}/go ]; do :; done"
    action = lab.start(root, ["/bin/sh", "-c", command])
    while not (root / "read").exists():
        pass
    with shared.open("r+b") as file:
        file.write(b"after!")
    os.utime(outside / "touched")
    (outside / "new").write_bytes(b"another file")
    (outside / "new").rename(outside / "replaced")
    (outside / "go").touch()
    seen = action.finish()
    assert seen.counters["mutatedAfterOpen"] == 1
    assert seen.material(os.fsencode(shared))[0].digest == sha256(b"before")
    path, before, after = os.fsencode(shared), sha256(b"before"), sha256(b"after!")
    found = Mutation(path, before, after, MutationTime.END)
    assert seen.observation.mutations == Mutations((found,), 0)


def test_a_changed_material_that_cannot_be_read_at_the_end(
    lab: Lab, root: Path, outside: Path
) -> None:
    """Its reading would go over the action's cap: changed to what is not known."""
    shared = outside / "shared"
    shared.write_bytes(b"before")
    command = f"cat {shared}; touch {root}/read; while [ ! -e {outside}/go ]; do :; done"
    argv = ["/bin/sh", "-c", command]
    action = lab.start(root, argv, CaptureLimits(max_hashed_bytes=20_000_000))
    while not (root / "read").exists():
        pass
    with shared.open("r+b") as file:
        file.truncate(30_000_000)
    (outside / "go").touch()
    seen = action.finish()
    found = Mutation(os.fsencode(shared), sha256(b"before"), None, MutationTime.END)
    assert seen.observation.mutations.found == (found,)
    assert set(diagnostics.losses(seen.counters)) == {"mutatedAfterOpen", "hashedBytesCapHit"}


@pytest.mark.heavy
def test_of_very_many_changed_materials_some_are_only_counted(
    lab: Lab, root: Path, outside: Path
) -> None:
    fill(outside, MUTATIONS_MAX + 50)
    script = (
        f"import os, time\nfor n in range({MUTATIONS_MAX + 50}):\n"
        f"    open({str(outside)!r} + '/%d' % n, 'rb').read()\n"
        "open('read', 'w').close()\nwhile not os.path.exists('go'): time.sleep(0.01)\n"
    )
    action = lab.start(root, [sys.executable, "-c", script])
    while not (root / "read").exists():
        time.sleep(0.01)
    for path in outside.iterdir():
        path.open("ab").write(b"more")
    (root / "go").touch()
    seen = action.finish()
    mutations = seen.observation.mutations
    assert seen.counters["mutatedAfterOpen"] == MUTATIONS_MAX + 50
    assert (len(mutations.found), mutations.left_out) == (MUTATIONS_MAX, 50)
    for item in mutations.found:
        assert item.digest_later == sha256(Path(os.fsdecode(item.path)).read_bytes())


def test_a_material_changed_by_the_action_is_both(lab: Lab, root: Path) -> None:
    (root / "log").write_bytes(b"one\n")
    seen = lab.run(root, ["/bin/sh", "-c", "cat log; echo two >> log"])
    assert seen.counters["mutatedAfterOpen"] == 0
    assert seen.observation.mutations == Mutations()
    assert seen.material(b"log")[0].digest == sha256(b"one\n")
    assert seen.product(b"log").digest == sha256(b"one\ntwo\n")


def test_caps_mark_only_their_action(lab: Lab, root: Path, tmp_path: Path) -> None:
    fill(root, 50)
    small = CaptureLimits(max_digests=20)
    seen = lab.do(root, "read-many", ".", "50", limits=small)
    assert seen.observation.materials.tree_size == 20
    assert seen.counters["fanotifyDigestsCapHit"] >= 30
    seen = lab.do(root, "read-many", ".", "50", limits=CaptureLimits(max_record_bytes=1500))
    assert 0 < len(seen.observation.materials.raw) <= 1500
    assert seen.counters["recordBytesCapHit"] > 0
    (root / "fresh").write_bytes(os.urandom(200_000))
    seen = lab.do(root, "read", "fresh", limits=CaptureLimits(max_hashed_bytes=100_000))
    assert seen.counters["hashedBytesCapHit"] >= 1
    assert seen.material(b"fresh") == []
    command = ["/bin/sh", "-c", "cat 1; cat 2; cat 3"]
    seen = lab.run(root, command, limits=CaptureLimits(max_processes=2))
    assert len(seen.observation.processes) == 2
    assert seen.counters["processTableCapHit"] >= 1
    assert seen.material(b"3"), "a process that does not fit must not lose its materials"
    seen = lab.do(root, "read-many", ".", "50")
    assert diagnostics.losses(seen.counters) == {}


@pytest.mark.heavy
def test_records_beyond_the_budget_are_all_there(lab: Lab, root: Path, tmp_path: Path) -> None:
    own = Lab(lab.fixture, digest_cache_entries=1024)
    own.engine.set_memory(0, tmp_path)
    try:
        fill(root, 600)
        action = own.start(root, [lab.fixture, "read-many", ".", "600"])
        action.process.wait()
        assert own.engine.memory()["spilled"] > 0
        seen = action.finish()
    finally:
        own.engine.close()
    inside = {leaf.path: leaf.digest for leaf in seen.materials if b"/" not in leaf.path}
    assert inside == {b"%d" % number: sha256(b"%d:" % number + bytes(600)) for number in range(600)}
    assert diagnostics.losses(seen.counters) == {}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["root"]


@pytest.mark.heavy
def test_pids_are_reused_without_mixing_processes(lab: Lab, root: Path) -> None:
    last = Path("/proc/sys/kernel/ns_last_pid")
    if not last.exists():
        pytest.skip("this kernel cannot choose pids (CONFIG_CHECKPOINT_RESTORE)")
    (root / "a").write_bytes(b"a")
    (root / "b").write_bytes(b"b")
    script = (
        "import os, sys, time\n"
        "def spawn(path):\n"
        "    child = os.fork()\n"
        "    if child == 0: os.execv('/bin/cat', ['cat', path])\n"
        "    os.waitpid(child, 0)\n"
        "    return child\n"
        "first = spawn('a')\n"
        "tick = time.monotonic() + 3 / os.sysconf('SC_CLK_TCK')\n"
        "while time.monotonic() < tick: pass  # start times are in ticks\n"
        "for attempt in range(200):\n"
        f"    open('{last}', 'w').write(str(first - 1))\n"
        "    if spawn('b') == first: sys.exit(0)\n"
        "sys.exit(3)\n"
    )
    seen = lab.run(root, [sys.executable, "-c", script])
    if seen.exit_code == 3:
        pytest.skip("the pid was always taken by somebody else")
    assert seen.exit_code == 0
    readers = [process for process in seen.observation.processes if process.comm == b"cat"]
    assert len({process.processid for process in readers}) < len(readers)
    for opened in seen.opens():
        paths = {seen.materials[index].path for index in opened}
        assert not {b"a", b"b"} <= paths


def test_cached_digests_follow_hostile_writers(lab: Lab, root: Path, outside: Path) -> None:
    """Every digest a scope gives is of a content the file had while the action ran."""
    names = [str(number) for number in range(12)]
    for name in names:
        (outside / name).write_bytes(b"start " + name.encode())
    for turn in range(TURNS):
        expected = {}
        for number, name in enumerate(names):
            path, content = outside / name, b"turn %d of %s" % (turn, name.encode())
            kind = (turn + number) % 5
            if kind == 0:
                path.write_bytes(content)
            elif kind == 1:
                (outside / "tmp").write_bytes(content)
                (outside / "tmp").rename(path)
            elif kind == 2:
                before = path.stat()
                path.write_bytes(content)
                os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
            elif kind == 3:
                subprocess.run([lab.fixture, "mmap-closed", path, content], check=True)
            expected[os.fsencode(path)] = sha256(path.read_bytes())
        seen = lab.do(root, "read", *[outside / name for name in names])
        got = {leaf.path: leaf.digest for leaf in seen.materials if leaf.path in expected}
        assert got == expected


def test_a_writer_keeps_a_file_out_of_the_cache(lab: Lab, root: Path, outside: Path) -> None:
    path = outside / "held"
    path.write_bytes(b"held by a writer")
    os.utime(path, ns=(1, 1))
    writer = subprocess.Popen(
        [str(lab.fixture), "hold-write", str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert writer.stdout is not None
    assert writer.stdout.readline() == b"held\n"
    before = lab.engine.cache_entries()
    lab.do(root, "read", path)
    again = lab.do(root, "read", path)
    writer.communicate()
    (outside / "empty").touch()
    # What the program itself costs: nothing, unless its libraries are where nothing is cached.
    base = lab.do(root, "read", outside / "empty").counters["bytesHashed"]
    assert again.counters["bytesHashed"] - base == len(b"held by a writer")
    assert lab.engine.cache_entries() - before <= 1  # at most the fixture program


def test_abort_lets_openers_go(lab: Lab, root: Path) -> None:
    fill(root, 200)
    action = lab.start(root, [lab.fixture, "read-many", ".", "200"])
    action.scope.abort()
    action.scope.abort()
    assert action.process.wait(timeout=600) == 0
    assert action.scope.progress() == {}


def test_finish_and_abort_race(lab: Lab, root: Path) -> None:
    action = lab.start(root, ["/bin/true"])
    action.process.wait()
    outcomes = []

    def end() -> None:
        try:
            outcomes.append(action.scope.finish(outputs_files=(), outputs_dirs=()))
        except NativeError as error:
            outcomes.append(error)

    threads = [threading.Thread(target=end) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(isinstance(outcome, NativeError) for outcome in outcomes) == 3
