"""What this host can do, found by trying, each with the reason where it cannot.

Stdlib only and Python 3.9: Pants' own interpreter imports this too.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import errno
import functools
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Callable, Mapping

REPO = Path(__file__).resolve().parent.parent
PROBE_TIMEOUT_SECONDS = 300  # guards against a hang only: emulated machines are slow


@dataclasses.dataclass(frozen=True)
class Capability:
    """One thing a test may need.

    Attributes:
        name: As in `@pytest.mark.requires(name)`.
        available: Whether this host has it.
        reason: How it was found, or what is missing and how to get it.
    """

    name: str
    available: bool
    reason: str


def _root() -> tuple[bool, str]:
    if os.geteuid() == 0:
        return True, "effective uid 0"
    return False, f"effective uid {os.geteuid()}; run as root or with sudo"


def _fanotify() -> tuple[bool, str]:
    """Try a permission mark on an empty directory of our own: nothing else can block on it."""
    libc = ctypes.CDLL(None, use_errno=True)
    class_content, cloexec, mark_add, open_perm = 0x4, 0x1, 0x1, 0x10000
    group = libc.fanotify_init(class_content | cloexec, os.O_RDONLY)
    if group < 0:
        number = ctypes.get_errno()
        return False, f"fanotify_init: {errno.errorcode.get(number, number)}; needs CAP_SYS_ADMIN"
    try:
        with tempfile.TemporaryDirectory() as directory:
            code = libc.fanotify_mark(
                group, mark_add, ctypes.c_uint64(open_perm), -100, os.fsencode(directory)
            )
            number = ctypes.get_errno()
    finally:
        os.close(group)
    if code < 0:
        name = errno.errorcode.get(number, number)
        return False, f"fanotify_mark: {name}; the kernel lacks FANOTIFY_ACCESS_PERMISSIONS"
    return True, "permission events work"


def _user_namespaces() -> tuple[bool, str]:
    tool = shutil.which("unshare")
    if tool is None:
        return False, "no unshare command; install util-linux"
    done = subprocess.run(
        [tool, "-Ur", "true"], capture_output=True, timeout=PROBE_TIMEOUT_SECONDS, check=False
    )
    return done.returncode == 0, done.stderr.decode(errors="replace").strip() or "unshare -Ur works"


def _btf() -> tuple[bool, str]:
    path = Path("/sys/kernel/btf/vmlinux")
    return path.exists(), f"{path} {'exists' if path.exists() else 'is missing'}"


def _command(name: str, package: str) -> Callable[[], tuple[bool, str]]:
    def probe() -> tuple[bool, str]:
        found = shutil.which(name)
        return found is not None, found or f"no {name} command; install {package}"

    return probe


def _file(path: Path, remedy: str) -> Callable[[], tuple[bool, str]]:
    def probe() -> tuple[bool, str]:
        shown = path.relative_to(REPO)
        return path.exists(), str(shown) if path.exists() else f"{shown} is missing; {remedy}"

    return probe


def pants_venv() -> Path:
    """The virtual environment that holds Pants."""
    return Path(os.environ.get("ROOTSEAL_PANTS_VENV", str(REPO / ".venv-pants")))


def _pants() -> tuple[bool, str]:
    pants = pants_venv() / "bin" / "pants"
    return pants.exists(), str(pants) if pants.exists() else f"no {pants}; run `make setup`"


def _pants_import() -> tuple[bool, str]:
    if importlib.util.find_spec("pants") is None:
        return False, f"{sys.executable} has no pants; run this group with .venv-pants/bin/python"
    return True, f"pants imports in Python {sys.version_info[0]}.{sys.version_info[1]}"


def _core() -> tuple[bool, str]:
    spec = REPO / "pants-plugins" / "rootseal"
    found = sorted(spec.glob("*.so"))
    return bool(found), found[0].name if found else "the C core is not built; run `make build`"


def _ebpf() -> tuple[bool, str]:
    """Load and attach the trace programs in a process of its own."""
    code = "from rootseal.capture.ebpf import EbpfTracer; EbpfTracer.probe()"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=REPO / "pants-plugins",
        capture_output=True,
        text=True,
        timeout=PROBE_TIMEOUT_SECONDS,
        check=False,
    )
    lines = done.stderr.strip().splitlines() or ["the trace programs load"]
    return done.returncode == 0, lines[-1]


def _bcc() -> tuple[bool, str]:
    """BCC's Python module, and the headers of some kernel (tests/kernel/bcc_host.py)."""
    done = subprocess.run(
        ["/usr/bin/python3", "-c", "import bcc"],
        capture_output=True,
        timeout=PROBE_TIMEOUT_SECONDS,
        check=False,
    )
    if done.returncode != 0:
        return False, "the system's Python has no bcc module; install python3-bpfcc"
    own = Path(f"/lib/modules/{os.uname().release}/build/include/generated/utsrelease.h")
    if not own.exists() and not any(Path("/usr/src").glob("*/include/generated/utsrelease.h")):
        return False, "no kernel headers; install linux-headers-amd64 (of Debian; any kernel's do)"
    return True, "python3-bpfcc and kernel headers"


def _users() -> tuple[bool, str]:
    """Whether a throw-away user can be made that reaches this checkout and this interpreter."""
    if os.geteuid() != 0:
        return True, "the tests already run without root"
    if shutil.which("useradd") is None:
        return False, "no useradd command; install passwd"
    for path in (REPO, Path(sys.executable).resolve()):
        for part in (path, *path.parents):
            if part.stat().st_mode & 0o001 == 0:
                return False, f"other users cannot enter {part}, so cannot reach {path}"
    return True, "useradd works on a checkout that every user can read"


def _loop() -> tuple[bool, str]:
    done = subprocess.run(
        ["losetup", "--find"], capture_output=True, text=True, timeout=PROBE_TIMEOUT_SECONDS
    )
    return done.returncode == 0, (done.stdout or done.stderr).strip()


_BIN = REPO / "pants-plugins" / "rootseal" / "bin"
PROBES: Mapping[str, Callable[[], tuple[bool, str]]] = {
    "root": _root,
    "fanotify": _fanotify,
    "userns": _user_namespaces,
    "users": _users,
    "btf": _btf,
    "ebpf": _ebpf,
    "bcc": _bcc,
    "gcc": _command("gcc", "gcc"),
    "clang": _command("clang", "clang"),
    "setcap": _command("setcap", "libcap2-bin"),
    "strace": _command("strace", "strace"),
    "loop": _loop,
    "core": _core,
    "launcher": _file(_BIN / "rootseal-exec", "run `make build`"),
    "pants": _pants,
    "pants-import": _pants_import,
}


@functools.cache
def probe(name: str) -> Capability:
    """Try one capability (once per run)."""
    with contextlib.ExitStack():
        try:
            available, reason = PROBES[name]()
        except (OSError, subprocess.SubprocessError) as error:
            available, reason = False, f"probe failed: {error}"
    return Capability(name, available, reason)
