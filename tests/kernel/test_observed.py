"""eBPF alone, through daemon and launcher: digests after the open, and what is lost is counted."""

from __future__ import annotations

import contextlib
import mmap
import os
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Dict, Iterator, List, Sequence

import pytest
from rootseal import digest
from rootseal.leaf_table import Leaf
from rootseal.observation import DigestSource, LeafKind
from running_daemon import LAUNCHER, Done, RunningDaemon, one_line, running_daemon, until
from syscall_table import BURST, EBPF, burst_text
from table_runs import OPTIONS, make_root, named, sha256_text
from trace_action import build_syscalls

pytestmark = pytest.mark.requires("root", "fanotify", "ebpf", "launcher", "core", "gcc")
ALONE = OPTIONS[EBPF]
ZERO = "--option=require-zero-drops=1"
SETTLED_NS = 100_000_000  # far more than CLOCK_STEP_NS in native/capture/dcache.c
NOBODY = 65534
JUST_BEFORE = 40  # one of ten was lost where only a tick was waited for


@contextlib.contextmanager
def stopped(daemon: RunningDaemon) -> Iterator[None]:
    """Within, what is opened is not hashed."""
    pid = daemon.process.pid
    os.kill(pid, signal.SIGSTOP)
    stat = Path(f"/proc/{pid}/stat")
    try:
        until(lambda: stat.read_text().rpartition(")")[2].split()[0] == "T", "it is stopped")
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def run(daemon: RunningDaemon, root: Path, text: str, *options: str, **more: object) -> Done:
    """A shell under eBPF alone."""
    return daemon.run(root, ["/bin/sh", "-c", text], *ALONE, *options, **more)


def inside(done: Done) -> Dict[str, Leaf]:
    return named(done.materials())


def unhashed(done: Done) -> Dict[str, int]:
    """Reasons of the ledger that are not zero; it must add up, and be what is counted."""
    ledger = done.field("ledger")
    parts = [*ledger["excluded"].values(), *ledger["unhashed"].values()]
    assert ledger["files"] == ledger["hashed"] + sum(parts)
    counted = done.verified().losses.get("unhashedOpensTotal", 0)
    assert counted == sum(ledger["unhashed"].values())
    return {reason: count for reason, count in ledger["unhashed"].items() if count}


def test_posture_is_observed_and_says_how(daemon: RunningDaemon, sandbox: Path) -> None:
    (sandbox / "in").write_text("input\n")
    done = run(daemon, sandbox, "cat in > out", ZERO)
    assert done.returncode == 0, done.stderr
    capture = done.field("capture")
    assert (capture["backend"], capture["mounts"], capture["fallbacks"]) == ("ebpf", [], [])
    assert capture["posture"] == {"requested": "observed", "achieved": "observed"}
    sources = {leaf.source for leaf in done.materials().values()}
    assert sources == {int(DigestSource.OPENAT_PATH_HASH)}
    assert unhashed(done) == {}
    cat = done.field("processes")[-1]
    assert cat["programdigest"] == cat["exedigest"] == sha256_file("/bin/cat")


def sha256_file(path: str) -> str:
    return digest.sha256(Path(path).read_bytes()).hex()


def test_an_ordinary_user_under_the_daemon_of_root() -> None:
    """His action is not dumpable, so its /proc entries are not his to read."""
    with tempfile.TemporaryDirectory() as name:
        place, sandbox = Path(name), Path(name) / "sandbox"
        place.chmod(0o755)
        sandbox.mkdir()
        (sandbox / "in").write_text("input\n")
        os.chown(sandbox, NOBODY, NOBODY)
        launcher = shutil.copy(LAUNCHER, place)

        def as_nobody(argv: Sequence[str], **options: object) -> subprocess.Popen[bytes]:
            who = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
            return subprocess.Popen([*who, launcher, *argv[1:]], **options)  # type: ignore[call-overload,no-any-return]

        with running_daemon(place, "--allow-uid", str(NOBODY)) as daemon:
            done = run(daemon, sandbox, "cat in > out", ZERO, popen=as_nobody)
            assert done.returncode == 0, done.stderr
            assert inside(done)["in"].digest.hex() == sha256_text("input\n")
            assert set(named(done.products())) == {"out"}


# --- what is opened, and not by a call of the action ------------------------------------------


def test_loader_and_script_and_its_interpreter(daemon: RunningDaemon, sandbox: Path) -> None:
    """Opened by the kernel itself; the script by a name relative to another directory."""
    (sandbox / "d").mkdir()
    (sandbox / "d" / "script").write_text("#!/bin/cat\n")
    (sandbox / "d" / "script").chmod(0o755)
    done = run(daemon, sandbox, "cd d && ./script", ZERO)
    assert done.returncode == 0, done.stderr
    materials = done.materials()
    assert materials[b"d/script"].kind == LeafKind.EXECUTABLE
    assert os.fsencode(os.path.realpath("/bin/cat")) in materials
    loader = subprocess.run(
        ["readelf", "-p", ".interp", "/bin/cat"], capture_output=True, text=True, check=True
    ).stdout.split()[-1]
    assert os.fsencode(os.path.realpath(loader)) in materials


def test_a_script_that_the_action_made_is_no_material(daemon: RunningDaemon, sandbox: Path) -> None:
    text = "printf '#!/bin/cat\\n' > s && chmod +x s && ./s"
    done = run(daemon, sandbox, text, ZERO)
    assert done.returncode == 0, done.stderr
    assert inside(done) == {} and set(named(done.products())) == {"s"}


def test_an_inherited_file_is_a_material(daemon: RunningDaemon, sandbox: Path) -> None:
    (sandbox / "in").write_text("input\n")
    with (sandbox / "in").open("rb") as stream:
        done = run(daemon, sandbox, "cat", ZERO, stdin=stream)
    assert done.returncode == 0 and done.stdout == b"input\n"
    assert inside(done)["in"].digest.hex() == sha256_text("input\n")


def test_what_was_written_just_before_the_action_is_no_loss(
    daemon: RunningDaemon, sandbox: Path
) -> None:
    """Its times may be finer than the ticks, and ahead of the clock that moves with them."""
    for number in range(JUST_BEFORE):
        (sandbox / "in").write_text(f"{number}\n")
        done = run(daemon, sandbox, "cat in")
        assert unhashed(done) == {}
        assert inside(done)["in"].digest.hex() == sha256_text(f"{number}\n")


def hits(done: Done) -> int:
    return int(done.verified().counters["digestCacheHits"])


def test_digests_are_kept_for_later_actions_while_nothing_changes(
    daemon: RunningDaemon, tmp_path: Path, sandbox: Path
) -> None:
    """Kept by the state of the file: not its times alone, which anybody may set back."""
    path = tmp_path / "outside"
    path.write_text("first\n")
    before = path.stat()
    long_ago(path)
    text = f"read x <{path}"
    run(daemon, sandbox, text)
    known = run(daemon, sandbox, text)
    assert known.materials()[os.fsencode(path)].digest.hex() == sha256_text("first\n")
    assert hits(known) == len(known.materials())  # the shell and its libraries, too
    assert known.verified().counters["bytesHashed"] == 0
    path.write_text("other\n")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    long_ago(path)
    changed = run(daemon, sandbox, text)
    assert changed.materials()[os.fsencode(path)].digest.hex() == sha256_text("other\n")
    assert hits(changed) == len(changed.materials()) - 1


def test_what_is_open_for_writing_is_not_kept(
    daemon: RunningDaemon, tmp_path: Path, sandbox: Path
) -> None:
    """A store through a mapping that is there already leaves the times as they are."""
    path = tmp_path / "outside"
    path.write_bytes(b"first\n".ljust(mmap.PAGESIZE, b"-"))
    with path.open("r+b") as stream, mmap.mmap(stream.fileno(), 0) as mapped:
        mapped[:5] = b"FIRST"
        long_ago(path)
        for word in (b"FIRST", b"OTHER"):
            mapped[:5] = word
            done = run(daemon, sandbox, f"read x <{path}")
            leaf = done.materials()[os.fsencode(path)]
            assert leaf.digest == digest.sha256(path.read_bytes()), word


def long_ago(path: Path) -> None:
    """Wait until its last change is older than the clock of files can tell apart."""
    until(lambda: time.time_ns() - path.stat().st_ctime_ns > SETTLED_NS, "it has settled")


# --- races -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("deed", "reason"),
    [("mv other in", "gone"), ("rm in", "gone"), ("echo more >> in", "changed")],
)
def test_what_is_too_late_is_counted(
    daemon: RunningDaemon, sandbox: Path, deed: str, reason: str
) -> None:
    def hashed_afterwards(*options: str, record: Path) -> Done:
        for name in ("in", "other"):
            (sandbox / name).write_text(f"{name}\n")
        script = f"echo ready; read go; cat in; {deed}; echo done; read end"
        process = daemon.start(sandbox, ["/bin/sh", "-c", script], *ALONE, *options, record=record)
        assert process.stdout.readline() == b"ready\n"
        with stopped(daemon):
            process.stdin.write(b"go\n")
            process.stdin.flush()
            assert [process.stdout.readline() for _ in range(2)] == [b"in\n", b"done\n"]
        return daemon.end(process, record, b"end\n")

    done = hashed_afterwards(record=sandbox / "the-record")
    assert done.returncode == 0, done.stderr
    assert unhashed(done) == {reason: 1}
    assert "in" not in inside(done)
    refused = hashed_afterwards(ZERO, record=sandbox / "refused")
    assert refused.returncode == 125 and not refused.record.exists()
    assert "unhashedOpensTotal" in one_line(refused.stderr)


def test_a_change_by_others_after_the_open_is_found(
    daemon: RunningDaemon, sandbox: Path, outside: Path
) -> None:
    path = outside / "in"
    path.write_text("input\n")
    process = daemon.start(sandbox, ["/bin/sh", "-c", f"cat {path}; echo >read; read x"], *ALONE)
    until((sandbox / "read").exists, "the file is read")
    path.write_text("other\n")
    done = daemon.end(process, sandbox / "the-record", b"\n")
    losses = done.verified().losses
    if os.fsencode(path) not in done.materials():  # it was too late to be hashed
        assert losses == {"unhashedOpensTotal": 1} and unhashed(done) == {"changed": 1}
        return
    assert losses == {"mutatedAfterOpen": 1}
    (mutation,) = done.field("mutations")
    assert (mutation["path"], mutation["when"]) == (str(path), "end")
    assert mutation["digestAtOpen"] == sha256_text("input\n")
    assert mutation["digestLater"] == sha256_text("other\n")


def test_a_product_of_nobody_is_foreign(daemon: RunningDaemon, sandbox: Path) -> None:
    process = daemon.start(sandbox, ["/bin/sh", "-c", "echo >ready; read x; echo >out"], *ALONE)
    until((sandbox / "ready").exists, "it runs")
    (sandbox / "foreign").write_text("by others")
    done = daemon.end(process, sandbox / "the-record", b"\n")
    assert done.verified().losses == {"foreignProducts": 1}
    assert set(named(done.products())) == {"ready", "out", "foreign"}


def test_own_products_are_not_foreign(daemon: RunningDaemon, sandbox: Path, outside: Path) -> None:
    (sandbox / "old").mkdir()
    (sandbox / "old" / "file").write_text("before")
    for name in ("in", "mode"):
        (sandbox / name).write_text("input")
    text = (
        "mv old new; cp in out; ln out hard; ln -s out soft; touch empty; chmod +x mode; "
        f"mkfifo pipe; echo text > {outside}/far; truncate -s 3 new/file"
    )
    done = run(daemon, sandbox, text, ZERO)
    assert done.returncode == 0, done.stderr
    assert set(named(done.products())) == {"new/file", "out", "hard", "soft", "empty", "mode"}
    far = done.products()[os.fsencode(outside / "far")]
    assert far.digest.hex() == sha256_text("text\n")


def test_bursts_are_complete_or_counted(daemon: RunningDaemon, tmp_path: Path) -> None:
    """200 small files, read at once; no digest is wrong, and what is missing is counted."""
    program, root = build_syscalls(tmp_path), make_root(tmp_path)
    wanted = {f"burst/{number}": sha256_text(burst_text(number)) for number in range(BURST)}
    for _ in range(20):
        done = daemon.run(root, [str(program), "burst", "."], *ALONE)
        found = {path: leaf.digest.hex() for path, leaf in inside(done).items()}
        assert found.items() <= wanted.items()
        assert len(wanted) - len(found) == sum(unhashed(done).values())
        (root / "the-record").unlink()


def test_bursts_that_are_removed_at_once_are_counted(daemon: RunningDaemon, tmp_path: Path) -> None:
    root = make_root(tmp_path)
    done = run(daemon, root, "for i in burst/*; do read x <$i; rm $i; done")
    assert done.returncode == 0, done.stderr
    lost = sum(unhashed(done).values())
    found = [path for path in inside(done) if path.startswith("burst/")]
    assert len(found) + lost == BURST


def test_a_cap_is_counted(daemon: RunningDaemon, sandbox: Path) -> None:
    (sandbox / "in").write_text("input\n")
    done = run(daemon, sandbox, "cat in", "--option=max-digests=2")
    losses = done.verified().losses
    assert losses["fanotifyDigestsCapHit"] >= 1 and len(done.materials()) == 2
    assert losses["unhashedOpensTotal"] >= losses["fanotifyDigestsCapHit"]


# --- choice ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def without_fanotify(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningDaemon]:
    with running_daemon(tmp_path_factory.mktemp("none"), "--no-fanotify") as found:
        yield found


def test_without_fanotify_a_trace_by_ebpf_steps_down_and_says_so(
    without_fanotify: RunningDaemon, sandbox: Path
) -> None:
    done = without_fanotify.run(sandbox, ["/bin/true"], "--option=capture-mode=trace:ebpf")
    assert done.returncode == 0, done.stderr
    (step,) = done.field("capture", "fallbacks")
    assert (step["from"], step["to"]) == ("fanotify+ebpf", "ebpf")
    assert "--no-fanotify" in step["reason"]
    assert done.field("capture", "posture") == {"requested": "held", "achieved": "observed"}


def test_auto_prefers_what_holds(without_fanotify: RunningDaemon, sandbox: Path) -> None:
    done = without_fanotify.run(sandbox, ["/bin/true"])
    assert done.field("capture", "backend") == "ptrace"


@pytest.mark.parametrize(
    "options", [(*ALONE, "--option=hardening=strict"), ("--option=fanotify=on",)]
)
def test_what_must_be_held_is_refused(
    without_fanotify: RunningDaemon, sandbox: Path, options: List[str]
) -> None:
    done = without_fanotify.run(sandbox, ["touch", "ran"], *options)
    assert done.returncode == 125 and not (sandbox / "ran").exists()
