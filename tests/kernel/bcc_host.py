"""A host as BCC needs it: kernel headers in their place and, if wanted, a kernel without BTF.

All of it in a mount namespace of its own, so that nothing of it is left on the host. The headers
are the running kernel's if they are installed; else those of another kernel serve where the
offsets of kernel fields come from BTF.
"""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path
from typing import List, Optional

SOURCES = Path("/usr/src")
MODULES = Path("/lib/modules")
_BTF = "/sys/kernel/btf"
# $1: the folder's name, $2 and $3: what `build` and `source` lead to, $4: a folder to hide.
_SCRIPT = """set -e
mount -t tmpfs none /lib/modules
mkdir "/lib/modules/$1"
[ -z "$2" ] || ln -s "$2" "/lib/modules/$1/build"
[ -z "$3" ] || ln -s "$3" "/lib/modules/$1/source"
[ -z "$4" ] || mount -t tmpfs none "$4"
shift 4
exec "$@"
"""


def release_of(headers: Path) -> str:
    """Which kernel some headers are of, as they say."""
    text = (headers / "include/generated/utsrelease.h").read_text("ascii")
    return text.split('"')[1]


def kernel_headers() -> Optional[Path]:
    """Installed headers: the running kernel's, else the newest; None if there are none."""
    release = os.uname().release
    found = [path.parents[2] for path in SOURCES.glob("*/include/generated/utsrelease.h")]
    found += [path.resolve() for path in (MODULES / release).glob("build")]
    usable = [path for path in found if (path / "include/generated/utsrelease.h").exists()]
    same = [path for path in usable if release_of(path) == release]
    by_number = sorted(usable, key=lambda path: [*map(int, re.findall(r"\d+", path.name))])
    return (same or by_number[::-1] or [None])[0]


def headers_are_of_this_kernel() -> bool:
    headers = kernel_headers()
    return headers is not None and release_of(headers) == os.uname().release


def common_part(headers: Path) -> str:
    """Debian keeps what is common to all flavours of a kernel elsewhere; empty: all in one."""
    common = headers.parent / f"{headers.name.rpartition('-')[0]}-common"
    return str(common) if common.is_dir() else ""


def inside(*argv: str, btf: bool = True, headers: Optional[Path] = None) -> List[str]:
    """A command line in such a namespace.

    Args:
        argv: The command.
        btf: Whether the kernel's BTF is there.
        headers: Kernel headers; None: there are none.
    """
    build = "" if headers is None else str(headers)
    source = "" if headers is None else common_part(headers)
    fixed = ["unshare", "--mount", "--propagation", "private", "/bin/sh", "-c", _SCRIPT, "sh"]
    return [*fixed, os.uname().release, build, source, "" if btf else _BTF, *argv]


def python_inside(directory: Path) -> Path:
    """The system's Python in a namespace with headers, as a program: for a tracer of the test."""
    program = directory / "python3"
    words = inside("/usr/bin/python3", headers=kernel_headers())
    program.write_text(f'#!/bin/sh\nexec {shlex.join(words)} "$@"\n')
    program.chmod(0o755)
    return program
