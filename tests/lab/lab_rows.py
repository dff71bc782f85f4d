"""What the lab proves: boots (a kernel with a command line) and rows (a boot with a filesystem).

A row runs tests of the kernel group with its temporary files on the row's filesystem. `expects`
names what the booted kernel must really have; tests/kernel/test_lab_facts.py checks each of them,
so a row can never quietly run without the capability it is there for.
"""

from __future__ import annotations

import dataclasses


def kernel(*names: str) -> tuple[str, ...]:
    """Test files of the kernel group."""
    return tuple(f"tests/kernel/test_{name}.py" for name in names)


ALL = ("tests/kernel",)
FACTS = kernel("lab_facts", "filesystems")
IMA = kernel("ima_kernel")
VERITY = kernel("fsverity_kernel", "fsverity_capture", "seal_artifacts_kernel", "fsverity_figures")
SEALING = kernel("fsverity_run")
TOOLCHAINS = kernel("toolchain_action")
CAPTURE = kernel("fanotify_materials", "fanotify_products")
EBPF = kernel("ebpf", "ebpf_daemon", "ebpf_net")
LAUNCHER = kernel("launcher")


@dataclasses.dataclass(frozen=True)
class Boot:
    """One virtual machine.

    Attributes:
        name: First part of the names of its rows.
        series: Kernel series, None for the host's own kernel.
        command_line: Added to the kernel's command line.
        expects: Capabilities that this kernel must show, checked inside.
    """

    name: str
    series: str | None
    command_line: str
    expects: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Row:
    """The tests of one boot on one filesystem.

    Attributes:
        boot: Name of the boot.
        filesystem: Where the tests' temporary files are: a key of `DISKS`, `overlay` or `tmpfs`;
            on the host `own`, its build folder.
        tests: Test files, in every run.
        more: Test files that only the whole run (`make lab`) has time for.
        quick: Whether `make ci` runs the row too.
        expects: Capabilities of this filesystem, beside those of the boot.
        figure_bytes: Size of the file that figures are taken with.
    """

    boot: str
    filesystem: str
    tests: tuple[str, ...]
    more: tuple[str, ...]
    quick: bool
    expects: tuple[str, ...] = ()
    figure_bytes: int = 8 << 20

    @property
    def name(self) -> str:
        """For example `6.12-bpf-ima/ext4`."""
        return f"{self.boot}/{self.filesystem}"


BOOTS = (
    Boot("host", None, "", ()),
    Boot("6.1-bpf", "6.1", "lsm=bpf", ("fanotify", "btf", "bpf-lsm")),
    Boot(
        "6.12-bpf-ima",
        "6.12",
        "lsm=bpf,integrity ima_policy=tcb",
        ("fanotify", "btf", "bpf-lsm", "ima"),
    ),
    Boot("6.12-nobpf", "6.12", "lsm=yama", ("fanotify", "btf", "no-bpf-lsm")),
)

# Disk images made on the host for each boot: name -> (size in MiB, command that formats it).
DISKS = {
    "ext4": (3072, ("mkfs.ext4", "-q", "-F", "-O", "verity")),
    "xfs": (1024, ("mkfs.xfs", "-q", "-f")),
    "btrfs": (1024, ("mkfs.btrfs", "-q", "-f")),
}

# With ima_policy=tcb every file that root reads is hashed by the emulated kernel too, so that boot
# gets few tests; the capture on 6.12 is proven by the other one.
ROWS = (
    Row("host", "own", ALL, (), False),
    Row("6.1-bpf", "ext4", FACTS + VERITY, SEALING + CAPTURE + LAUNCHER, True, ("fs-verity",)),
    Row("6.1-bpf", "btrfs", FACTS + VERITY, (), False, ("fs-verity",)),
    Row("6.1-bpf", "overlay", FACTS, CAPTURE, False),
    Row("6.1-bpf", "tmpfs", FACTS, CAPTURE, True, ("no-fs-verity",)),
    Row("6.1-bpf", "xfs", FACTS, (), False, ("no-fs-verity",)),
    Row("6.12-bpf-ima", "ext4", FACTS + IMA, EBPF, True, ("fs-verity",)),
    Row("6.12-bpf-ima", "overlay", FACTS + IMA, (), False),
    Row("6.12-bpf-ima", "tmpfs", FACTS + IMA, (), False, ("no-fs-verity",)),
    Row("6.12-nobpf", "overlay", FACTS, TOOLCHAINS + CAPTURE + EBPF, True),
    Row("6.12-nobpf", "ext4", FACTS + VERITY + SEALING, (), False, ("fs-verity",), 1 << 30),
    Row("6.12-nobpf", "btrfs", FACTS + VERITY, (), False, ("fs-verity",)),
    Row("6.12-nobpf", "xfs", FACTS, (), False, ("no-fs-verity",)),
)


def rows_of(boot: str, *, quick: bool) -> tuple[Row, ...]:
    """The rows of a boot, all or only those of `make ci`."""
    return tuple(row for row in ROWS if row.boot == boot and (row.quick or not quick))
