"""A Debian of aarch64 for the lab: packages unpacked into a folder, and this checkout beside them.

Nothing of it runs on the host. The launcher, the helper, the C cores and the trace programs are
cross-compiled from this checkout's sources; Python packages are the pinned ones, as wheels for
aarch64. The guest sees the folder as its root, as an x86-64 guest sees the host's.
"""

from __future__ import annotations

import hashlib
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

from lab_apt import LAB, REPO, Archive, LabError, download_closure, run
from lab_programs import build_programs

ARCHIVE = Archive("bookworm", "arm64")
ROOT = LAB / "arm64" / "root"
INSIDE = "/rootseal"  # the checkout, as the guest sees it
PROGRAMS_INSIDE = f"{INSIDE}/build/programs"
WHEELS_INSIDE = "/usr/local/wheels"
PYTHON = "3.11"  # bookworm's
PACKAGES = (
    *("base-passwd", "bash", "coreutils", "dash", "diffutils", "findutils", "grep", "hostname"),
    *("iproute2", "libc-bin", "libcap2-bin", "login", "mount", "passwd", "procps", "python3"),
    *("sed", "strace", "tar", "util-linux", "e2fsprogs", "libbpf1", "libssl3"),
    *("gcc", "libc6-dev", "libbpf-dev", "libpython3.11-dev", "libssl-dev"),
)
WHEELS = ("cffi", "cryptography", "pytest", "rich")
COMPILER = "aarch64-linux-gnu-gcc"
PLATFORMS = ("manylinux_2_34_aarch64", "manylinux_2_28_aarch64", "manylinux2014_aarch64")
MERGED = ("bin", "sbin", "lib")  # links into usr/, which no package holds


def make_root() -> Path:
    """The root folder, with this checkout as it is now."""
    if shutil.which(COMPILER) is None:
        raise LabError("the kernel lab needs: sudo apt-get install gcc-aarch64-linux-gnu")
    files = download_closure(ARCHIVE, PACKAGES)
    pins = (REPO / "requirements/constraints.txt").read_text("ascii")
    wanted = hashlib.sha256("\n".join([pins, *(file.name for file in files)]).encode()).hexdigest()
    stamp = ROOT.parent / "complete"
    if not stamp.exists() or stamp.read_text("ascii") != wanted:
        shutil.rmtree(ROOT, ignore_errors=True)
        unpack(files)
        add_wheels()
        compile_python()
        stamp.write_text(wanted, "ascii")
    add_checkout()
    return ROOT


def unpack(files: list[Path]) -> None:
    """Unpack packages without their scripts, and do by hand what is needed of those."""
    for name in MERGED:
        (ROOT / "usr" / name).mkdir(parents=True)
        (ROOT / name).symlink_to(f"usr/{name}")
    for file in files:
        with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", file], stdout=subprocess.PIPE) as tar:
            words = ["tar", "-x", "--no-same-owner", "--keep-directory-symlink", "-C", str(ROOT)]
            done = subprocess.run(words, stdin=tar.stdout)
        if done.returncode != 0 or tar.returncode != 0:
            raise LabError(f"{file.name} could not be unpacked; remove {LAB} and try again")
    for name in ("passwd", "group"):
        shutil.copy(ROOT / f"usr/share/base-passwd/{name}.master", ROOT / "etc" / name)
    for name in ("tmp", "proc", "sys", "dev", "run", "root"):
        (ROOT / name).mkdir(exist_ok=True)
    (ROOT / "tmp").chmod(0o1777)


def add_wheels() -> None:
    """Install the pinned Python packages, as the ordinary client gives them for aarch64."""
    words = [sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check"]
    words += ["--target", f"{ROOT}{WHEELS_INSIDE}", "--python-version", PYTHON]
    words += ["--implementation", "cp", "--only-binary", ":all:"]
    words += [word for platform in PLATFORMS for word in ("--platform", platform)]
    run(*words, "-c", str(REPO / "requirements/constraints.txt"), *WHEELS)


def compile_python() -> None:
    """Byte code for everything, if this Python has the same: an emulated machine takes long."""
    if sys.version_info[:2] == tuple(int(part) for part in PYTHON.split(".")):
        folders = [f"{ROOT}/usr/lib/python{PYTHON}", f"{ROOT}{WHEELS_INSIDE}"]
        words = [sys.executable, "-m", "compileall", "-q", "-x", "lib2to3|/test/", "-s", str(ROOT)]
        run(*words, "-p", "/", *folders)


def add_checkout() -> None:
    """Copy this checkout's files and build what is compiled for aarch64."""
    inside = Path(f"{ROOT}{INSIDE}")
    shutil.rmtree(inside, ignore_errors=True)
    words = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = run(*words, cwd=REPO).split("\0")
    for name in filter(None, listed):
        if (REPO / name).is_file():
            target = inside / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(REPO / name, target)
    package = inside / "pants-plugins" / "rootseal"
    make = ["make", "-s", "-C"]
    run(*make, str(REPO / "native"), "aarch64", f"AARCH64={package / 'bin'}")
    run(*make, str(REPO / "bpf"), "ARCH=arm64", f"BIN={package / 'bin'}")
    for core, libraries in (("core", ("-lcrypto",)), ("trace", ("-lbpf", "-lcrypto"))):
        build_core(core, libraries, package)
    build_programs(Path(f"{ROOT}{PROGRAMS_INSIDE}"), f"--sysroot={ROOT}", compiler=COMPILER)


def build_core(core: str, libraries: tuple[str, ...], package: Path) -> None:
    """Cross-compile one of the C cores, with the flags that setup.py gives it."""
    builders = runpy.run_path(str(REPO / "pants-plugins/rootseal/_native_build.py"))
    source = ROOT.parent / f"_{core}.c"
    builders[core].emit_c_code(str(source))
    folder = {"core": "native/capture", "trace": "native/trace"}[core]
    words = [COMPILER, f"--sysroot={ROOT}", "-shared", "-D_GNU_SOURCE", f"-I{folder}"]
    words += builders["_COMPILE_FLAGS"]
    for include in (f"python{PYTHON}", f"aarch64-linux-gnu/python{PYTHON}"):
        words.append(f"-I{ROOT}/usr/include/{include}")
    words += [str(source), *builders["SOURCES"][folder]]
    words += [*builders["_LINK_FLAGS"], f"-L{ROOT}/usr/lib/aarch64-linux-gnu", *libraries]
    words += ["-Wl,--allow-shlib-undefined", "-lpthread"]
    run(*words, "-o", str(package / f"_{core}.abi3.so"), cwd=REPO)
