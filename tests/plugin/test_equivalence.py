"""The wrap changes nothing: every process shape gives the same result with and without it.

Whoever captures: the host's best backend, ptrace, or walk.
"""

from __future__ import annotations

import base64
import json
import signal
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Mapping

import pytest
from conftest import daemon_status, wrapping_engine
from pants.engine.fs import (
    EMPTY_DIGEST,
    CreateDigest,
    Digest,
    DigestEntries,
    FileContent,
)
from pants.engine.internals.scheduler import ExecutionError
from pants.engine.process import FallibleProcessResult, Process
from pants.testutil.rule_runner import QueryRule, RuleRunner

BASH = "/bin/bash"
PATH = {"PATH": "/bin:/usr/bin"}

SHAPES: dict[str, dict[str, Any]] = {
    "streams and a file": {
        "argv": [BASH, "-c", "echo hi; echo err >&2; echo x > out.txt"],
        "output_files": ["out.txt"],
        "env": PATH,
    },
    "immutable inputs": {
        "argv": [BASH, "-c", "cat tools/word nested/tools/word > o; test ! -e tools/none"],
        "immutable": {"tools": {"word": b"kept"}, "nested/tools": {"word": b"below"}},
        "output_files": ["o"],
        "env": PATH,
    },
    "large input": {  # Pants hardlinks files of this size from its store
        "argv": [BASH, "-c", "sha256sum big > o; cp big copy"],
        "inputs": {"big": b"0123456789abcdef" * (1 << 16)},
        "output_files": ["o", "copy"],
        "env": PATH,
    },
    "execution slot": {
        "argv": [BASH, "-c", 'test -n "$SLOT" && echo slot > o'],
        "execution_slot_variable": "SLOT",
        "output_files": ["o"],
    },
    "processes that end before": {
        "argv": [BASH, "-c", "for i in 1 2 3; do (echo $i > o$i) & done; wait; cat o1 o2 o3"],
        "output_files": ["o1", "o2", "o3"],
        "env": PATH,
    },
    "no outputs": {"argv": [BASH, "-c", "echo hi"]},
    "directory of everything": {
        "argv": [
            BASH,
            "-c",
            "mkdir -p d/empty d/sub; echo a > d/sub/f; chmod +x d/sub/f; ln -s f d/sub/l;"
            "ln -s nowhere d/dangling; echo h > d/.hidden",
        ],
        "output_directories": ["d"],
        "env": PATH,
    },
    "empty directory": {
        "argv": [BASH, "-c", "mkdir -p e"],
        "output_directories": ["e"],
        "env": PATH,
    },
    "a concurrency that the engine chooses": {
        "argv": [BASH, "-c", 'test "$1" -ge 1 && echo ok', "sh", "{pants_concurrency}"],
        "concurrency_available": 2,
        "env": PATH,
    },
    "the sandbox in arguments and environment": {
        "argv": [BASH, "-c", 'cd / && cat "$1" "$HERE" > "$OUT"', "sh", "{chroot}/in.txt"],
        "output_files": ["out.txt"],
        "env": {**PATH, "HERE": "{chroot}/top.txt", "OUT": "{chroot}/out.txt"},
        "inputs": {"in.txt": b"in", "top.txt": b"top"},
    },
    "working directory": {
        "argv": [BASH, "-c", "cat in.txt > out.txt; cp ../top.txt copy.txt"],
        "working_directory": "w/v",
        "output_files": ["out.txt", "copy.txt"],
        "env": PATH,
        "inputs": {"w/v/in.txt": b"in", "w/top.txt": b"top"},
    },
    "untidy working directory": {
        "argv": [BASH, "-c", "echo 1 > out.txt"],
        "working_directory": "w//v/",
        "output_files": ["out.txt"],
        "inputs": {"w/v/in.txt": b"in"},
    },
    "relative argv": {
        "argv": ["./s.sh"],
        "output_files": ["o"],
        "inputs": {"s.sh": b"#!/bin/bash\necho rel > o\n"},
    },
    "bare argv with PATH": {"argv": ["bash", "-c", "echo 1"], "env": {"PATH": "/bin"}},
    "failure": {"argv": [BASH, "-c", "echo x > o; exit 3"], "output_files": ["o"]},
    "own exit code 125": {"argv": [BASH, "-c", "echo x > o; exit 125"], "output_files": ["o"]},
    "signal": {"argv": [BASH, "-c", "kill -TERM $$"]},
    "chroot": {
        "argv": [BASH, "-c", "test -d {chroot} && echo ok > o"],
        "output_files": ["o"],
    },
    "root directory": {
        "argv": [BASH, "-c", "mkdir z; echo q > z/q; echo r > r"],
        "output_directories": ["."],
        "env": PATH,
    },
    "missing output": {"argv": [BASH, "-c", "true"], "output_files": ["nope.txt"]},
    "timeout": {"argv": [BASH, "-c", "sleep 5"], "timeout_seconds": 1, "env": PATH},
    "environment": {
        "argv": ["/usr/bin/env"],
        "env": {"A": "b c", "EMPTY": "", "QUOTE": "'\"$`", "LINES": "a\nb"},
    },
    "no environment": {"argv": ["/usr/bin/env"]},
    "odd arguments": {
        "argv": ["/usr/bin/printf", "%s|", "", "--", "--action=x", " ", "a\nb", "é"],
    },
    "binary streams": {
        "argv": [BASH, "-c", r"printf '\x00\xff\n'; printf '\xfe' >&2; cat"],
        "env": PATH,
    },
    "append-only cache": {
        "argv": [BASH, "-c", "test -d cache && echo c > cache/f && cat cache/f > o"],
        "append_only_caches": {"rootseal_equivalence": "cache"},
        "output_files": ["o"],
        "env": PATH,
    },
    "large output": {
        "argv": [BASH, "-c", "head -c 3000000 /dev/zero > big; ln big alias"],
        "output_files": ["big", "alias"],
        "env": PATH,
    },
    "many files": {
        "argv": [BASH, "-c", "mkdir m; for i in {1..500}; do echo $i > m/$i; done"],
        "output_directories": ["m"],
        "env": PATH,
    },
    "odd names": {
        "argv": [BASH, "-c", "mkdir n; echo 1 > 'n/a b'; echo 2 > 'n/%41'; echo 3 > n/é"],
        "output_directories": ["n"],
        "env": PATH,
    },
}

# How each shape ends, so that two results that are the same are not two failures.
OTHER_EXIT_CODES = {
    "failure": 3,
    "own exit code 125": 125,
    "signal": -signal.SIGTERM,
    "timeout": -signal.SIGTERM,
}


def result_of(rules: RuleRunner, shape: dict[str, Any]) -> Any:
    fields = dict(shape)
    inputs = fields.pop("inputs", {})
    immutable = fields.pop("immutable", {})
    process = Process(
        fields.pop("argv"),
        description="shape",
        input_digest=directory(rules, inputs),
        immutable_input_digests={at: directory(rules, files) for at, files in immutable.items()},
        **fields,
    )
    try:
        result = rules.request(FallibleProcessResult, [process])
    except ExecutionError as error:
        return ("error", type(error.wrapped_exceptions[0]).__name__)
    return (
        result.exit_code,
        result.stdout,
        result.stderr,
        result.stdout_digest,
        result.stderr_digest,
        result.output_digest,
        rules.request(DigestEntries, [result.output_digest]),
    )


def directory(rules: RuleRunner, files: Mapping[str, bytes]) -> Digest:
    if not files:
        return EMPTY_DIGEST
    contents = [FileContent(path, text, is_executable=True) for path, text in files.items()]
    return rules.request(Digest, [CreateDigest(contents)])


@pytest.fixture(scope="module")
def plain() -> RuleRunner:
    return RuleRunner(rules=queries())


def queries() -> list[Any]:
    return [
        QueryRule(FallibleProcessResult, [Process]),
        QueryRule(DigestEntries, [Digest]),
    ]


# How actions are captured, and the backend that their records must name; None: the host's best.
CAPTURES = {
    "auto": ((), None),
    "ptrace": (("--rootseal-capture-mode=trace:ptrace", "--rootseal-fanotify=off"), "ptrace"),
    "walk": (("--rootseal-capture-mode=walk",), "walk"),
}


@dataclass(frozen=True)
class Capturing:
    """An engine whose processes are wrapped, and the backend that captures them."""

    engine: RuleRunner
    backend: str


@pytest.fixture(scope="module", params=CAPTURES)
def capturing(request: pytest.FixtureRequest, executable: str, daemon_socket: str) -> Capturing:
    options, backend = CAPTURES[request.param]
    engine = wrapping_engine(executable, daemon_socket, *options)
    best = daemon_status(executable, daemon_socket)["backend"]
    return Capturing(engine, backend or best)


@pytest.mark.parametrize("name", list(SHAPES))
def test_same_result(name: str, plain: RuleRunner, capturing: Capturing) -> None:
    before = records_of(capturing.engine)
    result = result_of(capturing.engine, SHAPES[name])
    assert result == result_of(plain, SHAPES[name])
    assert result[0] == OTHER_EXIT_CODES.get(name, 0)
    made = records_of(capturing.engine) - before
    assert [backend_of(record) for record in made] == [capturing.backend] * (name != "timeout")


def records_of(rules: RuleRunner) -> set[Path]:
    """The record of each action that the engine has one of."""
    records = Path(rules.build_root, rules.pants_workdir, "rootseal", "records")
    return {path for path in records.rglob("*") if path.is_file()}


def backend_of(record: Path) -> str:
    """The backend that a record names (docs/formats.md, "Action record")."""
    data = record.read_bytes()
    (length,) = struct.unpack_from(">I", data, 8)
    payload = json.loads(base64.b64decode(json.loads(data[12 : 12 + length])["payload"]))
    backend = str(payload["predicate"]["capture"]["backend"])
    return backend.split("+")[0]  # beside fanotify, who traces


def test_nothing_of_pants_itself_is_inherited_open(wrapped: RuleRunner) -> None:
    """Plain Pants lets actions inherit its store's files; no action may read them unseen."""
    process = Process(
        [BASH, "-c", "for fd in /proc/$$/fd/*; do readlink $fd; done"],
        description="descriptors",
        env=PATH,
    )
    found = wrapped.request(FallibleProcessResult, [process]).stdout.decode().split()
    assert not [name for name in found if "mdb" in name or "socket" in name]


def test_a_program_that_does_not_exist_is_the_one_difference(
    plain: RuleRunner, wrapped: RuleRunner
) -> None:
    """Pants refuses to start it; wrapped, it is an action that ends with 127, as in a shell."""
    shape = {"argv": ["/no/such/program"]}
    assert result_of(plain, shape)[0] == "error"
    assert result_of(wrapped, shape)[0] == 127
