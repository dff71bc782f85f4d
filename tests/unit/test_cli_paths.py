"""What a command line may name: results that replace nothing else, and paths that are there."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Callable

import pytest
from rootseal import cli
from rootseal.cli_paths import check_result, check_there, is_same
from rootseal.errors import ConfigError

MAGIC = b"RSBN"


def result(path: Path, *others: Path) -> None:
    check_result(("--out", str(path)), MAGIC, [("--key", str(other)) for other in others])


def test_a_result_may_be_new_or_replace_an_older_one(tmp_path: Path) -> None:
    result(tmp_path / "new", tmp_path / "other")
    (tmp_path / "old").write_bytes(MAGIC + b"\x01rest")
    result(tmp_path / "old")
    (tmp_path / "empty").touch()  # what mktemp makes
    result(tmp_path / "empty")


def a_file(path: Path) -> None:
    path.write_text("source")


def a_short_file(path: Path) -> None:
    path.write_bytes(MAGIC[:3])


def a_loop(path: Path) -> None:
    path.symlink_to(path.name)


def a_link_to_an_older_result(path: Path) -> None:
    path.with_name("bundle").write_bytes(MAGIC)
    path.symlink_to("bundle")


@pytest.mark.parametrize(
    "make", [a_file, a_short_file, a_loop, a_link_to_an_older_result, Path.mkdir, os.mkfifo]
)
def test_a_result_replaces_nothing_else(tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path / "out")
    with pytest.raises(ConfigError, match=r"--out .*out exists and is not"):
        result(tmp_path / "out")
    assert os.path.lexists(tmp_path / "out")


def test_a_result_is_none_of_the_other_files(tmp_path: Path) -> None:
    (tmp_path / "key").write_bytes(MAGIC)
    (tmp_path / "link").symlink_to("key")
    os.link(tmp_path / "key", tmp_path / "second-name")
    for name in ("key", "link", "second-name", "x/../key"):
        with pytest.raises(ConfigError, match="is also --key"):
            result(tmp_path / name, tmp_path / "key")
    with pytest.raises(ConfigError, match="is also --key"):
        result(tmp_path / "not-yet", tmp_path / "gone" / ".." / "not-yet")
    assert not is_same(str(tmp_path / "a"), str(tmp_path / "b"))


def test_what_must_be_there(tmp_path: Path) -> None:
    check_there("--root", str(tmp_path))
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(ConfigError, match=r"--root .*none cannot be used: No such file"):
        check_there("--root", str(tmp_path / "none"))
    with pytest.raises(ConfigError, match="Too many levels of symbolic links"):
        check_there("--root", str(tmp_path / "loop"))


def test_no_command_destroys_a_key_or_a_source(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As typed in haste. Nothing gets as far as looking for a daemon."""
    monkeypatch.chdir(tmp_path)
    assert cli.main(["keygen", "k.key"]) == 0
    assert cli.main(["keygen", "k.other"]) == 2
    assert "k.pub, where the public key would be, exists already" in capsys.readouterr().err
    Path("in.txt").write_text("source")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    Path("empty").touch()
    for words in (
        ["run", "--out", "k.key", "--key", "k.key"],
        ["run", "--out", "k.pub", "--key", "k.key"],
        ["run", "--out", "k.key"],
        ["run", "--out", ".", "--key", "/"],
        ["run", "--record", "k.key"],
        ["run", "--record", "k.key", "--out", "o", "--key", "k.key"],
        ["run", "--out", "in.txt", "--key", "k.key"],
        ["run", "--record", "in.txt"],
        ["run", "--record", "o", "--out", "./o", "--key", "k.key"],
        ["run", "--out", "o", "--output", "o", "--key", "k.key"],
    ):
        assert cli.main([*words, "--socket", "none.sock", "--", "true"]) == 2, words
        assert "--record" in words or "--out" in capsys.readouterr().err
    for words in (
        ["seal", "in.txt", "--records", ".", "--out", "k.key", "--key", "k.key"],
        ["seal", "in.txt", "--records", ".", "--out", "in.txt", "--key", "k.key"],
        ["prove", "in.txt", "--out", "in.txt", "--absent", "a"],
        ["prove", "in.txt", "--out", "k.key", "--absent", "a"],
        ["toolchain", "seal", ".", "--out", "k.key", "--key", "k.key"],
        ["toolchain", "seal", ".", "--out", "in.txt", "--key", "k.key"],
    ):
        assert cli.main(words) == 2, words
        assert "--out" in capsys.readouterr().err
    after = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.name != "empty"}
    assert after == before
