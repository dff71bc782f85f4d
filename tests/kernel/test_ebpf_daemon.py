"""fanotify and eBPF together, through daemon and launcher: one record with both, and the ledger."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Dict, List

import pytest
from rootseal import digest
from rootseal.leaf_table import Domain
from rootseal.observation import DigestSource
from running_daemon import RunningDaemon, rootseal, running_daemon
from trace_action import build_trace_fixture

pytestmark = pytest.mark.requires("root", "fanotify", "ebpf", "launcher", "core", "gcc")
EBPF = "--option=capture-mode=trace:ebpf"
ZERO = "--option=require-zero-drops=1"
IN_LAB = "ROOTSEAL_LAB_EMULATED" in os.environ


@pytest.fixture(scope="module")
def fixture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_trace_fixture(tmp_path_factory.mktemp("bin"))


def only(processes: List[Dict[str, Any]], comm: str) -> Dict[str, Any]:
    (found,) = [process for process in processes if process["comm"] == comm]
    return found


def test_auto_is_fanotify_with_ebpf(daemon: RunningDaemon, sandbox: Path) -> None:
    status = daemon.status()
    assert status["trace"]["loader"] == "co-re"
    assert {item["name"] for item in status["trace"]["programs"] if item["attached"]} >= {
        "trace_fork",
        "trace_exec",
        "trace_exit",
        "trace_call",
    }
    done = daemon.run(sandbox, ["/bin/true"], ZERO)
    assert done.returncode == 0, done.stderr
    assert done.field("capture", "backend") == "fanotify+ebpf"
    assert done.field("capture", "fallbacks") == []
    assert done.field("capture", "posture", "achieved") == "held"


def test_at_the_level_off_fanotify_must_be_asked_for(daemon: RunningDaemon, sandbox: Path) -> None:
    done = daemon.run(sandbox, ["/bin/true"], "--option=hardening=off", ZERO)
    assert done.returncode == 0, done.stderr
    assert done.field("capture", "backend") == "ptrace"
    assert done.field("capture", "fallbacks") == []
    assert done.field("capture", "requested", "fsverity") == "off"


def test_a_compilation_has_both_witnesses(daemon: RunningDaemon, sandbox: Path) -> None:
    (sandbox / "m.c").write_text("#include <stdio.h>\nint main(void) { return 0; }\n")
    shell = "umask 022; gcc -O1 m.c -o m.tmp && mv m.tmp m && chmod 700 m && ./m; exit 5"
    done = daemon.run(sandbox, ["/bin/sh", "-c", shell], EBPF, ZERO)
    assert done.returncode == 5, done.stderr
    ledger = done.field("ledger")
    assert ledger["unhashed"] == {"noDigest": 0, "unresolved": 0}
    assert ledger["hashed"] > 30
    assert done.field("summary", "diagnostics", "tracedOpens") >= ledger["files"]
    processes = done.field("processes")
    compiler, move = only(processes, "cc1"), only(processes, "mv")
    assert compiler["exitcode"] == 0 and compiler["programdigest"] is not None
    assert move["fileOps"]["renames"][0]["from"] == "m.tmp"
    assert move["fileOps"]["renames"][0]["to"] == "m"
    (change,) = only(processes, "chmod")["fileOps"]["permChanges"]
    assert (change["path"], change["mode"], change["setExec"]) == ("m", 0o700, True)
    shell_process = processes[0]
    assert shell_process["exitcode"] == 5
    assert only(processes, "m")["parentpid"] == shell_process["processid"]
    assert b"m" in done.products() and b"m.c" in done.materials()
    assert done.verified().losses == {}


def test_what_only_fanotify_saw_is_told_apart(daemon: RunningDaemon, sandbox: Path) -> None:
    done = daemon.run(sandbox, ["/bin/cat", "/etc/passwd"], EBPF)
    materials = done.leaves(Domain.MATERIAL)
    assert materials[b"/etc/passwd"].source == DigestSource.FANOTIFY_OPEN_TIME
    only_there = [leaf for leaf in materials.values() if leaf.source == DigestSource.FANOTIFY_ONLY]
    # The loader is opened by exec itself, which only the security module's hook tells of.
    by_hook = done.field("capture", "ebpf", "opens") == "lsm/file_open"
    assert [leaf.path.rpartition(b"/")[2][:3] for leaf in only_there] == [b"ld-"][by_hook:]
    assert done.field("summary", "fanotifyOnlyDigests") == len(only_there)


def test_record_says_how_opens_were_told(daemon: RunningDaemon, sandbox: Path) -> None:
    """By the better hook wherever the kernel calls it, which its list of modules shows.

    Elsewhere a kernel may refuse the program; those of the lab are known to take it.
    """
    modules = Path("/sys/kernel/security/lsm")
    listed = modules.exists() and "bpf" in modules.read_text().strip().split(",")
    used = daemon.run(sandbox, ["/bin/true"], EBPF).field("capture", "ebpf")
    assert used["loader"] == "co-re"
    assert used["opens"] == daemon.status()["trace"]["opens"]
    if used["opens"] == "lsm/file_open":
        assert listed and used["reason"] == ""
    else:
        assert used["reason"].startswith("lsm/file_open: ")
        assert not (listed and IN_LAB), used["reason"]
    alone = daemon.run(sandbox, ["/bin/true"], "--option=capture-mode=walk", "--option=fanotify=on")
    assert alone.field("capture", "ebpf") is None


def test_a_file_is_named_as_it_is_behind_links(daemon: RunningDaemon, sandbox: Path) -> None:
    (sandbox / "real").mkdir()
    (sandbox / "real" / "file").write_bytes(b"behind two links")
    (sandbox / "folder").symlink_to("real")
    (sandbox / "link").symlink_to("folder/file")
    for alone in ([], ["--option=fanotify=off"]):
        done = daemon.run(sandbox, ["/bin/cat", "link"], EBPF, ZERO, *alone)
        assert done.stdout == b"behind two links", done.stderr
        inside = {path for path in done.materials() if not path.startswith(b"/")}
        assert inside == {b"real/file"}


def test_opens_without_content_are_typed(
    daemon: RunningDaemon, sandbox: Path, fixture: Path
) -> None:
    (sandbox / "a").write_bytes(b"a")
    excluded = daemon.run(sandbox, [str(fixture), "opath", "a"], EBPF, ZERO).field(
        "ledger", "excluded"
    )
    assert excluded["noContent"] == 1
    memory = daemon.run(sandbox, [str(fixture), "memfd_create", "x"], EBPF, ZERO)
    assert memory.field("ledger", "excluded")["memoryFile"] == 1
    assert memory.field("processes")[0]["syscallEvents"]


def test_proc_is_a_pseudo_filesystem(daemon: RunningDaemon, sandbox: Path) -> None:
    done = daemon.run(sandbox, ["/bin/cat", "/proc/self/status"], EBPF, ZERO)
    assert done.field("ledger", "excluded")["pseudoFilesystem"] >= 1


def test_new_mount_that_is_not_marked_shows_in_the_ledger(
    daemon: RunningDaemon, sandbox: Path
) -> None:
    """A bind mount of the root in a nested namespace has no marks: the second witness tells."""
    (sandbox / "secret").write_text("secret")
    text = "mkdir m && mount --bind . m && cat m/secret"
    done = daemon.run(sandbox, ["unshare", "-m", "sh", "-c", text], EBPF)
    assert done.returncode == 0, done.stderr
    losses = done.verified().losses
    assert losses.get("unhashedOpensTotal", 0) >= 1 or losses.get("namespaceEscapes", 0) >= 1
    unhashed = done.field("ledger", "unhashed")
    assert unhashed["noDigest"] == losses.get("unhashedOpensTotal", 0)


def test_fanotify_alone_by_walk_and_fanotify_on(daemon: RunningDaemon, sandbox: Path) -> None:
    done = daemon.run(sandbox, ["/bin/true"], "--option=capture-mode=walk", "--option=fanotify=on")
    assert done.field("capture", "backend") == "fanotify"
    assert done.field("ledger") is None
    assert "fileOps" not in done.field("processes")[0]


@pytest.mark.heavy
def test_bursts_by_ten_readers_at_once_are_complete(
    daemon: RunningDaemon, sandbox: Path, fixture: Path
) -> None:
    """One reader, a hundred times, under every backend: tests/kernel/test_backends.py."""
    burst = sandbox / "burst"
    burst.mkdir()
    digests = {}
    for number in range(200):
        text = b"file %d, about fifty bytes long, to be read once\n" % number
        (burst / str(number)).write_bytes(text)
        digests[b"burst/%d" % number] = digest.sha256(text)
    command = [str(fixture), "fork", "10", str(fixture), "open_many", "burst", "200"]
    for _ in range(10):
        done = daemon.run(sandbox, command, EBPF, ZERO)
        assert done.returncode == 0, done.stderr
        found = {path: leaf.digest for path, leaf in done.materials().items()}
        assert {path: found[path] for path in found if path.startswith(b"burst/")} == digests
        assert done.field("ledger", "unhashed")["noDigest"] == 0


def test_many_at_once(daemon: RunningDaemon, sandbox: Path) -> None:
    places = []
    for number in range(16):
        place = sandbox / str(number)
        place.mkdir()
        (place / "own").write_text(str(number))
        places.append(place)
    text = "cat own; for i in 1 2 3 4 5; do /bin/true; done"
    running = [daemon.start(place, ["sh", "-c", text], EBPF, ZERO) for place in places]
    for place, process in zip(places, running):
        done = daemon.end(process, place / "the-record")
        assert done.returncode == 0, done.stderr
        assert b"own" in done.materials()
        assert len(done.field("processes")) == 7


@pytest.mark.heavy
def test_a_full_ring_is_a_loss_that_the_gate_refuses(
    tmp_path: Path, sandbox: Path, fixture: Path
) -> None:
    """The smallest ring, and arguments faster than anybody takes them: counted, refused."""
    flood = [str(fixture), "fork", "60", "/bin/true", *["z" * 90_000] * 8]
    with running_daemon(tmp_path, "--trace-ring", "64K") as small:
        assert small.status()["trace"]["ringBytes"] == 65536
        refused = small.run(sandbox, flood, EBPF, ZERO)
        assert refused.returncode == 125 and not refused.record.exists()
        assert "ringbufExecDrops" in refused.stderr and "--trace-ring" in refused.stderr
        told = small.run(sandbox, flood, EBPF)
        assert told.returncode == 0
        assert told.verified().losses["ringbufExecDrops"] > 0
        quiet = small.run(sandbox, ["/bin/true"], EBPF, ZERO)  # counters are the action's own
        assert quiet.returncode == 0, quiet.stderr


def test_ring_size_by_environment(tmp_path: Path) -> None:
    with running_daemon(tmp_path, environ={"ROOTSEAL_TRACE_RING": "1M"}) as daemon:
        assert daemon.status()["trace"]["ringBytes"] == 1 << 20


def test_ensure_replaces_an_idle_daemon_of_another_size_and_keeps_its_options(
    tmp_path: Path,
) -> None:
    place = ("--socket", str(tmp_path / "s"), "--state-dir", str(tmp_path / "state"), "--json")
    variable = {**os.environ, "ROOTSEAL_TRACE_RING": "2M"}
    try:
        small = ("--trace-ring", "1M", "--allow-uid", "4242")
        first = json.loads(rootseal("daemon", "ensure", *place, *small).stdout)
        assert first["trace"]["ringBytes"] == 1 << 20
        again = json.loads(rootseal("daemon", "ensure", *place, "--trace-ring", "1024k").stdout)
        assert again["pid"] == first["pid"]
        other = json.loads(rootseal("daemon", "ensure", *place, env=variable).stdout)
        assert other["trace"]["ringBytes"] == 1 << 21 and other["pid"] != first["pid"]
        assert "4242" in other["options"]
    finally:
        assert rootseal("daemon", "stop", *place).returncode == 0


@pytest.mark.parametrize(
    ("size", "word"), [("100000", "power of two"), ("2G", "power of two"), ("many", "not 'many'")]
)
def test_ring_size_that_cannot_be_is_refused(tmp_path: Path, size: str, word: str) -> None:
    place = ("--socket", str(tmp_path / "s"), "--state-dir", str(tmp_path / "state"))
    done = rootseal("daemon", "run", *place, "--trace-ring", size)
    assert done.returncode == 2 and word in done.stderr
