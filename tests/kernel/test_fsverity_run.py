"""`rootseal run` and the seals of what it delivers: real daemon, command line and filesystem."""

from __future__ import annotations

import contextlib
import ctypes
import json
import mmap
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, Dict, Iterator, List

import pytest
from rootseal import daemon_seal, digest, fsverity
from rootseal.errors import CaptureError
from rootseal.leaf_table import Leaf
from running_daemon import RunningDaemon, one_line, rootseal, running_daemon

pytestmark = pytest.mark.requires("root", "fanotify", "launcher", "core")
EXPECTED = "fs-verity" in os.environ.get("ROOTSEAL_LAB_EXPECTS", "").split(",")
NAMES = ("fsVerityAvailable", "fsVerityFilesSealed", "fsVeritySealFailures")


@pytest.fixture
def verity(sandbox: Path) -> Path:
    """A sandbox whose files can be sealed."""
    if not fsverity.available(sandbox):
        assert not EXPECTED, "this row of the lab is there for fs-verity"
        pytest.skip("optional: no fs-verity on the filesystem of the temporary files")
    return sandbox


class Cli:
    """`rootseal run` with outputs and a bundle."""

    def __init__(self, daemon: RunningDaemon, sandbox: Path) -> None:
        """Make a signing key."""
        self.sandbox = sandbox
        self.bundle = sandbox.parent / "out.rootseal"
        self.key = sandbox.parent / "sign.key"
        self.fixed = ["--socket", str(daemon.socket), "--key", str(self.key)]
        assert rootseal("keygen", str(self.key)).returncode == 0

    def run(self, script: str, *options: str) -> subprocess.CompletedProcess[str]:
        """Run a shell script."""
        words = ["run", *self.fixed, "--out", str(self.bundle), "--output", "out", *options]
        return rootseal(*words, "--", "/bin/sh", "-c", script, cwd=self.sandbox)

    def counters(self) -> List[Dict[str, int]]:
        """Those of the root, and of its one action."""
        done = rootseal("show", str(self.bundle), "--json")
        assert done.returncode == 0, done.stderr
        document = json.loads(done.stdout)
        (action,) = document["actions"]
        return [find_counters(document["build"]), find_counters(action)]

    def verify(self, *options: str) -> subprocess.CompletedProcess[str]:
        """Verify the bundle."""
        public = str(self.key.with_suffix(".pub"))
        return rootseal("verify", str(self.bundle), "--key", public, *options)

    def artifact(self) -> Any:
        """What `verify` says of the output's seal."""
        done = self.verify("--json", "--artifact", str(self.sandbox / "out"))
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)["artifacts"][0]["fsverity"]


def find_counters(value: Any) -> Dict[str, int]:
    """The first `diagnostics` in a document."""
    if isinstance(value, dict):
        if isinstance(value.get("diagnostics"), dict):
            return {name: value["diagnostics"][name] for name in NAMES}
        value = list(value.values())
    for item in value if isinstance(value, list) else ():
        found = find_counters(item)
        if found:
            return found
    return {}


def test_outputs_are_sealed_counted_and_measured_again(daemon: RunningDaemon, verity: Path) -> None:
    cli = Cli(daemon, verity)
    for number in range(2):  # the second time the sealed output is written in place
        done = cli.run(f"echo {number} > out; chmod 444 out; echo > other", "--fsverity", "on")
        assert done.returncode == 0, done.stderr
        sealed = {"fsVerityAvailable": 1, "fsVerityFilesSealed": 1, "fsVeritySealFailures": 0}
        assert cli.counters() == [sealed, sealed]
        assert (verity / "out").stat().st_mode & 0o777 == 0o444
        with (verity / "out").open("rb") as stream:
            assert fsverity.is_sealed(stream.fileno())
        (verity / "other").write_text("was not declared, so it is not sealed")
        assert cli.artifact() == "measured"
        (verity / "out").chmod(0o644)
        with pytest.raises(PermissionError):
            (verity / "out").open("r+b")


@contextlib.contextmanager
def writer(path: Path, way: str) -> Iterator[None]:
    """Somebody who may write a file: by a descriptor, or by a mapping alone."""
    path.write_bytes(b"before")
    descriptor = os.open(path, os.O_RDWR)
    if way == "open":
        yield
        os.close(descriptor)
        return
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    access = mmap.PROT_READ | mmap.PROT_WRITE
    place = libc.mmap(None, mmap.PAGESIZE, access, mmap.MAP_SHARED, descriptor, 0)
    os.close(descriptor)
    assert place != ctypes.c_void_p(-1).value, os.strerror(ctypes.get_errno())
    yield
    assert libc.munmap(place, mmap.PAGESIZE) == 0


@pytest.mark.parametrize("way", ["open", "mapped"])
def test_a_seal_that_fails_is_counted_and_refused_if_it_must_be(
    daemon: RunningDaemon, verity: Path, way: str
) -> None:
    cli = Cli(daemon, verity)
    with writer(verity / "out", way):
        done = cli.run("echo built > out", "--fsverity", "on")
        assert done.returncode == 1
        assert "fsVeritySealFailures is 1" in one_line(done.stderr)
        assert "open for writing" in done.stderr
        assert not cli.bundle.exists()
        done = cli.run("echo built > out", "--fsverity", "auto")
    assert done.returncode == 0, done.stderr
    unsealed = {"fsVerityAvailable": 1, "fsVerityFilesSealed": 0, "fsVeritySealFailures": 1}
    assert cli.counters() == [unsealed, unsealed]
    assert cli.artifact() is None  # never sealed, so there is nothing to measure
    assert "fs-verity seals that failed: 1" in cli.verify().stdout
    (verity / "out").write_text("still writable")
    assert cli.verify("--artifact", str(verity / "out")).returncode == 1


def test_the_file_behind_a_link_and_those_of_a_new_directory_are_sealed(
    daemon: RunningDaemon, verity: Path
) -> None:
    """Each run writes them in place: Rootseal made copies of what the last one sealed."""
    cli = Cli(daemon, verity)
    script = "echo built > real; mkdir -p new; echo more > new/more; test -L out || ln -s real out"
    for _ in range(2):
        done = cli.run(script, "--output", "new", "--fsverity", "on")
        assert done.returncode == 0, done.stderr
        sealed = {"fsVerityAvailable": 1, "fsVerityFilesSealed": 2, "fsVeritySealFailures": 0}
        assert cli.counters() == [sealed, sealed]
        for name in ("real", "new/more"):
            with (verity / name).open("rb") as stream:
                assert fsverity.is_sealed(stream.fileno())
    assert cli.artifact() == "measured"


def test_an_output_with_another_name_is_not_sealed_under_it(
    daemon: RunningDaemon, verity: Path
) -> None:
    """Somebody's file that the command linked, or a name that it left outside its root."""
    cli, other = Cli(daemon, verity), verity.parent / "other"
    other.write_text("not of this build")
    linked = f"ln {other} out; echo built > out"
    left = f"rm out {other}; echo built > out; ln out {other}"
    for mode, code, script in (("on", 1, linked), ("auto", 0, left)):
        done = cli.run(script, "--fsverity", mode)
        assert done.returncode == code, done.stderr
        assert cli.bundle.exists() == (mode == "auto")
        if mode == "on":
            assert "other names (hard links), 2 in all" in one_line(done.stderr)
            assert "fsVeritySealFailures is 1" in done.stderr
        other.write_text("still writable")
    unsealed = {"fsVerityAvailable": 1, "fsVerityFilesSealed": 0, "fsVeritySealFailures": 1}
    assert cli.counters() == [unsealed, unsealed]


SEAL_WITH_SALT = """
import ctypes, fcntl, struct
salt = ctypes.create_string_buffer(b"salt", 4)
argument = struct.pack("=IIIIQIIQ88x", 1, 1, 4096, 4, ctypes.addressof(salt), 0, 0, 0)
with open("out", "rb") as stream:  # FS_IOC_ENABLE_VERITY
    fcntl.ioctl(stream, 0x40806685, argument)
"""


def test_what_the_command_sealed_with_other_parameters_is_a_seal_that_failed(
    daemon: RunningDaemon, verity: Path
) -> None:
    cli = Cli(daemon, verity)
    (verity / "seal.py").write_text(SEAL_WITH_SALT)
    script = f"rm -f out; echo built > out; {sys.executable} seal.py"
    done = cli.run(script, "--fsverity", "on")
    assert (done.returncode, cli.bundle.exists()) == (1, False), done.stderr
    assert "is sealed already, but not with SHA-256 over 4096-byte blocks" in one_line(done.stderr)
    assert "fsVeritySealFailures is 1" in one_line(done.stderr)


READER = """
#include <fcntl.h>
int main(int argc, char **argv)
{
	while (--argc)
		if (open(argv[argc], O_RDONLY) < 0)
			return 1;
	return 0;
}
"""


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    """A toolchain of a static program and two files, listed by the command line and signed."""
    tools, source = tmp_path / "tools", tmp_path / "reader.c"
    tools.mkdir()
    source.write_text(READER)
    reader = str(tools / "reader")
    subprocess.run(["gcc", "-O1", "-static", str(source), "-o", reader], check=True)
    for name in ("one", "two"):
        (tools / name).write_bytes(os.urandom(100_000))
    assert rootseal("keygen", str(tmp_path / "tools.key")).returncode == 0
    words = ("toolchain", "seal", str(tools), "--key", str(tmp_path / "tools.key"))
    done = rootseal(*words, "--out", str(tmp_path / "tools.toolchain"), "--json")
    assert done.returncode == 0, done.stderr
    sealed = json.loads(done.stdout)["fsVerityFilesSealed"]
    assert sealed == (3 if fsverity.can_seal(tools) else 0)
    return tmp_path / "tools.toolchain"


@pytest.mark.requires("root", "fanotify", "launcher", "core", "gcc")
def test_a_daemon_measures_what_its_manifest_lists_and_only_that_is_sealed(
    verity: Path, manifest: Path
) -> None:
    """From `toolchain seal` to `verify --require-posture sealed`, by the command line."""
    tools, key = manifest.with_name("tools"), manifest.with_name("tools.key")
    out, public = str(manifest.with_name("out.rootseal")), str(key.with_suffix(".pub"))
    known = ("--toolchain", str(manifest), "--toolchain-key", public)

    def posture(*files: Path) -> List[object]:
        how = ("--key", str(key), "--capture-mode=walk", "--fanotify=on", "--out", out)
        words = ("run", "--socket", str(daemon.socket), *how, "--", str(tools / "reader"))
        done = rootseal(*words, *map(str, files), cwd=verity)
        assert done.returncode == 0, done.stderr
        done = rootseal("verify", out, "--key", public, "--require-posture", "sealed", "--json")
        answer = json.loads(done.stdout)
        return [done.returncode, answer["posture"] if answer["ok"] else answer["error"]["check"]]

    (verity / "hashed").write_bytes(b"neither sealed nor listed")
    with running_daemon(manifest.parent, *known) as daemon:
        assert posture(tools / "one", tools / "two") == [0, "sealed"]
        assert posture(tools / "one", verity / "hashed") == [1, "POLICY"]
        content = (tools / "two").read_bytes()  # the same content, no longer sealed
        (tools / "two").unlink()
        (tools / "two").write_bytes(content)
        assert posture(tools / "one", tools / "two") == [1, "POLICY"]


@pytest.mark.requires("gcc")
def test_a_daemon_believes_no_manifest_of_another_signer(tmp_path: Path, manifest: Path) -> None:
    assert rootseal("keygen", str(tmp_path / "other.key")).returncode == 0
    words = ["daemon", "run", "--socket", str(tmp_path / "d.sock"), "--toolchain", str(manifest)]
    done = rootseal(*words, "--toolchain-key", str(tmp_path / "other.pub"))
    assert done.returncode == 1
    assert f"toolchain manifest {manifest}: " in done.stderr and "signed" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_content_of_another_digest_is_never_sealed_as_the_captured(verity: Path) -> None:
    """Changed after the capture has hashed it and before the kernel refuses to: no record."""
    captured = b"captured"
    leaf = Leaf(b"out", digest.sha256(captured), len(captured), 0o644, 0, 0)
    path = verity / "out"
    path.write_bytes(b"changed!")
    with pytest.raises(CaptureError, match="changed after the action had ended"):
        daemon_seal._seal_one(os.fsencode(path), leaf)
    path.unlink()
    path.write_bytes(captured)
    daemon_seal._seal_one(os.fsencode(path), leaf)
    with pytest.raises(PermissionError):
        path.open("r+b")


def test_whoever_writes_an_output_meanwhile_gets_no_wrong_digest_recorded(
    daemon: RunningDaemon, verity: Path
) -> None:
    """A run is refused, or its record has the digest of what is sealed."""
    cli, path, over = Cli(daemon, verity), verity / "out", threading.Event()

    def write() -> None:
        while not over.is_set():
            with contextlib.suppress(FileNotFoundError, PermissionError), path.open("r+b") as file:
                file.write(os.urandom(8))

    for _ in range(2):
        writer = threading.Thread(target=write)
        writer.start()
        done = cli.run("echo built > out", "--fsverity", "on")
        over.set()
        writer.join()
        over.clear()
        if done.returncode == 0:
            assert cli.artifact() == "measured"
        else:
            assert done.returncode == 1 and len(done.stderr.splitlines()) == 1, done.stderr
            assert not cli.bundle.exists()
        cli.bundle.unlink(missing_ok=True)


def test_outputs_of_a_sandbox_are_not_sealed_but_its_filesystem_is_named(
    daemon: RunningDaemon, verity: Path
) -> None:
    done = daemon.run(verity, ["/bin/sh", "-c", "echo > out"], "--output-file=out")
    counters = done.field("summary", "diagnostics")
    assert [counters[name] for name in NAMES] == [1, 0, 0]
    (verity / "out").write_text("still writable")


def test_on_refuses_before_the_action_runs_where_nothing_can_be_sealed(
    daemon: RunningDaemon, sandbox: Path
) -> None:
    if fsverity.can_seal(sandbox):
        pytest.skip("optional: fs-verity is on the filesystem of the temporary files")
    cli = Cli(daemon, sandbox)
    done = cli.run("echo > out", "--fsverity", "on")
    assert done.returncode == 2
    assert "cannot seal files" in one_line(done.stderr)
    assert not (sandbox / "out").exists()
    done = cli.run("echo > out", "--fsverity", "auto")
    assert done.returncode == 0, done.stderr
    assert cli.counters() == [dict.fromkeys(NAMES, 0)] * 2
