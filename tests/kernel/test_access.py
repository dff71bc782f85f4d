"""A file that others change between its open and a read or mmap: caught while the reader waits."""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import json
import mmap
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Callable, Dict, Iterator, List, Tuple

import pytest
from fanotify_action import Action, Lab, Seen, build_fixture
from rootseal import diagnostics
from rootseal.observation import MountMark, Mutation, MutationTime
from running_daemon import RunningDaemon, rootseal, running_daemon, until

NEEDS = ("root", "fanotify", "gcc", "core", "launcher")
pytestmark = pytest.mark.requires(*NEEDS)
COMPARED_FILESYSTEMS = ("ext4", "xfs", "btrfs")

BEFORE, AFTER = b"before", b"after!"
LOST = {"mutatedAfterOpen": 1}
CLOCK_REALTIME_COARSE = 5  # what file timestamps are taken from

FAN_CLASS_PRE_CONTENT, FAN_MARK_ADD, FAN_PRE_ACCESS = 0x8, 0x1, 0x100000

# Opens FILE, says so, waits, does ACCESS, says what it got, and waits again.
READER = """
import mmap, os, sys, time
def wait(name):
    open(name + '.now', 'w').close()
    while not os.path.exists(name): time.sleep(0.002)
fd = os.open(sys.argv[1], os.O_RDONLY)
def mapped():
    with mmap.mmap(fd, 0, prot=mmap.PROT_READ, flags=mmap.MAP_PRIVATE) as area: return area[:]
def sent():
    out = os.memfd_create('copy')
    os.sendfile(out, fd, 0, 100)
    return os.pread(out, 100, 0)
def copied():
    out = os.open('copy', os.O_RDWR | os.O_CREAT)
    os.copy_file_range(fd, out, 100, 0, 0)
    return os.pread(out, 100, 0)
def piped():
    end, start = os.pipe()
    os.splice(fd, start, 100, offset_src=0)
    return os.read(end, 100)
wait('opened')
got = dict(read=lambda: os.read(fd, 100), pread=lambda: os.pread(fd, 100, 0), mmap=mapped,
    sendfile=sent, copy=copied, splice=piped)[sys.argv[2]]()
with open('got', 'wb') as file: file.write(got)
wait('accessed')
"""


@pytest.fixture(scope="module", autouse=True)
def pre_access(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Asked of the kernel itself, so that a capture that does not ask fails here."""
    libc = ctypes.CDLL(None, use_errno=True)
    group = libc.fanotify_init(FAN_CLASS_PRE_CONTENT, os.O_RDONLY)
    assert group >= 0, os.strerror(ctypes.get_errno())
    path = tmp_path_factory.mktemp("probe") / "file"
    path.touch()
    mask = ctypes.c_uint64(FAN_PRE_ACCESS)
    code = libc.fanotify_mark(group, FAN_MARK_ADD, mask, -100, os.fsencode(path))
    found = ctypes.get_errno()
    os.close(group)
    if code:
        pytest.skip(f"optional: no FAN_PRE_ACCESS here ({os.strerror(found)}): Linux 6.14, ext4")


@pytest.fixture(scope="module")
def fixture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_fixture(tmp_path_factory.mktemp("fixture"))


@pytest.fixture(scope="module")
def lab(fixture: Path) -> Iterator[Lab]:
    made = Lab(fixture, digest_cache_entries=65536, hash_once_after=16)
    yield made
    made.engine.close()


@pytest.fixture(scope="module")
def without(fixture: Path) -> Iterator[Lab]:
    made = Lab(fixture, digest_cache_entries=65536, compare_at_access=False)
    yield made
    made.engine.close()


def sha256(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def settle() -> None:
    """What is made in the tick in which the scope begins could be the action's own."""
    made = time.time_ns()
    while time.clock_gettime_ns(CLOCK_REALTIME_COARSE) <= made:
        pass


def write(path: Path, content: bytes) -> None:
    with path.open("r+b") as file:
        file.write(content)


def wait_for(path: Path, action: Action) -> None:
    """For a signal of the reader, which fails the test if it died."""
    while not path.exists():
        assert action.process.poll() is None or path.exists(), "the reader died"
        time.sleep(0.002)


def changed(
    lab: Lab,
    root: Path,
    path: Path,
    access: str,
    first: Callable[[], object],
    second: Callable[[], object] = lambda: None,
) -> Tuple[Seen, bytes, int]:
    """Change the file between open and access, and after that; what the action got; events."""
    path.write_bytes(BEFORE)
    return changed_as_it_is(lab, root, path, access, first, second)


def changed_as_it_is(
    lab: Lab,
    root: Path,
    path: Path,
    access: str,
    first: Callable[[], object],
    second: Callable[[], object],
) -> Tuple[Seen, bytes, int]:
    settle()
    action = lab.start(root, [sys.executable, "-c", READER, path, access])
    wait_for(root / "opened.now", action)
    events = progress(action)["access_events"]
    first()
    (root / "opened").touch()
    wait_for(root / "accessed.now", action)
    events = progress(action)["access_events"] - events
    second()
    (root / "accessed").touch()
    seen = action.finish()
    assert seen.exit_code == 0
    return seen, (root / "got").read_bytes(), events


def progress(action: Action) -> Dict[str, int]:
    assert action.scope is not None
    return dict(action.scope.progress())


@pytest.mark.parametrize("access", ["read", "pread", "mmap", "sendfile", "copy", "splice"])
def test_a_change_between_open_and_access_is_caught_with_both_digests(
    lab: Lab, root: Path, outside: Path, access: str
) -> None:
    """It is changed back before the end, so that only the access can tell."""
    path = outside / "shared"
    seen, got, _ = changed(
        lab, root, path, access, lambda: write(path, AFTER), lambda: write(path, BEFORE)
    )
    assert got == AFTER
    found = Mutation(os.fsencode(path), sha256(BEFORE), sha256(AFTER), MutationTime.ACCESS)
    assert seen.observation.mutations.found == (found,)
    assert diagnostics.losses(seen.counters) == LOST


@contextlib.contextmanager
def mounted(place: Path, filesystem: str) -> Iterator[Path]:
    """A filesystem of its own, in an image beside it; skips where the kernel does not have it."""
    known = Path("/proc/filesystems").read_text().split()
    if filesystem not in known:
        pytest.skip(f"optional: this kernel has no {filesystem}")
    where, words = place / "mounted", ["-t", filesystem]
    where.mkdir()
    if filesystem == "tmpfs":
        words.append("none")
    else:
        if shutil.which(f"mkfs.{filesystem}") is None:
            pytest.skip(f"optional: no mkfs.{filesystem} command")
        with (place / "image").open("wb") as image:
            image.truncate(512 << 20)  # sparse; xfs is at least 300 MiB
        subprocess.run([f"mkfs.{filesystem}", "-q", str(place / "image")], check=True)
        words += ["-o", "loop", str(place / "image")]
    subprocess.run(["mount", *words, str(where)], check=True)
    try:
        yield where
    finally:
        subprocess.run(["umount", str(where)], check=True)


COMPARED = [
    pytest.param(name, marks=pytest.mark.requires(*NEEDS, "loop")) for name in COMPARED_FILESYSTEMS
]


@pytest.mark.parametrize("access", ["read", "mmap", "sendfile"])
@pytest.mark.parametrize("filesystem", COMPARED)
def test_accesses_are_compared_on_each_filesystem_that_tells_of_them(
    lab: Lab, root: Path, tmp_path: Path, filesystem: str, access: str
) -> None:
    with mounted(tmp_path, filesystem) as place:
        path = place / "shared"
        seen, got, _ = changed(
            lab, root, path, access, lambda: write(path, AFTER), lambda: write(path, BEFORE)
        )
    assert got == AFTER
    found = Mutation(os.fsencode(path), sha256(BEFORE), sha256(AFTER), MutationTime.ACCESS)
    assert seen.observation.mutations.found == (found,)
    assert diagnostics.losses(seen.counters) == LOST
    assert mark_of(seen, place).compared_at_access is True


def test_on_tmpfs_it_is_told_that_accesses_are_not_compared(
    lab: Lab, root: Path, tmp_path: Path
) -> None:
    """What stays changed is found at the end; what is changed back in between is not."""
    with mounted(tmp_path, "tmpfs") as place:
        path = place / "shared"
        seen, got, events = changed(lab, root, path, "read", lambda: write(path, AFTER))
    assert (got, events) == (AFTER, 0)
    found = Mutation(os.fsencode(path), sha256(BEFORE), sha256(AFTER), MutationTime.END)
    assert seen.observation.mutations.found == (found,)
    assert mark_of(seen, place).compared_at_access is False


def mark_of(seen: Seen, place: Path) -> MountMark:
    (found,) = [m for m in seen.observation.mounts if m.mount_point == os.fsencode(place)]
    return found


def test_a_large_file_is_hashed_again_by_another_thread(
    lab: Lab, root: Path, outside: Path
) -> None:
    path, before, after = outside / "large", bytes(9 << 20), bytes(9 << 20) + b"more"
    path.write_bytes(before)
    settle()
    action = lab.start(root, [sys.executable, "-c", READER, path, "read"])
    wait_for(root / "opened.now", action)
    path.open("ab").write(b"more")
    (root / "opened").touch()
    wait_for(root / "accessed.now", action)
    os.truncate(path, len(before))
    (root / "accessed").touch()
    seen = action.finish()
    found = Mutation(os.fsencode(path), sha256(before), sha256(after), MutationTime.ACCESS)
    assert seen.observation.mutations.found == (found,)
    assert diagnostics.losses(seen.counters) == LOST


@pytest.mark.parametrize("by", ["write", "store"])
def test_a_change_by_one_who_had_it_open_for_writing_before(
    lab: Lab, root: Path, outside: Path, by: str
) -> None:
    """The kernel keeps no ignore mark then, so each access is looked at, after a store too."""
    path = outside / "shared"
    path.write_bytes(BEFORE)
    with path.open("r+b", buffering=0) as file, mmap.mmap(file.fileno(), 0) as area:

        def change(content: bytes) -> None:
            if by == "store":
                area[:] = content
            else:
                os.pwrite(file.fileno(), content, 0)

        seen, got, events = changed_as_it_is(
            lab, root, path, "read", lambda: change(AFTER), lambda: change(BEFORE)
        )
    found = Mutation(os.fsencode(path), sha256(BEFORE), sha256(AFTER), MutationTime.ACCESS)
    assert (got, events >= 1) == (AFTER, True)
    assert seen.observation.mutations.found == (found,)
    assert diagnostics.losses(seen.counters) == LOST


def test_a_store_through_a_mapping_made_after_the_open_is_found_at_the_end(
    lab: Lab, root: Path, outside: Path
) -> None:
    """It drops no ignore mark (docs/decisions/0012-compare-at-access.md, What remains)."""
    path = outside / "shared"

    def store() -> None:
        with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as area:
            area[:] = AFTER

    seen, got, events = changed(lab, root, path, "read", store)
    found = Mutation(os.fsencode(path), sha256(BEFORE), sha256(AFTER), MutationTime.END)
    assert (got, events) == (AFTER, 0)
    assert seen.observation.mutations.found == (found,)
    assert diagnostics.losses(seen.counters) == LOST


def test_without_the_comparison_such_a_change_is_not_seen(
    without: Lab, root: Path, outside: Path
) -> None:
    """Why it is there; and that the tests above can fail."""
    path = outside / "shared"
    seen, got, events = changed(
        without, root, path, "read", lambda: write(path, AFTER), lambda: write(path, BEFORE)
    )
    assert (got, events) == (AFTER, 0)
    assert diagnostics.losses(seen.counters) == {}
    assert not any(mount.compared_at_access for mount in seen.observation.mounts)


def test_a_change_that_stays_is_told_once(lab: Lab, root: Path, outside: Path) -> None:
    path = outside / "shared"
    seen, _, _ = changed(lab, root, path, "mmap", lambda: write(path, AFTER))
    assert [item.when for item in seen.observation.mutations.found] == [MutationTime.ACCESS]
    assert diagnostics.losses(seen.counters) == LOST


def test_a_third_content_at_the_end_is_told_too(lab: Lab, root: Path, outside: Path) -> None:
    path = outside / "shared"
    seen, _, _ = changed(
        lab, root, path, "read", lambda: write(path, AFTER), lambda: write(path, b"third!")
    )
    later = [(item.when, item.digest_later) for item in seen.observation.mutations.found]
    assert later == [
        (MutationTime.ACCESS, sha256(AFTER)),
        (MutationTime.END, sha256(b"third!")),
    ]
    assert diagnostics.losses(seen.counters) == {"mutatedAfterOpen": 2}


def test_a_file_cut_short(lab: Lab, root: Path, outside: Path) -> None:
    path = outside / "shared"
    seen, got, _ = changed(lab, root, path, "read", lambda: os.truncate(path, 3))
    (found,) = seen.observation.mutations.found
    assert (got, found.digest_later) == (b"bef", sha256(b"bef"))


def test_what_is_as_it_was_is_no_mutation(lab: Lab, root: Path, outside: Path) -> None:
    """Touched, given another mode, and written with the same content: the access looks, no more."""
    path = outside / "shared"

    def same() -> None:
        write(path, BEFORE)
        path.chmod(0o600)
        os.utime(path)

    seen, got, events = changed(lab, root, path, "read", same)
    assert (got, events) == (BEFORE, 1)
    assert diagnostics.losses(seen.counters) == {}


def test_what_the_action_changes_itself_is_no_mutation(lab: Lab, root: Path) -> None:
    (root / "log").write_bytes(b"one\n")
    settle()
    seen = lab.run(root, ["/bin/sh", "-c", "exec 3<log; echo two >> log; cat <&3; cat log"])
    assert diagnostics.losses(seen.counters) == {}
    assert seen.product(b"log").digest == sha256(b"one\ntwo\n")


def test_a_mount_says_that_its_files_are_compared(lab: Lab, root: Path, outside: Path) -> None:
    path = outside / "shared"
    path.write_bytes(BEFORE)
    seen = lab.run(root, ["/bin/cat", path])
    compared = {mount.filesystem for mount in seen.observation.mounts if mount.compared_at_access}
    assert compared
    assert compared <= {"ext4", "xfs", "btrfs", "bcachefs"}


def acted(lab: Lab, root: Path, script: str) -> Tuple[Seen, Dict[str, int]]:
    settle()
    action = lab.start(root, [sys.executable, "-c", f"import os\n{script}"])
    assert action.process.wait() == 0
    counters = progress(action)
    return action.finish(), counters


def test_reading_unchanged_files_costs_no_events(lab: Lab, root: Path, outside: Path) -> None:
    for number in range(200):
        (outside / str(number)).write_bytes(b"%d" % number)
    script = (
        f"for n in range(200):\n    fd = os.open({str(outside)!r} + '/%d' % n, os.O_RDONLY)\n"
        "    for _ in range(50): os.pread(fd, 9, 0)\n    os.close(fd)\n"
    )
    seen, counters = acted(lab, root, script)
    # An opener that is faster than the handler reads once before its file is passed.
    assert counters["access_events"] <= counters["events"] / 2, "of 10,000 reads"
    assert counters["events"] < 1000
    assert diagnostics.losses(seen.counters) == {}


def test_writing_products_costs_no_events(lab: Lab, root: Path) -> None:
    script = (
        "fd = os.open('new', os.O_RDWR | os.O_CREAT)\n"
        "for n in range(5000): os.write(fd, b'x'); os.pread(fd, 1, 0)\n"
    )
    seen, counters = acted(lab, root, script)
    assert counters["access_events"] < 20, "of 10,000 reads and writes"
    assert seen.product(b"new").size == 5000
    assert diagnostics.losses(seen.counters) == {}


@pytest.mark.parametrize("words", ["os.write(fd, b'y')", "os.pread(fd, 1, 0)"])
def test_a_file_that_is_kept_open_for_writing_costs_few(lab: Lab, root: Path, words: str) -> None:
    """The kernel ignores no event of it; after a while it is let go until the end."""
    (root / "old").write_bytes(b"x" * 10000)
    script = f"fd = os.open('old', os.O_RDWR)\nfor n in range(5000): {words}\n"
    seen, counters = acted(lab, root, script)
    assert 1 <= counters["access_events"] < 200, "of 5,000"
    assert diagnostics.losses(seen.counters) == {}


def test_a_file_whose_opens_are_passed_is_compared_too(lab: Lab, root: Path, outside: Path) -> None:
    """Both ignore marks are one mark of the kernel, and the marks of opens come and go."""
    path = outside / "shared"
    path.write_bytes(BEFORE)
    others = [outside / str(number) for number in range(5)]
    for other in others:
        other.write_bytes(BEFORE)
    settle()
    names = [str(item) for item in (path, *others)]
    script = (
        "import os, time\n"
        f"fd = os.open({str(path)!r}, os.O_RDONLY)\n"
        "def again():\n"
        f"    for _ in range(30):\n        for name in {names!r}: open(name, 'rb').read()\n"
        "again()\n"
        "if os.fork() == 0: os.execv('/bin/true', ['true'])\n"
        "os.wait()\n"
        "again()\n"
        "open('opened', 'w').close()\n"
        "while not os.path.exists('go'): time.sleep(0.002)\n"
        "os.pread(fd, 9, 0)\n"
        "open('read', 'w').close()\n"
        "while not os.path.exists('stop'): time.sleep(0.002)\n"
    )
    action = lab.start(root, [sys.executable, "-c", script])
    wait_for(root / "opened", action)
    assert progress(action)["hash_once_marks"] > 6
    write(path, AFTER)
    (root / "go").touch()
    wait_for(root / "read", action)
    write(path, BEFORE)
    (root / "stop").touch()
    seen = action.finish()
    found = Mutation(os.fsencode(path), sha256(BEFORE), sha256(AFTER), MutationTime.ACCESS)
    assert seen.observation.mutations.found == (found,)
    assert diagnostics.losses(seen.counters) == LOST


def test_many_files_changed_by_others_while_they_are_read(
    lab: Lab, root: Path, outside: Path
) -> None:
    """Each of the files that were changed, and no other."""
    paths: List[Path] = [outside / str(number) for number in range(100)]
    for path in paths:
        path.write_bytes(BEFORE)
    settle()
    script = (
        f"import os, time\nfds = [os.open(name, os.O_RDONLY) for name in {list(map(str, paths))}]\n"
        "open('opened', 'w').close()\n"
        "while not os.path.exists('go'): time.sleep(0.002)\n"
        "for fd in fds: os.pread(fd, 9, 0)\n"
        "open('read', 'w').close()\n"
        "while not os.path.exists('stop'): time.sleep(0.002)\n"
    )
    action = lab.start(root, [sys.executable, "-c", script])
    wait_for(root / "opened", action)
    for path in paths[::3]:
        write(path, AFTER)
    (root / "go").touch()
    wait_for(root / "read", action)
    for path in paths[::3]:
        write(path, BEFORE)
    (root / "stop").touch()
    seen = action.finish()
    found = {(item.path, item.digest_later) for item in seen.observation.mutations.found}
    assert found == {(os.fsencode(path), sha256(AFTER)) for path in paths[::3]}
    assert diagnostics.losses(seen.counters) == {"mutatedAfterOpen": len(paths[::3])}


# --- through daemon and launcher ------------------------------------------------------------

HELD = ("--option=capture-mode=walk", "--option=fanotify=on")  # fanotify alone
BOTH = ("--option=capture-mode=trace:ptrace", "--option=fanotify=on")


@pytest.mark.parametrize("options", [HELD, BOTH])
def test_the_record_has_both_digests_and_where_it_compared(
    daemon: RunningDaemon, sandbox: Path, outside: Path, options: Tuple[str, ...]
) -> None:
    path = outside / "shared"
    path.write_bytes(BEFORE)
    settle()
    process = daemon.start(sandbox, [sys.executable, "-c", READER, str(path), "mmap"], *options)
    until((sandbox / "opened.now").exists, "it is opened")
    write(path, AFTER)
    (sandbox / "opened").touch()
    until((sandbox / "accessed.now").exists, "it is mapped")
    write(path, BEFORE)
    (sandbox / "accessed").touch()
    done = daemon.end(process, sandbox / "the-record")
    assert done.returncode == 0, done.stderr
    entry = {
        "path": str(path),
        "digestAtOpen": sha256(BEFORE).hex(),
        "digestLater": sha256(AFTER).hex(),
        "when": "access",
    }
    assert done.field("mutations") == [entry]
    assert done.field("mutationsLeftOut") == 0
    # The files by which the test gives its signals are not the action's, as a trace can tell.
    others = ["foreignProducts"] if options == BOTH else []
    assert done.field("summary", "losses") == [*others, "mutatedAfterOpen"]
    mounts = done.field("capture", "mounts")
    assert {item["filesystem"] for item in mounts if item["comparedAtAccess"]}
    assert not any(item["comparedAtAccess"] for item in mounts if item["filesystem"] == "proc")


def test_a_gate_refuses_what_was_changed_before_it_was_read(
    daemon: RunningDaemon, sandbox: Path, outside: Path
) -> None:
    path = outside / "shared"
    path.write_bytes(BEFORE)
    settle()
    words = [sys.executable, "-c", READER, str(path), "read"]
    process = daemon.start(sandbox, words, *HELD, "--option=require-zero-drops=1")
    until((sandbox / "opened.now").exists, "it is opened")
    write(path, AFTER)
    (sandbox / "opened").touch()
    until((sandbox / "accessed.now").exists, "it is read")
    write(path, BEFORE)
    (sandbox / "accessed").touch()
    done = daemon.end(process, sandbox / "the-record")
    assert done.returncode != 0 and not done.record.exists()
    assert "mutatedAfterOpen" in done.stderr


def test_switched_off_it_says_so(tmp_path: Path, sandbox: Path) -> None:
    with running_daemon(tmp_path, "--compare-at-access", "off") as other:
        assert other.status()["comparesAtAccess"] is False
        done = other.run(sandbox, ["true"], *HELD)
    assert done.returncode == 0
    assert not any(item["comparedAtAccess"] for item in done.field("capture", "mounts"))


def test_status_and_doctor_say_that_it_is_there(daemon: RunningDaemon) -> None:
    assert daemon.status()["comparesAtAccess"] is True
    found = json.loads(rootseal("doctor", "--json").stdout)
    (finding,) = [item for item in found["findings"] if item["name"] == "accessComparison"]
    assert finding["good"] is True
    assert any(item["comparedAtAccess"] for item in found["mounts"])
