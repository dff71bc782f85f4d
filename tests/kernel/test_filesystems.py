"""What the capture makes of filesystems: the strongest posture that is honest for each."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, Iterator, List, Mapping, Optional

import pytest
from fanotify_action import Lab, build_fixture
from injected import attached, strace
from rootseal import diagnostics, digest, fsverity, leaf_table, toolchain_files
from rootseal.doctor_mounts import MountFinding, look_at_mounts
from rootseal.errors import BackendUnavailable
from rootseal.leaf_table import Domain
from rootseal.observation import DigestSource, MountMark, Posture
from rootseal.toolchain import Toolchain, ToolFile
from running_daemon import (
    GIVE_UP_SECONDS,
    LAUNCHER,
    Done,
    command,
    is_observed_and_not_held,
    running_daemon,
)

NOBODY = 65534
LAB_SHARE = Path("/lab/out")  # 9p, in the guests of the kernel lab


@pytest.fixture
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    found = Lab(build_fixture(tmp_path_factory.mktemp("fixture")))
    yield found
    found.engine.close()


def read_one(lab: Lab, root: Path, path: Path) -> tuple[Posture, dict[bytes, MountMark]]:
    """Posture of an action that reads a file, and the mounts of its namespace."""
    root.mkdir()
    seen = lab.run(root, ["/bin/sh", "-c", f"read -r line <{path}; exit 0"])
    assert seen.material(os.fsencode(path))
    assert diagnostics.losses(seen.counters) == {}
    mounts = {mount.mount_point: mount for mount in seen.observation.mounts}
    return seen.observation.posture, mounts


def test_files_of_this_filesystem_are_held(lab: Lab, tmp_path: Path) -> None:
    (tmp_path / "material").write_bytes(b"content\n")
    posture, _ = read_one(lab, tmp_path / "root", tmp_path / "material")
    assert posture is Posture.HELD


@pytest.mark.parametrize("kind", ["tmpfs", "overlay", "ramfs"])
def test_files_of_a_mounted_filesystem_are_held(lab: Lab, tmp_path: Path, kind: str) -> None:
    place = tmp_path / "mounted"
    for name in ("mounted", "lower", "upper", "work"):
        (tmp_path / name).mkdir()
    options = "rw"
    if kind == "overlay":
        subprocess.run(["mount", "-t", "tmpfs", "none", tmp_path / "upper"], check=True)
        (tmp_path / "upper" / "up").mkdir()
        (tmp_path / "upper" / "work").mkdir()
        (tmp_path / "lower" / "material").write_bytes(b"content\n")
        upper = tmp_path / "upper"
        options = f"lowerdir={tmp_path}/lower,upperdir={upper}/up,workdir={upper}/work"
    done = subprocess.run(["mount", "-t", kind, "-o", options, "none", place], capture_output=True)
    try:
        if done.returncode != 0:
            pytest.skip(f"optional: no {kind} here: {done.stderr.decode().strip()}")
        if kind != "overlay":
            (place / "material").write_bytes(b"content\n")
        posture, mounts = read_one(lab, tmp_path / "root", place / "material")
        assert posture is Posture.HELD
        assert mounts[os.fsencode(place)] == MountMark(os.fsencode(place), kind, True, "")
    finally:
        subprocess.run(["umount", place], capture_output=True)
        subprocess.run(["umount", tmp_path / "upper"], capture_output=True)


def test_what_others_serve_is_only_observed(lab: Lab, tmp_path: Path) -> None:
    """9p stands for network filesystems and FUSE: the host could change the file meanwhile."""
    if not os.environ.get("ROOTSEAL_LAB_EMULATED"):
        pytest.skip("optional: no filesystem here that another machine serves")
    path = LAB_SHARE / f"material-{os.getpid()}"
    path.write_bytes(b"content\n")
    posture, mounts = read_one(lab, tmp_path / "root", path)
    assert posture is Posture.OBSERVED
    mount = mounts[os.fsencode(LAB_SHARE)]
    assert (mount.filesystem, mount.marked) == ("9p", True)
    assert "can change after it was hashed" in mount.reason


SERVED = b"served by a process\n"
LIE = b"\1" * 32  # digest that fuse_server.py claims


@contextlib.contextmanager
def fuse(
    place: Path,
    uid: int = 0,
    read_bytes_max: int = 0,
    backing: Optional[Path] = None,
    answers: bool = True,
    log: Optional[Path] = None,
) -> Iterator[Path]:
    """A FUSE mount of this user, with the file `material` (fuse_server.py has the arguments)."""
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        assert not os.environ.get("ROOTSEAL_LAB_EMULATED"), "the lab's kernels have FUSE"
        pytest.skip("optional: no /dev/fuse here")
    place.mkdir()
    program = Path(__file__).with_name("fuse_server.py")
    command = [sys.executable, str(program), str(place), str(uid), str(read_bytes_max)]
    command += [str(backing or ""), *([str(log)] if log else [])]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as server:
        assert server.stdout is not None
        try:
            assert server.stdout.readline() == b"mounted\n"
            if not answers:
                server.send_signal(signal.SIGSTOP)
            yield place
        finally:
            subprocess.run(["umount", "--lazy", place], check=True)
            server.kill()


def test_what_a_process_serves_is_only_observed(lab: Lab, tmp_path: Path) -> None:
    with fuse(tmp_path / "served") as place:
        posture, mounts = read_one(lab, tmp_path / "root", place / "material")
        found = {item.mount.mount_point: item for item in look_at_mounts(Posture.HELD)}
    mount = mounts[os.fsencode(place)]
    assert (posture, mount.filesystem) == (mount.posture, "fuse") == (Posture.OBSERVED, "fuse")
    assert "can change after it was hashed" in mount.reason
    assert found[os.fsencode(place)].posture is Posture.OBSERVED
    assert not found[os.fsencode(place)].can_seal


def test_a_server_that_says_its_files_are_sealed_is_not_believed(lab: Lab, tmp_path: Path) -> None:
    """Nor measured in place of being read: the SHA-256 of a manifest would be its to choose."""
    lab.engine.trust_sealed([(LIE, bytes(32), len(SERVED))])
    with fuse(tmp_path / "served") as place:
        path = place / "material"
        if tuple(int(part) for part in os.uname().release.split(".")[:2]) >= (6, 10):
            with path.open("rb") as stream:  # what the kernel hands on
                assert fcntl.ioctl(stream, 0xC0046686, bytes((0, 0, 32, 0)) + bytes(32))[4:] == LIE
        assert not fsverity.check_sealed(path, expected=LIE, size=len(SERVED))
        assert not fsverity.can_seal(place)
        with pytest.raises(BackendUnavailable):
            fsverity.seal_file(path)
        tool = ToolFile(os.fsencode(path), bytes(32), LIE, len(SERVED), 0o755)
        compared = toolchain_files.compare(Toolchain((), (tool,)), read_all=False)
        assert [item.reason for item in compared.differences] == ["content"]
        (tmp_path / "root").mkdir()
        seen = lab.run(tmp_path / "root", ["/bin/cat", str(path)])
    (leaf,) = seen.material(os.fsencode(path))
    assert (leaf.source, leaf.digest) == (
        DigestSource.FANOTIFY_OPEN_TIME,
        digest.sha256(SERVED),
    )


def test_an_opener_goes_on_after_what_was_held_of_its_files_is_let_go(
    lab: Lab, tmp_path: Path
) -> None:
    """Who removes a file that is still held (NFS, many of FUSE) gets a rename, and rmdir fails.

    The third open is that of the event of a close, which nobody waits for: what the action does
    next does, here an exec.
    """
    log = tmp_path / "log"
    (tmp_path / "root").mkdir()
    with fuse(tmp_path / "served", log=log) as place:
        script = f": >>{place}/material; exec /bin/cat {place}/material"
        seen = lab.run(tmp_path / "root", ["/bin/sh", "-c", script])
        lines = log.read_text("ascii").split()
    assert seen.exit_code == 0
    late = lines.index("answered")
    opens = [number for number, line in enumerate(lines) if line == "open"]
    assert len(opens) >= 5 and opens[2] < late < opens[3], lines
    assert lines[: opens[1]].count("release") == 1, lines  # ours; before the action's own open
    assert lines[: opens[3]].count("release") == 3, lines  # ours, the action's, ours


def test_an_action_does_not_wait_for_a_server_that_does_not_answer(
    lab: Lab, tmp_path: Path
) -> None:
    """Which it does not read from: a mount is looked at by what the kernel knows of it."""
    (tmp_path / "root").mkdir()
    with fuse(tmp_path / "served", answers=False):
        seen = lab.run(tmp_path / "root", ["/bin/true"])
    assert seen.exit_code == 0
    assert diagnostics.losses(seen.counters) == {}


def test_doctor_does_not_wait_for_a_server_that_does_not_answer(tmp_path: Path) -> None:
    program = (
        "import os, sys; from rootseal.doctor_mounts import MountFinding, look_at_mounts, Posture\n"
        "(found,) = [item for item in look_at_mounts(Posture.WALKED)\n"
        "    if item.mount.mount_point == os.fsencode(sys.argv[1])]\n"
        "print(found.mount.filesystem, found.posture.value, found.can_seal)"
    )
    with fuse(tmp_path / "served", answers=False) as place:
        done = subprocess.run(
            [sys.executable, "-c", program, place], stdout=subprocess.PIPE, timeout=GIVE_UP_SECONDS
        )
    assert done.stdout == b"fuse walked False\n"


@pytest.mark.requires("root", "fanotify", "launcher", "core", "strace")
def test_a_mount_that_refuses_the_mark_is_counted_and_doctor_says_so(tmp_path: Path) -> None:
    """No filesystem for files does on these kernels, so the one call for this mount fails."""
    place, sandbox = tmp_path / "refusing", tmp_path / "sandbox"
    place.mkdir()
    sandbox.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "none", place], check=True)
    words = [*strace("fanotify_mark", "1+", "error=EINVAL"), "-P", str(place.relative_to("/"))]
    try:
        (place / "material").write_bytes(SERVED)
        with running_daemon(tmp_path) as daemon, attached(daemon, words):
            held = ("--option=capture-mode=walk", "--option=fanotify=on")
            done = daemon.run(sandbox, ["/bin/cat", str(place / "material")], *held)
        shown = subprocess.run([*words, *command("doctor", "--json")], capture_output=True)
    finally:
        subprocess.run(["umount", place], check=True)
    assert (done.returncode, done.stdout) == (0, SERVED), done.stderr
    assert done.verified().losses == {"unmarkedMounts": 1}
    assert os.fsencode(place / "material") not in done.materials()
    (mount,) = (m for m in done.field("capture", "mounts") if m["mountPoint"] == str(place))
    assert (mount["marked"], mount["posture"], mount["reason"]) == (False, None, "Invalid argument")
    (told,) = (m for m in json.loads(shown.stdout)["mounts"] if m["mountPoint"] == str(place))
    assert (told["posture"], told["reason"]) == ("walked", "Invalid argument")


# In a mount namespace of its own: a name that drives terminals, a file, a hidden mount, one below
# a directory that only root may enter.
ODD = os.fsdecode(b"odd \xff\n\x1b[31m\\x")
PLACES = """
set -e
cd "$1"; shift
mkdir "$ODD" bind hidden closed
touch file
mount -t tmpfs none "$ODD"
mount --bind bind bind
mount --bind file file
mount -t tmpfs none hidden; mkdir hidden/below; mount -t tmpfs none hidden/below
mount -t tmpfs none hidden
mount -t tmpfs -o mode=700 none closed; mkdir closed/below; mount -t tmpfs none closed/below
exec "$@"
"""


@pytest.mark.parametrize("user", ["root", "nobody"])
def test_doctor_shows_each_mount_once_whatever_its_name(tmp_path: Path, user: str) -> None:
    for folder in (tmp_path, *tmp_path.parents):
        if not folder.stat().st_mode & 0o001:
            folder.chmod(0o711)  # pytest keeps its own folders to root

    def doctor(*options: str) -> str:
        (tmp_path / options[0]).mkdir()
        drop = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
        words = [*(drop if user == "nobody" else ()), *command("doctor", *options[1:])]
        script = ["unshare", "--mount", "sh", "-c", PLACES, "sh", str(tmp_path / options[0])]
        environ = {**os.environ, "ODD": ODD}
        done = subprocess.run([*script, *words], capture_output=True, text=True, env=environ)
        assert done.returncode in (0, 1), done.stderr
        return done.stdout

    names = ("bind", "closed", "closed/below", "file", "hidden")
    told = json.loads(doctor("a", "--json"))["mounts"]
    found = [item["mountPoint"] for item in told if item["mountPoint"].startswith(f"{tmp_path}/a")]
    assert sorted(found) == sorted(f"{tmp_path}/a/{x}" for x in (*names, "odd %FF%0A%1B[31m\\x"))
    lines = [line.split("\t") for line in doctor("b").splitlines()]
    found = [
        line[1] for line in lines if line[0] == "mount" and line[1].startswith(f"{tmp_path}/b")
    ]
    shown = "odd \\xff\\u000a\\u001b[31m\\x"
    assert sorted(found) == sorted(f"{tmp_path}/b/{name}" for name in (*names, shown))


def test_reads_that_end_early_are_completed_counted_and_no_loss(tmp_path: Path) -> None:
    """The only counter of a hash that did not go straight on, and it never gates."""
    (tmp_path / "sandbox").mkdir()
    with running_daemon(tmp_path) as daemon, fuse(tmp_path / "served", 0, 7) as place:
        material = os.fsencode(place / "material")
        options = ("--option=capture-mode=auto", "--option=require-zero-drops=1")
        done = daemon.run(tmp_path / "sandbox", ["/bin/cat", os.fsdecode(material)], *options)
    assert (done.returncode, done.stdout) == (0, SERVED), done.stderr
    found = done.verified()
    assert (found.losses, found.counters["partialReadFallbacks"]) == ({}, 1)
    assert done.materials()[material].digest == digest.sha256(SERVED)
    capture = done.field("capture")
    assert capture["posture"] == {"requested": "held", "achieved": "observed"}
    step = capture["fallbacks"][-1]
    assert (step["from"], step["to"]) == ("held", "observed") and "fuse" in step["reason"]


TRACED = ("--option=capture-mode=trace:ptrace", "--option=fanotify=off")
EBPF = ("--option=capture-mode=trace:ebpf", "--option=fanotify=off")
PTRACE = pytest.mark.requires("root", "launcher")


def is_only_observed(done: Done, place: Path) -> None:
    """The record says that, why, and because of which mount."""
    assert (done.returncode, done.stdout) == (0, SERVED), done.stderr
    assert done.verified().losses == {}
    assert os.fsencode(place / "material") in done.materials()
    capture = done.field("capture")
    assert capture["backend"] == "ptrace"
    assert capture["posture"] == {"requested": "held", "achieved": "observed"}
    (step,) = capture["fallbacks"]
    assert (step["from"], step["to"]) == ("held", "observed") and "fuse" in step["reason"]
    (mount,) = capture["mounts"]
    assert (mount["mountPoint"], mount["filesystem"]) == (str(place), "fuse")
    assert mount["posture"] == "observed"
    assert "can change after it was hashed" in mount["reason"]


@PTRACE
@pytest.mark.parametrize("answers", [True, False], ids=["statfs", "no statfs"])
def test_the_tracer_does_not_hold_what_a_process_serves(tmp_path: Path, answers: bool) -> None:
    """Whether statfs(2) says what it is or fails, as many a server of FUSE lets it."""
    (tmp_path / "sandbox").mkdir()
    (tmp_path / "backing").write_bytes(SERVED)
    served = fuse(tmp_path / "a b", backing=tmp_path / "backing" if answers else None)
    with running_daemon(tmp_path) as daemon, served as place:
        argv = ["/bin/cat", str(place / "material")]
        is_only_observed(daemon.run(tmp_path / "sandbox", argv, *TRACED), place)


@PTRACE
def test_nor_does_a_users_own_tracer(tmp_path: Path, unprivileged_user: Any) -> None:
    sandbox, launcher = tmp_path / "sandbox", tmp_path / "rootseal-exec"
    sandbox.mkdir()
    os.chown(sandbox, unprivileged_user.uid, unprivileged_user.uid)
    shutil.copy(LAUNCHER, launcher)
    for folder in (tmp_path, *tmp_path.parents):
        if not folder.stat().st_mode & 0o001:
            folder.chmod(0o711)  # pytest keeps its own folders to root

    def as_user(words: List[str], **more: Any) -> subprocess.Popen[bytes]:
        number = unprivileged_user.uid  # as fuse() has it, which wants the group too
        ids = {"user": number, "group": number, "extra_groups": []}
        return subprocess.Popen([str(launcher), *words[1:]], **ids, **more)

    allowed = ("--allow-uid", str(unprivileged_user.uid))
    served = fuse(tmp_path / "served", unprivileged_user.uid)
    with running_daemon(tmp_path, *allowed) as daemon, served as place:
        (tmp_path / "run").chmod(0o755)
        argv = ["/bin/cat", str(place / "material")]
        is_only_observed(daemon.run(sandbox, argv, *TRACED, popen=as_user), place)


@PTRACE
def test_nor_a_program_that_is_executed_and_never_opened(tmp_path: Path) -> None:
    (tmp_path / "sandbox").mkdir()
    (tmp_path / "backing").write_bytes(b"#!/bin/true\n".ljust(len(SERVED)))
    served = fuse(tmp_path / "served", 0, 0, tmp_path / "backing")
    with running_daemon(tmp_path) as daemon, served as place:
        done = daemon.run(tmp_path / "sandbox", [str(place / "material")], *TRACED)
    assert done.returncode == 0, done.stderr
    assert done.field("capture", "posture", "achieved") == "observed"


@PTRACE
def test_a_verifier_that_requires_held_refuses_it(tmp_path: Path) -> None:
    (tmp_path / "sandbox").mkdir()
    with running_daemon(tmp_path) as daemon, fuse(tmp_path / "served") as place:
        how = ("--socket", str(daemon.socket), "--capture-mode=trace:ptrace", "--fanotify=off")
        words = (*how, "--", "cat", str(place / "material"))
        is_observed_and_not_held(tmp_path, tmp_path / "sandbox", *words)


@PTRACE
def test_what_is_held_is_said_to_be_held(tmp_path: Path) -> None:
    """The mount is there, and the action reads nothing of it."""
    (tmp_path / "sandbox").mkdir()
    with running_daemon(tmp_path) as daemon, fuse(tmp_path / "served"):
        done = daemon.run(tmp_path / "sandbox", ["/bin/cat", "/etc/passwd"], *TRACED)
    capture = done.field("capture")
    assert capture["posture"] == {"requested": "held", "achieved": "held"}
    assert capture["fallbacks"] == capture["mounts"] == []


@PTRACE
def test_what_others_serve_is_hashed_at_each_open(tmp_path: Path) -> None:
    """Its times tell nothing: the third digest does not come from the cache."""
    (tmp_path / "sandbox").mkdir()
    backing, later = tmp_path / "backing", SERVED.swapcase()
    backing.write_bytes(SERVED)
    with running_daemon(tmp_path) as daemon, fuse(tmp_path / "a", 0, 4096, backing) as place:
        cat = f"cat {place}/material"
        script = f"{cat}; {cat}; echo '{later.decode().strip()}' >{backing}; {cat}"
        done = daemon.run(tmp_path / "sandbox", ["/bin/sh", "-c", script], *TRACED)
        assert done.stdout == 2 * SERVED + later
    table = leaf_table.decompress(done.verified().record.tables.materials)
    found = [
        leaf.digest
        for leaf in leaf_table.iter_leaves(table, Domain.MATERIAL)
        if leaf.path == os.fsencode(place / "material")
    ]
    assert sorted(found) == sorted([digest.sha256(SERVED), digest.sha256(later)])


@pytest.mark.requires("root", "fanotify", "launcher", "core")
@pytest.mark.parametrize(
    "options",
    [
        pytest.param(("--option=capture-mode=auto",), id="auto"),
        pytest.param(TRACED, id="ptrace"),
        pytest.param(EBPF, id="ebpf", marks=pytest.mark.requires("ebpf")),
    ],
)
def test_what_cannot_be_looked_at_at_the_end_counts_as_changed(
    tmp_path: Path, options: tuple[str, ...]
) -> None:
    """The server answers no stat(2) any more: nobody knows what the file is then."""
    (tmp_path / "sandbox").mkdir()
    backing = tmp_path / "backing"
    backing.write_bytes(SERVED)
    with running_daemon(tmp_path) as daemon, fuse(tmp_path / "a", 0, 4096, backing) as place:
        script = f"cat {place}/material; rm {backing}"
        done = daemon.run(tmp_path / "sandbox", ["/bin/sh", "-c", script], *options)
        assert done.stdout == SERVED
    losses = dict(done.verified().losses)
    if options == EBPF and "mutatedAfterOpen" not in losses:
        # It was removed before it could be opened, or before it could be read.
        assert losses.pop("fallbackHashFailures", 1) == 1
        assert losses == {"unhashedOpensTotal": 1}
        return
    assert losses == {"mutatedAfterOpen": 1}
    (mutation,) = done.field("mutations")
    assert (mutation["path"], mutation["digestLater"]) == (str(place / "material"), None)


@pytest.mark.requires("root", "fanotify", "launcher", "core")
def test_both_together_say_the_same(tmp_path: Path) -> None:
    (tmp_path / "sandbox").mkdir()
    options = ("--option=capture-mode=trace:ptrace", "--option=fanotify=on", "--error=error")
    with running_daemon(tmp_path) as daemon, fuse(tmp_path / "served") as place:
        done = daemon.run(tmp_path / "sandbox", ["/bin/cat", str(place / "material")], *options)
    error = (tmp_path / "sandbox" / "error").read_text()
    assert done.returncode == 125 and error.startswith("PostureError\n"), done.stderr
    assert "posture observed, held was required" in error
    assert not done.record.exists()


def test_an_output_directory_that_cannot_be_listed_is_counted(lab: Lab, tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    with fuse(tmp_path / "served") as place:
        seen = lab.run(root, ["/bin/ln", "-s", place, "out"], dirs=[b"out"])
    assert diagnostics.losses(seen.counters) == {"handlerErrors": 1}


def test_another_users_fuse_mount_is_marked_though_root_may_not_look_at_it(
    lab: Lab, tmp_path: Path
) -> None:
    root = tmp_path / "root"
    root.mkdir()
    with fuse(tmp_path / "served", uid=NOBODY) as place:
        with pytest.raises(PermissionError):
            (place / "material").stat()
        seen = lab.run(root, ["/bin/true"])
    (mount,) = (m for m in seen.observation.mounts if m.mount_point == os.fsencode(place))
    assert mount.posture is Posture.OBSERVED and "can change after it was hashed" in mount.reason
    assert diagnostics.losses(seen.counters) == {}


@pytest.mark.requires("root", "fanotify", "launcher", "core")
def test_what_the_user_reads_there_is_counted_as_lost(tmp_path: Path) -> None:
    """The event's file can be read, but the kernel tells root nothing about it: no digest."""
    sandbox = tmp_path / "sandbox"
    sandbox.mkdir()
    for folder in (tmp_path, *tmp_path.parents):
        if not folder.stat().st_mode & 0o001:
            folder.chmod(0o711)  # pytest keeps its own folders to root
    os.chown(sandbox, NOBODY, NOBODY)
    with running_daemon(tmp_path) as daemon, fuse(tmp_path / "served", uid=NOBODY) as place:
        identity = f"--drop-to={NOBODY}:{NOBODY}"
        options = (identity, "--option=capture-mode=walk", "--option=fanotify=on")
        done = daemon.run(sandbox, ["/bin/cat", f"{place}/material"], *options)
    assert (done.returncode, done.stdout) == (0, SERVED), done.stderr
    assert set(done.verified().losses) == {"handlerErrors"}


def test_kernel_interfaces_are_left_out_with_a_reason(lab: Lab, tmp_path: Path) -> None:
    (tmp_path / "material").write_bytes(b"content\n")
    _, mounts = read_one(lab, tmp_path / "root", tmp_path / "material")
    assert mounts[b"/proc"].posture is None
    assert "kernel interface" in mounts[b"/proc"].reason


def test_doctor_shows_each_mount_as_the_capture_finds_it(lab: Lab, tmp_path: Path) -> None:
    found = {item.mount.mount_point: item for item in look_at_mounts(Posture.HELD)}
    assert found[b"/"].posture is Posture.HELD
    assert b"/proc" not in found
    (tmp_path / "material").write_bytes(b"content\n")
    _, mounts = read_one(lab, tmp_path / "root", tmp_path / "material")
    marked = {point: mount for point, mount in mounts.items() if mount.marked}
    both = marked.keys() & found.keys()
    assert {point: found[point].mount for point in both} == {point: marked[point] for point in both}
    if os.environ.get("ROOTSEAL_LAB_EMULATED"):  # elsewhere others mount and unmount meanwhile
        assert marked.keys() == {point for point, item in found.items() if item.mount.marked}
        assert found[bytes(LAB_SHARE)].posture is Posture.OBSERVED
        check_row(found)


def check_row(found: Mapping[bytes, MountFinding]) -> None:
    """The filesystem of a row of the lab; only that of overlay is no mount of its own."""
    kind = os.environ["ROOTSEAL_LAB_FILESYSTEM"]
    here = bytes(Path("/lab/fs", kind))
    assert (here in found) == (kind != "overlay")
    if kind != "overlay":
        can_seal = "fs-verity" in os.environ["ROOTSEAL_LAB_EXPECTS"].split(",")
        mark = MountMark(here, kind, True, "")
        assert found[here] == MountFinding(mark, Posture.HELD, can_seal)
