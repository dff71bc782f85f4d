"""Other users: who is served, the privileged helper, dropped privileges, a daemon of one's own."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
from pathlib import Path
from typing import Callable, Iterator, List, Tuple

import pytest
import rootseal.capture.fanotify  # the fork below cannot: it may not read the interpreter's files
from rootseal import cli, cli_daemon, doctor, wire
from rootseal.daemon_peer import Peer, as_user
from rootseal.wire import Frame, FrameType, Tag
from running_daemon import (
    BIN,
    GIVE_UP_SECONDS,
    KEY,
    Done,
    RunningDaemon,
    command,
    one_line,
    place_of_users,
    running_daemon,
    until,
)

pytestmark = pytest.mark.requires("root", "fanotify", "launcher", "core", "setcap")
HELD = "--option=fanotify=on"
NOBODY = pwd.getpwnam("nobody")  # a uid without privileges; nothing is stored as this user


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    with place_of_users() as path:
        yield path


@pytest.fixture(scope="module")
def daemon(place: Path) -> Iterator[RunningDaemon]:
    with running_daemon(place, "--allow-uid", "nobody") as found:
        yield found


@pytest.fixture(scope="module")
def helper(place: Path) -> Path:
    """The helper, installed as `make install-helper` does."""
    path = place / "libexec" / "rootseal-scope"
    path.parent.mkdir(mode=0o755)
    shutil.copy(BIN / "rootseal-scope", path)
    path.chmod(0o755)
    subprocess.run(["setcap", "cap_sys_admin+ep", str(path)], check=True)
    return path


@pytest.fixture
def sandbox(place: Path) -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(dir=place))
    os.chown(path, NOBODY.pw_uid, NOBODY.pw_gid)
    yield path
    shutil.rmtree(path)


def as_nobody(daemon: RunningDaemon, sandbox: Path, argv: List[str], *options: str) -> Done:
    """Run an action as a user without privileges."""

    def popen(words: List[str], **more: object) -> subprocess.Popen[bytes]:
        words[0] = str(sandbox.parent / "rootseal-exec")
        return subprocess.Popen(  # type: ignore[call-overload, no-any-return]
            words, user=NOBODY.pw_uid, group=NOBODY.pw_gid, extra_groups=[], **more
        )

    return daemon.run(sandbox, argv, *options, popen=popen)


def status_field(text: bytes, name: str) -> str:
    for line in text.decode().splitlines():
        if line.startswith(name + ":"):
            return line.split(":", 1)[1].strip()
    raise AssertionError(f"no {name} in {text!r}")


# --- the helper -----------------------------------------------------------------------------


def test_the_helper_gives_a_full_capture_to_a_user_without_privileges(
    daemon: RunningDaemon, sandbox: Path, helper: Path
) -> None:
    (sandbox / "in").write_text("in")
    script = ["/bin/sh", "-c", "cat in > out; exit 3"]
    done = as_nobody(daemon, sandbox, script, HELD, f"--helper={helper}", "--output-file=out")
    assert (done.returncode, done.stderr) == (3, "")
    assert done.field("capture", "backend") in ("fanotify", "fanotify+ebpf")
    assert done.field("capture", "posture") == {"requested": "held", "achieved": "held"}
    assert done.verified().losses == {}
    assert b"in" in done.materials()
    assert set(done.products()) == {b"out"}
    assert any(path.endswith(b"/cat") for path in done.materials())


def test_nothing_of_the_helpers_privilege_reaches_the_action(
    daemon: RunningDaemon, sandbox: Path, helper: Path
) -> None:
    show = ["/bin/cat", "/proc/self/status"]
    done = as_nobody(daemon, sandbox, show, HELD, f"--helper={helper}")
    for name in ("CapInh", "CapPrm", "CapEff", "CapAmb"):
        assert int(status_field(done.stdout, name), 16) == 0
    assert status_field(done.stdout, "NoNewPrivs") == "1"  # see SECURITY.md, the guard
    assert status_field(done.stdout, "Uid").split() == [str(NOBODY.pw_uid)] * 4
    assert status_field(done.stdout, "Gid").split() == [str(NOBODY.pw_gid)] * 4
    bare = subprocess.run(
        show, capture_output=True, user=NOBODY.pw_uid, group=NOBODY.pw_gid, extra_groups=[]
    )
    assert status_field(done.stdout, "CapBnd") == status_field(bare.stdout, "CapBnd")
    assert status_field(done.stdout, "Groups") == status_field(bare.stdout, "Groups")


def test_a_set_user_id_program_gives_nothing_under_the_helper(
    daemon: RunningDaemon, sandbox: Path, helper: Path
) -> None:
    """Else he who holds the guard's listener could lie to it about mount(2) and unshare(2)."""
    program = helper.parent / "set-user-id-id"
    shutil.copy("/usr/bin/id", program)
    program.chmod(0o4755)
    plain = subprocess.run(
        [program, "-u"], capture_output=True, user=NOBODY.pw_uid, group=NOBODY.pw_gid, check=True
    )
    assert plain.stdout == b"0\n"
    done = as_nobody(daemon, sandbox, [str(program), "-u"], HELD, f"--helper={helper}")
    assert done.stdout == b"%d\n" % NOBODY.pw_uid


def test_the_environment_and_namespace_behind_the_helper(
    daemon: RunningDaemon, sandbox: Path, helper: Path
) -> None:
    """A C library in secure mode would remove LD_LIBRARY_PATH and others: the helper has none."""
    environment = {"PATH": "/usr/bin:/bin", "LD_LIBRARY_PATH": "/x", "TMPDIR": "/y", "MALLOC_X": ""}
    words = ["/bin/sh", "-c", "env -0; readlink /proc/self/ns/mnt"]

    def popen(argv: List[str], **more: object) -> subprocess.Popen[bytes]:
        argv[0] = str(sandbox.parent / "rootseal-exec")
        return subprocess.Popen(  # type: ignore[call-overload, no-any-return]
            argv, user=NOBODY.pw_uid, group=NOBODY.pw_gid, extra_groups=[], **more
        )

    done = daemon.run(sandbox, words, HELD, f"--helper={helper}", popen=popen, env=environment)
    *entries, namespace = done.stdout.split(b"\0")
    found = dict(entry.split(b"=", 1) for entry in entries)
    for name, value in environment.items():
        assert found[name.encode()] == value.encode()
    assert namespace.strip() != os.fsencode(Path("/proc/self/ns/mnt").readlink())


@pytest.mark.parametrize("weakness", ["no capability", "writable", "not root's", "absent"])
def test_a_helper_that_cannot_be_trusted_is_not_used(
    daemon: RunningDaemon, sandbox: Path, helper: Path, weakness: str, place: Path
) -> None:
    path = place / "libexec" / "weak"
    if weakness != "absent":
        shutil.copy(BIN / "rootseal-scope", path)
        path.chmod(0o777 if weakness == "writable" else 0o755)
        if weakness == "not root's":
            os.chown(path, NOBODY.pw_uid, NOBODY.pw_gid)
        if weakness != "no capability":
            subprocess.run(["setcap", "cap_sys_admin+ep", str(path)], check=True)
    try:
        done = as_nobody(daemon, sandbox, ["touch", "ran"], HELD, f"--helper={path}")
    finally:
        path.unlink(missing_ok=True)
    assert done.returncode == 125
    assert "make install-helper" in one_line(done.stderr)
    assert not (sandbox / "ran").exists()


def run_helper(helper: Path, *argv: str, **more: object) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(  # type: ignore[call-overload, no-any-return]
        [str(helper), *argv],
        capture_output=True,
        user=NOBODY.pw_uid,
        group=NOBODY.pw_gid,
        extra_groups=[],
        **more,
    )


@contextlib.contextmanager
def somebody_listening() -> Iterator[Tuple[str, socket.socket]]:
    """A control socket as the launcher makes it: the helper's end by number, and ours."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield str(theirs.fileno()), ours


def test_the_helper_alone_gives_no_power(helper: Path) -> None:
    """Whoever runs it has a namespace of the same mounts, and may change none of them."""

    def run(*argv: str) -> subprocess.CompletedProcess[bytes]:
        with somebody_listening() as (number, _):
            return run_helper(helper, number, *argv, pass_fds=[int(number)])

    missing = run("/no/such/program")
    assert missing.returncode == 125
    assert b"cannot be executed" in missing.stderr
    shadow = run("/bin/cat", "/etc/shadow")
    assert (shadow.returncode != 0, shadow.stdout) == (True, b"")
    mounts = run("/bin/cat", "/proc/self/mountinfo").stdout.splitlines()
    assert mounts
    assert not [line for line in mounts if b"shared:" in line or b"master:" in line]


@pytest.mark.parametrize(
    "argv", [(), ("3",), ("/bin/true",), ("/bin/true", "x"), ("3x", "/bin/true")]
)
def test_the_helper_by_hand_is_refused(helper: Path, argv: Tuple[str, ...]) -> None:
    done = run_helper(helper, *argv)
    assert (done.returncode, done.stdout) == (125, b"")
    assert done.stderr.startswith(b"rootseal-scope: usage: ") and b"by hand" in done.stderr


def test_the_helper_starts_nothing_where_nobody_listens(helper: Path) -> None:
    with somebody_listening() as (number, ours):
        ours.close()
        pipe_read, pipe_write = os.pipe()
        numbers = (number, str(pipe_write), "2", "65535")
        for given in numbers:
            done = run_helper(helper, given, "/bin/echo", "ran", pass_fds=[int(number), pipe_write])
            assert (done.returncode, done.stdout) == (125, b"")
            assert b"no launcher listens" in done.stderr
        os.close(pipe_read)
        os.close(pipe_write)


def test_a_guarded_call_fails_at_once_when_the_listener_is_gone(helper: Path) -> None:
    """The program never holds the listener, so nobody waits for an answer that cannot come."""
    words = "mount -t tmpfs none /mnt; ls -l /proc/self/fd"
    with somebody_listening() as (number, ours):
        process = subprocess.Popen(
            [str(helper), number, "/bin/sh", "-c", f"read line; {words}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            pass_fds=[int(number)],
            user=NOBODY.pw_uid,
            group=NOBODY.pw_gid,
            extra_groups=[],
        )
        message, listeners, _, _ = socket.recv_fds(ours, 1, 1)
        assert (message, len(listeners)) == (b"G", 1)
        os.close(listeners[0])
        out, err = process.communicate(b"\n", timeout=GIVE_UP_SECONDS)
    assert b"seccomp" not in out and b"pipe:" in out
    assert b"mount" in err and process.returncode == 0  # of ls


def test_who_is_not_root_is_told_how_to_install_it(place: Path) -> None:
    native = BIN.parents[2] / "native"
    for name in ("Makefile", "capture.mk"):
        shutil.copy(native / name, place)
    done = subprocess.run(
        ["make", "-C", str(place), "install-helper", f"PREFIX={place}/nowhere"],
        capture_output=True,
        text=True,
        user=NOBODY.pw_uid,
        group=NOBODY.pw_gid,
        extra_groups=[],
    )
    assert done.returncode == 2 and not (place / "nowhere").exists()
    assert "run: sudo make install-helper" in done.stderr.splitlines()[0]


def test_the_helper_without_its_capability_says_what_to_do(place: Path) -> None:
    path = place / "libexec" / "bare"
    shutil.copy(BIN / "rootseal-scope", path)
    try:
        done = run_helper(path, "3", "/bin/true")
    finally:
        path.unlink()
    assert done.returncode == 125
    assert b"sudo make install-helper" in done.stderr


# --- without the helper ---------------------------------------------------------------------


def test_without_the_helper_the_capture_is_what_it_says(
    daemon: RunningDaemon, sandbox: Path
) -> None:
    (sandbox / "in").write_text("in")
    options = ("--option=capture-mode=auto", "--helper=/no/helper", "--output-file=out")
    done = as_nobody(daemon, sandbox, ["/bin/sh", "-c", "cat in > out"], *options)
    assert done.returncode == 0
    capture = done.field("capture")
    assert capture["fallbacks"][0]["from"] == "fanotify"
    assert "private mount namespace" in capture["fallbacks"][0]["reason"]
    assert not capture["backend"].startswith("fanotify")
    walked = as_nobody(daemon, sandbox, ["true"], "--option=capture-mode=walk")
    assert walked.field("capture", "posture", "achieved") == "walked"
    assert b"in" in walked.materials()


def test_a_walk_reads_with_the_clients_rights_only(
    daemon: RunningDaemon, sandbox: Path, place: Path
) -> None:
    """Else a client could learn digests of files that it may not read."""
    secret = place / "secret"
    secret.mkdir(mode=0o700)
    (secret / "file").write_text("secret")
    (sandbox / "unreadable").write_text("root's")
    (sandbox / "unreadable").chmod(0o600)
    (sandbox / "mine").write_text("mine")
    try:
        options = ("--option=capture-mode=walk", f"--option=inputs={secret}")
        done = as_nobody(daemon, sandbox, ["true"], *options)
    finally:
        shutil.rmtree(secret)
    assert done.returncode == 0
    paths = set(done.materials())
    assert b"mine" in paths
    assert not [path for path in paths if b"secret" in path or b"unreadable" in path]
    assert done.verified().losses["fallbackHashFailures"] >= 2


def test_a_root_of_somebody_else_is_refused(
    daemon: RunningDaemon, sandbox: Path, place: Path
) -> None:
    def popen(words: List[str], **more: object) -> subprocess.Popen[bytes]:
        words[0] = str(place / "rootseal-exec")
        words[words.index("--root=.")] = "--root=/"
        return subprocess.Popen(  # type: ignore[call-overload, no-any-return]
            words, user=NOBODY.pw_uid, group=NOBODY.pw_gid, extra_groups=[], **more
        )

    done = daemon.run(sandbox, ["touch", "ran"], popen=popen)
    assert done.returncode == 125
    assert "belongs to uid 0, not to you" in one_line(done.stderr)


def test_file_access_with_the_clients_rights_is_this_threads_alone(tmp_path: Path) -> None:
    private = tmp_path / "private"
    private.write_text("x")
    private.chmod(0o600)
    with as_user(Peer(0, NOBODY.pw_uid, NOBODY.pw_gid)), pytest.raises(PermissionError):
        private.read_text()
    assert private.read_text() == "x"
    assert os.getgroups() == os.getgroups()


# --- who is served --------------------------------------------------------------------------


def test_a_user_who_is_not_allowed_is_told_the_option(place: Path, sandbox: Path) -> None:
    other = place / "other"
    other.mkdir(mode=0o755)
    with running_daemon(other) as closed:
        done = as_nobody(closed, sandbox, ["touch", "ran"])
        assert done.returncode == 125
        assert f"--allow-uid={NOBODY.pw_uid}" in one_line(done.stderr)
        assert not (sandbox / "ran").exists()
        assert closed.counts()["notAllowed"] == 1
    with running_daemon(other, "--allow-group", str(NOBODY.pw_gid)) as by_group:
        assert as_nobody(by_group, sandbox, ["touch", "ran"]).returncode == 0


def test_every_remedy_that_starts_a_daemon_of_root_has_it_serve_the_user() -> None:
    def remedies() -> str:
        return "\n".join(item.remedy for item in doctor.diagnose().findings)

    lines = in_child_as_nobody(remedies).splitlines()
    of_root = [line for line in lines if "sudo" in line and "daemon ensure" in line]
    assert len(of_root) >= 3, lines
    assert not [line for line in of_root if f"--allow-uid {NOBODY.pw_uid}" not in line]


def test_who_is_not_served_takes_no_place_of_those_who_are(place: Path, sandbox: Path) -> None:
    """Neither by silence nor by number: the daemon listens to few of them, and not for long."""
    crowded = place / "crowded"
    crowded.mkdir(mode=0o755)
    with running_daemon(crowded, "--clients", "3") as closed:
        read_end, write_end = os.pipe()
        crowd = os.fork()
        if crowd == 0:
            os.setresgid(*[NOBODY.pw_gid] * 3)
            os.setresuid(*[NOBODY.pw_uid] * 3)
            silent = [socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) for _ in range(20)]
            for sock in silent:
                sock.connect(str(closed.socket))
            os.write(write_end, b"x")
            signal.pause()
        try:
            assert os.read(read_end, 1) == b"x"
            assert closed.run(sandbox, ["true"], HELD).returncode == 0
            late = as_nobody(closed, sandbox, ["touch", "ran"])
        finally:
            os.kill(crowd, signal.SIGKILL)
            os.waitpid(crowd, 0)
        assert late.returncode == 125 and f"--allow-uid={NOBODY.pw_uid}" in one_line(late.stderr)
        until(lambda: closed.counts()["notAllowed"] == 21, "each of them was counted")
    for end in (read_end, write_end):
        os.close(end)


def test_only_root_and_the_owner_may_stop_it(daemon: RunningDaemon) -> None:
    answer = in_child_as_nobody(lambda: ask(daemon, FrameType.STOP))
    assert "only root" in answer
    assert daemon.process.poll() is None
    assert "posture" in in_child_as_nobody(lambda: ask(daemon, FrameType.STATUS))


def ask(daemon: RunningDaemon, kind: FrameType) -> str:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.connect(str(daemon.socket))
        sock.sendall(wire.encode(Frame(kind)))
        frame = wire.read_frame(sock, payload_bytes_max=1 << 20)
    return frame.text(Tag.MESSAGE) or frame.text(Tag.JSON)


def in_child_as_nobody(work: Callable[[], str]) -> str:
    """Do something in a child process that has become the user without privileges."""
    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.setgroups([])
            os.setresgid(*[NOBODY.pw_gid] * 3)
            os.setresuid(*[NOBODY.pw_uid] * 3)
            text = work()
        except BaseException as error:
            text = repr(error)
        os.write(write_end, text.encode()[:60000])
        os._exit(0)
    os.close(write_end)
    with os.fdopen(read_end, "rb") as stream:
        text = stream.read().decode()
    os.waitpid(pid, 0)
    return text


def test_a_launcher_does_not_trust_a_daemon_of_another_user(sandbox: Path, place: Path) -> None:
    path = sandbox / "fake.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(path))
        path.chmod(0o666)
        listener.listen()
        argv = [
            *(str(place / "rootseal-exec"), f"--action={KEY.hex()}", "--root=."),
            *("--record=r", f"--socket={path}", "--", "touch", "ran"),
        ]
        launcher = subprocess.Popen(argv, cwd=sandbox, stderr=subprocess.PIPE, text=True)
        with listener.accept()[0] as connection:
            assert connection.recv(1)
        told = launcher.communicate()[1]
    assert launcher.returncode == 125
    assert "is not trusted" not in one_line(told)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        path.unlink()
        in_child = os.fork()
        if in_child == 0:
            os.setresuid(*[NOBODY.pw_uid] * 3)
            listener.bind(str(path))
            listener.listen()
            listener.accept()
            os._exit(0)
        until(path.exists, "the impostor listens")
        done = subprocess.run(argv, cwd=sandbox, capture_output=True, text=True)
        os.waitpid(in_child, 0)
    assert done.returncode == 125
    assert f"belongs to uid {NOBODY.pw_uid} and is not trusted" in one_line(done.stderr)
    assert not (sandbox / "ran").exists()


# --- dropping privileges --------------------------------------------------------------------


def test_drop_to_gives_the_action_that_identity_and_no_capability(
    daemon: RunningDaemon, sandbox: Path
) -> None:
    identity = f"--drop-to={NOBODY.pw_uid}:{NOBODY.pw_gid}:{NOBODY.pw_gid},50,60"
    done = daemon.run(sandbox, ["/bin/cat", "/proc/self/status"], HELD, identity)
    assert done.returncode == 0, done.stderr
    assert status_field(done.stdout, "Uid").split() == [str(NOBODY.pw_uid)] * 4
    assert status_field(done.stdout, "Gid").split() == [str(NOBODY.pw_gid)] * 4
    groups = {NOBODY.pw_gid, 50, 60}
    assert set(map(int, status_field(done.stdout, "Groups").split())) == groups
    for name in ("CapInh", "CapPrm", "CapEff", "CapAmb"):
        assert int(status_field(done.stdout, name), 16) == 0
    assert done.record.stat().st_uid == NOBODY.pw_uid  # the launcher has dropped them too
    assert done.field("capture", "posture", "achieved") == "held"


EVERY_SET = ("CapInh", "CapPrm", "CapEff", "CapAmb")
RAISED = ("--inh-caps", "+net_admin,+sys_admin", "--ambient-caps", "+net_admin,+sys_admin")


@pytest.mark.parametrize("mode", ["fanotify=on", "capture-mode=trace:ptrace", "capture-mode=walk"])
def test_drop_to_gives_up_what_would_outlive_a_change_of_the_ids(
    daemon: RunningDaemon, sandbox: Path, mode: str
) -> None:
    """Inheritable and ambient capabilities, a securebit that keeps them, and other groups."""

    def raised(argv: List[str], **more: object) -> subprocess.Popen[bytes]:
        words = ["setpriv", *RAISED, "--securebits", "+no_setuid_fixup", *argv]
        return subprocess.Popen(words, extra_groups=[0, 4], **more)  # type: ignore[call-overload, no-any-return]

    show = "cat /proc/self/status; setpriv -d | grep Securebits; grep ^Cap /proc/$PPID/status"
    identity = f"--drop-to={NOBODY.pw_uid}:{NOBODY.pw_gid}:50"
    words = ["/bin/sh", "-c", show]
    kept = daemon.run(sandbox, words, f"--option={mode}", popen=raised)
    assert all(int(status_field(kept.stdout, name), 16) for name in EVERY_SET), "they are raised"
    assert status_field(kept.stdout, "Securebits") == "no_setuid_fixup"
    (sandbox / "the-record").unlink()
    done = daemon.run(sandbox, words, f"--option={mode}", identity, popen=raised)
    assert (done.returncode, done.stderr) == (0, "")
    found = [line.split() for line in done.stdout.decode().splitlines() if line.startswith("Cap")]
    assert len(found) == 2 * (len(EVERY_SET) + 1)  # of the action, and of its launcher
    assert {int(value, 16) for name, value in found if name.rstrip(":") in EVERY_SET} == {0}
    assert status_field(done.stdout, "Securebits") == "[none]"
    groups = {NOBODY.pw_gid, 50}
    assert set(map(int, status_field(done.stdout, "Groups").split())) == groups


def test_run_under_sudo_drops_to_who_called_it(daemon: RunningDaemon, sandbox: Path) -> None:
    environ = {
        **os.environ,
        "SUDO_UID": str(NOBODY.pw_uid),
        "SUDO_GID": str(NOBODY.pw_gid),
    }
    done = subprocess.run(
        command("run", "--socket", str(daemon.socket), "--fanotify", "on", "--", "id", "-u"),
        cwd=sandbox,
        env=environ,
        capture_output=True,
        text=True,
        timeout=GIVE_UP_SECONDS,
    )
    assert (done.returncode, done.stdout) == (0, f"{NOBODY.pw_uid}\n"), done.stderr
    assert "posture held" in done.stderr


# --- a daemon of one's own ------------------------------------------------------------------


def test_a_user_without_any_privilege_has_a_daemon_of_his_own(sandbox: Path, place: Path) -> None:
    """Everything in one process tree that never had a privilege: daemon, launcher, action."""
    home = sandbox / "home"
    home.mkdir()
    os.chown(home, NOBODY.pw_uid, NOBODY.pw_gid)
    socket_path, state = home / "run" / "d.sock", home / "state"
    assert rootseal.capture.fanotify.FanotifyEngine and cli_daemon.run
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.setsid()
            os.setgroups([])
            os.setresgid(*[NOBODY.pw_gid] * 3)
            os.setresuid(*[NOBODY.pw_uid] * 3)
            code = cli.main(
                ["daemon", "run", "--socket", str(socket_path), "--state-dir", str(state)]
            )
        finally:
            os._exit(code)
    try:
        until((state / "capture.pub").exists, "the daemon listens and has its key")
        assert socket_path.stat().st_mode & 0o777 == 0o600
        assert (state / "capture.key").stat().st_uid == NOBODY.pw_uid
        own = RunningDaemon(None, socket_path, state, home / "log")  # type: ignore[arg-type]
        done = as_nobody(own, sandbox, ["/bin/sh", "-c", "echo x > out"], "--helper=/none")
        assert done.returncode == 0, done.stderr
        assert set(done.products()) == {b"out"}
        refused = as_nobody(own, sandbox, ["true"], HELD, "--helper=/none")
        assert refused.returncode == 125
    finally:
        os.kill(pid, 15)
        status = os.waitpid(pid, 0)[1]
    assert os.waitstatus_to_exitcode(status) == 0
    assert not socket_path.exists()
