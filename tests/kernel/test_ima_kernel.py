"""The `ima` backend on a kernel that measures (in the lab: `ima_policy=tcb`)."""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
from pathlib import Path
from typing import Iterator

import core_factory
import pytest
from rootseal import diagnostics, digest, ima, leaf_table
from rootseal.capture import ima as backend
from rootseal.capture import ima_files
from rootseal.capture.scope import CaptureLimits
from rootseal.capture.walk import WalkEngine, WalkInputs
from rootseal.daemon_peer import Peer, as_user
from rootseal.errors import BackendUnavailable, EncodingError
from rootseal.leaf_table import Domain
from rootseal.observation import DigestSource, Posture
from running_daemon import RunningDaemon, one_line, rootseal, running_daemon
from throwaway_user import UnprivilegedUser

EXPECTED = "ima" in os.environ.get("ROOTSEAL_LAB_EXPECTS", "").split(",")
ASCII = backend.LIST.with_name("ascii_runtime_measurements")


@pytest.fixture
def window() -> backend.ImaWindow:
    """What the kernel measures from here on."""
    try:
        return backend.ImaWindow()
    except BackendUnavailable as error:
        assert not EXPECTED, "this row of the lab is there for IMA"
        pytest.skip(f"optional: {error}")


def measured_here(tmp_path: Path) -> Path:
    """The folder, if the kernel's policy measures files on its filesystem."""
    if os.environ.get("ROOTSEAL_LAB_FILESYSTEM") == "tmpfs":
        pytest.skip("optional: the tcb policy leaves tmpfs out")
    return tmp_path


def test_both_lists_of_this_kernel_agree_and_are_genuine(window: backend.ImaWindow) -> None:
    window.close()
    entries = ima.parse_binary(backend.LIST.read_bytes())
    ima.check_list(entries, pcrs=backend.read_pcrs())
    try:
        text = ima.parse_ascii(ASCII.read_bytes())
    except EncodingError:
        assert any(b"\n" in entry.name for entry in entries)
        return
    shorter = min(len(text), len(entries))
    assert text[:shorter] == entries[:shorter]


def test_read_file_is_measured_with_its_content(window: backend.ImaWindow, tmp_path: Path) -> None:
    path = measured_here(tmp_path) / "material"
    content = os.urandom(10_000)
    path.write_bytes(content)
    assert path.read_bytes() == content
    found = ima.by_path(window.entries())
    assert [entry.digest for entry in found[bytes(path)]] == [digest.sha256(content)]
    window.close()


def test_a_content_is_listed_once_per_boot(window: backend.ImaWindow, tmp_path: Path) -> None:
    """Also where the file had another one meanwhile: the docs say so (docs/ima.md)."""
    path = measured_here(tmp_path) / "material"
    first, second = os.urandom(100), os.urandom(100)
    for content in (first, second, first):
        path.write_bytes(content)
        assert path.read_bytes() == content
    found = ima.by_path(window.entries())[bytes(path)]
    assert [entry.digest for entry in found] == [digest.sha256(first), digest.sha256(second)]
    window.close()


def test_odd_names_of_this_kernel_are_found_again(
    window: backend.ImaWindow, tmp_path: Path
) -> None:
    """Spaces are `_` in the list, other bytes as they are; a deleted file keeps its name."""
    folder = measured_here(tmp_path) / "two words"
    folder.mkdir()
    paths = [folder / name for name in ("a b_c", "line\nbreak", "x (deleted)", "boot_aggregate")]
    for path in paths:
        path.write_bytes(os.urandom(100))
        path.read_bytes()
    gone = folder / "gone"
    gone.write_bytes(os.urandom(100))
    with gone.open("rb") as file:
        gone.unlink()
        Path(f"/proc/self/fd/{file.fileno()}").read_bytes()
    entries = window.entries()
    assert {bytes(path).replace(b" ", b"_") for path in (*paths, gone)} <= {
        entry.name for entry in entries
    }
    window.close()
    measured = [(entry.name, entry.digest) for entry in entries if b"/two_words/" in entry.name]
    counters = diagnostics.zeros()
    leaves, mutations = ima_files.find(
        measured, root=b"/sandbox", limits=CaptureLimits(), counters=counters
    )
    assert {leaf.path for leaf in leaves} == set(map(bytes, paths))
    assert mutations == []


def test_a_file_without_a_path_is_a_loss(window: backend.ImaWindow, tmp_path: Path) -> None:
    """On a detached mount the kernel names a file `boot_aggregate` if that is its last name."""
    path = measured_here(tmp_path) / "boot_aggregate"
    content = os.urandom(100)
    path.write_bytes(content)
    tree = open_tree_clone(tmp_path)
    try:
        descriptor = os.open("boot_aggregate", os.O_RDONLY, dir_fd=tree)
        assert os.read(descriptor, 200) == content
        os.close(descriptor)
    finally:
        os.close(tree)
    entries = [entry for entry in window.entries() if entry.digest == digest.sha256(content)]
    window.close()
    assert [entry.name for entry in entries] == [ima.BOOT_AGGREGATE]
    base = core_factory.observation(posture=Posture.WALKED)
    found = backend.merge(base, entries, root=b"/sandbox", limits=CaptureLimits())
    assert diagnostics.losses(found.counters) == {"unhashedOpensTotal": 1}
    ima.check_list(ima.parse_binary(backend.LIST.read_bytes()), pcrs=backend.read_pcrs())


def open_tree_clone(folder: Path) -> int:
    """A detached copy of the mount that a folder is on, from that folder on."""
    libc = ctypes.CDLL(None, use_errno=True)
    number, clone, at_fdcwd = 428, 1, -100
    found: int = libc.syscall(number, at_fdcwd, bytes(folder), clone | os.O_CLOEXEC)
    if found < 0:
        raise OSError(ctypes.get_errno(), "open_tree")
    return found


def test_writing_what_is_being_read_is_a_violation(
    window: backend.ImaWindow, tmp_path: Path
) -> None:
    path = measured_here(tmp_path) / "material"
    path.write_bytes(os.urandom(100))
    with path.open("rb"), path.open("r+b"):
        pass
    counted = window.violations()
    entries = [entry for entry in window.entries() if entry.name == bytes(path)]
    assert [entry.is_violation for entry in entries] == [False, True]
    assert counted >= 1
    window.close()


def test_reading_what_is_being_written_is_a_violation(
    window: backend.ImaWindow, tmp_path: Path
) -> None:
    """open_writers. Newer kernels tell it once while the file stays open: docs/ima.md."""
    path = measured_here(tmp_path) / "material"
    with path.open("wb") as writer:
        writer.write(os.urandom(100))
        writer.flush()
        path.read_bytes()
        found = [entry for entry in window.entries() if entry.name == bytes(path)]
    assert any(entry.is_violation for entry in found)
    window.close()


def test_action_gets_what_the_kernel_measured(window: backend.ImaWindow, tmp_path: Path) -> None:
    root = measured_here(tmp_path) / "root"
    root.mkdir()
    outside = tmp_path / "tool"
    outside.write_bytes(os.urandom(100))
    (root / "read").write_bytes(os.urandom(100))
    (root / "unread").write_bytes(os.urandom(100))
    walk = WalkEngine().open_scope(
        pid=0, root=bytes(root), limits=CaptureLimits(), inputs=WalkInputs()
    )
    window.close()
    scope = backend.ImaScope(walk, backend.ImaWindow(), root=bytes(root), limits=CaptureLimits())
    # The first snapshot was read by root, so it is measured already: change what is to be read.
    (root / "read").write_bytes(os.urandom(200))
    (root / "out").write_bytes((root / "read").read_bytes() + outside.read_bytes())
    found = scope.finish(outputs_files=[b"out"], outputs_dirs=[])
    materials = {
        leaf.path: leaf for leaf in leaf_table.iter_leaves(found.materials.raw, Domain.MATERIAL)
    }
    assert materials[bytes(outside)].digest == digest.sha256(outside.read_bytes())
    assert materials[bytes(outside)].source == DigestSource.IMA
    assert materials[b"unread"].source == DigestSource.WALK
    assert (found.backend, found.posture) == ("walk+ima", Posture.WALKED)
    assert diagnostics.losses(found.counters) == {}


@pytest.mark.requires("root")
def test_digests_of_files_that_the_client_may_not_read_are_not_told(
    unprivileged_user: UnprivilegedUser,
) -> None:
    """Whatever root reads meanwhile is in the window too."""
    (unprivileged_user.home / "readable").write_bytes(b"readable")
    secret = unprivileged_user.home / "secret"
    secret.touch(0o600)
    secret.write_bytes(b"secret")
    names = ("readable", "secret")
    measured = [
        (bytes(unprivileged_user.home / name), digest.sha256(name.encode())) for name in names
    ]
    counters = diagnostics.zeros()
    with as_user(Peer(0, unprivileged_user.uid, unprivileged_user.gid)):
        leaves, mutations = ima_files.find(
            measured, root=b"/sandbox", limits=CaptureLimits(), counters=counters
        )
    assert [(leaf.path, leaf.digest) for leaf in leaves] == measured[:1]
    assert (mutations, diagnostics.losses(counters)) == ([], {})


@pytest.mark.requires("root")
def test_doctor_says_what_a_run_would_find() -> None:
    """Not that there is a list: without a policy it has the boot aggregate alone."""
    try:
        backend.probe()
        expected = (True, "files are measured with SHA-256", "")
    except BackendUnavailable as error:
        assert not EXPECTED, "this row of the lab is there for IMA"
        expected = (False, error.reason, "ima_policy=tcb ima_hash=sha256")
    done = rootseal("doctor", "--json")
    (found,) = (item for item in json.loads(done.stdout)["findings"] if item["name"] == "ima")
    assert found["good"] is expected[0]
    assert expected[1] in found["found"]
    assert expected[2] in found["remedy"]


# --- the whole way: daemon, launcher, command line --------------------------------------------


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningDaemon]:
    with running_daemon(tmp_path_factory.mktemp("daemon"), "--no-fanotify") as found:
        yield found


class Command:
    """`rootseal run --capture-mode ima` in a folder of its own."""

    def __init__(self, daemon: RunningDaemon, folder: Path) -> None:
        """Make the folder, and a signing key."""
        self.sandbox = folder / "sandbox"
        self.sandbox.mkdir()
        self.bundle = folder / "out.rootseal"
        self.key = folder / "sign.key"
        self.daemon = daemon
        assert rootseal("keygen", str(self.key)).returncode == 0

    def run(self, script: str, *options: str) -> subprocess.CompletedProcess[str]:
        """Run a shell script."""
        words = ["run", "--capture-mode", "ima", "--socket", str(self.daemon.socket)]
        words += ["--key", str(self.key), "--out", str(self.bundle), "--output", "out", *options]
        return rootseal(*words, "--", "/bin/sh", "-c", script, cwd=self.sandbox)

    def verify(self, *options: str) -> subprocess.CompletedProcess[str]:
        """Verify the bundle and its output."""
        words = ["verify", str(self.bundle), "--key", str(self.key.with_suffix(".pub")), *options]
        return rootseal(*words, "--artifact", str(self.sandbox / "out"))


@pytest.fixture
def command(daemon: RunningDaemon, tmp_path: Path) -> Command:
    return Command(daemon, tmp_path)


@pytest.mark.requires("root", "launcher")
def test_the_command_line_attests_what_the_kernel_measured(
    window: backend.ImaWindow, command: Command, tmp_path: Path
) -> None:
    window.close()
    measured_here(tmp_path)
    tool = tmp_path / "tool"
    tool.write_bytes(os.urandom(100))
    done = command.run(f"echo new > made; cat made {tool} > out", "--require-zero-drops")
    assert done.returncode == 0, done.stderr
    shown = rootseal("show", str(command.bundle), "--json", "--expand")
    (action,) = json.loads(shown.stdout)["actions"]
    assert (action["capture"]["backend"], action["summary"]["processes"]) == ("walk+ima", 0)
    files = (*action["materialFiles"], *action["productFiles"])
    sources = {item["path"]: item["digestSource"] for item in files}
    assert sources[str(tool)] == "ima"  # never read before, so the kernel measures it now
    assert (sources["made"], sources["out"]) == ("ima", "walk")  # the second was never read
    assert command.verify().returncode == 0
    refused = command.verify("--require-posture", "held")
    assert refused.returncode == 1
    assert "posture walked is weaker" in refused.stderr


@pytest.mark.requires("root", "launcher")
def test_a_violation_fails_the_action_that_demands_no_losses(
    window: backend.ImaWindow, command: Command, tmp_path: Path
) -> None:
    window.close()
    measured_here(tmp_path)
    script = "echo read > file; exec 3< file; read line <&3; echo changed >> file; echo > out"
    done = command.run(script)
    assert done.returncode == 0, done.stderr
    assert "losses: mutatedAfterOpen" in done.stderr
    refused = command.verify()
    assert refused.returncode == 1
    assert "mutatedAfterOpen 1" in refused.stderr
    command.bundle.unlink()
    done = command.run(script, "--require-zero-drops")
    assert done.returncode == 1
    assert "mutatedAfterOpen 1" in one_line(done.stderr)
    assert not command.bundle.exists()


@pytest.mark.requires("root", "launcher")
def test_without_ima_the_command_is_refused_before_it_runs(command: Command) -> None:
    try:
        backend.ImaWindow().close()
        pytest.skip("optional: this kernel measures")
    except BackendUnavailable:
        assert not EXPECTED, "this row of the lab is there for IMA"
    done = command.run("touch out")
    assert done.returncode == 2
    assert "ima is not available: " in one_line(done.stderr)
    assert "ima_policy=tcb ima_hash=sha256" in done.stderr
    assert not (command.sandbox / "out").exists()
    assert not command.bundle.exists()
