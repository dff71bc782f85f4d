"""`rootseal seal --arguments-on-stdin`: started early, and nothing until it is told what to do."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Sequence

import core_factory as factory
import pytest
from rootseal import cli, cli_later, digest, keys
from rootseal.canonical import path_text
from rootseal.cli_later import FLAG, REQUEST_BYTES_MAX

CAPTURE = keys.generate("ed25519")
Done = subprocess.CompletedProcess  # of bytes


def start(*, home: Path) -> subprocess.Popen[bytes]:
    """A sealer that waits."""
    command = [sys.executable, "-c", "from rootseal.cli import main; main()", "seal", FLAG]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    path = {"PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.Popen(command, env={"HOME": str(home), **path}, **pipes)  # type: ignore[call-overload, no-any-return]


def request(words: Sequence[str]) -> bytes:
    return json.dumps([path_text(os.fsencode(word)) for word in words]).encode()


def told(data: bytes, home: Path) -> Done[bytes]:
    """What a sealer does with these bytes."""
    with start(home=home) as sealer:
        out, error = sealer.communicate(data)
    return Done(sealer.args, sealer.returncode, out, error)


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    """The arguments that seal a small build, in a directory whose name is no text."""
    place = Path(os.fsdecode(os.fsencode(tmp_path) + b"/b\xff%"))
    record = factory.signed_record(CAPTURE, 1)
    name = digest.sha256_hex(record)
    (place / "records" / name[:2]).mkdir(parents=True)
    (place / "records" / name[:2] / name).write_bytes(record)
    (place / "manifest.json").write_text(json.dumps(factory.manifest([record])))
    (place / "capture.pub").write_text(CAPTURE.public_key.pem)
    keys.create_key_files(place / "sign.key", "ed25519")
    options = {
        "records": "records",
        "capture-key": "capture.pub",
        "key": "sign.key",
        "out": "b.rootseal",
    }
    named = [f"--{option}={place / path}" for option, path in options.items()]
    return [str(place / "manifest.json"), *named, "--json"]


def bundle_of(words: Sequence[str]) -> Path:
    return Path(words[0]).with_name("b.rootseal")


def test_it_seals_what_it_is_told_to(words: list[str], tmp_path: Path) -> None:
    done = told(request(words), tmp_path)
    assert (done.returncode, done.stderr) == (0, b"")
    assert json.loads(done.stdout)["summary"]["actions"] == 1
    assert cli.main(["show", str(bundle_of(words))]) == 0


def test_the_answer_is_that_of_the_arguments_given_at_once(
    words: list[str], tmp_path: Path, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    key = Path(words[0]).with_name("sign.key")
    key.chmod(0o644)
    done = told(request(words), tmp_path)
    code = cli.main(["seal", *words])
    plain = capsysbinary.readouterr()
    assert (done.returncode, done.stdout, done.stderr) == (code, plain.out, plain.err)
    assert code == 2 and b"chmod 600" in done.stderr


def test_the_key_is_looked_at_when_it_is_told_and_not_before(
    words: list[str], tmp_path: Path
) -> None:
    key = Path(words[0]).with_name("sign.key")
    away = key.rename(key.with_name("away.key"))
    with start(home=tmp_path) as sealer:
        with pytest.raises(subprocess.TimeoutExpired):
            sealer.wait(1)  # it waits, and the missing key is no matter yet
        away.rename(key)
        _, error = sealer.communicate(request(words))
    assert (sealer.returncode, error) == (0, b"")


def test_nothing_happens_if_it_is_never_told(tmp_path: Path) -> None:
    done = told(b"", tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    assert list(tmp_path.iterdir()) == []  # no key was made


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b'["manifest.json","--records"', b"JSON"),  # cut off: its starter died
        (b'{"manifest":1}', b"not an array of texts"),
        (b"[1]", b"not an array of texts"),
        (b'["a\\u0000b"]', b"canonical form"),
        (b'["a%00b"]', b"NUL"),
        (b'["\\ud800"]', b"surrogate"),
        (b"[" * (REQUEST_BYTES_MAX + 1), b"at most"),
        (b"[]", b"required"),
        (request([FLAG]), b"required"),
    ],
)
def test_what_is_no_request_is_one_line(data: bytes, reason: bytes, tmp_path: Path) -> None:
    done = told(data, tmp_path)
    assert done.returncode == 2 and reason in done.stderr
    assert done.stderr.startswith(b"rootseal: ") and done.stderr.count(b"\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_the_flag_beside_other_arguments_is_refused(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["seal", *words[:-1], FLAG]) == 2
    assert "give it alone" in capsys.readouterr().err
    done = told(request([*words[:-1], FLAG]), tmp_path)
    assert done.returncode == 2 and b"give it alone" in done.stderr
    assert not bundle_of(words).exists()


@pytest.mark.parametrize("words", [(), ("seal",), ("verify", FLAG), (FLAG,), ("seal", FLAG, "x")])
def test_only_the_flag_alone_waits(words: Sequence[str]) -> None:
    assert not cli_later.is_awaited(words)
    assert cli_later.is_awaited(("seal", FLAG))


def test_an_answer_that_nobody_reads_is_no_traceback(words: list[str], tmp_path: Path) -> None:
    with start(home=tmp_path) as sealer:
        assert sealer.stdin and sealer.stdout and sealer.stderr
        sealer.stdout.close()
        sealer.stdin.write(request(words))
        sealer.stdin.close()
        assert sealer.stderr.read() == b""
    assert sealer.returncode == 3
