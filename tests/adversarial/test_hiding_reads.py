"""Actions that try to read a file without it being recorded."""

from __future__ import annotations

import hashlib
import os

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
