"""Two witnesses through daemon and launcher: each reason of the ledger by a real action."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any, Dict

import pytest
from running_daemon import RunningDaemon, one_line
from syscall_table import BESIDE, BOTH
from trace_action import build_syscalls

pytestmark = pytest.mark.requires("root", "fanotify", "ebpf", "launcher", "core", "gcc")
OPTIONS = {
    BOTH: ("--option=capture-mode=trace:ebpf", "--option=fanotify=on"),
    BESIDE: ("--option=capture-mode=trace:ptrace", "--option=fanotify=on"),
}
ZERO = "--option=require-zero-drops=1"
# Reason, and the subcommand of the fixture that has it.
EXCLUDED = {
    "notRegular": "fifo",
    "noContent": "o_path",
    "pseudoFilesystem": "proc_file",
    "memoryFile": "exec_memfd",
}


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_syscalls(tmp_path_factory.mktemp("bin"))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    place = tmp_path / "root"
    (place / "d").mkdir(parents=True)
    (place / "in").write_text("input\n")
    return place


def adds_up(ledger: Dict[str, Any]) -> bool:
    parts = [*ledger["excluded"].values(), *ledger["unhashed"].values()]
    return ledger["files"] == ledger["hashed"] + sum(parts)  # type: ignore[no-any-return]


@pytest.mark.parametrize("reason", sorted(EXCLUDED))
@pytest.mark.parametrize("backend", sorted(OPTIONS))
def test_exclusion_is_typed(
    daemon: RunningDaemon, program: Path, root: Path, backend: str, reason: str
) -> None:
    base = daemon.run(root, [str(program), "socket", "."], *OPTIONS[backend], ZERO)
    before = base.field("ledger")
    done = daemon.run(root, [str(program), EXCLUDED[reason], "."], *OPTIONS[backend], ZERO)
    assert done.returncode == 0, done.stderr
    after = done.field("ledger")
    assert after["excluded"][reason] > before["excluded"][reason]
    assert after["unhashed"] == {"noDigest": 0, "unresolved": 0}
    assert adds_up(after) and adds_up(before)


def test_write_only_is_typed(daemon: RunningDaemon, program: Path, root: Path) -> None:
    """fanotify hashes what is closed after writing, so only ptrace, which counts opens, has it."""
    done = daemon.run(root, [str(program), "creat", "."], *OPTIONS[BESIDE], ZERO)
    assert done.field("ledger", "excluded")["writeOnly"] == 1


@pytest.mark.parametrize("backend", sorted(OPTIONS))
def test_open_behind_an_unmarked_mount_is_unhashed(
    daemon: RunningDaemon, root: Path, backend: str
) -> None:
    text = "mkdir m && mount --bind . m && cat m/in"
    argv = ["unshare", "-m", "sh", "-c", text]
    done = daemon.run(root, argv, *OPTIONS[backend])
    assert done.returncode == 0, done.stderr
    losses = done.verified().losses
    assert losses["namespaceEscapes"] >= 1 and losses["unmarkedMounts"] >= 1
    ledger = done.field("ledger")
    assert ledger["unhashed"]["noDigest"] >= 1 and adds_up(ledger)
    assert losses["unhashedOpensTotal"] >= ledger["unhashed"]["noDigest"]
    record = root.parent / "refused"
    again = [*argv[:-1], "cat in"]
    refused = daemon.run(root, again, *OPTIONS[backend], ZERO, record=record)
    assert refused.returncode == 125 and not record.exists()
    assert "namespaceEscapes" in one_line(refused.stderr)


def test_ptrace_beside_fanotify_needs_the_namespace(daemon: RunningDaemon, root: Path) -> None:
    """Without CAP_SYS_ADMIN the launcher has no namespace to be marked: said before it starts."""
    argv = daemon.argv(root / "record", ["touch", "ran"], OPTIONS[BESIDE])
    done = daemon.run(root, ["true"], *OPTIONS[BESIDE])
    assert done.field("capture", "backend") == BESIDE
    dropped = subprocess.run(
        ["setpriv", "--bounding-set=-sys_admin", "--inh-caps=-all", "--ambient-caps=-all", *argv],
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
    )
    assert dropped.returncode == 125 and "namespace" in dropped.stderr
    assert not (root / "ran").exists()
