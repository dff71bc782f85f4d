"""The launcher is not there, as far as the action can tell: status, signals, stdio, environment."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, List

import pytest
from injected import strace
from running_daemon import LAUNCHER, RunningDaemon, is_alive, one_line, running_daemon, until

pytestmark = pytest.mark.requires("root", "fanotify", "launcher", "core")
HELD = "--option=fanotify=on"
TRACED = "--option=capture-mode=trace:ptrace"
WALKED = "--option=capture-mode=walk"
BUSY_BINARY = "/bin/true"


def shell(text: str) -> List[str]:
    return ["/bin/sh", "-c", text]


@pytest.mark.parametrize("option", [HELD, TRACED, WALKED], ids=["fanotify", "ptrace", "walk"])
@pytest.mark.parametrize("code", [0, 1, 3, 125, 126, 127, 255])
def test_the_exit_code_is_the_actions(
    daemon: RunningDaemon, sandbox: Path, code: int, option: str
) -> None:
    done = daemon.run(sandbox, shell(f"echo out; echo err >&2; exit {code}"), option)
    assert (done.returncode, done.stdout, done.stderr) == (code, b"out\n", "err\n")
    assert done.field("exitcode") == code
    expected = "walked" if option == WALKED else "held"
    assert done.field("capture", "posture", "achieved") == expected
    assert done.verified().losses == {}


@pytest.mark.parametrize("name", ["TERM", "KILL", "SEGV", "PIPE", "INT", "RTMIN"])
def test_the_actions_signal_is_raised_again(
    daemon: RunningDaemon, sandbox: Path, name: str
) -> None:
    number = signal.SIGRTMIN if name == "RTMIN" else signal.Signals[f"SIG{name}"]
    done = daemon.run(sandbox, shell(f"kill -{int(number)} $$"), HELD)
    assert done.returncode == -number
    assert (done.field("exitcode"), done.field("signal")) == (128 + number, number)


def test_a_missing_command_is_127_and_a_file_that_is_no_program_126(
    daemon: RunningDaemon, sandbox: Path
) -> None:
    (sandbox / "plain").write_text("no program")
    missing = daemon.run(sandbox, ["no-such-command"], HELD)
    assert missing.field("exitcode") == 127
    plain = daemon.run(sandbox, ["./plain"], HELD)
    assert (missing.returncode, plain.returncode) == (127, 126)
    assert one_line(missing.stderr) == "rootseal-exec: no-such-command: No such file or directory"
    assert one_line(plain.stderr) == "rootseal-exec: ./plain: Permission denied"


@pytest.mark.parametrize("name", ["TERM", "HUP", "USR1", "INT", "WINCH"])
def test_a_signal_to_the_launcher_reaches_the_action(
    daemon: RunningDaemon, sandbox: Path, name: str
) -> None:
    number = signal.Signals[f"SIG{name}"]
    wait = f'trap "exit 7" {name}; echo ready; while :; do sleep 0.1; done'
    before = signal.signal(number, signal.SIG_DFL)  # a shell cannot trap what nohup(1) ignores
    try:
        process = daemon.start(sandbox, shell(wait), HELD)
    finally:
        signal.signal(number, before)
    assert process.stdout.readline() == b"ready\n"
    process.send_signal(number)
    done = daemon.end(process, sandbox / "the-record")
    assert done.returncode == 7
    assert done.field("exitcode") == 7


COUNT_INTERRUPTS = """
import os, signal, sys, time
seen = []
signal.signal(signal.SIGINT, lambda *_: seen.append(1))
print("ready", flush=True)
while not seen:
    time.sleep(0.01)
time.sleep(0.3)
sys.exit(40 + len(seen))
"""


def test_control_c_on_the_terminal_reaches_the_action_once(
    daemon: RunningDaemon, sandbox: Path
) -> None:
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(sandbox)
        argv = daemon.argv(sandbox / "the-record", [sys.executable, "-c", COUNT_INTERRUPTS], [HELD])
        os.execv(argv[0], argv)
    assert os.read(terminal, 7).startswith(b"ready")
    os.write(terminal, b"\x03")
    status = os.waitpid(pid, 0)[1]
    os.close(terminal)
    assert os.waitstatus_to_exitcode(status) == 41


def test_a_stop_on_the_terminal_stops_the_launcher_too(
    daemon: RunningDaemon, sandbox: Path
) -> None:
    pid, terminal = pty.fork()
    if pid == 0:  # a shell with job control: its job's group is not orphaned
        os.chdir(sandbox)
        argv = daemon.argv(sandbox / "the-record", shell("echo ready; read line; exit 9"), [HELD])
        child = os.fork()
        if child == 0:
            os.setpgid(0, 0)
            signal.signal(signal.SIGTTOU, signal.SIG_IGN)
            os.tcsetpgrp(0, os.getpid())
            signal.signal(signal.SIGTTOU, signal.SIG_DFL)
            os.execv(argv[0], argv)
        status = os.waitpid(child, os.WUNTRACED)[1]
        os.write(1, b"stopped" if os.WIFSTOPPED(status) else b"ended")
        os.killpg(child, signal.SIGCONT)
        os._exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    seen = b""
    while b"ready" not in seen:
        seen += os.read(terminal, 100)
    os.write(terminal, b"\x1a")
    while b"stopped" not in seen:
        seen += os.read(terminal, 100)
    os.write(terminal, b"\n")
    status = os.waitpid(pid, 0)[1]
    os.close(terminal)
    assert os.waitstatus_to_exitcode(status) == 9


def test_ignored_and_blocked_signals_are_the_callers(daemon: RunningDaemon, sandbox: Path) -> None:
    def prepare() -> None:
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2, signal.SIGRTMIN + 3})

    show = ["/bin/grep", "-E", "^(Sig|Shd)(Blk|Ign|Cgt)", "/proc/self/status"]
    bare = subprocess.run(show, preexec_fn=prepare, capture_output=True, cwd=sandbox)
    done = daemon.run(sandbox, show, HELD, preexec_fn=prepare)
    assert done.stdout == bare.stdout
    assert b"SigBlk" in bare.stdout


SHOW_DESCRIPTORS = """
import os, re
for number in sorted(map(int, os.listdir("/proc/self/fd"))):
    try:
        print(number, re.sub(r"\\d+", "N", os.readlink(f"/proc/self/fd/{number}")))
    except FileNotFoundError:
        pass  # of the listing itself
"""


def test_standard_streams_and_other_descriptors_are_the_callers(
    daemon: RunningDaemon, sandbox: Path, tmp_path: Path
) -> None:
    extra = os.open(tmp_path / "extra", os.O_RDWR | os.O_CREAT)
    show = [sys.executable, "-c", SHOW_DESCRIPTORS]
    try:
        with (tmp_path / "in").open("wb+") as stream:
            bare = subprocess.run(
                show, stdin=stream, pass_fds=[extra], capture_output=True, cwd=sandbox
            )
            done = daemon.run(sandbox, show, HELD, stdin=stream, pass_fds=[extra])
    finally:
        os.close(extra)
    assert done.stdout == bare.stdout
    assert f"{extra} ".encode() in bare.stdout


@pytest.mark.requires("strace")
@pytest.mark.parametrize("error", ["ENOSYS", "EPERM"])
def test_without_close_range_descriptors_are_closed_one_by_one(
    daemon: RunningDaemon, sandbox: Path, error: str
) -> None:
    """Container profiles that are older than the call refuse it, on any kernel."""
    words = strace("close_range", "1+", f"error={error}")

    def under_strace(argv: List[str], **options: Any) -> subprocess.Popen[bytes]:
        return subprocess.Popen([*words, *argv], **options)

    read, write = os.pipe()
    pipe = os.readlink(f"/proc/self/fd/{write}")  # noqa: PTH115 - a name that is no path
    show = shell("ls /proc/self/fd | wc -l; read line")
    process = daemon.start(
        sandbox, show, HELD, "--stdio-only", popen=under_strace, pass_fds=[write]
    )
    assert process.stdout.readline() == b"4\n"  # stdio, and the directory that ls reads
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
    launcher = Path(f"/proc/{int(children)}/fd")
    assert pipe not in [os.readlink(entry) for entry in launcher.iterdir()]  # noqa: PTH115
    assert daemon.end(process, sandbox / "the-record", b"\n").returncode == 0
    os.close(read)
    os.close(write)


def test_bytes_pass_through(daemon: RunningDaemon, sandbox: Path) -> None:
    data = bytes(range(256)) * 4096
    done = daemon.run(sandbox, ["/bin/cat"], HELD, input=data)
    assert (done.returncode, done.stdout) == (0, data)


def test_a_closed_stdin_stays_closed(daemon: RunningDaemon, sandbox: Path) -> None:
    show = shell("[ -e /proc/self/fd/0 ] && exit 1; [ -e /proc/self/fd/1 ] || exit 2")
    done = daemon.run(sandbox, show, HELD, stdin=None, preexec_fn=lambda: os.close(0))
    assert (done.returncode, done.stderr) == (0, "")


def test_what_the_action_closes_is_closed(daemon: RunningDaemon, sandbox: Path) -> None:
    """The launcher must not keep the ends of the action's pipes open."""
    os.mkfifo(sandbox / "go")
    process = daemon.start(sandbox, shell("echo last; exec <&- >&-; read line < go; exit 5"), HELD)
    assert process.stdout.read() == b"last\n"  # the end of file comes while the action runs
    with pytest.raises(BrokenPipeError):
        while True:
            os.write(process.stdin.fileno(), b"x" * 65536)
    assert process.poll() is None
    (sandbox / "go").write_text("\n")
    assert process.wait() == 5
    for stream in (process.stdin, process.stdout, process.stderr):
        stream.close()


def test_the_environment_is_exactly_the_callers(daemon: RunningDaemon, sandbox: Path) -> None:
    environment = {
        b"PATH": b"/usr/bin:/bin",
        b"LD_LIBRARY_PATH": b"/nowhere",
        b"EMPTY": b"",
        b"NOT_UTF8": b"\xff\xfe",
        b"NEWLINE": b"a\nb",
        b"ROOTSEAL_SECRET": b"hunter2",
    }
    show = ["/usr/bin/env", "-0"]
    bare = subprocess.run(show, env=environment, capture_output=True, cwd=sandbox)
    done = daemon.run(sandbox, show, HELD, env=environment)
    assert done.stdout == bare.stdout
    names = [entry["name"] for entry in done.field("environ")]
    assert sorted(names) == sorted(name.decode() for name in environment)
    assert b"hunter2" not in done.record.read_bytes()


@pytest.mark.parametrize(
    ("path", "argv", "code"),
    [
        (None, ["sh", "-c", "exit 4"], 4),
        ("", ["local"], 6),
        ("/nowhere:/bin", ["sh", "-c", "exit 4"], 4),
        ("/nowhere", ["sh", "-c", "exit 4"], 127),
        ("", ["./local"], 6),
    ],
    ids=["unset", "empty is the working directory", "second", "nowhere", "with a slash"],
)
def test_the_search_is_execvps(
    daemon: RunningDaemon, sandbox: Path, path: str | None, argv: List[str], code: int
) -> None:
    (sandbox / "local").write_text("exit 6\n")  # no #!: a script for the shell
    (sandbox / "local").chmod(0o755)
    environment = {} if path is None else {"PATH": path}
    assert daemon.run(sandbox, argv, HELD, env=environment).returncode == code


def busy_program(sandbox: Path) -> Path:
    program = sandbox / "program"
    program.write_bytes(Path(BUSY_BINARY).read_bytes())
    program.chmod(0o755)
    return program


def test_a_busy_program_is_tried_again(tmp_path: Path, sandbox: Path) -> None:
    program = busy_program(sandbox)
    with running_daemon(tmp_path, "--compare-at-access=off") as daemon:
        with program.open("r+b"):
            done = daemon.run(sandbox, ["./program"], HELD)
            assert done.returncode == 126
            assert "Text file busy" in one_line(done.stderr)
            daemon.counts(running=0)
            process = daemon.start(sandbox, ["./program"], HELD)
            until(lambda: daemon.status()["actions"]["running"] == 1, "the action is announced")
        assert daemon.end(process, sandbox / "the-record").returncode == 0


def test_where_accesses_are_compared_no_program_is_busy(
    daemon: RunningDaemon, sandbox: Path
) -> None:
    """The kernel lets writers be of files whose accesses it tells (docs/decisions/0012)."""
    if not daemon.status()["comparesAtAccess"]:
        pytest.skip("optional: this kernel has no FAN_PRE_ACCESS")
    with busy_program(sandbox).open("r+b"):
        assert daemon.run(sandbox, ["./program"], HELD).returncode == 0


@pytest.mark.parametrize("option", [HELD, TRACED, WALKED], ids=["fanotify", "ptrace", "walk"])
def test_a_daemon_of_the_action_is_recorded_and_killed(
    daemon: RunningDaemon, sandbox: Path, option: str
) -> None:
    daemonize = (
        "setsid sh -c 'setsid sh -c \"echo \\$\\$ > pid; echo x > late; exec sleep 9999\" &'"
    )
    script = f"{daemonize} & while [ ! -s late ]; do sleep 0.01; done; exit 2"
    done = daemon.run(sandbox, shell(script), option, "--descendants=kill:0")
    assert done.returncode == 2
    assert not is_alive(int((sandbox / "pid").read_text()))
    assert done.field("descendantsKilled") >= 1
    assert {b"late", b"pid"} <= set(done.products())


def test_waiting_for_descendants(daemon: RunningDaemon, sandbox: Path) -> None:
    os.mkfifo(sandbox / "go")
    script = "setsid sh -c 'read line < go; echo late > late' > /dev/null 2>&1 & exit 3"
    process = daemon.start(sandbox, shell(script), HELD, "--descendants=wait")
    assert process.stdout.read() == b""
    assert process.poll() is None
    (sandbox / "go").write_text("\n")
    done = daemon.end(process, sandbox / "the-record")
    assert done.returncode == 3
    assert done.field("descendantsKilled") == 0
    assert b"late" in done.products()


def test_a_signal_ends_the_wait_for_descendants(daemon: RunningDaemon, sandbox: Path) -> None:
    script = "sleep 9999 > /dev/null 2>&1 & echo $! > pid; exit 3"
    process = daemon.start(sandbox, shell(script), HELD, "--descendants=wait")
    assert process.stdout.read() == b""  # the action has ended, its descendant has not
    process.send_signal(signal.SIGTERM)
    done = daemon.end(process, sandbox / "the-record")
    assert done.returncode in (3, -signal.SIGTERM)
    assert not is_alive(int((sandbox / "pid").read_text()))
    assert done.record.exists() == (done.returncode == 3)


def test_a_timeout_kills_the_group_and_nothing_is_recorded(
    daemon: RunningDaemon, sandbox: Path
) -> None:
    before = daemon.counts()["aborted"]
    process = daemon.start(sandbox, shell("echo $$; exec sleep 9999"), HELD, start_new_session=True)
    action = int(process.stdout.readline())
    os.killpg(process.pid, signal.SIGKILL)
    assert daemon.end(process, sandbox / "the-record").returncode == -signal.SIGKILL
    until(lambda: not is_alive(action), "the action dies")
    until(lambda: daemon.counts()["aborted"] == before + 1, "the daemon drops the scope")
    assert not (sandbox / "the-record").exists()


def test_the_action_dies_with_the_launcher(daemon: RunningDaemon, sandbox: Path) -> None:
    process = daemon.start(sandbox, shell("echo $$; exec sleep 9999"), HELD)
    action = int(process.stdout.readline())
    process.kill()
    daemon.end(process, sandbox / "the-record")
    until(lambda: not is_alive(action), "the action dies")
    assert not (sandbox / "the-record").exists()


def test_the_record_replaces_what_the_action_left_there(
    daemon: RunningDaemon, sandbox: Path, tmp_path: Path
) -> None:
    target = tmp_path / "target"
    target.write_text("untouched")
    done = daemon.run(sandbox, ["ln", "-s", str(target), "the-record"], HELD)
    assert done.returncode == 0
    assert not done.record.is_symlink()
    assert target.read_text() == "untouched"
    done.verified()
    done.record.unlink()
    assert daemon.run(sandbox, ["mkdir", "the-record"], HELD).returncode == 0
    assert done.record.is_file()


def test_a_record_that_cannot_be_written_is_one_line(daemon: RunningDaemon, sandbox: Path) -> None:
    done = daemon.run(sandbox, ["mkdir", "-p", "the-record/full"], HELD)
    assert done.returncode == 125
    assert "left a directory of that name" in one_line(done.stderr)


def test_an_action_that_removes_its_working_directory(
    daemon: RunningDaemon, sandbox: Path, tmp_path: Path
) -> None:
    script = shell(f"rmdir {sandbox}; exit 5")
    done = daemon.run(sandbox, script, HELD, record=tmp_path / "record")
    assert (done.returncode, done.stderr, done.products()) == (5, "", {})
    sandbox.mkdir()
    inside = daemon.run(sandbox, script, HELD)
    assert inside.returncode == 125
    assert "the action removed its directory" in one_line(inside.stderr)


@pytest.mark.heavy
def test_ten_thousand_files(daemon: RunningDaemon, sandbox: Path) -> None:
    write = "import os\nfor i in range(10000): open(f'd{i % 100}-{i}', 'w').write(str(i))"
    done = daemon.run(sandbox, [sys.executable, "-c", write], HELD)
    assert done.returncode == 0
    assert len(done.products()) == 10_000
    assert done.verified().losses == {}


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--output-file=../x"], "outside the root"),
        (["--output-dir=/etc"], "outside the root"),
        (["--bogus"], "unknown, repeated or malformed"),
        (["--root=."], "unknown, repeated or malformed"),
        (["--descendants=kill:-1"], "unknown, repeated or malformed"),
        (["--drop-to=1:2:3,x"], "unknown, repeated or malformed"),
        (["--option=hardening=very"], "hardening must be one of"),
        (["--option=max-digests=0"], "max_digests must be from 1"),
        (["--option=surprise=1"], "unknown, malformed or given twice"),
        (["--option=capture-mode=guess"], "capture-mode must be one of"),
        (["--option=fanotify=off", "--option=hardening=strict"], "strict needs fanotify"),
    ],
)
def test_a_wrong_option_is_one_line_and_nothing_runs(
    daemon: RunningDaemon, sandbox: Path, options: List[str], text: str
) -> None:
    done = daemon.run(sandbox, ["touch", "ran"], *options)
    assert done.returncode == 125
    assert text in one_line(done.stderr)
    assert not (sandbox / "ran").exists()


@pytest.mark.parametrize(
    ("drop", "text"),
    [
        ("--action=", "malformed"),
        ("--record=", "--record is missing"),
        ("true", "`-- COMMAND` is missing"),
    ],
)
def test_what_is_missing_is_named(
    daemon: RunningDaemon, sandbox: Path, drop: str, text: str
) -> None:
    argv = daemon.argv(sandbox / "the-record", ["true"])
    argv = [word for word in argv if not word.startswith(drop)]
    if drop == "--action=":
        argv.insert(1, "--action=xyz")
    done = subprocess.run(argv, cwd=sandbox, capture_output=True, text=True)
    assert done.returncode == 125
    assert text in one_line(done.stderr)


def test_no_daemon_is_one_line(sandbox: Path) -> None:
    argv = [str(LAUNCHER), f"--action={'ab' * 32}", "--root=.", "--record=r", "--socket=./none"]
    done = subprocess.run(
        [*argv, "--", "touch", "ran"], cwd=sandbox, capture_output=True, text=True
    )
    assert done.returncode == 125
    assert "rootseal daemon ensure" in one_line(done.stderr)
    assert not (sandbox / "ran").exists()


def test_the_launcher_cannot_be_attached_to(daemon: RunningDaemon, sandbox: Path) -> None:
    """Its memory and descriptors are closed to other processes of its user (not dumpable)."""
    process = daemon.start(sandbox, shell("echo ready; read line"), HELD)
    process.stdout.readline()
    assert Path(f"/proc/{process.pid}/environ").stat().st_uid == 0
    look = f"import os; os.setuid(65534); os.listdir('/proc/{process.pid}/fd')"
    assert subprocess.run([sys.executable, "-c", look], capture_output=True).returncode != 0
    assert daemon.end(process, sandbox / "the-record", b"\n").returncode == 0
