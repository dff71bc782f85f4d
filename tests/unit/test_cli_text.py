"""What the help says, what sizes are, and what doctor and daemon status print for people."""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from rootseal import cli, cli_sizes, cli_status, keys
from rootseal.daemon_announce import CAPTURE_MODES, HARDENING, SWITCH
from rootseal.errors import ConfigError
from rootseal.policy import parse_policy

PACKAGES = str(Path(__file__).resolve().parents[2] / "pants-plugins")


def run_help() -> argparse.ArgumentParser:
    parser = cli.build_parser("run")
    (group,) = [item for item in parser._actions if isinstance(item.choices, dict)]
    assert isinstance(group.choices, dict)
    found = group.choices["run"]
    assert isinstance(found, argparse.ArgumentParser)
    return found


def test_every_option_of_run_says_what_it_does_and_what_it_takes() -> None:
    for item in run_help()._actions:
        if item.option_strings and item.help is not argparse.SUPPRESS:
            assert item.help and len(item.help) > 10, item.option_strings
            assert item.choices is None or item.metavar is None, item.option_strings
    text = re.sub(r"\s+", " ", run_help().format_help())
    for choices in (CAPTURE_MODES, HARDENING, SWITCH):
        assert "{" + ",".join(choices) + "}" in text


@pytest.mark.parametrize(
    ("text", "value"),
    [("0", 0), ("65536", 65536), ("64K", 65536), ("64k", 65536), ("1G", 2**30), ("512M", 2**29)],
)
def test_a_size_may_have_a_unit(text: str, value: int) -> None:
    assert cli_sizes.size(text) == value


@pytest.mark.parametrize(
    "text", ["", "K", "1.5G", "-1", "1T", "1KB", "²", "1 G", "9" * 30, "2G" * 9]
)
def test_anything_else_is_no_size(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="a size like 65536, 64K, 16M or 1G"):
        cli_sizes.size(text)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["daemon", "run", "--memory-budget", "1X"], "--memory-budget: needs a size like"),
        (["daemon", "run", "--trace-ring", "1X"], "--trace-ring (or ROOTSEAL_TRACE_RING) needs a"),
        (["daemon", "run", "--idle-exit", "-3"], "--idle-exit: needs a number"),
        (["daemon", "run", "--idle-exit", "soon"], "--idle-exit: needs a number"),
        (["run", "--max-hashed-bytes", "1X", "--", "true"], "needs a size like"),
        (["run", "--capture-mode", "x", "--", "true"], "'trace:ptrace'"),
    ],
)
def test_a_wrong_number_is_told_in_words_of_the_command_line(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        code: Any = cli.main(words)
    except SystemExit as stop:
        code = stop.code
    error = capsys.readouterr().err
    assert (code, said in error, "_bytes" in error) == (2, True, False), error


def test_a_status_has_no_python_in_it() -> None:
    status = {
        "options": ["--memory-budget", "1G", "--log-file", "a b"],
        "reason": "",
        "trace": {
            "loader": "co-re",
            "remedy": None,
            "programs": [
                {"name": "exec", "attached": True, "reason": ""},
                {"name": "open", "attached": False, "reason": "refused"},
            ],
        },
        "actions": {"running": 2, "queued": 0},
        "activity": [
            {"launcher": 7, "events": 3, "bytesHashed": 90, "longHashes": 1, "longBytes": 4096},
            {"launcher": 8, "events": 4, "bytesHashed": 91, "longHashes": 0, "longBytes": 0},
        ],
    }
    assert cli_status.status_lines(status) == [
        "options: --memory-budget 1G --log-file 'a b'",
        "reason: none",
        "trace: loader co-re, remedy none",
        "  exec: attached",
        "  open: not attached, refused",
        "actions: running 2, queued 0",
        "activity:",
        "  launcher 7: 3 events, 90 bytes hashed, hashing 1 large files of 4096 bytes now",
        "  launcher 8: 4 events, 91 bytes hashed",
    ]
    odd = {"activity": [], "trace": {}, "new": [{"a": True}, None]}
    lines = ["activity: none", "trace: none", "new: a yes; none"]
    assert cli_status.status_lines(odd) == lines
    many = cli_status.status_lines({"activity": [{"launcher": n} for n in range(30)]})
    assert (len(many), many[-1]) == (22, "  and 10 more")


def test_what_doctor_says_is_not_folded_in_a_pipe() -> None:
    """Whatever the width of the terminal: a remedy is there to be copied."""
    doctor = [sys.executable, "-m", "rootseal.cli", "doctor"]
    environ = {**os.environ, "PYTHONPATH": PACKAGES, "COLUMNS": "20"}
    done = subprocess.run(doctor, env=environ, capture_output=True, text=True)
    as_data = subprocess.run([*doctor, "--json"], env=environ, capture_output=True, text=True)
    assert done.returncode in (0, 1), done.stderr
    lines = done.stdout.splitlines()
    findings = [line for line in lines if line.startswith(("yes\t", "no\t"))]
    assert len(findings) == len(json.loads(as_data.stdout)["findings"]) > 10
    remedies = [line for line in lines if line.startswith("\tremedy: ")]
    assert len(findings) + len(remedies) < len(lines)
    assert lines[-1].startswith("an action of this user is captured with posture ")


def test_a_key_that_is_a_pipe_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for load in (keys.load_public_key, keys.load_private_key):
        for path in (tmp_path / "fifo", tmp_path):
            with pytest.raises(ConfigError, match="is not a regular file"):
                load(path)


@pytest.mark.parametrize(
    "text",
    [
        ".".join("a" * 100_000) + " = 1",
        "[" + ".".join("a" * 100_000) + "]",
        "# it's\n" + ".".join("a" * 100_000) + " = 'x'",
        'b = """\n"""\n' + ".".join("a" * 100_000) + ' = "x"',
    ],
)
def test_a_key_of_many_parts_is_refused_before_it_is_parsed(text: str) -> None:
    """The parser needs minutes for it."""
    with pytest.raises(ConfigError, match="more than 1000 dots in its keys"):
        parse_policy(text, where="it")


@pytest.mark.parametrize("text", ['a = "' + '\\"' * 60_000, '"x\\' * 60_000])
def test_a_string_that_does_not_end_is_refused_in_no_time(text: str) -> None:
    before = time.process_time()
    with pytest.raises(ConfigError, match="is not TOML"):
        parse_policy(text, where="it")
    assert time.process_time() - before < 10, "quadratic: most of a minute"


def test_dots_in_values_and_comments_are_no_matter() -> None:
    globs = ", ".join(f'\'*/{n}.a.b\', "{n}.\\".c"' for n in range(400))
    text = f"# {'.' * 2000}\nforbidden_materials = [{globs}]\ncounters_max.lateEvents = 0"
    assert len(parse_policy(text, where="it").forbidden_materials) == 800
