"""Actions that try to leave, change or sign what they should not."""

from __future__ import annotations

import hashlib
import os
import subprocess
import threading
from pathlib import Path

import pytest
from rootseal import wire

PACKAGES = Path(__file__).resolve().parents[2] / "pants-plugins"
LAUNCHER = PACKAGES / "rootseal" / "bin" / "rootseal-exec"
CHANGED = hashlib.sha256(b"changed").hexdigest()


def test_a_descendant_that_outlives_the_action_is_killed_and_counted(arena) -> None:
    captured = arena.attack(
        "import os, signal, time\n"
        "if os.fork() == 0:\n"
        "    os.setsid()\n"
        "    for number in (signal.SIGTERM, signal.SIGHUP): signal.signal(number, signal.SIG_IGN)\n"
        "    os.close(1); os.close(2)\n"
        "    open('alive', 'w').write(str(os.getpid()))\n"
        "    time.sleep(600)\n"
        "while not os.path.exists('alive') or not open('alive').read(): time.sleep(0.01)\n",
        "--descendants=kill:0",
    )
    assert captured.code == 0, captured.stderr
    assert captured.counter("descendantsKilled") == 1
    pid = int((arena.root / "alive").read_text())
    status = Path(f"/proc/{pid}/stat")
    assert not status.exists() or status.read_text().split()[2] == "Z"


def test_a_product_written_through_a_mapping_has_its_last_content(arena) -> None:
    captured = arena.attack(
        "import mmap, os\n"
        "fd = os.open('out', os.O_RDWR | os.O_CREAT)\n"
        "os.write(fd, b'written')\n"
        "m = mmap.mmap(fd, 7)\n"
        "os.close(fd)\n"
        "m[:] = b'changed'\n"
    )
    assert captured.products()["out"] == {CHANGED}


def test_a_product_renamed_into_place_has_its_final_name_only(arena) -> None:
    captured = arena.attack(
        "import os\nopen('tmp', 'w').write('changed')\nos.rename('tmp', 'out')\n"
    )
    assert captured.products()["out"] == {CHANGED}
    assert "tmp" not in captured.products()


def test_an_input_changed_by_another_process_after_it_was_read_is_counted(arena) -> None:
    path = arena.write("input", "before")
    fifo = arena.root / "go"
    os.mkfifo(fifo)
    os.chown(fifo, arena.user.uid, arena.user.gid)

    def change() -> None:
        with fifo.open("w"):  # opens when the action has read its input
            path.write_text("after!")

    thread = threading.Thread(target=change)
    thread.start()
    captured = arena.attack("open('input').read()\nopen('go').read()\n", "--require-zero-drops")
    thread.join()
    assert captured.code != 0 and captured.action == {}
    assert "mutatedAfterOpen" in captured.stderr


def test_killing_the_launcher_leaves_no_record(arena) -> None:
    captured = arena.attack("import os, signal\nos.kill(os.getppid(), signal.SIGKILL)\n")
    assert captured.code != 0
    assert captured.action == {}


def test_the_action_cannot_trace_the_launcher(arena) -> None:
    captured = arena.attack(
        "import ctypes, os, sys\n"
        "libc = ctypes.CDLL(None, use_errno=True)\n"
        "code = libc.ptrace(16, os.getppid(), 0, 0)  # PTRACE_ATTACH\n"
        "sys.exit(0 if code == -1 else 9)\n"
    )
    assert captured.code == 0, captured.stderr


def test_the_action_inherits_no_descriptor_of_the_capture(arena) -> None:
    captured = arena.attack(
        "import os\n"
        "kept = [os.readlink(f'/proc/self/fd/{n}') for n in os.listdir('/proc/self/fd')"
        " if int(n) > 2 and os.path.exists(f'/proc/self/fd/{n}')]\n"
        "kept = [name for name in kept if not name.endswith('attack.py')]\n"
        "assert not [name for name in kept if 'socket' in name or 'anon' in name], kept\n"
    )
    assert captured.code == 0, captured.stderr


def test_the_action_holds_no_privilege(arena) -> None:
    captured = arena.attack(
        "status = open('/proc/self/status').read()\n"
        "fields = dict(line.split(':', 1) for line in status.splitlines())\n"
        "assert int(fields['CapEff'], 16) == int(fields['CapPrm'], 16) == 0, fields['CapEff']\n"
        "assert '0' not in fields['Uid'].split() and '0' not in fields['Groups'].split()\n"
    )
    assert captured.code == 0, captured.stderr


def test_filling_the_digest_cap_is_counted_and_gated(arena) -> None:
    for number in range(40):
        arena.write(f"file{number}", str(number))
    program = "for n in range(40): open(f'file{n}').read()\n"
    captured = arena.attack(program, "--max-digests=20")
    assert captured.counter("fanotifyDigestsCapHit") > 0
    refused = arena.attack(program, "--max-digests=20", "--require-zero-drops")
    assert refused.code != 0 and refused.action == {}
    assert "fanotifyDigestsCapHit" in refused.stderr


def test_a_user_that_the_daemon_does_not_serve_is_refused(arena) -> None:
    client = (
        "import os, sys\n"
        f"sys.path.insert(0, {str(PACKAGES)!r})\n"
        "os.setgroups([]); os.setgid(UID); os.setuid(UID)\n"
        "from rootseal import wire\n"
        "try:\n"
        f"    wire.status({str(arena.socket)!r})\n"
        "except wire.DaemonError as error:\n"
        "    print(error)\n"
    )

    def ask(uid: int) -> subprocess.CompletedProcess[str]:
        argv = ["/usr/bin/python3", "-c", client.replace("UID", str(uid))]
        return subprocess.run(argv, capture_output=True, text=True, check=True)

    assert ask(arena.user.uid).stdout == ""
    assert "--allow-uid" in ask(arena.user.uid + 1).stdout


def test_another_command_under_the_key_of_an_action_does_not_count(arena) -> None:
    """Whoever may run actions can have anything recorded under any key; CHECK compares it."""
    key = bytes([0xAB] * 32)
    attacks = {
        "another command": ([], ["/bin/sh", "-c", "echo evil > out.o"]),
        "another environment": (["LD_PRELOAD="], ["/bin/sh", "-c", "echo good > out.o"]),
        "other declared outputs": ([], ["/bin/sh", "-c", "echo good > out.o"]),
        "": ([], ["/bin/sh", "-c", "echo good > out.o"]),
    }
    for why, (variables, command) in attacks.items():
        output = "other.o" if "outputs" in why else "out.o"
        record = arena.directory / "record"
        record.unlink(missing_ok=True)
        argv = ["env", "-i", *variables, str(LAUNCHER), f"--action={key.hex()}", "--root=."]
        argv += [f"--record={record}", f"--output-file={output}", f"--socket={arena.socket}"]
        subprocess.run([*argv, "--", *command], cwd=arena.root, check=True)
        content = (arena.root / "out.o").read_bytes()
        answer = wire.check(
            str(arena.socket),
            action_key=key,
            record=record.read_bytes(),
            outputs=[{"path": "out.o", "sha256": hashlib.sha256(content).hexdigest()}],
            action={
                "cmd": ["/bin/sh", "-c", "echo good > out.o"],
                "environ": {},
                "templates": {},
                "anyValue": [],
                "workingDirectory": ".",
                "outputFiles": ["out.o"],
                "outputDirectories": [],
            },
        )
        assert (answer["accepted"], why in str(answer["reason"])) == (why == "", True), answer


@pytest.mark.parametrize(
    "options",
    [("--capture-mode=walk", "--fanotify=on"), ("--capture-mode=trace:ptrace",)],
    ids=["fanotify", "ptrace"],
)
@pytest.mark.parametrize(
    "way", ["open(KEY).read()", "import os; os.link(KEY, 'x'); open('x').read()"]
)
def test_an_action_that_reads_the_capture_key_fails(arena, options, way: str) -> None:
    """Whoever has the key may sign what he likes. Root may read it, as a user that of his own."""
    (key,) = (arena.directory / "private").rglob("capture.key")
    captured = arena.attack_as_root(way.replace("KEY", repr(str(key))), *options)
    assert captured.code != 0 and captured.action == {}
    assert "capture key" in captured.stderr and "system daemon" in captured.stderr
    assert arena.attack_as_root("open(__file__).read()", *options).code == 0


def test_the_recommended_policy_refuses_both_keys(arena) -> None:
    policy = PACKAGES.parent / "examples" / "policy" / "recommended.toml"
    public = arena.key.with_name(arena.key.name + ".pub")
    for name in ("capture.key", "signing.key"):
        path = arena.directory / name  # of another daemon or user
        path.write_text("a key\n")
        captured = arena.attack(f"open({str(path)!r}).read()\n")
        assert captured.code == 0, captured.stderr
        words = ("verify", str(arena.bundle), "--key", str(public), "--policy", str(policy))
        refused = arena.rootseal(*words)
        assert refused.returncode == 1 and name in refused.stderr, refused.stderr
