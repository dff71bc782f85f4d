"""A filesystem whose times are whole seconds: an equal state proves little there."""

from __future__ import annotations

import contextlib
import subprocess
import time
from pathlib import Path
from typing import Iterator

ATTEMPTS = 20  # to do all within a second


@contextlib.contextmanager
def coarse_filesystem(base: Path) -> Iterator[Path]:
    """A mounted ext4 with inodes of 128 bytes, as small filesystems had until e2fsprogs 1.46.4."""
    image, place = base / "image", base / "coarse"
    place.mkdir()
    with image.open("wb") as file:
        file.truncate(32 << 20)
    subprocess.run(["mkfs.ext4", "-q", "-F", "-I", "128", image], check=True, capture_output=True)
    subprocess.run(["mount", "-o", "loop", image, place], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", place], check=True)


def await_a_new_second() -> None:
    time.sleep(1 - time.time() % 1)


def times(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_ctime_ns, found.st_mtime_ns
