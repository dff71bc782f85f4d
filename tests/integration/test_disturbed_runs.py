"""Runs that are cancelled, lose their daemon or their room, or are not alone."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Callable, Iterator

import pytest
from attested import check_complete
from pants_repo import REPO, PantsRepo
from rootseal.build_id import build_digest

LEFT, RIGHT = "//:left-archive", "//:right-archive"
COMMAND = "cat twice.txt left.txt"


def let_wait(repo: PantsRepo) -> None:
    """From now on the left command says that it runs, and ends only if it may."""
    build = (repo.root / "BUILD").read_text("utf-8")
    wait = f"touch {started(repo)}; until [ -e {go(repo)} ]; do sleep 0.1; done; {COMMAND}"
    tools = build.replace('tools=["cat", "mkdir"]', 'tools=["cat", "mkdir", "sleep", "touch"]')
    repo.write({"BUILD": tools.replace(COMMAND, wait)})


def started(repo: PantsRepo) -> Path:
    return repo.home / "started"


def go(repo: PantsRepo) -> Path:
    return repo.home / "go"


@contextlib.contextmanager
def running(repo: PantsRepo, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """Pants, while its left command waits."""
    let_wait(repo)
    with start(repo, *arguments) as client:
        wait_for(started(repo).exists, client)
        yield client


def start(repo: PantsRepo, *arguments: str) -> subprocess.Popen[str]:
    """Pants, not waited for."""
    (repo.home / "sandboxes").mkdir(exist_ok=True)
    return subprocess.Popen(
        [str(repo.pants), *arguments],
        cwd=repo.root,
        env=repo.environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def wait_for(happened: Callable[[], bool], client: subprocess.Popen[str] | None = None) -> None:
    for _ in range(6000):
        if happened():
            return
        if client is not None and client.poll() is not None:
            pytest.fail(f"Pants has ended: {client.communicate()[0]}")
        time.sleep(0.02)
    pytest.fail("it did not happen within two minutes")


def status(repo: PantsRepo) -> Any:
    """What the daemon says of itself."""
    return json.loads(
        repo.command("daemon", "status", "--socket", str(repo.socket), "--json").succeeded().output
    )


def attestation(repo: PantsRepo) -> list[str]:
    """What is left of an attestation, but for the manifest."""
    found = (repo.dist / "rootseal").rglob("*")
    return sorted(path.name for path in found if path.is_file() and path.name != "manifest.json")


@pytest.mark.parametrize("pantsd", ["--pantsd", "--no-pantsd"])
def test_a_cancelled_run_leaves_nothing_and_the_next_is_complete(
    repo: PantsRepo, pantsd: str
) -> None:
    repo.run(pantsd, "package", "::").succeeded()
    with running(repo, pantsd, "package", "::") as client:
        client.send_signal(signal.SIGINT)
        assert client.wait(120) != 0
    assert attestation(repo) == []
    wait_for(lambda: status(repo)["actions"]["running"] == 0)
    go(repo).touch()
    repo.run(pantsd, "package", "::").succeeded()
    # The graph of a pantsd that was interrupted still leads to the left command of before.
    check_complete(repo, or_more=pantsd == "--pantsd")


def test_a_daemon_that_dies_fails_the_run_and_the_next_is_complete(repo: PantsRepo) -> None:
    with running(repo, "package", LEFT) as client:  # nothing else runs
        os.kill(status(repo)["pid"], signal.SIGKILL)
        output = client.communicate(timeout=300)[0]
    assert client.returncode != 0
    assert "(Running the `shell_command` at `//:left`) was not captured: " in output, output
    assert "the Rootseal daemon went away while the action ran" in output
    assert "rootseal daemon ensure" in output
    assert "Traceback" not in output
    assert attestation(repo) == []
    go(repo).touch()
    repo.start_daemon("state")
    repo.run("package", "::").succeeded()
    check_complete(repo)


def test_an_idle_daemon_of_an_older_build_is_replaced(repo: PantsRepo, tmp_path: Path) -> None:
    copy = tmp_path / "older" / "rootseal"
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(REPO / "pants-plugins" / "rootseal", copy, ignore=ignored)
    with (copy / "__init__.py").open("a") as stream:
        stream.write("# another build\n")
    program = (
        f"import sys; sys.path.insert(0, {str(copy.parent)!r}); "
        "from rootseal.cli import main; sys.exit(main())"
    )
    place = ["--socket", str(repo.socket), "--state-dir", str(repo.home / "state")]
    repo.command("daemon", "stop", "--socket", str(repo.socket)).succeeded()
    subprocess.run([sys.executable, "-c", program, "daemon", "ensure", *place], check=True)
    older = status(repo)
    assert older["build"] != build_digest()
    repo.run("package", "::").succeeded()
    check_complete(repo)
    now = status(repo)
    assert (now["build"], now["captureKeyId"]) == (build_digest(), older["captureKeyId"])


def test_two_runs_at_once_leave_the_attestation_of_one(repo: PantsRepo) -> None:
    """One dist/, one daemon, one store; the second to seal has its own there, and nothing else."""
    alone = ("--no-pantsd", "--concurrent", "package")
    with start(repo, *alone, LEFT) as left, start(repo, *alone, RIGHT) as right:
        outputs = [run.communicate(timeout=600)[0] for run in (left, right)]
    assert (left.returncode, right.returncode) == (0, 0), outputs
    (target,) = repo.manifest().document["targets"]
    ((last, other),) = [
        pair for pair in (("left", "right"), ("right", "left")) if pair[0] in target["address"]
    ]
    (repo.dist / f"{other}.tar").unlink()
    check_complete(repo, last)
    assert attestation(repo) == ["build.rootseal", f"{last}-archive.intoto.json"]


@pytest.fixture
def small_dist(repo: PantsRepo) -> Iterator[Path]:
    """dist/ as a filesystem of 64 KiB."""
    repo.dist.mkdir()
    options = ["-o", "size=64k", "-t", "tmpfs", "tmpfs"]
    subprocess.run(["mount", *options, str(repo.dist)], check=True)
    yield repo.dist
    subprocess.run(["umount", "--lazy", str(repo.dist)], check=True)


@pytest.mark.requires("root", "pants")
def test_a_full_dist_is_said_in_one_line(repo: PantsRepo, small_dist: Path) -> None:
    failed = repo.run("package", "::").failed()
    assert "Nothing was attested: " in failed.output
    assert "No space left on device" in failed.output
    assert "Traceback" not in failed.output
    assert attestation(repo) == []
    subprocess.run(["mount", "-o", "remount,size=64m", str(small_dist)], check=True)
    repo.run("package", "::").succeeded()
    check_complete(repo)


@pytest.mark.requires("root", "pants")
def test_a_dist_that_is_read_only_names_what_stays(repo: PantsRepo, small_dist: Path) -> None:
    subprocess.run(["mount", "-o", "remount,size=64m", str(small_dist)], check=True)
    repo.run("package", "::").succeeded()
    subprocess.run(["mount", "-o", "remount,ro", str(small_dist)], check=True)
    repo.write({"left.txt": "another left\n"})
    failed = repo.run("package", "::").failed()
    assert "build.rootseal of the last run cannot be removed: " in failed.output
    assert "Read-only file system" in failed.output
    subprocess.run(["mount", "-o", "remount,rw", str(small_dist)], check=True)
    repo.run("package", "::").succeeded()
    check_complete(repo)
