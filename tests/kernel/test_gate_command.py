"""The gate as a user meets it, for each way of capture: all counters, and nothing after a loss."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Dict, List

import pytest
from rootseal import diagnostics, keys, verify
from rootseal.bundle import BundleReader
from rootseal.capture.ima import ImaWindow
from rootseal.errors import BackendUnavailable
from rootseal.record_check import VerifiedRecord, verify_record
from running_daemon import LAUNCHER, RunningDaemon
from test_run_command import Cli

pytestmark = pytest.mark.requires("root", "fanotify", "launcher", "core")
# Options, what the record then calls its backend, and whether fanotify took part.
WAYS = {
    "fanotify": (["--capture-mode=walk", "--fanotify=on"], "fanotify", 1),
    "auto": ([], "fanotify+ebpf", 1),
    "trace:ebpf": (["--capture-mode=trace:ebpf"], "fanotify+ebpf", 1),
    "fanotify and ptrace": (["--capture-mode=trace:ptrace", "--fanotify=on"], "fanotify+ptrace", 1),
    "ptrace": (["--capture-mode=trace:ptrace"], "ptrace", 0),
    "ebpf alone": (["--capture-mode=trace:ebpf", "--fanotify=off"], "ebpf", 0),
    "walk": (["--capture-mode=walk"], "walk", 0),
    "ima": (["--capture-mode=ima"], "walk+ima", 0),
}
BY_EBPF = ("auto", "trace:ebpf", "ebpf alone")
EBPF = pytest.mark.requires("ebpf")
EACH = [
    pytest.param(name, marks=[pytest.mark.requires("ebpf")] if name in BY_EBPF else [])
    for name in WAYS
]


@pytest.fixture
def cli(daemon: RunningDaemon, sandbox: Path) -> Cli:
    return Cli(daemon, sandbox)


@pytest.fixture(params=EACH)
def way(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    if name == "ima":
        try:
            ImaWindow().close()
        except BackendUnavailable as error:
            pytest.skip(f"optional: {error}")
    return name


def opened(cli: Cli) -> tuple[VerifiedRecord, Dict[str, Any]]:
    """The only record of the bundle, and the summary of its root."""
    with BundleReader(cli.bundle) as bundle:
        signer = keys.load_public_key(cli.public)
        root = verify.verify_root(bundle.root_envelope, trusted=[signer], capture_keys=None)
        (entry,) = bundle.entries()
        record = verify_record(
            bundle.read_record(entry),
            action_key=entry.action_key,
            envelope_sha256=entry.envelope_sha256,
            trusted=root.capture_keys,
        )
    return record, dict(root.predicate.summary)


def test_every_counter_is_in_the_record_and_in_the_root(cli: Cli, way: str) -> None:
    options, backend, fanotify = WAYS[way]
    (cli.sandbox / "in").write_text("input")
    done = cli.run("cat in > out", *options, "--require-zero-drops", "--json")
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert (answer["ok"], answer["losses"], answer["bundle"]) == (True, {}, str(cli.bundle))
    record, summary = opened(cli)
    capture: Any = record.predicate.document["capture"]
    assert capture["backend"] == backend
    assert tuple(sorted(record.counters)) == tuple(sorted(diagnostics.NAMES))
    assert {type(value) for value in record.counters.values()} == {int}
    assert record.counters["fanotifyAvailable"] == fanotify
    assert summary["diagnostics"] == record.counters
    assert cli.verify().returncode == 0


def test_after_a_loss_there_is_nothing(cli: Cli, way: str, tmp_path: Path) -> None:
    """Not even the bundle and the record of an earlier run."""
    options = [*WAYS[way][0], "--record", str(tmp_path / "record")]
    (cli.sandbox / "in").write_text("input")
    assert cli.run("cat in > out", *options).returncode == 0
    assert cli.bundle.exists() and (tmp_path / "record").exists()
    before = cli.daemon.counts()
    done = cli.run("cat in > out", *options, "--require-zero-drops", "--max-digests=1", "--json")
    assert done.returncode == 1, done.stderr
    assert not cli.bundle.exists() and not (tmp_path / "record").exists()
    after = cli.daemon.counts()
    assert (after["recorded"], after["lost"]) == (before["recorded"], before["lost"] + 1)
    assert_zero_drops_error(done.stdout)


def assert_zero_drops_error(stdout: str) -> None:
    """One object: of each counter its value, what it means and what to do."""
    answer = json.loads(stdout)
    assert set(answer) == {"ok", "error"} and answer["ok"] is False
    error = answer["error"]
    assert (error["type"], error["check"]) == ("ZeroDropsError", None)
    known = diagnostics.BY_NAME["fanotifyDigestsCapHit"]
    found = error["data"]["fanotifyDigestsCapHit"]
    assert set(found) == {"value", "meaning", "remedy"}
    assert type(found["value"]) is int and found["value"] > 0
    assert (found["meaning"], found["remedy"]) == (known.meaning, known.remedy)
    assert f"fanotifyDigestsCapHit {found['value']}" in error["message"]
    assert known.remedy in error["message"]


def test_what_is_only_reported_is_refused_by_the_verifier(cli: Cli, way: str) -> None:
    (cli.sandbox / "in").write_text("input")
    done = cli.run("cat in > out", *WAYS[way][0], "--max-digests=1", "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)["losses"]
    record, summary = opened(cli)
    assert told == diagnostics.loss_details(record.losses)
    assert "fanotifyDigestsCapHit" in told and summary["losses"] == sorted(told)
    refused = cli.verify("--json")
    assert refused.returncode == 1
    error = json.loads(refused.stdout)["error"]
    assert (error["check"], error["data"]) == ("RECORD_LOSSES", record.losses)
    assert cli.verify("--allow-losses").returncode == 0


def test_the_launcher_ends_with_125_and_its_error_is_for_machines(
    daemon: RunningDaemon, sandbox: Path
) -> None:
    told = sandbox.parent / "error"
    options = ["--option=require-zero-drops=1", "--option=max-digests=1", f"--error={told}"]
    done = daemon.run(sandbox, ["/bin/true"], *options)
    assert LAUNCHER.exists() and done.returncode == 125, done.stderr
    code, message, details = told.read_text().split("\n", 2)
    assert code == "ZeroDropsError" and message.startswith(diagnostics.LOST)
    assert json.loads(details)["fanotifyDigestsCapHit"]["value"] > 0
    assert not done.record.exists()


WEAKER: List[tuple[List[str], Dict[str, str], str, str]] = [
    (
        ["--hardening=strict"],
        {"ROOTSEAL_FANOTIFY": "0"},
        "--hardening=strict",
        "ROOTSEAL_FANOTIFY=0",
    ),
    (["--hardening=strict"], {"ROOTSEAL_FSVERITY": "off"}, "=strict", "ROOTSEAL_FSVERITY=off"),
    (["--hardening=strict", "--fanotify=off"], {}, "--hardening=strict", "--fanotify=off"),
    (["--hardening=strict", "--capture-mode=ima"], {}, "=strict", "--capture-mode=ima"),
    (["--fanotify=off"], {"ROOTSEAL_FANOTIFY": "1"}, "--fanotify=off", "ROOTSEAL_FANOTIFY=1"),
    (["--fsverity=on"], {"ROOTSEAL_FSVERITY": "0"}, "--fsverity=on", "ROOTSEAL_FSVERITY=0"),
    ([], {"ROOTSEAL_HARDENING": "strict", "ROOTSEAL_FANOTIFY": "0"}, "HARDENING=strict", "IFY=0"),
    (["--hardening=standard"], {"ROOTSEAL_HARDENING": "strict"}, "=standard", "HARDENING=strict"),
    (["--hardening=off"], {"ROOTSEAL_HARDENING": "standard"}, "--hardening=off", "ING=standard"),
    (["--hardening=strict"], {"ROOTSEAL_REQUIRE_ZERO_DROPS": "0"}, "=strict", "ZERO_DROPS=0"),
]


STRONGER: List[tuple[List[str], Dict[str, str], str, bool]] = [
    ([], {"ROOTSEAL_HARDENING": "off"}, "off", False),
    (["--hardening=standard"], {"ROOTSEAL_HARDENING": "off"}, "standard", False),
    ([], {"ROOTSEAL_REQUIRE_ZERO_DROPS": "1"}, "standard", True),
    (["--require-zero-drops"], {"ROOTSEAL_REQUIRE_ZERO_DROPS": "0"}, "standard", True),
    pytest.param([], {"ROOTSEAL_HARDENING": "strict"}, "strict", True, marks=EBPF),
]


@pytest.mark.parametrize(("options", "environ", "level", "zero_drops"), STRONGER)
def test_the_environment_demands_and_flags_demand_more(
    cli: Cli,
    options: List[str],
    environ: Dict[str, str],
    level: str,
    zero_drops: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    done = cli.run("echo > ran", *options)
    assert done.returncode == 0, done.stderr
    record, _ = opened(cli)
    capture = record.predicate.document["capture"]
    assert isinstance(capture, dict)
    asked = capture["requested"]
    assert (asked["hardening"], asked["requireZeroDrops"]) == (level, zero_drops)


def test_what_the_environment_demands_fails_an_action_that_lost_something(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ROOTSEAL_REQUIRE_ZERO_DROPS", "on")
    done = cli.run("true", "--max-digests=1", "--json")
    assert done.returncode == 1
    assert json.loads(done.stdout)["error"]["type"] == "ZeroDropsError"
    assert not cli.bundle.exists()


@pytest.mark.parametrize(("options", "environ", "one", "other"), WEAKER)
def test_what_would_weaken_is_an_error_that_names_both(
    cli: Cli,
    options: List[str],
    environ: Dict[str, str],
    one: str,
    other: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    done = cli.run("echo > ran", *options, "--json")
    assert done.returncode == 2
    error = json.loads(done.stdout)["error"]
    assert error["type"] == "ConfigError"
    assert one in error["message"] and other in error["message"]
    assert not (cli.sandbox / "ran").exists() and not cli.bundle.exists()
