"""Actions that try to read a file without it being recorded."""

from __future__ import annotations

import hashlib
import os
import subprocess

import pytest

SECRET = "the content that must not go unseen\n"
SHA256 = hashlib.sha256(SECRET.encode()).hexdigest()


def test_read_by_a_double_forked_daemon_in_a_new_session_is_recorded(arena) -> None:
    arena.write("secret", SECRET)
    captured = arena.attack(
        "import os\n"
        "if os.fork() == 0:\n"
        "    os.setsid()\n"
        "    if os.fork() == 0:\n"
        "        open('secret').read()\n"
        "    os._exit(0)\n"
    )
    assert captured.code == 0, captured.stderr
    assert captured.materials()["secret"] == {SHA256}


def test_both_names_of_a_hard_link_are_recorded(arena) -> None:
    arena.write("secret", SECRET)
    os.link(arena.root / "secret", arena.root / "innocent")
    captured = arena.attack("open('secret').read()\nopen('innocent').read()\n")
    assert captured.materials()["secret"] == captured.materials()["innocent"] == {SHA256}


def test_a_symlink_does_not_hide_the_file_behind_it(arena) -> None:
    arena.write("secret", SECRET)
    (arena.root / "innocent").symlink_to("secret")
    captured = arena.attack("open('innocent').read()\n")
    assert captured.materials()["secret"] == {SHA256}


def test_a_file_swapped_after_it_was_read_keeps_the_digest_of_what_was_read(arena) -> None:
    arena.write("input", SECRET)
    captured = arena.attack(
        "import os\n"
        "open('input').read()\n"
        "open('other', 'w').write('harmless')\n"
        "os.rename('other', 'input')\n"
    )
    assert SHA256 in captured.materials()["input"]


def test_a_file_unlinked_after_it_was_opened_is_recorded(arena) -> None:
    arena.write("secret", SECRET)
    captured = arena.attack("import os\nf = open('secret')\nos.unlink('secret')\nf.read()\n")
    assert [path for path, digests in captured.materials().items() if SHA256 in digests]


def test_reopening_an_o_path_descriptor_is_recorded(arena) -> None:
    arena.write("secret", SECRET)
    captured = arena.attack(
        "import os\nfd = os.open('secret', os.O_PATH)\nopen(f'/proc/self/fd/{fd}').read()\n"
    )
    assert captured.materials()["secret"] == {SHA256}


def test_a_read_through_mmap_only_is_recorded(arena) -> None:
    arena.write("secret", SECRET)
    captured = arena.attack(
        "import mmap, os\n"
        "fd = os.open('secret', os.O_RDONLY)\n"
        "mmap.mmap(fd, 0, prot=mmap.PROT_READ).read()\n"
    )
    assert captured.materials()["secret"] == {SHA256}


NESTED = """
import subprocess, sys
script = (
    "mkdir -p b && mount --bind . b && cat b/secret &&"
    " mount -t tmpfs none b && cp secret b/copy && cat b/copy"
)
sys.exit(subprocess.run(["unshare", "-Urm", "sh", "-c", script]).returncode)
"""


@pytest.mark.requires("root", "fanotify", "launcher", "core", "userns")
def test_a_nested_mount_namespace_is_seen_or_counted_as_an_escape(arena) -> None:
    arena.write("secret", SECRET)
    captured = arena.attack(NESTED)
    assert captured.code == 0, captured.stderr
    seen = {path for path, digests in captured.materials().items() if SHA256 in digests}
    escapes = captured.counter("namespaceEscapes") + captured.counter("unmarkedMounts")
    assert {"b/secret", "b/copy"} <= seen or escapes > 0


@pytest.mark.requires("root", "fanotify", "launcher", "core", "userns")
def test_a_nested_mount_namespace_fails_an_action_that_may_lose_nothing(arena) -> None:
    arena.write("secret", SECRET)
    captured = arena.attack(NESTED, "--require-zero-drops")
    assert captured.code != 0
    assert captured.action == {}
    assert "namespaceEscapes" in captured.stderr or "unmarkedMounts" in captured.stderr


def test_a_read_through_the_root_of_an_outside_process_is_counted(arena) -> None:
    """/proc/PID/root leads into mounts without marks; the second witness sees the open."""
    path = arena.write("secret", SECRET)
    outside = subprocess.Popen(
        ["/bin/cat"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        user=arena.user.uid,
        group=arena.user.gid,
        extra_groups=[],
    )
    outside.stdin.write(b"x")
    outside.stdin.flush()
    assert outside.stdout.read(1) == b"x"  # it has become cat, which its user may look into
    try:
        program = f"open('/proc/{outside.pid}/root{path}').read()\n"
        captured = arena.attack(program)
        refused = arena.attack(program, "--require-zero-drops")
    finally:
        outside.communicate()
    assert captured.code == 0, captured.stderr
    assert captured.counter("unhashedOpensTotal") > 0
    assert refused.code != 0 and refused.action == {}
    assert "unhashedOpensTotal" in refused.stderr


UNNAMED = (
    "import os\nos.link('secret', 'alias')\n"
    "fd = os.open('.', os.O_TMPFILE | os.O_RDWR, 0o644)\n"
    "os.write(fd, open('alias').read().encode())\n"
    "import ctypes\n"
    "follow = 0x400\n"
    "assert ctypes.CDLL(None).linkat(-100, b'/proc/self/fd/%d' % fd, -100, b'out', follow) == 0\n"
    "os.close(fd)\n"
)


def test_a_copy_through_an_unnamed_file_is_a_product(arena) -> None:
    arena.write("secret", SECRET)
    captured = arena.attack(UNNAMED)
    assert captured.code == 0, captured.stderr
    assert SHA256 in captured.materials()["alias"]
    assert captured.products()["out"] == {SHA256}


@pytest.mark.parametrize(
    "copy",
    [
        "os.copy_file_range(a, b, 99)",
        "os.sendfile(b, a, 0, 99)",
        "p, q = os.pipe(); os.splice(a, q, 99); os.splice(p, b, 99)",
    ],
    ids=["copy_file_range", "sendfile", "splice"],
)
def test_a_copy_without_a_read_is_recorded_at_both_ends(arena, copy) -> None:
    arena.write("secret", SECRET)
    captured = arena.attack(
        "import ctypes, os\n"
        "a = os.open('secret', os.O_RDONLY)\n"
        "b = os.open('out', os.O_WRONLY | os.O_CREAT, 0o644)\n"
        f"{copy.replace('os.splice(', 'splice(')}\n".replace(
            "p, q",
            "libc = ctypes.CDLL(None)\n"
            "splice = lambda i, o, n: libc.splice(i, None, o, None, n, 0)\np, q",
            1,
        )
    )
    assert captured.code == 0, captured.stderr
    assert captured.materials()["secret"] == {SHA256}
    assert captured.products()["out"] == {SHA256}


def test_a_program_run_from_memory_leaves_its_source_recorded(arena) -> None:
    captured = arena.attack(
        "import os\n"
        "fd = os.memfd_create('x')\n"
        "os.write(fd, open('/bin/true', 'rb').read())\n"
        "os.execve(fd, ['true'], {})\n"
    )
    assert captured.code == 0, captured.stderr
    assert "/usr/bin/true" in captured.materials()


def test_io_uring_opens_are_recorded(arena) -> None:
    """The permission hook sees them like any other open."""
    arena.write("secret", SECRET)
    program = arena.directory / "uring"
    source = arena.directory / "uring.c"
    source.write_text(URING)
    subprocess.run(["gcc", "-O1", "-o", str(program), str(source)], check=True)
    captured = arena.attack(f"import os\nos.execv({str(program)!r}, ['uring'])\n")
    if captured.code == 77:
        pytest.skip("optional: io_uring is switched off on this host")
    assert captured.code == 0, captured.stderr
    assert captured.materials()["secret"] == {SHA256}


URING = r"""
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/io_uring.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>
int main(void)
{
	struct io_uring_params p = {0};
	int ring = syscall(SYS_io_uring_setup, 4, &p);
	char *sq, *cq;
	struct io_uring_sqe *e;
	struct io_uring_cqe *done;
	if (ring < 0)
		return 77;
	sq = mmap(0, p.sq_off.array + 64, 3, MAP_SHARED, ring, IORING_OFF_SQ_RING);
	cq = mmap(0, p.cq_off.cqes + 256, 3, MAP_SHARED, ring, IORING_OFF_CQ_RING);
	e = mmap(0, 4 * sizeof(*e), 3, MAP_SHARED, ring, IORING_OFF_SQES);
	memset(e, 0, sizeof(*e));
	e->opcode = IORING_OP_OPENAT;
	e->fd = AT_FDCWD;
	e->addr = (unsigned long)"secret";
	e->open_flags = O_RDONLY;
	((unsigned *)(sq + p.sq_off.array))[0] = 0;
	__atomic_store_n((unsigned *)(sq + p.sq_off.tail), 1, __ATOMIC_RELEASE);
	if (syscall(SYS_io_uring_enter, ring, 1, 1, IORING_ENTER_GETEVENTS, 0, 0) != 1)
		return 2;
	done = (struct io_uring_cqe *)(cq + p.cq_off.cqes);
	return done->res < 0 ? 3 : 0;
}
"""


def test_special_files_are_no_loss_and_hold_nobody(arena) -> None:
    captured = arena.attack(
        "import os, socket\n"
        "os.mkfifo('fifo'); r = os.open('fifo', os.O_RDONLY | os.O_NONBLOCK)\n"
        "w = os.open('fifo', os.O_WRONLY); os.write(w, b'x'); os.read(r, 1)\n"
        "open('/dev/zero', 'rb').read(1); os.open('.', os.O_RDONLY)\n"
        "s = socket.socket(socket.AF_UNIX); s.bind('socket')\n",
        "--require-zero-drops",
    )
    assert captured.code == 0, captured.stderr


def test_many_short_writers_and_many_names_are_all_there(arena) -> None:
    captured = arena.attack(
        "import os\n"
        "for n in range(500):\n"
        "    if os.fork() == 0:\n"
        "        open(f'out{n}', 'w').write(str(n)); os._exit(0)\n"
        "try:\n"
        "    while True: os.wait()\n"
        "except ChildProcessError: pass\n",
        "--require-zero-drops",
    )
    assert captured.code == 0, captured.stderr
    want = {f"out{n}": {hashlib.sha256(str(n).encode()).hexdigest()} for n in range(500)}
    assert {path: value for path, value in captured.products().items() if path in want} == want


def test_running_out_of_descriptors_hurts_only_the_action(arena) -> None:
    arena.write("secret", SECRET)
    captured = arena.attack(
        "import os, resource\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40))\n"
        "kept = []\n"
        "try:\n"
        "    while True: kept.append(os.open('secret', os.O_RDONLY))\n"
        "except OSError: pass\n",
        "--require-zero-drops",
    )
    assert captured.code == 0, captured.stderr
    assert captured.materials()["secret"] == {SHA256}
