"""Ways out of the marked mount namespace, each counted by the launcher's guard."""

from __future__ import annotations

import shutil
import subprocess

import pytest
from capabilities import REPO

CALL = "import ctypes, os, sys\nlibc = ctypes.CDLL(None, use_errno=True)\n"
NEWNS, NEWUSER = 0x00020000, 0x10000000
SIGCHLD = 17


def call(text: str) -> str:
    """A program that makes one call and does not care whether the kernel allows it."""
    return CALL + text + "\n"


ESCAPES = {
    "unshare": f"libc.unshare({NEWUSER | NEWNS})",
    "clone": f"pid = libc.syscall(56, {NEWUSER | NEWNS | SIGCHLD}, 0, 0, 0, 0)\n"
    "if pid == 0: os._exit(0)",
    "clone by its x32 number": f"libc.syscall(0x40000000 | 272, {NEWUSER | NEWNS})",
    "setns": f"libc.setns(os.open('/proc/self/ns/mnt', 0), {NEWNS})",
    "setns of any kind": "libc.setns(os.open('/proc/self/ns/mnt', 0), 0)",
    "pidfd_getfd": "libc.syscall(438, os.pidfd_open(os.getppid()), 0, 0)",
}
MOUNTS = {
    "mount": "libc.mount(b'none', b'.', b'tmpfs', 0, None)",
    "bind that claims a change of propagation": "libc.mount(b'.', b'.', None, 4096 | 1 << 18, 0)",
    "move_mount": "libc.syscall(429, -1, b'', -1, b'', 0)",
    "fsmount": "libc.syscall(432, -1, 0, 0)",
    "open_tree": "libc.syscall(428, -100, b'.', 1)",
}
HARMLESS = {
    "unshare of other kinds": f"libc.unshare({NEWUSER})",
    "remount": "libc.mount(None, b'.', None, 32, None)",
    "propagation": "libc.mount(None, b'/', None, 1 << 18, None)",
    "open_tree without a clone": "libc.syscall(428, -100, b'.', 0)",
    "threads": "import threading\nt = threading.Thread(target=print); t.start(); t.join()",
}


@pytest.mark.parametrize("name", ESCAPES)
def test_a_way_into_another_mount_namespace_is_counted(arena, name) -> None:
    captured = arena.attack(call(ESCAPES[name]))
    assert captured.code == 0, captured.stderr
    assert captured.counter("namespaceEscapes") == 1
    assert captured.counter("unmarkedMounts") == 0


@pytest.mark.parametrize("name", MOUNTS)
def test_a_new_mount_is_counted(arena, name) -> None:
    captured = arena.attack(call(MOUNTS[name]))
    assert captured.code == 0, captured.stderr
    assert captured.counter("unmarkedMounts") == 1
    assert captured.counter("namespaceEscapes") == 0


def test_what_leads_nowhere_is_not_counted(arena) -> None:
    captured = arena.attack(call("\n".join(HARMLESS.values())), "--require-zero-drops")
    assert captured.code == 0, captured.stderr
    assert captured.counter("namespaceEscapes") == captured.counter("unmarkedMounts") == 0


def test_a_late_descendant_that_leaves_is_counted(arena) -> None:
    captured = arena.attack(
        call(
            "if os.fork() == 0:\n"
            "    while os.getppid() == PARENT: pass\n"
            f"    libc.unshare({NEWUSER | NEWNS})\n"
            "    os._exit(0)\n"
        )
        .replace("PARENT", "parent")
        .replace("import", "parent = __import__('os').getpid()\nimport")
    )
    assert captured.code == 0, captured.stderr
    assert captured.counter("namespaceEscapes") == 1


def test_clone3_is_refused_so_that_its_flags_can_be_seen(arena) -> None:
    program = "libc.syscall(435, 0, 0)\nassert ctypes.get_errno() == 38, ctypes.get_errno()"
    captured = arena.attack(call(program))
    assert captured.code == 0, captured.stderr


def test_the_gate_refuses_an_action_that_left(arena) -> None:
    captured = arena.attack(call(ESCAPES["unshare"]), "--require-zero-drops")
    assert captured.code != 0 and captured.action == {}
    assert "namespaceEscapes 1" in captured.stderr


@pytest.fixture
def helper(arena):
    """The helper as `make install-helper` installs it, in a directory of its own."""
    path = arena.directory / "private" / "rootseal-scope"
    shutil.copy(REPO / "pants-plugins" / "rootseal" / "bin" / "rootseal-scope", path)
    path.chmod(0o755)
    subprocess.run(["setcap", "cap_sys_admin+ep", str(path)], check=True)
    return path


def test_an_action_that_the_helper_started_is_guarded_too(arena, helper) -> None:
    launcher = REPO / "pants-plugins" / "rootseal" / "bin" / "rootseal-exec"
    argv = [str(launcher), "--action=" + "00" * 32, "--root=.", "--record=record"]
    argv += [f"--socket={arena.socket}", f"--helper={helper}", "--option=fanotify=on"]

    def run(program: str, *options: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*argv, *options, "--", "/usr/bin/python3", "-c", call(program)],
            cwd=arena.root,
            user=arena.user.uid,
            group=arena.user.gid,
            extra_groups=[],
            capture_output=True,
            text=True,
            timeout=60,
        )

    fine = run(HARMLESS["threads"], "--option=require-zero-drops=1")
    assert (fine.returncode, fine.stderr) == (0, "")
    (arena.root / "record").unlink()
    escaped = run(ESCAPES["unshare"], "--option=require-zero-drops=1")
    assert escaped.returncode == 125 and "namespaceEscapes 1" in escaped.stderr
    assert not (arena.root / "record").exists()
    nested = run("assert not [n for n in os.listdir('/proc/self/fd') if int(n) > 3]")
    assert (nested.returncode, nested.stderr) == (0, "")
