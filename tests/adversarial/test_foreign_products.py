"""Somebody outside an action writes, makes or replaces what the action's record would sign."""

from __future__ import annotations

import hashlib
import os
import subprocess
import threading
from pathlib import Path
from typing import Callable

import pytest

OWN, OTHER = "made by the action", "by somebody else"
# Under which the action is captured: every one of them must notice.
BACKENDS = {
    "fanotify": ("--capture-mode=walk", "--fanotify=on"),
    "auto": ("--capture-mode=auto",),
    "ptrace": ("--capture-mode=trace:ptrace",),
}
MEETS = "open('go').read()\n"  # after its writes the action meets the other
WRITES = f"import os\nos.makedirs('out', exist_ok=True)\nopen('out/mine', 'w').write({OWN!r})\n"


def sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> tuple[str, ...]:
    return BACKENDS[request.param]


def meet(arena, program: str, backend, deed: Callable[[], object], *options: str):
    """Run an action that opens `go` when the other may do its deed, and then goes on.

    By then the daemon has seen what the action closed.
    """
    fifo = arena.root / "go"
    os.mkfifo(fifo)
    os.chown(fifo, arena.user.uid, arena.user.gid)

    def other() -> None:
        with fifo.open("w"):
            arena.wait_for_rest()
            deed()

    thread = threading.Thread(target=other, daemon=True)
    thread.start()
    captured = arena.attack(program, *backend, *options)
    if thread.is_alive():  # the action never came to meet it
        os.close(os.open(fifo, os.O_RDONLY | os.O_NONBLOCK))
    thread.join()
    return captured


def overwrite(path: Path) -> None:
    path.write_text(OTHER)


def replace(path: Path) -> None:
    fresh = path.with_name("fresh")
    fresh.write_text(OTHER)
    fresh.rename(path)


@pytest.mark.parametrize("deed", [overwrite, replace])
def test_a_product_that_another_overwrites_is_counted_and_gated(arena, backend, deed) -> None:
    mine = arena.root / "out" / "mine"
    captured = meet(arena, WRITES + MEETS, backend, lambda: deed(mine), "--output=out/mine")
    assert captured.counter("foreignProducts") >= 1
    (leaf,) = [item for item in captured.action["productFiles"] if item["path"] == "out/mine"]
    assert leaf["digestSource"] != "fanotify-close-write"
    (arena.root / "go").unlink()
    mine.unlink()
    strict = ("--require-zero-drops", "--output=out/mine")
    refused = meet(arena, WRITES + MEETS, backend, lambda: deed(mine), *strict)
    assert refused.code != 0 and refused.action == {}
    assert "foreignProducts" in refused.stderr


def test_a_file_that_another_makes_in_the_root_is_counted(arena, backend) -> None:
    evil = arena.root / "out" / "evil.bin"
    captured = meet(arena, WRITES + MEETS, backend, lambda: overwrite(evil), "--output=out/")
    assert captured.counter("foreignProducts") == 1
    assert captured.products()["out/mine"] == {sha256(OWN)}


def test_what_another_captured_action_overwrites_is_counted(arena, backend) -> None:
    second = [*arena.command, "run", "--socket", str(arena.socket), "--key", str(arena.key)]
    second += ["--out", str(arena.directory / "private" / "second"), *backend]
    second += ["--", "/bin/sh", "-c", f"printf '%s' '{OTHER}' > out/mine"]

    def run() -> None:
        subprocess.run(second, cwd=arena.root, check=True, capture_output=True)

    captured = meet(arena, WRITES + MEETS, backend, run, "--output=out/mine")
    assert captured.counter("foreignProducts") == 1


MOVED_IN = ["auto"]  # only a trace tells who gives a name to what was there before


@pytest.mark.parametrize("backend", MOVED_IN, indirect=True)
def test_what_another_moves_into_the_root_is_counted(arena, backend) -> None:
    before = arena.directory / "before"
    before.write_text(OTHER)
    moved = arena.root / "out" / "evil.bin"
    captured = meet(arena, WRITES + MEETS, backend, lambda: before.rename(moved))
    assert captured.counter("foreignProducts") == 1


@pytest.mark.parametrize("backend", MOVED_IN, indirect=True)
def test_a_symlink_that_another_makes_is_counted(arena, backend) -> None:
    link = arena.root / "out" / "evil"
    captured = meet(arena, WRITES + MEETS, backend, lambda: link.symlink_to("/etc/passwd"))
    assert captured.counter("foreignProducts") == 1


def test_a_link_to_a_directory_that_was_there_is_not_counted(arena, backend) -> None:
    """It is an output itself; what is behind it is none."""
    directory = arena.root / "kept"
    directory.mkdir()
    (arena.directory / "behind").mkdir(exist_ok=True)
    (arena.directory / "behind" / "file").write_text("text")
    (directory / "link").symlink_to(arena.directory / "behind")
    captured = arena.attack("pass", *backend, "--output=kept/")
    assert captured.code == 0, captured.stderr
    assert "kept/link" in captured.products()
    assert captured.counter("foreignProducts") == 0


LEGITIMATE = """
import ctypes, mmap, os, shutil
os.makedirs('d/deep')
def write(path, text='text'):
    with open(path, 'w') as f: f.write(text)
write('d/deep/file'); os.rename('d', 'renamed')                    # a directory
write('tmp'); os.rename('tmp', 'into place')
write('a'); os.link('a', 'b'); os.symlink('a', 'link'); os.utime('a', (1, 1))
fd = os.open('.', os.O_TMPFILE | os.O_RDWR, 0o644)
os.write(fd, b'unnamed')
here, follow = -100, 0x400
assert not ctypes.CDLL(None).linkat(here, b'/proc/self/fd/%d' % fd, here, b'named', follow)
os.close(fd)
fd = os.open('mapped', os.O_RDWR | os.O_CREAT); os.write(fd, b'written')
m = mmap.mmap(fd, 7); os.close(fd); m[:] = b'changed'; m.close()
write('cut', 'long text'); os.truncate('cut', 4)
write('cut to nothing'); os.truncate('cut to nothing', 0)
os.truncate('old', 2); os.chmod('old too', 0o600); os.utime('old three')
os.mknod('node')
a, b = os.open('a', os.O_RDONLY), os.open('copied', os.O_WRONLY | os.O_CREAT)
os.copy_file_range(a, b, 100); os.close(b)
for n in range(20): open('log', 'a').write('line')
write('big', 'x' * (6 << 20)); os.rename('big', 'big too'); os.utime('big too', (2, 2))
os.rename('was there', 'moved'); shutil.move(OUTSIDE, 'from outside')
os.unlink('a'); write('a', 'again')                                 # perhaps the same inode
left = open('open at exit', 'w'); left.write('buffered'); left.flush()
os._exit(0)
"""


def test_what_the_action_makes_itself_is_not_counted(arena, backend) -> None:
    """Every way in which a program may leave something, none a loss."""
    for name in ("old", "old too", "old three", "was there", "declared"):
        arena.write(name, "before")
    outside = arena.directory / "elsewhere"
    outside.write_text("outside")
    os.chown(outside, arena.user.uid, arena.user.gid)
    program = LEGITIMATE.replace("OUTSIDE", repr(str(outside)))
    if "--fanotify=on" in backend:  # only a trace tells truncate(2) by name from a foreign write
        program = program.replace("os.truncate('cut', 4)", "")
    os.chown(arena.directory, arena.user.uid, arena.user.gid)
    try:
        captured = arena.attack(program, *backend, "--output=declared", "--output=renamed/")
    finally:
        os.chown(arena.directory, 0, 0)
    assert captured.code == 0, captured.stderr
    assert captured.action["summary"]["losses"] == []
    products = captured.products()
    for name in ("renamed/deep/file", "into place", "b", "link", "copied", "node", "open at exit"):
        assert name in products
    assert products["named"] == {sha256("unnamed")}
    assert products["mapped"] == {sha256("changed")}
    assert products["log"] == {sha256("line" * 20)}
    assert products["from outside"] == {sha256("outside")}
