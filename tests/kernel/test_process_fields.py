"""What a record says of each process, under every backend that traces: values, not only names."""

from __future__ import annotations

import datetime
import hashlib
import os
from pathlib import Path
from typing import Any, Dict, List

import pytest
from rootseal import leaf_table
from rootseal.cli_show import expand_processes
from rootseal.leaf_table import Domain
from running_daemon import Done, RunningDaemon
from syscall_table import BESIDE, BOTH, EBPF, IN, PTRACE
from table_runs import OPTIONS, make_root, run_daemon, sha256_text
from trace_action import build_syscalls

NEEDS = ("root", "fanotify", "launcher", "core", "gcc")
pytestmark = pytest.mark.requires(*NEEDS)
WITH_EBPF = pytest.mark.requires(*NEEDS, "ebpf")
TRACING = [
    PTRACE,
    BESIDE,
    pytest.param(BOTH, marks=WITH_EBPF),
    pytest.param(EBPF, marks=WITH_EBPF),
]
backends = pytest.mark.parametrize("backend", TRACING)
PAUSE_SECONDS = 1.2
SET_BYPASS = """
import ctypes, os, sys
refused = ctypes.CDLL(None).prctl(53, 0, 1 << 2, 0, 0)  # PR_SET_SPECULATION_CTRL, off
print("refused" if refused else "set", flush=True)
os.execv(sys.argv[1], sys.argv[1:])
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return make_root(tmp_path)


def processes_of(done: Done) -> List[Dict[str, Any]]:
    """As `rootseal show --expand` has them, without the launcher that traces beside fanotify."""
    tables = done.verified().record.tables
    raw = leaf_table.decompress(tables.materials)
    materials = list(leaf_table.iter_leaves(raw, Domain.MATERIAL))
    document = done.verified().predicate.document
    found = expand_processes(document, materials, leaf_table.decompress(tables.opens))
    return [process for process in found if "fileOps" in process]


def moment(text: str) -> datetime.datetime:
    return datetime.datetime.strptime(text[:19], "%Y-%m-%dT%H:%M:%S")


def real(program: str) -> str:
    return os.path.realpath(program)


@backends
def test_identity_of_a_process(daemon: RunningDaemon, root: Path, backend: str) -> None:
    script = "cat in; (exec -a other sh -c 'kill -TERM $$'); exit 3"
    record = root.parent / "record"
    environ = {"PATH": "/usr/bin:/bin", "SECRET": "value of the secret"}
    argv = ["/bin/bash", "-c", script]
    done = daemon.run(root, argv, *OPTIONS[backend], record=record, env=environ)
    assert done.returncode == 3 and done.verified().losses == {}
    shell, cat, other = processes_of(done)
    program = hashlib.sha256(Path(real("/bin/bash")).read_bytes()).hexdigest()
    assert shell["program"] == real("/bin/bash") and shell["comm"] == "bash"
    assert shell["cmdline"] == argv
    assert shell["programdigest"] == shell["exedigest"] == program
    assert [shell["exitcode"], cat["exitcode"], other["exitcode"]] == [3, 0, 143]
    assert cat["parentpid"] == other["parentpid"] == shell["processid"]
    assert cat["cmdline"] == ["cat", "in"] and other["cmdline"][0] == "other"
    assert cat["openedfiles"]["in"] == {"sha256": sha256_text(IN)}
    assert "in" not in shell["openedfiles"] and "in" not in other["openedfiles"]
    pairs = {item["name"]: item["valueDigest"] for item in cat["environ"]}
    assert pairs["SECRET"] == sha256_text(environ["SECRET"])
    assert environ["SECRET"].encode() not in record.read_bytes()
    assert not any(process["truncated"] for process in (shell, cat, other))


@backends
def test_store_bypass_is_what_the_kernel_says(
    daemon: RunningDaemon, root: Path, backend: str
) -> None:
    """Where a process may switch it off, one that did so is told apart."""
    command = ["/bin/grep", "Speculation_Store_Bypass", "/proc/self/status"]
    known = {"vulnerable": True, "thread vulnerable": True, "unknown": None}
    for argv in (command, ["/usr/bin/python3", "-c", SET_BYPASS, *command]):
        done = run_daemon(daemon, backend, root, *argv)
        state = done.stdout.decode().rpartition("Speculation_Store_Bypass:")[2].strip()
        assert processes_of(done)[-1]["specbypassisvuln"] is known.get(state, False), state


@backends
def test_times_are_when_it_happened(daemon: RunningDaemon, root: Path, backend: str) -> None:
    script = f"echo > made; mv made moved; sleep {PAUSE_SECONDS}; rm moved"
    done = run_daemon(daemon, backend, root, "/bin/sh", "-c", script)
    times = {
        kind: moment(op["timestamp"])
        for process in processes_of(done)
        for kind, ops in process["fileOps"].items()
        for op in ops
    }
    assert set(times) >= {"writes", "renames", "deletes"}
    begin, end = (moment(done.field("capture", name)) for name in ("startedAt", "finishedAt"))
    assert begin <= times["writes"] <= times["renames"] < times["deletes"] <= end


@backends
def test_sockets_have_their_descriptor_and_time(
    daemon: RunningDaemon, root: Path, tmp_path: Path, backend: str
) -> None:
    program = build_syscalls(tmp_path)
    done = run_daemon(daemon, backend, root, str(program), "connect", ".")
    network = processes_of(done)[-1]["network"]
    (connection,) = network["connections"]
    assert connection["syscall"] == "connect" and connection["fd"] == 3
    assert (connection["family"], connection["port"]) == ("AF_INET", 1)
    begin, end = (moment(done.field("capture", name)) for name in ("startedAt", "finishedAt"))
    assert begin <= moment(connection["timestamp"]) <= end
    assert network["sockets"] == [
        {"family": "AF_INET", "type": "SOCK_STREAM", "protocol": network["sockets"][0]["protocol"]}
    ]
