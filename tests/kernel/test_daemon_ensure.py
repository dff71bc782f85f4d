"""`ensure` with options, and the remedies that `doctor` names: each does what it says."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
from pathlib import Path
from typing import Any, Dict, Iterator, List

import pytest
from rootseal import wire
from rootseal.executable import rootseal_command, rootseal_path
from running_daemon import GIVE_UP_SECONDS, RunningDaemon, is_alive, rootseal, until

pytestmark = pytest.mark.requires("root", "fanotify", "launcher", "core")
HELD = "--option=fanotify=on"


@pytest.fixture
def place(tmp_path: Path) -> Iterator[List[str]]:
    """A place of its own, and no daemon there afterwards."""
    socket = str(tmp_path / "run" / "d.sock")
    yield ["--socket", socket, "--state-dir", str(tmp_path / "state")]
    rootseal("daemon", "stop", "--socket", socket)


def ensure(place: List[str], *options: str) -> Dict[str, Any]:
    done = rootseal("daemon", "ensure", "--json", *place, *options)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    found: Dict[str, Any] = json.loads(done.stdout)
    return found


def test_an_idle_daemon_without_the_options_is_replaced(place: List[str]) -> None:
    first = ensure(place, "--allow-uid", "4242")
    assert ensure(place)["pid"] == first["pid"]
    assert ensure(place, "--allow-uid", "4242")["pid"] == first["pid"]
    second = ensure(place, "--allow-uid", "12345", "--trace-ring", "64K")
    assert second["pid"] != first["pid"]
    until(lambda: not is_alive(first["pid"]), "the first one has ended")
    assert {"4242", "12345", "65536"} < set(second["options"]), "whom it served it still serves"
    if second["trace"]["loader"]:
        assert second["trace"]["ringBytes"] == 65536
    assert ensure(place, "--trace-ring", "65536")["pid"] == second["pid"]
    assert ensure(place)["pid"] == second["pid"]


def test_a_busy_daemon_without_the_options_is_an_error_that_names_both(
    place: List[str], tmp_path: Path, sandbox: Path
) -> None:
    first = ensure(place, "--allow-uid", "4242")
    daemon = RunningDaemon(None, Path(first["socket"]), tmp_path / "state", tmp_path)  # type: ignore[arg-type]
    process = daemon.start(sandbox, ["/bin/cat"], HELD)
    until(lambda: daemon.status()["actions"]["running"], "the action runs")
    done = rootseal("daemon", "ensure", *place, "--allow-uid", "12345")
    assert done.returncode != 0 and done.stdout == ""
    assert "--allow-uid 4242" in done.stderr and "--allow-uid 12345" in done.stderr
    assert f"daemon stop --socket {first['socket']}`" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert daemon.end(process, sandbox / "the-record").returncode == 0
    assert daemon.counts()["recorded"] == 1
    assert ensure(place, "--allow-uid", "12345")["pid"] != first["pid"]


@pytest.mark.parametrize(
    ("options", "environ", "why"),
    [
        (("--trace-ring", "77"), {}, "power of two"),
        (("--trace-ring", "x"), {}, "a size like"),
        ((), {"ROOTSEAL_TRACE_RING": "foo"}, "a size like"),
        (("--allow-uid", "no-such-user"), {}, "no-such-user"),
        (("--toolchain", "/nowhere"), {}, "--toolchain-key"),
        (("--stay-awake", "perhaps"), {}, "--stay-awake"),
    ],
)
def test_a_wrong_option_is_an_error_though_a_daemon_is_up(
    place: List[str], options: List[str], environ: Dict[str, str], why: str
) -> None:
    first = ensure(place)
    env = {**os.environ, **environ}
    done = rootseal("daemon", "ensure", *place, *options, env=env)
    assert done.returncode == 2 and why in done.stderr and done.stdout == ""
    assert wire.status(first["socket"])["pid"] == first["pid"]


def test_another_ring_by_the_variable_is_noticed(place: List[str]) -> None:
    first = ensure(place)
    env = {**os.environ, "ROOTSEAL_TRACE_RING": "128K"}
    done = rootseal("daemon", "ensure", "--json", *place, env=env)
    second = json.loads(done.stdout)
    assert second["pid"] != first["pid"] and "131072" in second["options"]


@pytest.mark.parametrize(("choice", "is_on"), [("off", False), ("on", True)])
def test_staying_awake_is_an_option_and_is_shown(
    place: List[str], choice: str, is_on: bool
) -> None:
    if not os.access("/dev/cpu_dma_latency", os.W_OK):
        pytest.skip("no /dev/cpu_dma_latency that may be written")
    said = ensure(place, "--stay-awake", choice)["awake"]
    assert said == {"on": is_on, "reason": "" if is_on else "switched off"}
    shown = rootseal("daemon", "status", *place).stdout
    assert f"awake: on {'yes' if said['on'] else 'no'}, reason {said['reason'] or 'none'}" in shown


# --- the remedies, as `doctor` says them ----------------------------------------------------


def findings(*arguments: str) -> Dict[str, Dict[str, Any]]:
    done = rootseal("doctor", "--json", *arguments)
    return {item["name"]: item for item in json.loads(done.stdout)["findings"]}


def run_remedy(text: str, place: List[str]) -> subprocess.CompletedProcess[str]:
    """Run the command in a remedy, at a place of ours."""
    assert text.startswith(rootseal_path())
    return subprocess.run(
        [*shlex.split(text), *place], capture_output=True, text=True, timeout=GIVE_UP_SECONDS
    )


def test_the_executable_of_a_remedy_exists_and_runs() -> None:
    assert Path(rootseal_path()).is_absolute()
    done = subprocess.run([rootseal_path(), "--version"], capture_output=True, check=True)
    assert b"rootseal" in done.stdout


def test_the_remedy_for_a_user_who_is_not_served_changes_that(place: List[str]) -> None:
    first = ensure(place)
    remedy = rootseal_command("daemon", "ensure", "--allow-uid", "12345", sudo=True)
    assert run_remedy(remedy, place).returncode == 0
    second = wire.status(first["socket"])
    assert second["pid"] != first["pid"] and "12345" in second["options"]  # type: ignore[operator]


def test_doctor_names_absolute_commands_and_shows_limits(tmp_path: Path) -> None:
    found = findings()
    for item in found.values():
        for piece in ("rootseal daemon", "rootseal doctor"):
            if piece in item["remedy"]:
                assert f"/{piece}" in item["remedy"], item
    assert "sysctl fs.fanotify.max_user_groups=" in found["fanotifyGroups"]["remedy"]
    assert "actions at once" in found["fanotifyGroups"]["found"]
    assert "open files" in found["descriptors"]["found"]
    assert "stayAwake" in found
    few = ["prlimit", "--nofile=256:256"]
    done = subprocess.run(
        [*few, rootseal_path(), "doctor"],
        capture_output=True,
        text=True,
        env={**os.environ, "COLUMNS": "400"},
        timeout=GIVE_UP_SECONDS,
    )
    if "no daemon runs" in done.stdout:
        assert "256 open files" in done.stdout and "ulimit -n 65536" in done.stdout
    assert "max_user_groups" in done.stdout
