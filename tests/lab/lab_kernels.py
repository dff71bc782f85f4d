"""Debian's kernels for the lab: download by apt, unpack, and pack an initramfs for each.

Nothing is installed: the packages are downloaded into build/lab and only what a boot needs is
unpacked. A kernel is named by its series (`6.1`); apt says which package is the newest of it, and
the release that really booted is part of every result.
"""

from __future__ import annotations

import dataclasses
import gzip
import lzma
import re
import shutil
import stat
import subprocess
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]
LAB = REPO / "build" / "lab"
BUSYBOX = Path("/bin/busybox")
META_PACKAGES = {"6.1": "linux-image-amd64", "6.12": "linux-image-6.12-amd64"}
UNPACK = ("./boot/vmlinuz-*", "./boot/config-*", "./lib/modules/*/kernel/*")
UNPACK_FOLDERS = ("fs", "crypto", "lib", "net/9p", "drivers/virtio", "drivers/block")
MODULES = (
    ("virtio_pci", "virtio_mmio", "virtio_blk")
    + ("9pnet_virtio", "9p", "overlay", "loop")
    + ("crc32c_generic", "crc32c_cryptoapi", "ext4", "blake2b_generic", "xxhash_generic")
    + ("btrfs", "xfs", "fuse")
)


class LabError(Exception):
    """The lab cannot run; the message says what to do."""


@dataclasses.dataclass(frozen=True)
class Kernel:
    """An unpacked kernel.

    Attributes:
        series: For example `6.1`.
        release: What `uname -r` says once booted.
        image: The bzImage.
        initramfs: A gzip'd cpio archive that mounts the host's tree and starts the guest runner.
    """

    series: str
    release: str
    image: Path
    initramfs: Path


def _run(*command: str, cwd: Path | None = None) -> str:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    if done.returncode != 0:
        last = (done.stderr.strip() or done.stdout.strip() or "no output").splitlines()[-1]
        raise LabError(f"{' '.join(command)} failed: {last}")
    return done.stdout


def require_tools() -> None:
    """Check for what the lab needs of the host, and name the packages of what is missing."""
    needed = {
        "qemu-system-x86_64": "qemu-system-x86",
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
    if not BUSYBOX.exists() or b"/ld-linux" in BUSYBOX.read_bytes()[:8192]:  # not static
        missing.append("busybox-static")
    if missing:
        raise LabError(f"the kernel lab needs: sudo apt-get install {' '.join(missing)}")


def newest_package(series: str) -> str:
    """The package of the newest kernel of a series that apt knows, as its metapackage says."""
    meta = META_PACKAGES[series]
    text = _run("apt-cache", "depends", "--important", meta)
    pattern = rf"Depends: (linux-image-{re.escape(series)}\.\S+)"
    found = re.findall(pattern, text)
    if not found:
        raise LabError(
            f"apt knows no kernel {series} ({meta}); on Debian 12 run: sudo apt-get update"
        )
    return str(found[0])


def fetch(series: str) -> Kernel:
    """Download and unpack a kernel unless build/lab has it; pack its initramfs."""
    package = newest_package(series)
    folder = LAB / "kernels" / package
    if not (folder / "complete").exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        _run("apt-get", "download", "-q", package, cwd=folder)
        for archive in folder.glob("*.deb"):
            _unpack(archive, folder)
            archive.unlink()
        (folder / "complete").touch()
    image = next((folder / "boot").glob("vmlinuz-*"))
    release = image.name[len("vmlinuz-") :]
    initramfs = folder / "initramfs.cpio.gz"
    pack_initramfs(folder / "lib" / "modules" / release, initramfs)
    return Kernel(series, release, image, initramfs)


def _unpack(archive: Path, folder: Path) -> None:
    with subprocess.Popen(
        ["dpkg-deb", "--fsys-tarfile", archive], stdout=subprocess.PIPE
    ) as source:
        command = ["tar", "-x", "--no-same-owner", "-C", str(folder), "--wildcards"]
        done = subprocess.run([*command, *UNPACK], stdin=source.stdout)
    if done.returncode != 0 or source.returncode != 0:
        raise LabError(f"{archive.name} could not be unpacked; remove {LAB} and try again")
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


def pack_initramfs(modules: Path, target: Path) -> None:
    """Write the initramfs: static busybox, the modules with their order, and guest_init.sh."""
    root = target.parent / "initramfs"
    shutil.rmtree(root, ignore_errors=True)
    for name in ("bin", "modules", "proc", "sys", "dev", "host", "lab", "newroot"):
        (root / name).mkdir(parents=True)
    shutil.copy(BUSYBOX, root / "bin" / "busybox")
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
