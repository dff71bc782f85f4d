"""Debian's kernels for the lab: download by apt, unpack, and pack an initramfs for each.

Nothing is installed: the packages are downloaded into build/lab and only what a boot needs is
unpacked. A kernel is named by its series (`6.1`, `6.1-arm64`); apt says which package is the newest
of it, and the release that really booted is part of every result.
"""

from __future__ import annotations

import dataclasses
import gzip
import lzma
import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import lab_arm64
from lab_apt import LAB, REPO, Archive, LabError, depends, download
from lab_programs import PROGRAMS

__all__ = ["LAB", "REPO", "Kernel", "LabError", "fetch", "require_tools"]

BOOKWORM, BULLSEYE = Archive("bookworm", "amd64"), Archive("bullseye", "amd64")
# Series -> where apt finds it, and the metapackage whose newest dependency it is.
META_PACKAGES = {
    "5.10": (BULLSEYE, "linux-image-amd64"),
    "6.1": (BOOKWORM, "linux-image-amd64"),
    "6.12": (BOOKWORM, "linux-image-6.12-amd64"),
    "6.1-arm64": (lab_arm64.ARCHIVE, "linux-image-arm64"),
}
UNPACK = ("./boot/vmlinuz-*", "./boot/config-*", "./lib/modules/*/kernel/*")
BUSYBOX = "./bin/busybox"
UNPACK_FOLDERS = ("fs", "crypto", "lib", "drivers/virtio", "drivers/block", "arch") + (
    "net/9p",
    "net/sunrpc",
    "net/dns_resolver",
)
MODULES = (
    ("virtio_pci", "virtio_mmio", "virtio_blk")
    + ("9pnet_virtio", "9p", "overlay", "loop")
    + ("crc32c_generic", "crc32c_cryptoapi", "ext4", "blake2b_generic", "xxhash_generic")
    + ("btrfs", "xfs", "fuse", "nfsd", "nfsv4")
)
WANTED = repr((UNPACK, UNPACK_FOLDERS))  # an older list may have left out a folder


@dataclasses.dataclass(frozen=True)
class Kernel:
    """An unpacked kernel.

    Attributes:
        series: For example `6.1`.
        architecture: As Debian names it.
        release: What `uname -r` says once booted.
        image: What qemu boots.
        initramfs: A gzip'd cpio archive that mounts the host's tree and starts the guest runner.
    """

    series: str
    architecture: str
    release: str
    image: Path
    initramfs: Path

    @property
    def root(self) -> Path:
        """The folder that is the guest's root: the host's own, or that of another architecture."""
        return lab_arm64.ROOT if self.architecture == "arm64" else Path("/")

    @property
    def repo(self) -> str:
        """The checkout, as the guest sees it."""
        return lab_arm64.INSIDE if self.architecture == "arm64" else str(REPO)

    @property
    def programs(self) -> str:
        """Where it finds the fixture programs, compiled."""
        inside = lab_arm64.PROGRAMS_INSIDE
        return inside if self.architecture == "arm64" else str(PROGRAMS)

    @property
    def python(self) -> str:
        """The interpreter of its tests."""
        return "/usr/bin/python3" if self.architecture == "arm64" else sys.executable

    @property
    def python_path(self) -> str:
        """Where that one finds the packages under test and those they need."""
        wheels = f":{lab_arm64.WHEELS_INSIDE}" if self.architecture == "arm64" else ""
        return f"{self.repo}/pants-plugins{wheels}"


def require_tools() -> None:
    """Check for what the lab needs of the host, and name the packages of what is missing."""
    needed = {
        "qemu-system-x86_64": "qemu-system-x86",
        "qemu-system-aarch64": "qemu-system-arm",
        lab_arm64.COMPILER: "gcc-aarch64-linux-gnu libc6-dev-arm64-cross",
        "cpio": "cpio",
        "setpriv": "util-linux",
        "apt-get": "apt (the lab takes Debian's kernels)",
        "dpkg-deb": "dpkg",
        "mkfs.ext4": "e2fsprogs",
        "mkfs.xfs": "xfsprogs",
        "mkfs.btrfs": "btrfs-progs",
    }
    path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    missing = [package for tool, package in needed.items() if not shutil.which(tool, path=path)]
    if missing:
        raise LabError(f"the kernel lab needs: sudo apt-get install {' '.join(missing)}")


def newest_package(series: str) -> str:
    """The package of the newest kernel of a series that apt knows, as its metapackage says."""
    archive, meta = META_PACKAGES[series]
    number = re.escape(series.split("-")[0])
    found = re.findall(rf"Depends: (linux-image-{number}\.\S+)", depends(archive, meta))
    if not found:
        raise LabError(f"apt knows no kernel {series}: {archive.release} has no such {meta}")
    return str(found[0])


def fetch(series: str) -> Kernel:
    """Download and unpack a kernel unless build/lab has it; pack its initramfs."""
    package = newest_package(series)
    archive = META_PACKAGES[series][0]
    folder = LAB / "kernels" / package
    if not is_unpacked(folder):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for name, members in ((package, UNPACK), ("busybox-static", (BUSYBOX,))):
            for file in download(archive, name, folder):
                _unpack(file, members, folder)
                file.unlink()
        _keep_modules(folder)
        (folder / "unpacked").write_text(WANTED, "utf-8")
    image = next((folder / "boot").glob("vmlinuz-*"))
    release = image.name[len("vmlinuz-") :]
    initramfs = folder / "initramfs.cpio.gz"
    pack_initramfs(folder / "lib" / "modules" / release, folder / "bin" / "busybox", initramfs)
    return Kernel(series, archive.architecture, release, image, initramfs)


def is_unpacked(folder: Path) -> bool:
    """Whether a kernel is there to its end, with what is wanted of it today."""
    stamp = folder / "unpacked"
    return stamp.exists() and stamp.read_text("utf-8") == WANTED


def _unpack(archive: Path, members: tuple[str, ...], folder: Path) -> None:
    with subprocess.Popen(
        ["dpkg-deb", "--fsys-tarfile", archive], stdout=subprocess.PIPE
    ) as source:
        command = ["tar", "-x", "--no-same-owner", "-C", str(folder), "--wildcards"]
        done = subprocess.run([*command, *members], stdin=source.stdout)
    if done.returncode != 0 or source.returncode != 0:
        raise LabError(f"{archive.name} could not be unpacked; remove {LAB} and try again")


def _keep_modules(folder: Path) -> None:
    """Remove the modules that no boot asks for: most of a kernel."""
    for modules in folder.glob("lib/modules/*/kernel"):
        keep = {modules / name for name in UNPACK_FOLDERS}
        for path in sorted(modules.glob("*")) + sorted(modules.glob("*/*")):
            related = any(path == k or k in path.parents or path in k.parents for k in keep)
            if path.is_dir() and not related:
                shutil.rmtree(path)


def module_bytes(path: Path) -> bytes:
    """A kernel module, decompressed."""
    data = path.read_bytes()
    return lzma.decompress(data) if path.suffix == ".xz" else data


def modules_in_order(folder: Path, wanted: tuple[str, ...]) -> list[tuple[str, bytes]]:
    """The wanted modules that exist as files, each after what its `depends=` field names.

    A wanted module without a file is built in, or does not exist for this kernel: the rows of the
    lab that need it then fail to mount and say so.
    """
    files = {p.name.split(".ko")[0].replace("-", "_"): p for p in folder.rglob("*.ko*")}
    ordered: dict[str, bytes] = {}

    def visit(name: str, above: tuple[str, ...]) -> None:
        name = name.replace("-", "_")
        if name in ordered or name in above or name not in files:
            return
        data = module_bytes(files[name])
        depends = re.search(rb"\0depends=([^\0]*)\0", data)
        for dependency in (depends.group(1).decode() if depends else "").split(","):
            visit(dependency, (*above, name))
        ordered[name] = data

    for name in wanted:
        visit(name, ())
    return list(ordered.items())


def pack_initramfs(modules: Path, busybox: Path, target: Path) -> None:
    """Write the initramfs: static busybox, the modules with their order, and guest_init.sh."""
    root = target.parent / "initramfs"
    shutil.rmtree(root, ignore_errors=True)
    for name in ("bin", "modules", "proc", "sys", "dev", "host", "lab", "newroot"):
        (root / name).mkdir(parents=True)
    shutil.copy(busybox, root / "bin" / "busybox")
    (root / "bin" / "sh").symlink_to("busybox")
    order = []
    for name, data in modules_in_order(modules, MODULES):
        (root / "modules" / f"{name}.ko").write_bytes(data)
        order.append(f"{name}\n")
    (root / "modules" / "order").write_text("".join(order), "ascii")
    init = root / "init"
    shutil.copy(Path(__file__).with_name("guest_init.sh"), init)
    init.chmod(init.stat().st_mode | stat.S_IXUSR | stat.S_IXGRP | stat.S_IXOTH)
    names = "\n".join(str(p.relative_to(root)) for p in sorted(root.rglob("*"))) + "\n"
    done = subprocess.run(
        ["cpio", "--quiet", "-o", "-H", "newc", "-R", "0:0"],
        cwd=root,
        input=names.encode(),
        capture_output=True,
    )
    if done.returncode != 0:
        raise LabError(f"cpio failed: {done.stderr.decode(errors='replace').strip()}")
    target.write_bytes(gzip.compress(done.stdout, 1))
    shutil.rmtree(root)
