"""Daemon, launcher, helper and keeper killed at every phase; full disks; a lost socket; a clock.

strace(1) kills a process at a chosen system call, so each phase is met exactly. Whatever dies and
whenever: no action goes on unobserved, no half file is left, and the next build works without
anybody cleaning up.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import resource
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Any, Dict, Iterator, List, Sequence

import pytest
from injected import attached, strace
from rootseal import keys
from running_daemon import (
    GIVE_UP_SECONDS,
    Done,
    RunningDaemon,
    answers,
    command,
    is_alive,
    one_line,
    rootseal,
    running_daemon,
    until,
)

pytestmark = pytest.mark.requires("root", "fanotify", "launcher", "core", "strace")
HELD = "--option=fanotify=on"
TRACED = "--option=capture-mode=trace:ptrace"
WALKED = "--option=capture-mode=walk"
ACTION = ["/bin/sh", "-c", "mkdir ran; cat in > out; mkdir ended"]


@pytest.fixture
def sandbox(tmp_path: Path) -> Path:
    place = tmp_path / "sandbox"
    place.mkdir()
    (place / "in").write_text("in")
    return place


def leftovers(directory: Path) -> List[str]:
    """Names that no action made: temporary files."""
    return [name.name for name in directory.rglob("*") if name.name.startswith(".")]


def next_build_works(tmp_path: Path, sandbox: Path) -> None:
    """In the same places, with nothing removed by hand, by a daemon that the build starts."""
    place = ("--socket", str(tmp_path / "run" / "d.sock"), "--state-dir", str(tmp_path / "state"))
    key, bundle = tmp_path / "key", tmp_path / "bundle"
    if not key.exists():
        keys.create_key_files(key, "ed25519")
    shutil.rmtree(sandbox)
    sandbox.mkdir()
    (sandbox / "in").write_text("in")
    try:
        assert rootseal("daemon", "ensure", *place).returncode == 0
        sealing = ("--key", str(key), "--out", str(bundle), "--output", "out")
        options = ("--socket", place[1], "--fanotify=on", "--require-zero-drops")
        done = rootseal("run", *options, *sealing, "--", *ACTION, cwd=sandbox)
        assert done.returncode == 0, done.stderr
        pub = str(key.with_suffix(".pub"))
        assert rootseal("verify", str(bundle), "--key", pub).returncode == 0
    finally:
        rootseal("daemon", "stop", "--socket", place[1])


def nothing_is_left(sandbox: Path, done: Done) -> None:
    """An action that failed left no record, no part of one and no process."""
    assert not done.record.exists()
    assert leftovers(sandbox) == []


# --- the daemon is killed -------------------------------------------------------------------

PHASES = {
    "announced": ("sendto", 1, False),
    "its child is ready": ("fanotify_init", 1, False),
    "half of its mounts are marked": ("fanotify_mark", 2, False),
    "the keeper does not know it": ("sendmsg", 1, False),
    "armed, but not told": ("sendto", 2, False),
    "an opener waits, its file half read": ("pread64", 1, False),
    "an opener waits, its answer ready": ("write", 1, False),
    "it has ended": ("sendto", 3, True),
    "its products are being looked for": ("getdents64", 3, True),
    "its record is signed, but not sent": ("sendto", 4, True),
}


@pytest.mark.parametrize("phase", PHASES)
def test_a_daemon_that_is_killed_fails_the_action(
    tmp_path: Path, sandbox: Path, phase: str
) -> None:
    call, when, ended = PHASES[phase]
    with running_daemon(tmp_path) as daemon, attached(daemon, strace(call, when)):
        done = daemon.run(sandbox, ACTION, HELD)
        assert daemon.process.wait(GIVE_UP_SECONDS) == -signal.SIGKILL
    assert done.returncode == 125
    assert "the Rootseal daemon" in one_line(done.stderr)
    assert (sandbox / "ended").exists() == ended
    assert ended or not (sandbox / "ran").exists()
    nothing_is_left(sandbox, done)
    next_build_works(tmp_path, sandbox)


@pytest.mark.parametrize("option", [TRACED, WALKED], ids=["ptrace", "walk"])
@pytest.mark.parametrize("phase", ["announced", "armed, but not told", "signed, but not sent"])
def test_a_daemon_that_is_killed_fails_actions_of_every_backend(
    tmp_path: Path, sandbox: Path, phase: str, option: str
) -> None:
    when = {"announced": 1, "armed, but not told": 2, "signed, but not sent": 3}[phase]
    with running_daemon(tmp_path) as daemon, attached(daemon, strace("sendto", when)):
        done = daemon.run(sandbox, ACTION, option)
        assert daemon.process.wait(GIVE_UP_SECONDS) == -signal.SIGKILL
    assert done.returncode == 125
    assert (sandbox / "ran").exists() == (when == 3)
    nothing_is_left(sandbox, done)


def test_a_daemon_that_is_killed_while_actions_wait_in_line_starts_none(
    tmp_path: Path, sandbox: Path
) -> None:
    with running_daemon(tmp_path, "--slots", "1") as daemon:
        first = daemon.start(sandbox, ["/bin/sh", "-c", "echo ready; read line"], HELD)
        first.stdout.readline()
        second = daemon.start(sandbox, ACTION, HELD, record=sandbox / "second")
        until(lambda: daemon.status()["actions"]["queued"] == 1, "the second waits")
        daemon.kill()
        ends = [
            daemon.end(first, sandbox / "the-record"),
            daemon.end(second, sandbox / "second"),
        ]
    for done in ends:
        assert done.returncode == 125
        nothing_is_left(sandbox, done)
    assert not (sandbox / "ran").exists()


MANY = """
import os
for n in range(6000):
    with open(os.urandom(40).hex(), "wb") as out: out.write(os.urandom(32))
"""


def test_half_a_record_is_no_record(tmp_path: Path, sandbox: Path) -> None:
    """The daemon dies while it sends: the launcher has read the beginning only."""
    with running_daemon(tmp_path) as daemon:
        argv = daemon.argv(sandbox / "r", ["/usr/bin/python3", "-c", MANY], [HELD])
        words = [*strace("recvfrom", 6, "signal=STOP"), *argv]
        process = subprocess.Popen(words, cwd=sandbox, stderr=subprocess.PIPE, text=True)
        launcher = until(lambda: stopped_child(process.pid), "the launcher has the first bytes")
        until(lambda: any_waits_in(daemon, "poll"), "the daemon waits for it to read more")
        daemon.kill()
        os.kill(launcher, signal.SIGCONT)
        _, text = process.communicate(timeout=GIVE_UP_SECONDS)
    assert process.returncode == 125
    assert "the record" in one_line(text)
    assert not (sandbox / "r").exists() and leftovers(sandbox) == []


def stopped_child(pid: int) -> int:
    """The only child of a process, once it is stopped; else 0."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    for child in map(int, children):
        if Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[0] in "Tt":
            return child
    return 0


def waits_in(task: Path, call: str) -> bool:
    """Whether a thread waits in a system call."""
    numbers = {"poll": {"x86_64": "7", "aarch64": "73"}, "epoll": {"x86_64": "232"}}[call]
    return (task / "syscall").read_text().split()[0] == numbers.get(os.uname().machine, "22")


def any_waits_in(daemon: RunningDaemon, call: str) -> bool:
    """Whether a thread of the daemon waits in a system call."""
    tasks = Path(f"/proc/{daemon.process.pid}/task").iterdir()
    return any(waits_in(task, call) for task in tasks)


def test_a_shard_thread_that_ends_takes_the_daemon_with_it(tmp_path: Path, sandbox: Path) -> None:
    """With a thread fewer openers would wait for ever, and nobody would say why."""
    with running_daemon(tmp_path) as daemon:
        shard = next(
            int(task.name)
            for task in Path(f"/proc/{daemon.process.pid}/task").iterdir()
            if task.name != str(daemon.process.pid) and waits_in(task, "epoll")
        )
        process = daemon.start(sandbox, ["/bin/sh", "-c", "echo ready; read line; mkdir on"], HELD)
        process.stdout.readline()
        with attached(daemon, strace("epoll_wait", 1, "error=EBADF"), shard):
            assert daemon.process.wait(GIVE_UP_SECONDS) == -signal.SIGABRT
        done = daemon.end(process, sandbox / "the-record")
    assert done.returncode == 125
    assert not (sandbox / "on").exists()
    next_build_works(tmp_path, sandbox)


# --- the launcher, the helper and the keeper are killed -------------------------------------

LAUNCHER_PHASES = {
    "it connects": ("connect", 1),
    "it announces": ("sendto", 1),
    "it has forked": ("close_range", 1),
    "it waits for the action": ("poll", 2),
    "it says how the action ended": ("sendto", 2),
    "it waits for the record": ("getrandom", 1),
    "it has half a record": ("write", 1),
    "it has the record without a name": ("linkat", 1),
}


@pytest.mark.parametrize("phase", LAUNCHER_PHASES)
def test_a_launcher_that_is_killed_leaves_nothing(
    tmp_path: Path, sandbox: Path, phase: str
) -> None:
    with running_daemon(tmp_path) as daemon:
        words = strace(*LAUNCHER_PHASES[phase])

        def under_strace(argv: Sequence[str], **options: Any) -> subprocess.Popen[bytes]:
            return subprocess.Popen([*words, *argv], **options)

        before = phase in list(LAUNCHER_PHASES)[:4]
        action = ["/bin/sleep", "9999"] if before else ACTION
        # Returns when nobody holds the action's output any more: the action is dead, too.
        done = daemon.run(sandbox, action, HELD, popen=under_strace)
        assert done.returncode == -signal.SIGKILL
        until(lambda: daemon.status()["actions"]["running"] == 0, "its scope is dropped")
        nothing_is_left(sandbox, done)
        again = daemon.run(sandbox, ["true"], HELD)
        assert again.returncode == 0
        again.verified()


@contextlib.contextmanager
def place_of_user(user: Any) -> Iterator[Path]:
    """A directory with a sandbox of this user's in it, and a helper that works."""
    place = Path("/var/tmp") / f"rootseal-helper-{os.getpid()}"
    (place / "sandbox").mkdir(parents=True, mode=0o755)
    place.chmod(0o755)
    os.chown(place / "sandbox", user.uid, user.gid)
    helper = place / "rootseal-scope"
    binary = Path(__file__).resolve().parents[2] / "pants-plugins/rootseal/bin/rootseal-scope"
    shutil.copy(binary, helper)
    helper.chmod(0o755)
    subprocess.run(["setcap", "cap_sys_admin+ep", str(helper)], check=True)
    try:
        yield place
    finally:
        shutil.rmtree(place)


@contextlib.contextmanager
def daemon_for(place: Path, user: Any) -> Iterator[RunningDaemon]:
    """A daemon of root's that serves this user."""
    with running_daemon(place, "--allow-uid", str(user.uid)) as daemon:
        (place / "run").chmod(0o755)
        yield daemon


def test_a_helper_that_is_killed_starts_nothing(unprivileged_user: Any) -> None:
    with (
        place_of_user(unprivileged_user) as place,
        daemon_for(place, unprivileged_user) as daemon,
    ):
        words = [*strace("unshare", 1), "-f", "-u", unprivileged_user.name]

        def as_user(argv: Sequence[str], **options: Any) -> subprocess.Popen[bytes]:
            return subprocess.Popen([*words, *argv], **options)

        using = (HELD, f"--helper={place / 'rootseal-scope'}")
        killed = daemon.run(place / "sandbox", ["mkdir", "ran"], *using, popen=as_user)
        assert killed.returncode != 0
        assert not (place / "sandbox" / "ran").exists()
        nothing_is_left(place / "sandbox", killed)
        words[:] = ["strace", "-o", "/dev/null", "-u", unprivileged_user.name]
        fine = daemon.run(place / "sandbox", ["mkdir", "ran"], *using, popen=as_user)
        assert (fine.returncode, fine.stderr) == (0, "")
        fine.verified()


def test_what_a_killed_launcher_left_behind_the_helper_is_killed(unprivileged_user: Any) -> None:
    with (
        place_of_user(unprivileged_user) as place,
        daemon_for(place, unprivileged_user) as daemon,
    ):

        def as_user(argv: Sequence[str], **options: Any) -> subprocess.Popen[bytes]:
            who = ["setpriv", f"--reuid={unprivileged_user.uid}", "--clear-groups"]
            return subprocess.Popen([*who, *argv], **options)

        script = "setsid sleep 9999 > /dev/null 2>&1 < /dev/null & echo $! > pids; kill -9 $PPID"
        using = (HELD, f"--helper={place / 'rootseal-scope'}")
        done = daemon.run(place / "sandbox", ["sh", "-c", script], *using, popen=as_user)
        assert done.returncode == -signal.SIGKILL, done.stderr
        pid = int((place / "sandbox" / "pids").read_text())
        until(lambda: not is_alive(pid), f"{pid} has ended")
        until(lambda: daemon.status()["orphansKilled"] >= 1, "it is counted")
        nothing_is_left(place / "sandbox", done)


# In the same namespace, in a session of its own; in another namespace, where no mark is; and the
# action's own process, which has asked not to die with its parent.
LEAVES_THREE = """
setsid sleep 9999 > /dev/null 2>&1 < /dev/null & echo $! > pids
unshare -m setsid sleep 9999 > /dev/null 2>&1 < /dev/null & echo $! >> pids
until grep -q sleep /proc/$!/comm; do :; done
echo $$ >> pids
exec /usr/bin/python3 -c '
import ctypes, os, time
ctypes.CDLL(None).prctl(1, 0)
os.kill(os.getppid(), 9)
time.sleep(9999)'
"""
WAYS = {
    "fanotify": (HELD, "--option=capture-mode=walk"),
    "fanotify and ebpf": ("--option=capture-mode=trace:ebpf",),
    "ptrace": (TRACED,),
    "fanotify and ptrace": (HELD, TRACED),
    "ebpf alone": ("--option=capture-mode=trace:ebpf", "--option=fanotify=off"),
}


def gained(daemon: RunningDaemon, before: Dict[str, int], running: int = 0) -> Dict[str, int]:
    """What its counters have gained, as soon as so many actions run."""
    now = daemon.counts(running)
    return {name: count - before[name] for name, count in now.items() if count != before[name]}


def needing(way: str) -> Any:
    """The parameter of a way, with what the host must have for it."""
    return pytest.param(way, marks=[pytest.mark.requires("ebpf")] if "ebpf" in way else [])


@pytest.mark.parametrize("way", [needing(way) for way in WAYS])
def test_what_a_killed_launcher_left_behind_is_killed(
    tmp_path: Path, sandbox: Path, way: str
) -> None:
    """The launcher cannot do it any more: the daemon does, or the kernel where it was a tracer."""
    with running_daemon(tmp_path) as daemon:
        before = daemon.counts()
        bystander = daemon.start(
            sandbox, ["/bin/sh", "-c", "echo ready; read line"], HELD, record=sandbox / "second"
        )
        bystander.stdout.readline()
        done = daemon.run(sandbox, ["/bin/sh", "-c", LEAVES_THREE], *WAYS[way])
        assert done.returncode == -signal.SIGKILL
        pids = [int(pid) for pid in (sandbox / "pids").read_text().split()]
        until(lambda: not any(map(is_alive, pids)), f"nobody is left of {pids}")
        nothing_is_left(sandbox, done)
        assert gained(daemon, before, running=1) == {"aborted": 1}
        if "ptrace" not in way:
            assert daemon.status()["orphansKilled"] >= 3
        fine = daemon.end(bystander, sandbox / "second", b"go\n")
        assert fine.returncode == 0  # of another action: nobody touched it
        fine.verified()


def test_walk_signs_nothing_of_what_a_killed_launcher_left_behind(
    tmp_path: Path, sandbox: Path
) -> None:
    """Nothing tells a descendant there from the user's other processes: it runs on, accepted."""
    with running_daemon(tmp_path) as daemon:
        before = daemon.counts()
        script = "setsid sleep 9999 > /dev/null 2>&1 < /dev/null & echo $! > pids; kill -9 $PPID"
        done = daemon.run(sandbox, ["/bin/sh", "-c", script], WALKED)
        assert done.returncode == -signal.SIGKILL
        assert gained(daemon, before) == {"aborted": 1}
        nothing_is_left(sandbox, done)
        os.kill(int((sandbox / "pids").read_text()), signal.SIGKILL)


# --- full disks -----------------------------------------------------------------------------


@pytest.fixture
def full(tmp_path: Path) -> Iterator[Path]:
    """A small filesystem without room; removing `ballast` makes some."""
    place = tmp_path / "full"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(place)], check=True)
    try:
        with contextlib.suppress(OSError), (place / "ballast").open("wb", buffering=0) as ballast:
            while True:
                ballast.write(bytes(4096))
        yield place
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


def test_a_record_for_which_there_is_no_room(tmp_path: Path, sandbox: Path, full: Path) -> None:
    with running_daemon(tmp_path) as daemon:
        done = daemon.run(sandbox, ACTION, HELD, record=full / "record")
        assert done.returncode == 125
        assert "No space left" in one_line(done.stderr)
        assert [item.name for item in full.iterdir()] == ["ballast"]
        (full / "ballast").unlink()
        again = daemon.run(sandbox, ["true"], HELD, record=full / "record")
        assert again.returncode == 0
        again.verified()


def test_a_bundle_for_which_there_is_no_room(tmp_path: Path, sandbox: Path, full: Path) -> None:
    keys.create_key_files(tmp_path / "key", "ed25519")
    with running_daemon(tmp_path) as daemon:
        sealing = ("--key", str(tmp_path / "key"), "--out", str(full / "bundle"), "--output", "out")
        argv = ("run", "--socket", str(daemon.socket), *sealing, "--", *ACTION)
        done = rootseal(*argv, cwd=sandbox)
        assert done.returncode == 3
        assert "No space left" in done.stderr and len(done.stderr.splitlines()) == 1
        assert [item.name for item in full.iterdir()] == ["ballast"]


def test_a_state_directory_without_room_is_one_line(
    tmp_path: Path, sandbox: Path, full: Path
) -> None:
    """Neither half a key nor a daemon that signs with a key that nobody will ever see again."""
    place = ("--socket", str(tmp_path / "run" / "d.sock"), "--state-dir", str(full))
    full.chmod(0o755)
    for subcommand in ("run", "ensure"):
        done = rootseal("daemon", subcommand, *place)
        assert done.returncode != 0
        assert "No space left" in done.stderr or "said nothing" in done.stderr
        assert len(done.stderr.splitlines()) == 1, done.stderr
    assert not any("capture" in item.name for item in full.iterdir()), list(full.iterdir())
    (full / "ballast").unlink()
    try:
        assert rootseal("daemon", "ensure", *place).returncode == 0
    finally:
        rootseal("daemon", "stop", "--socket", place[1])


def test_a_daemon_whose_state_directory_fills_up_goes_on(
    tmp_path: Path, sandbox: Path, full: Path
) -> None:
    """Its log is all that suffers."""
    full.chmod(0o755)
    (full / "ballast").unlink()
    place = ("--socket", str(tmp_path / "d.sock"), "--state-dir", str(full))
    log = ("--log-file", str(full / "log"))
    process = subprocess.Popen(command("daemon", "run", *place, *log), stderr=subprocess.PIPE)
    daemon = RunningDaemon(process, tmp_path / "d.sock", full, full / "log")
    try:
        until(lambda: daemon.socket.exists() and answers(daemon), "it has its key, and answers")
        with contextlib.suppress(OSError), (full / "ballast").open("wb", buffering=0) as ballast:
            while True:
                ballast.write(bytes(4096))
        bad = daemon.run(sandbox, ["true"], "--option=max-digests=1", "--option=hardening=strict")
        assert bad.returncode == 125
        good = daemon.run(sandbox, ACTION, HELD)
        assert good.returncode == 0
        good.verified()
    finally:
        assert daemon.terminate() == 0


# --- no descriptors -------------------------------------------------------------------------

READ_ALL = "echo ready; read go; for i in 1 2 3 4; do cat [0-9]* > /dev/null & done; wait"


def test_a_daemon_without_descriptors_lets_nothing_pass(tmp_path: Path, sandbox: Path) -> None:
    """The kernel opens each file for it too, and refuses the opener where it cannot."""
    for number in range(500):
        (sandbox / str(number)).write_text(str(number))
    with running_daemon(tmp_path) as daemon:
        pid = daemon.process.pid
        zero = "--option=require-zero-drops=1"
        process = daemon.start(sandbox, ["/bin/sh", "-c", READ_ALL], HELD, zero)
        process.stdout.readline()
        before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        used = {int(path.name) for path in Path(f"/proc/{pid}/fd").iterdir()}
        few = next(number for number in itertools.count() if number not in used)
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (few, before[1]))
        try:
            done = daemon.end(process, sandbox / "the-record", b"go\n")
        finally:
            resource.prlimit(pid, resource.RLIMIT_NOFILE, before)
        assert done.returncode == 125
        # Counted, or it could not even end the capture: either way the action has failed.
        assert done.stderr.splitlines()[-1].startswith("rootseal-exec: ")
        nothing_is_left(sandbox, done)
        again = daemon.run(sandbox, ["/bin/sh", "-c", "cat [0-9]*"], HELD, zero)
        assert again.returncode == 0, again.stderr
        assert len(again.materials()) > 500


# --- the socket is gone ---------------------------------------------------------------------


@pytest.mark.parametrize("what", ["the socket", "its directory", "socket and lock"])
def test_a_socket_that_was_removed_comes_back(tmp_path: Path, sandbox: Path, what: str) -> None:
    with running_daemon(tmp_path) as daemon:
        process = daemon.start(sandbox, ["/bin/sh", "-c", "echo ready; read line"], HELD)
        process.stdout.readline()
        if what == "its directory":
            shutil.rmtree(tmp_path / "run")
        else:
            daemon.socket.unlink()
        if what == "socket and lock":
            (tmp_path / "run" / "d.sock.lock").unlink()
        place = ("--socket", str(daemon.socket), "--state-dir", str(daemon.state))
        ensured = rootseal("daemon", "ensure", "--json", *place)
        assert ensured.returncode == 0, ensured.stderr
        again = daemon.run(sandbox, ACTION, HELD, record=sandbox / "second")
        assert again.returncode == 0, again.stderr
        again.verified()
        done = daemon.end(process, sandbox / "the-record", b"\n")
        assert done.returncode == 0
        done.verified()
        pid = int(re.findall(r'"pid": (\d+)', ensured.stdout)[0])
        if pid != daemon.process.pid:  # a new one took the place: the old one ends by itself
            assert daemon.process.wait(GIVE_UP_SECONDS) == 0
            rootseal("daemon", "stop", "--socket", str(daemon.socket))
    until(lambda: not is_alive(pid), "no daemon is left")


# --- the clock ------------------------------------------------------------------------------


@pytest.fixture
def from_the_future(tmp_path: Path) -> Iterator[Path]:
    """A filesystem that holds what a clock that is set back leaves: a file from the year 2040."""
    image, place = tmp_path / "image", tmp_path / "mounted"
    place.mkdir()
    (tmp_path / "content").mkdir()
    (tmp_path / "content" / "in").write_text("in")
    with image.open("wb") as stream:
        stream.truncate(8 << 20)
    source = ["-d", str(tmp_path / "content")]
    subprocess.run(["mkfs.ext4", "-q", "-I", "256", *source, str(image)], check=True)
    for field in ("crtime", "ctime", "mtime"):
        change = f"set_inode_field /in {field} 20360101000000"
        subprocess.run(["debugfs", "-w", "-R", change, str(image)], check=True, capture_output=True)
    subprocess.run(["mount", "-o", "loop", str(image), str(place)], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


@pytest.mark.requires("root", "fanotify", "launcher", "core", "loop")
@pytest.mark.parametrize("option", [HELD, TRACED], ids=["fanotify", "ptrace"])
def test_a_file_from_before_the_clock_was_set_back_is_a_material(
    tmp_path: Path, from_the_future: Path, option: str
) -> None:
    """Its birth seems to be later than the action's start, as that of an intermediate is."""
    script = "cat in > out; echo more >> in"
    with running_daemon(tmp_path) as daemon:
        assert (from_the_future / "in").stat().st_mtime > (from_the_future.stat().st_mtime + 1e8)
        done = daemon.run(from_the_future, ["/bin/sh", "-c", script], option)
    assert done.returncode == 0, done.stderr
    assert b"in" in done.materials()
    assert {b"in", b"out"} <= set(done.products())
