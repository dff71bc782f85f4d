"""What the plugin hands to `rootseal seal`, and what it leaves in dist/rootseal if that fails."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import threading
from pathlib import Path
from typing import Any

import pytest
from pants.engine.internals.scheduler import ExecutionError
from pants.testutil.rule_runner import QueryRule, RuleRunner
from rootseal.errors import CaptureError, ConfigError
from rootseal_pants import hook, sealing, setup_rules, wrap_get
from rootseal_pants.manifest import Artifact
from rootseal_pants.runtime import DaemonInfo
from rootseal_pants.settings import ReadyDaemon, Settings


def settings_with(*options: str) -> Settings:
    """The settings that these options give."""
    hook.install(wrap_get)
    rules: list[Any] = [*setup_rules.rules(), *wrap_get.rules(), QueryRule(Settings, [])]
    runner = RuleRunner(rules=rules)
    runner.set_options(options)
    return runner.request(Settings, [])


def daemon_with(executable: str) -> ReadyDaemon:
    info = DaemonInfo("/s", "1", "/l", "held", "fanotify", "/c.pub")
    return ReadyDaemon(info, executable, "0" * 64, "", (), ())


def test_the_public_key_of_a_key_uri_is_passed_on() -> None:
    settings = settings_with("--rootseal-key=awskms:alias/x", "--rootseal-public-key=keys/x.pub")
    daemon = daemon_with("/bin/rootseal")
    words = sealing._seal_arguments(settings, daemon, Path("/m"), Path("/b"))
    assert words[words.index("--key") + 1] == "awskms:alias/x"
    assert words[words.index("--public-key") + 1] == f"{settings.build_root}/keys/x.pub"


def test_a_key_uri_without_its_public_key_is_refused_before_anything_runs() -> None:
    with pytest.raises(ExecutionError) as caught:
        settings_with("--rootseal-key=awskms:alias/x")
    (error,) = caught.value.wrapped_exceptions
    assert isinstance(error, ConfigError) and "[rootseal].public_key" in str(error)


@pytest.mark.parametrize(
    ("options", "posture"),
    [
        ((), "walked"),
        (("--rootseal-fanotify=on",), "held"),
        (("--rootseal-hardening=strict",), "held"),
        (("--rootseal-hardening=off",), "walked"),
    ],
)
def test_the_policy_demands_held_where_fanotify_is_on(
    options: tuple[str, ...], posture: str
) -> None:
    assert sealing.policy_of(settings_with(*options))["posture"] == posture


# --- dist/rootseal ---------------------------------------------------------------------------

SUMMARY = json.dumps({"summary": {"actions": 1}})


def sealer(directory: Path, end: str) -> ReadyDaemon:
    """A `rootseal seal` that writes a bundle and a statement, and then ends like this."""
    path = directory / "rootseal"
    path.write_text(
        "#!/bin/sh\n"
        "while [ $# -gt 0 ]; do case $1 in\n"
        "--out) touch $2;; --targets) mkdir -p $2; touch $2/a.intoto.json;;\n"
        f"esac; shift; done\n{end}\n"
    )
    path.chmod(0o755)
    return daemon_with(str(path))


def left_in(settings: Settings) -> list[str]:
    out = Path(settings.out_dir)
    return sorted(str(path.relative_to(out)) for path in out.rglob("*") if path.is_file())


def test_what_is_sealed_stays(tmp_path: Path) -> None:
    settings = settings_with()
    sealed = sealing.seal(None, settings, sealer(tmp_path, f"echo '{SUMMARY}'"), {})
    assert sealed.summary == {"actions": 1}
    assert left_in(settings) == ["build.rootseal", "manifest.json", "targets/a.intoto.json"]


@pytest.mark.parametrize(
    ("end", "why"),
    [
        ("echo 'rootseal: no' >&2; exit 1", "`rootseal seal` refused this build: rootseal: no"),
        ("exit 3", "refused this build: exit code 3"),
        ("kill -9 $$", "refused this build: exit code -9"),
        ("echo '{}'", "gave an unexpected answer"),
        ("echo '[]'", "gave an unexpected answer"),
        ("true", "gave an unexpected answer"),
    ],
)
def test_a_sealer_that_fails_leaves_only_the_manifest(tmp_path: Path, end: str, why: str) -> None:
    settings = settings_with()
    older = Path(settings.out_dir, "targets", "older.intoto.json")
    older.parent.mkdir(parents=True)
    older.touch()
    with pytest.raises(CaptureError, match=why):
        sealing.seal(None, settings, sealer(tmp_path, end), {})
    assert left_in(settings) == ["manifest.json"]


def test_a_file_in_the_place_of_the_directory_is_named(tmp_path: Path) -> None:
    settings = settings_with()
    Path(settings.dist_dir).mkdir()
    Path(settings.out_dir).write_text("an artifact of that name")
    sealing.remove_stale(settings.out_dir)
    with pytest.raises(CaptureError, match=r"cannot be written to .*correct \[rootseal\].out"):
        sealing.seal(None, settings, sealer(tmp_path, "true"), {})


def test_artifacts_are_what_was_built_and_not_where_the_attestation_goes() -> None:
    settings = settings_with()
    dist = Path(settings.dist_dir)
    (dist / "rootseal").mkdir(parents=True)
    for name in ("good", "rootseal.pex", "rootseal/manifest.json"):
        (dist / name).write_bytes(b"built")
    sha256 = hashlib.sha256(b"built").hexdigest()
    sealing.check_artifacts(settings, [Artifact(n, sha256, 5) for n in ("good", "rootseal.pex")])
    for name, digest, why in (
        ("rootseal/manifest.json", sha256, "in the directory of the attestation"),
        ("none", sha256, r"cannot be read \(No such file or directory\)"),
        ("good", "0" * 64, "is not the file that was built"),
    ):
        with pytest.raises(CaptureError, match=why):
            sealing.check_artifacts(settings, [Artifact(name, digest, 5)])


def test_runs_at_the_same_time_seal_one_after_the_other(tmp_path: Path) -> None:
    settings, daemon = settings_with(), sealer(tmp_path, f"echo '{SUMMARY}'")
    out = Path(settings.out_dir)
    out.mkdir(parents=True)
    seal = threading.Thread(target=sealing.seal, args=(None, settings, daemon, {}))
    other = os.open(out, os.O_RDONLY)
    try:
        fcntl.flock(other, fcntl.LOCK_EX)
        seal.start()
        seal.join(0.5)
        assert seal.is_alive()
        assert left_in(settings) == []
    finally:
        os.close(other)
    seal.join(60)
    assert left_in(settings) == ["build.rootseal", "manifest.json", "targets/a.intoto.json"]
