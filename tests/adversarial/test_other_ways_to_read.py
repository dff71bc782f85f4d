"""Reads that do not look like reads: handles, rings, messages, races, sizes."""

from __future__ import annotations

import hashlib
import itertools
import os
import socket
import stat
import subprocess
import threading
from pathlib import Path
from typing import Callable

import pytest

SECRET = "this must not go unseen\n"
SHA256 = hashlib.sha256(SECRET.encode()).hexdigest()
CALL = "import ctypes, os\nlibc = ctypes.CDLL(None, use_errno=True)\n"


def test_a_file_opened_by_its_handle_is_recorded(arena) -> None:
    """As root: open_by_handle_at needs CAP_DAC_READ_SEARCH."""
    arena.write("secret", SECRET)
    captured = arena.attack_as_root(
        CALL + "handle = (ctypes.c_uint32 * 40)(128)\n"
        "mount = ctypes.c_int()\n"
        "name = b'secret'\n"
        "assert libc.name_to_handle_at(-100, name, handle, ctypes.byref(mount), 0) == 0\n"
        "fd = libc.open_by_handle_at(os.open('.', 0), handle, 0)\n"
        "assert os.read(fd, 99)\n",
        "--require-zero-drops",
    )
    assert captured.code == 0, captured.stderr
    assert captured.materials()["secret"] == {SHA256}


def test_a_program_executed_by_descriptor_is_recorded(arena) -> None:
    """execveat(fd, "", AT_EMPTY_PATH), the descriptor being O_PATH: opened by nobody before."""
    tool = arena.root / "tool"
    tool.write_bytes(Path("/bin/true").read_bytes())
    tool.chmod(0o755)
    captured = arena.attack(
        CALL + "fd = os.open('tool', os.O_PATH)\n"
        "none = (ctypes.c_char_p * 1)()\n"
        "libc.syscall(322, fd, b'', none, none, 0x1000)\n"
        "os._exit(9)\n"
    )
    assert captured.code == 0, captured.stderr
    assert captured.materials()["tool"] == {hashlib.sha256(tool.read_bytes()).hexdigest()}


PASS = """
import array, os, socket
ours, theirs = socket.socketpair()
if os.fork() == 0:
    fd = os.open('secret', os.O_RDONLY)
    socket.send_fds(theirs, [b'x'], [fd])
    os._exit(0)
_, (fd,), _, _ = socket.recv_fds(ours, 1, 1)
open('out', 'wb').write(os.read(fd, 99))
"""


def test_a_descriptor_passed_inside_the_action_was_recorded_when_opened(arena) -> None:
    arena.write("secret", SECRET)
    captured = arena.attack(PASS, "--require-zero-drops")
    assert captured.code == 0, captured.stderr
    assert captured.materials()["secret"] == captured.products()["out"] == {SHA256}


@pytest.mark.requires("root", "fanotify", "launcher", "core", "ebpf")
def test_who_passes_a_descriptor_from_outside_is_in_the_record(arena) -> None:
    """The file is opened outside and goes unseen; the connection to whoever gave it does not."""
    place, hidden = arena.directory / "outside.sock", arena.directory / "hidden"
    hidden.write_text(SECRET)
    place.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX) as listener, hidden.open("rb") as file:
        listener.bind(str(place))
        place.chmod(0o666)
        listener.listen()

        def give() -> None:
            client, _ = listener.accept()
            socket.send_fds(client, [b"x"], [file.fileno()])
            client.close()

        thread = threading.Thread(target=give)
        thread.start()
        captured = arena.attack(
            "import os, socket\n"
            "s = socket.socket(socket.AF_UNIX)\n"
            f"s.connect({str(place)!r})\n"
            "_, (fd,), _, _ = socket.recv_fds(s, 1, 1)\n"
            f"assert os.read(fd, 99) == {SECRET.encode()!r}\n"
        )
        thread.join()
    assert captured.code == 0, captured.stderr
    assert SHA256 not in arena.all_materials(captured)  # the blind spot, seen to be one
    connections = [
        connection
        for process in captured.action["processes"]
        for connection in process["network"]["connections"]
    ]
    assert str(place) in {item["address"] for item in connections}


def test_what_a_ring_reads_and_writes_is_recorded(arena) -> None:
    arena.write("secret", SECRET)
    program, source = arena.directory / "ring", arena.directory / "ring.c"
    source.write_text(RING)
    subprocess.run(["gcc", "-O1", "-o", str(program), str(source)], check=True)
    captured = arena.attack(f"import os\nos.execv({str(program)!r}, ['ring'])\n")
    if captured.code == 77:
        pytest.skip("optional: io_uring is switched off on this host")
    assert captured.code == 0, captured.stderr
    assert captured.materials()["secret"] == {SHA256}
    assert captured.products()["out"] == {SHA256}


RING = r"""
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/io_uring.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>
static struct io_uring_params p;
static char *sq, *cq, data[64];
static struct io_uring_sqe *e;
static int ring, turn;
static int go(int opcode, int fd, const void *addr, unsigned len, unsigned flags)
{
	struct io_uring_cqe *cqes = (struct io_uring_cqe *)(cq + p.cq_off.cqes);
	memset(e, 0, sizeof(*e));
	e->opcode = opcode;
	e->fd = fd;
	e->addr = (unsigned long)addr;
	e->len = len;
	e->open_flags = flags;
	((unsigned *)(sq + p.sq_off.array))[turn % p.sq_entries] = 0;
	__atomic_store_n((unsigned *)(sq + p.sq_off.tail), turn + 1, __ATOMIC_RELEASE);
	if (syscall(SYS_io_uring_enter, ring, 1, 1, IORING_ENTER_GETEVENTS, 0, 0) != 1)
		_exit(2);
	int res = cqes[turn++ % p.cq_entries].res;
	__atomic_store_n((unsigned *)(cq + p.cq_off.head), turn, __ATOMIC_RELEASE);
	if (res < 0)
		_exit(3);
	return res;
}
int main(void)
{
	int in, out, n;
	ring = syscall(SYS_io_uring_setup, 4, &p);
	if (ring < 0)
		return 77;
	sq = mmap(0, p.sq_off.array + 64, 3, MAP_SHARED, ring, IORING_OFF_SQ_RING);
	cq = mmap(0, p.cq_off.cqes + 256, 3, MAP_SHARED, ring, IORING_OFF_CQ_RING);
	e = mmap(0, 4 * sizeof(*e), 3, MAP_SHARED, ring, IORING_OFF_SQES);
	in = go(IORING_OP_OPENAT, AT_FDCWD, "secret", 0, O_RDONLY);
	n = go(IORING_OP_READ, in, data, sizeof(data), 0);
	out = go(IORING_OP_OPENAT, AT_FDCWD, "out", 0644, O_WRONLY | O_CREAT);
	go(IORING_OP_WRITE, out, data, n, 0);
	go(IORING_OP_CLOSE, out, 0, 0, 0);
	return 0;
}
"""

READ_OFTEN = """
import hashlib, os
seen, rounds = set(), 0
while rounds < 400 or len(seen) < 3:
    rounds += 1
    try:
        with open('target', 'rb') as f: seen.add(hashlib.sha256(f.read()).hexdigest())
    except FileNotFoundError: pass
open('seen', 'w').write(' '.join(seen))
"""


BACKENDS = ["--capture-mode=auto", "--capture-mode=trace:ptrace"]


def swapped_while_it_runs(arena, swap: Callable[[int], None], option: str) -> None:
    """What the action reads while `swap` runs again and again is in the record, all of it."""
    stop = threading.Event()

    def run() -> None:
        for number in itertools.count():
            if stop.is_set():
                return
            swap(number)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        captured = arena.attack(READ_OFTEN, option)
    finally:
        stop.set()
        thread.join()
    assert captured.code == 0, captured.stderr
    seen = set((arena.root / "seen").read_text().split())
    assert seen <= arena.all_materials(captured)


@pytest.mark.parametrize("option", BACKENDS)
def test_a_file_renamed_into_place_between_open_and_read_is_the_one_recorded(arena, option) -> None:
    """The inode numbers of the files that go are taken again, by products of the action too."""
    arena.write("target", "first")

    def swap(number: int) -> None:
        arena.write("next", f"content {number}")
        (arena.root / "next").replace(arena.root / "target")

    swapped_while_it_runs(arena, swap, option)


@pytest.mark.parametrize("option", BACKENDS)
def test_an_input_that_the_action_appends_to_first_is_a_material(arena, option) -> None:
    """It is not a file of the action's own making, though the action was the last to write."""
    arena.write("input", SECRET)
    captured = arena.attack(
        "with open('input', 'a') as file: file.write('more')\nopen('input').read()\n", option
    )
    assert captured.code == 0, captured.stderr
    read = hashlib.sha256(f"{SECRET}more".encode()).hexdigest()
    assert captured.materials()["input"] & {SHA256, read}


@pytest.mark.parametrize("option", BACKENDS)
def test_a_symlink_turned_between_open_and_read_hides_nothing(arena, option) -> None:
    for name in "abc":
        arena.write(name, f"content {name}")
    (arena.root / "target").symlink_to("a")

    def swap(number: int) -> None:
        (arena.root / "next").symlink_to("abc"[number % 3])
        (arena.root / "next").replace(arena.root / "target")

    swapped_while_it_runs(arena, swap, option)


MAPPED = """
import mmap, os
fd = os.open('input', os.O_RDONLY)
view = mmap.mmap(fd, 0, prot=mmap.PROT_READ)
os.close(fd)
open('go').read()
assert view[:6] == b'after!'
"""


def test_a_mapping_of_a_file_that_others_change_is_counted(arena) -> None:
    path, fifo = arena.write("input", "before"), arena.root / "go"
    os.mkfifo(fifo)
    os.chown(fifo, arena.user.uid, arena.user.gid)

    def change() -> None:
        with fifo.open("w"), path.open("r+") as file:  # opens when the action has its mapping
            file.write("after!")

    thread = threading.Thread(target=change)
    thread.start()
    captured = arena.attack(MAPPED, "--require-zero-drops")
    thread.join()
    assert captured.code != 0 and captured.action == {}
    assert "mutatedAfterOpen" in captured.stderr


@pytest.mark.heavy
def test_a_file_of_more_than_four_gibibytes_is_hashed_whole(arena) -> None:
    """Its end alone differs from nothing but zeros: no size wraps, no time runs out."""
    path = arena.write("large", "")
    with path.open("r+b") as stream:
        stream.truncate(4 << 30)
        stream.seek(0, os.SEEK_END)
        stream.write(b"end\n")
    captured = arena.attack("open('large', 'rb').read(1)\n", "--require-zero-drops")
    assert captured.code == 0, captured.stderr
    assert captured.materials()["large"] == {
        "74617a696c659c8bd57ed749315f01d0384259514125e3b0a79a0cee3835c4d8"
    }


@pytest.mark.parametrize("options", BACKENDS)
def test_reading_a_block_device_is_counted_and_gated(arena, options: str) -> None:
    """A filesystem's files can be read from the device that it is on."""
    device = arena.root / "device"
    try:
        os.mknod(device, 0o660 | stat.S_IFBLK, os.makedev(7, 0))  # loop0
        os.close(os.open(device, os.O_RDONLY))
    except OSError as error:
        pytest.skip(f"no block device can be opened here: {error.strerror}")
    program = "import os\nos.close(os.open('device', os.O_RDONLY))\nopen('/dev/null').read()\n"
    captured = arena.attack_as_root(program, options)
    assert captured.code == 0, captured.stderr
    assert captured.counter("blockDeviceOpens") == 1
    refused = arena.attack_as_root(program, options, "--require-zero-drops")
    assert refused.code != 0 and refused.action == {}
    assert "blockDeviceOpens" in refused.stderr
