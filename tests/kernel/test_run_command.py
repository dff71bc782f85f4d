"""`rootseal run`, and what can be said of its bundle, with a real daemon and real files."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from rootseal import keys
from running_daemon import RunningDaemon, rootseal

pytestmark = pytest.mark.requires("root", "fanotify", "launcher", "core")


class Cli:
    """`rootseal run` in a sandbox, and the commands that read its bundle."""

    def __init__(self, daemon: RunningDaemon, sandbox: Path) -> None:
        """Make a signing key."""
        self.daemon, self.sandbox = daemon, sandbox
        self.bundle, self.key = sandbox.parent / "out.rootseal", sandbox.parent / "sign.key"
        keys.create_key_files(self.key, "ed25519")
        self.public = str(self.key.with_suffix(".pub"))

    def run(self, script: str, *options: str, **more: Any) -> subprocess.CompletedProcess[str]:
        """Run a shell script and seal what it did."""
        fixed = ["--socket", str(self.daemon.socket), "--key", str(self.key)]
        words = ["run", *fixed, "--out", str(self.bundle), *options, "--", "/bin/sh", "-c", script]
        return rootseal(*words, **{"cwd": self.sandbox, **more})

    def verify(self, *options: str) -> subprocess.CompletedProcess[str]:
        """Verify the bundle."""
        words = ["verify", str(self.bundle), "--key", self.public, *options]
        return rootseal(*words, cwd=self.sandbox)

    def prove_absent(self, path: str) -> subprocess.CompletedProcess[str]:
        """Prove that a path was not read."""
        words = ["prove", str(self.bundle), "--absent", path, "--out", str(self.proof)]
        return rootseal(*words, cwd=self.sandbox)

    def verify_proof(self) -> subprocess.CompletedProcess[str]:
        """Verify that proof."""
        return rootseal("verify-proof", str(self.proof), "--key", self.public)

    @property
    def proof(self) -> Path:
        """Where proofs go."""
        return self.sandbox.parent / "proof"


@pytest.fixture
def cli(daemon: RunningDaemon, sandbox: Path) -> Cli:
    return Cli(daemon, sandbox)


def test_no_other_spelling_of_what_was_read_is_proved_absent(cli: Cli, tmp_path: Path) -> None:
    (cli.sandbox / "per%cent").write_text("read")
    (tmp_path / "link").symlink_to(cli.sandbox)
    done = cli.run(
        "read line < per%cent; read line < /etc/passwd", "--root", str(tmp_path / "link")
    )
    assert done.returncode == 0, done.stderr
    for path in ("per%25cent", f"{cli.sandbox}/per%25cent", "/etc/passwd"):
        done = cli.prove_absent(path)
        assert (done.returncode, "did read" in done.stderr) == (1, True), (path, done.stderr)
    for path in ("", "./per%25cent", "x/../per%25cent", "/etc/./passwd", "/etc/passwd/"):
        done = cli.prove_absent(path)
        assert (done.returncode, len(done.stderr.splitlines())) == (2, 1), (path, done.stderr)
    assert not cli.proof.exists()


def test_what_is_absent_is_said_to_be_a_recorded_path(cli: Cli, tmp_path: Path) -> None:
    """A name that leads through a link is not recorded: the claim says so, `prove` gives a hint."""
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "file").write_text("read")
    (tmp_path / "link").symlink_to("real")
    assert cli.run(f"cat {tmp_path}/link/file").returncode == 0
    done = cli.prove_absent(f"{tmp_path}/link/file")
    assert done.returncode == 0
    assert f"prove `--absent {tmp_path}/real/file` too" in done.stderr
    assert "recorded after symbolic links were resolved" in cli.verify_proof().stdout
    assert cli.prove_absent(f"{tmp_path}/real/file").returncode == 1


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (["--max-digests", "0"], 2, "--max-digests must be at least 1"),
        (["--max-digests", str(2**62)], 2, "max_digests"),
        (["--descendants", "foo"], 2, "`wait` or `kill:SECONDS`"),
        (["--descendants", "kill:86401"], 2, "`wait` or `kill:SECONDS`"),
        (["--output", "../x"], 2, "lies outside the root"),
        (["--root", "none"], 2, "--root none cannot be used: No such file or directory"),
        (["--root", "loop"], 2, "--root loop cannot be used: Too many levels of symbolic links"),
        (["--root", "file"], 2, "--root file is not a directory"),
        (["--input", "none", "--capture-mode", "walk"], 2, "--input none cannot be used"),
        (["--input", "loop", "--capture-mode", "walk"], 2, "--input loop cannot be used"),
        (["--capture-mode", "ima", "--fanotify", "on"], 2, "contradicts"),
        (["--fsverity", "on"], 2, "--fsverity=on seals what --output declares; name one"),
        (["--require-zero-drops", "--max-digests", "1"], 1, "fanotifyDigestsCapHit"),
    ],
)
def test_what_is_refused_has_one_exit_code_and_one_line(
    cli: Cli, options: list[str], code: int, words: str
) -> None:
    """With and without --json; nothing has run where it is a matter of usage."""
    (cli.sandbox / "loop").symlink_to("loop")
    (cli.sandbox / "file").touch()
    for more in ([], ["--json"]):
        done = cli.run("echo > ran", *options, *more)
        assert (done.returncode, words in done.stderr) == (code, True), done.stderr
        assert "internal" not in done.stderr and "Traceback" not in done.stderr
        if more:
            assert words in json.loads(done.stdout)["error"]["message"]
        else:
            assert len(done.stderr.splitlines()) == 1
    assert (cli.sandbox / "ran").exists() == (code == 1)
    assert not cli.bundle.exists()


def test_a_seal_that_only_the_environment_asks_for_needs_an_output_too(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is sealed where it can be (`auto`) needs none."""
    monkeypatch.setenv("ROOTSEAL_FSVERITY", "1")
    done = cli.run("echo > ran")
    assert (done.returncode, (cli.sandbox / "ran").exists()) == (2, False)
    assert "ROOTSEAL_FSVERITY=1 seals what --output declares" in done.stderr
    monkeypatch.setenv("ROOTSEAL_FSVERITY", "auto")
    assert cli.run("echo > ran", "--fsverity=auto").returncode == 0


# Option, a value that is too low for the action, one that is enough, and the counter that tells.
CAPS = [
    ("--max-digests", "20", "200", "fanotifyDigestsCapHit"),
    ("--max-record-bytes", "2K", "1M", "recordBytesCapHit"),
    ("--max-hashed-bytes", "400K", "100M", "hashedBytesCapHit"),
]
READ_ALL = "cat many/* > /dev/null"


@pytest.mark.parametrize(
    "mode",
    [
        ["--capture-mode=walk", "--fanotify=on"],
        ["--capture-mode=trace:ptrace"],
        pytest.param(
            ["--capture-mode=trace:ebpf", "--fanotify=off"], marks=pytest.mark.requires("ebpf")
        ),
        ["--capture-mode=walk"],
    ],
    ids=["fanotify", "ptrace", "ebpf", "walk"],
)
@pytest.mark.parametrize(("option", "low", "enough", "counter"), CAPS)
def test_a_cap_fails_its_action_alone_and_names_the_option_that_raises_it(
    cli: Cli, tmp_path: Path, mode: list[str], option: str, low: str, enough: str, counter: str
) -> None:
    (cli.sandbox / "many").mkdir()
    for number in range(100):
        (cli.sandbox / "many" / str(number)).write_bytes(os.urandom(10_000))
    other = tmp_path / "other"
    other.mkdir()
    process = cli.daemon.start(other, ["/bin/sh", "-c", "read line; cat; exec cat /bin/sh"])
    options = [*mode, "--require-zero-drops"]
    done = cli.run(READ_ALL, *options, f"{option}={low}")
    assert done.returncode == 1 and not cli.bundle.exists()
    (line,) = done.stderr.splitlines()
    assert f" {counter} " in line and f"({option}, " in line
    again = cli.run(READ_ALL, *options, f"{option}={enough}")
    assert again.returncode == 0, again.stderr
    beside = cli.daemon.end(process, other / "the-record", b"go on\n")
    assert beside.returncode == 0 and beside.verified().losses == {}


def test_a_launcher_that_cannot_say_why_is_a_refusal(cli: Cli) -> None:
    """Killed by its own action: no record, no reason from the daemon, one code in both modes."""
    for more in ([], ["--json"]):
        done = cli.run("kill -KILL $PPID; exec sleep 100", *more)
        assert done.returncode == 1, done.stderr
        assert not cli.bundle.exists()


def test_an_output_that_is_not_there_is_a_refusal(cli: Cli) -> None:
    for more in ([], ["--json"]):
        done = cli.run("true", "--output", "never", *more)
        assert done.returncode == 1
        assert "refused: the command did not leave its output never" in done.stderr
    (cli.sandbox / "loop").symlink_to("loop")
    done = cli.run("true", "--output", "loop")
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1), done.stderr


def subjects(cli: Cli) -> list[str]:
    done = cli.verify("--json")
    assert done.returncode == 0, done.stderr
    names = [item["name"] for item in json.loads(done.stdout)["subjects"]]
    return [] if names[0].startswith("run:") else names


MODES = ["auto", "trace:ptrace", "walk"]


@pytest.mark.parametrize("mode", MODES)
def test_an_output_that_is_a_link_is_the_file_that_it_leads_to(cli: Cli, mode: str) -> None:
    """`verify --artifact lnk` reads the file behind the link, so that is the subject."""
    script = "echo built > real.1; ln -s real.1 mid; ln -s mid lnk"
    done = cli.run(script, "--output", "lnk", "--capture-mode", mode)
    assert done.returncode == 0, done.stderr
    assert subjects(cli) == ["real.1"]
    for name in ("lnk", "real.1"):
        assert cli.verify("--artifact", str(cli.sandbox / name)).returncode == 0
    (cli.sandbox / "real.1").unlink()  # where it could be sealed, nobody can write it
    (cli.sandbox / "real.1").write_text("other")
    assert cli.verify("--artifact", str(cli.sandbox / "lnk")).returncode == 1


@pytest.mark.parametrize("mode", MODES)
def test_links_in_an_output_directory_are_no_artifacts(cli: Cli, mode: str) -> None:
    """Dangling, to a file beside it, out of the root, and a loop: leaves, but no subjects."""
    script = (
        "mkdir -p lib/deep; echo a > lib/a.so.1; ln -s a.so.1 lib/a.so; ln -s nowhere lib/gone; "
        "ln -s /etc/passwd lib/out; ln -s loop lib/loop; ln -s .. lib/deep/up"
    )
    done = cli.run(script, "--output", "lib/", "--capture-mode", mode)
    assert done.returncode == 0, done.stderr
    assert subjects(cli) == ["lib/a.so.1"]
    shown = rootseal("show", str(cli.bundle), "--expand", "--json")
    products = [item["path"] for item in json.loads(shown.stdout)["actions"][0]["productFiles"]]
    assert {"lib/a.so", "lib/a.so.1", "lib/gone", "lib/loop", "lib/out"} <= set(products)
    assert cli.verify("--artifact", str(cli.sandbox / "lib/a.so")).returncode == 0
    assert cli.verify("--artifact", "/etc/passwd").returncode == 1


def test_an_output_directory_may_be_empty_or_a_link(cli: Cli) -> None:
    done = cli.run("mkdir -p empty/deep; ln -s nowhere empty/link", "--output", "empty")
    assert (done.returncode, subjects(cli)) == (0, []), done.stderr
    script = "mkdir real; echo a > real/a; ln -s real dist"
    done = cli.run(script, "--output", "dist/", "--output", "empty/")
    assert (done.returncode, subjects(cli)) == (0, ["dist/a"]), done.stderr


@pytest.mark.parametrize(
    ("script", "why"),
    [
        ("true", "nothing is there"),
        ("ln -s nowhere out", "a symbolic link, and the command made no file"),
        ("ln -s /etc/passwd out", "a symbolic link, and the command made no file"),
        ("ln -s out out", "a symbolic link, and the command made no file"),
        ("ln -s old out", "a symbolic link, and the command made no file"),
        ("mkfifo out", "it is no regular file"),
        ("mkdir out && mkfifo out/fifo", "it holds nothing that the command left"),
    ],
)
def test_what_the_command_did_not_leave_as_a_file_is_no_artifact(
    cli: Cli, script: str, why: str
) -> None:
    (cli.sandbox / "old").write_text("was there before")
    done = cli.run(script, "--output", "out")
    assert (done.returncode, why in done.stderr) == (1, True), done.stderr
    assert not cli.bundle.exists()


def test_a_command_that_failed_is_not_taken_for_one_that_did_not(cli: Cli, tmp_path: Path) -> None:
    done = cli.run("echo built > out; exit 3", "--output", "out")
    assert done.returncode == 3
    out = ("--artifact", str(cli.sandbox / "out"))
    text, machine = cli.verify(*out), cli.verify(*out, "--json")
    assert (text.returncode, machine.returncode) == (0, 0)
    assert "FAILED actions (exit code not 0): " in text.stdout and " with 3" in text.stdout
    (action,) = json.loads(machine.stdout)["failedActions"]
    assert action["exitCode"] == 3
    (tmp_path / "policy.toml").write_text("allowed_exit_codes = [0]")
    done = cli.verify("--policy", str(tmp_path / "policy.toml"))
    assert (done.returncode, "exit code 3" in done.stderr) == (1, True)
