"""Programs of other kinds than the machine's own C library and word size makes them."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from running_daemon import Done
from syscall_table import IN
from table_runs import sha256_text

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures"
KINDS = ("musl", "musl-static", "32-bit")
_BARE = ("-nostdlib", "-static", "-fno-pie", "-no-pie", "-fno-stack-protector")
# Opens `in`, reads it, and makes `out` of it; also by a thread, after an execve of itself.
_COPY = """
#include <fcntl.h>
#include <pthread.h>
#include <unistd.h>
static void *copy(void *unused)
{
	char data[64];
	int in = open("in", O_RDONLY), out = open("out", O_WRONLY | O_CREAT | O_TRUNC, 0644);
	ssize_t size = read(in, data, sizeof(data));
	if (size <= 0 || write(out, data, size) != size)
		_exit(1);
	return unused;
}
int main(int argc, char **argv)
{
	pthread_t thread;
	if (argc == 1)
		return execl(argv[0], argv[0], "again", (char *)0);
	return pthread_create(&thread, 0, copy, 0) || pthread_join(thread, 0);
}
"""


def build_program(directory: Path, kind: str) -> Path:
    """A program that copies `in` to `out`; skips where it can be neither built nor run."""
    source, program = directory / "copy.c", directory / kind
    source.write_text(_COPY)
    if kind == "32-bit":
        command = ["gcc", "-m32", *_BARE, str(FIXTURES / "open32.c")]
    else:
        if shutil.which("musl-gcc") is None:
            pytest.skip("optional: no musl-gcc; install musl-tools")
        command = ["musl-gcc", *(["-static"] if kind == "musl-static" else []), str(source)]
    done = subprocess.run([*command, "-o", program], capture_output=True, check=False)
    if kind == "32-bit" and done.returncode != 0:
        pytest.skip("optional: this compiler builds no 32-bit programs")
    assert done.returncode == 0, done.stderr
    (directory / "in").write_text("x")
    try:
        subprocess.run([program], cwd=directory, check=True)
    except OSError:
        pytest.skip("optional: this kernel runs no programs of this kind")
    return program


def check_copy(done: Done, program: Path, kind: str) -> None:
    """The program, its loader and what it read are materials, what it made is a product."""
    assert done.returncode == 0, done.stderr
    assert done.verified().losses == {}
    materials = done.materials()
    assert materials[b"in"].digest.hex() == sha256_text(IN)
    assert set(done.products()) == {b"out"}
    assert done.products()[b"out"].digest.hex() == sha256_text(IN)
    assert str(program).encode() in materials
    loaders = [path for path in materials if path.endswith(b"/libc.so") or b"/ld-" in path]
    assert bool(loaders) == (kind == "musl"), sorted(materials)
    assert len(materials) == (3 if kind == "musl" else 2), sorted(materials)
