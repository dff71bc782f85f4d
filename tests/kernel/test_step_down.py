"""Each step down of `auto` on a host that lacks something: in the record and in doctor, alike."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Dict, List

import pytest
from refused_calls import refusing
from running_daemon import command, one_line, running_daemon

pytestmark = pytest.mark.requires("root", "fanotify", "ebpf", "launcher", "core")
# What the kernel refuses: what `auto` is then, and each step down to it.
STEPS = {
    ("bpf",): ("fanotify", ["fanotify+ebpf"]),
    ("fanotify_init",): ("ptrace", ["fanotify"]),
    ("fanotify_init", "bpf"): ("ptrace", ["fanotify"]),
    ("fanotify_init", "ptrace"): ("ebpf", ["fanotify", "ptrace"]),
    ("fanotify_init", "ptrace", "bpf"): ("walk", ["fanotify", "ptrace"]),
}
# A daemon of this machine would speak for the host.
WITHOUT_DAEMON = ("unshare", "-m", "sh", "-c", 'mount -t tmpfs none /run && exec "$@"', "sh")
MISSING = {"fanotify_init": "fanotify", "ptrace": "ptrace", "bpf": "ebpf"}


@pytest.mark.parametrize("calls", STEPS, ids="+".join)
def test_reason_of_each_step_is_in_the_record_and_in_doctor(
    tmp_path: Path, sandbox: Path, calls: tuple[str, ...]
) -> None:
    with running_daemon(tmp_path, prefix=refusing(*calls)) as daemon:
        done = daemon.run(sandbox, ["/bin/true"])
    assert done.returncode == 0, done.stderr
    backend, steps = STEPS[calls]
    fallbacks = done.field("capture", "fallbacks")
    assert done.field("capture", "backend") == backend
    assert [step["from"] for step in fallbacks] == steps
    findings, _text = doctor(calls)
    for step in fallbacks:
        finding = findings[step["from"].rpartition("+")[2]]
        assert step["reason"] and step["reason"] in finding["found"], (step, finding)


@pytest.mark.parametrize("calls", STEPS, ids="+".join)
def test_doctor_has_a_remedy_for_what_is_missing(calls: tuple[str, ...]) -> None:
    findings, text = doctor(calls)
    for name in (MISSING[call] for call in calls):
        assert not findings[name]["good"], findings[name]
        assert findings[name]["remedy"] and f"remedy: {findings[name]['remedy']}" in text
        wanted = "--cap-add SYS_PTRACE" if name == "ptrace" else "seccomp profile"
        assert wanted in findings[name]["remedy"]  # root has the capability: that is not missing


NAMED = {
    "bpf": ("--option=capture-mode=trace:ebpf",),
    "ptrace": ("--option=capture-mode=trace:ptrace",),
    "fanotify_init": ("--option=fanotify=on",),
}


@pytest.mark.parametrize("call", NAMED)
def test_what_is_named_and_missing_fails_before_the_action_starts(
    tmp_path: Path, sandbox: Path, call: str
) -> None:
    with running_daemon(tmp_path, prefix=refusing(call)) as daemon:
        done = daemon.run(sandbox, ["touch", "ran"], *NAMED[call])
    assert done.returncode == 125 and not done.record.exists()
    assert "not permitted" in one_line(done.stderr).lower()
    assert not (sandbox / "ran").exists()


def doctor(calls: tuple[str, ...]) -> tuple[Dict[str, Dict[str, str]], str]:
    """Its findings by name, and what it says to people, on such a host without a daemon."""
    argv: List[str] = [*WITHOUT_DAEMON, *refusing(*calls), *command("doctor")]
    text = subprocess.run(argv, capture_output=True, text=True, check=False).stdout
    found = subprocess.run([*argv, "--json"], capture_output=True, text=True, check=False).stdout
    return {one["name"]: one for one in json.loads(found)["findings"]}, text
