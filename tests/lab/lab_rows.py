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


def without(tests: tuple[str, ...], name: str) -> tuple[str, ...]:
    """What is left of a list where another row has that test: it takes half a minute."""
    left = tuple(test for test in tests if not test.endswith(f"::test_{name}"))
    if len(left) != len(tests) - 1:
        raise ValueError(f"no test {name} to leave out")
    return left


FILESYSTEMS = kernel("filesystems")
# What there is to ask of the row's own filesystem; the others are mounted in FILESYSTEMS.
HERE = (
    *kernel("lab_facts"),
    "tests/kernel/test_filesystems.py::test_files_of_this_filesystem_are_held",
    "tests/kernel/test_filesystems.py::test_doctor_shows_each_mount_as_the_capture_finds_it",
)
FACTS = kernel("lab_facts") + FILESYSTEMS
# Without what only the launcher's tracer decides, in the same way on every kernel.
FACTS_HERE = (
    *kernel("lab_facts"),
    *(
        f"tests/kernel/test_filesystems.py::test_{name}"
        for name in (
            "files_of_this_filesystem_are_held",
            "doctor_shows_each_mount_as_the_capture_finds_it",
            "files_of_a_mounted_filesystem_are_held",
            "kernel_interfaces_are_left_out_with_a_reason",
            "what_others_serve_is_only_observed",
            "what_a_process_serves_is_only_observed",
            "a_server_that_says_its_files_are_sealed_is_not_believed",
            "another_users_fuse_mount_is_marked_though_root_may_not_look_at_it",
            "an_output_directory_that_cannot_be_listed_is_counted",
            "reads_that_end_early_are_completed_counted_and_no_loss",
        )
    ),
)
GATE_OF_IMA = tuple(
    f"tests/kernel/test_gate_command.py::test_{name}[ima]"
    for name in (
        "every_counter_is_in_the_record_and_in_the_root",
        "after_a_loss_there_is_nothing",
    )
)
IMA = (*kernel("ima_kernel"), *GATE_OF_IMA)
# Debian's kernels have IMA, and without ima_policy= a list of the boot aggregate alone.
NO_IMA = ("tests/kernel/test_ima_kernel.py::test_doctor_says_what_a_run_would_find",)
VERITY = kernel("fsverity_kernel", "fsverity_capture", "seal_artifacts_kernel", "fsverity_figures")
SEALING = kernel("fsverity_run")
NFS = kernel("nfs")
# What another kernel's client could do in another way.
NFS_HERE = tuple(
    f"tests/kernel/test_nfs.py::test_{name}"
    for name in (
        "what_it_serves_is_only_observed",
        "a_change_on_the_server_is_seen[auto]",
        "products_are_found_and_what_was_removed_is_none",
        "an_action_that_removes_its_own_root",
        "a_file_that_the_server_keeps_from_root[auto]",
    )
)
TOOLCHAINS = kernel("toolchain_action")
# The whole files run on the host; each of their tests starts a daemon and several processes.
TOOLCHAINS_HERE = tuple(
    f"tests/kernel/test_toolchain_action.py::test_{name}"
    for name in (
        "an_unknown_tool_fails_the_action_and_nothing_is_signed[fanotify]",
        "an_unknown_library_of_a_known_program_fails_the_action[preload-fanotify]",
        "an_unknown_library_of_a_known_program_fails_the_action[dlopen-fanotify+ebpf]",
        "known_libraries_pass_wherever_they_are_and_data_need_not_be_listed[fanotify+ebpf]",
        "a_modified_tool_is_named_with_the_manifest_that_lists_it",
        "a_root_that_holds_tools_is_refused_before_the_action_runs[/]",
    )
)
RUN = kernel("run_command")
MATERIALS, PRODUCTS = kernel("fanotify_materials"), kernel("fanotify_products")
CAPTURE = MATERIALS + PRODUCTS
EBPF = kernel("ebpf", "ebpf_daemon", "ebpf_net", "observed")
WHICH = kernel("step_down", "programs", "process_fields")
BOTH_HERE = tuple(
    f"tests/kernel/test_ebpf_daemon.py::test_{name}"
    for name in (
        "auto_is_fanotify_with_ebpf",
        "record_says_how_opens_were_told",
        "a_compilation_has_both_witnesses",
        "what_only_fanotify_saw_is_told_apart",
        "a_file_is_named_as_it_is_behind_links",
        "opens_without_content_are_typed",
        "new_mount_that_is_not_marked_shows_in_the_ledger",
        "many_at_once",
        "a_full_ring_is_a_loss_that_the_gate_refuses",
    )
)
OBSERVED_HERE = tuple(
    f"tests/kernel/test_observed.py::test_{name}"
    for name in (
        "posture_is_observed_and_says_how",
        "loader_and_script_and_its_interpreter",
        "an_inherited_file_is_a_material",
        "what_is_too_late_is_counted[rm in-gone]",
        "a_change_by_others_after_the_open_is_found",
        "a_product_of_nobody_is_foreign",
        "own_products_are_not_foreign",
        "a_cap_is_counted",
    )
)
EBPF_HERE = kernel("ebpf", "ebpf_net") + BOTH_HERE + OBSERVED_HERE
# By tracepoints alone, which 6.12 has all tests for: here is what another machine could change.
EBPF_ARM = kernel("ebpf", "ebpf_net") + BOTH_HERE[:5] + OBSERVED_HERE[:3]
LAUNCHER = kernel("launcher")
NOT_PERMITTED = kernel("ptrace_not_permitted")
YAMA = tuple(f"{name}::test_user_whom_yama_refuses_is_not_taken_for_root" for name in NOT_PERMITTED)
CLOCK = kernel("clock")  # nowhere else: the host's clock is not ours to set
# What the launcher's tracer sees of these calls: registers and numbers differ by machine.
TRACED = tuple(
    f"tests/kernel/test_backends.py::test_call_is_seen[ptrace-{call}]"
    for call in ("openat", "openat2", "write_at_exit", "mmap_write", "renameat2", "linkat")
    + ("symlinkat", "unlinkat", "fchmodat", "truncate", "connect", "memfd_create", "burst")
)


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
        tests: Test files, or single tests.
        expects: Capabilities of this filesystem, beside those of the boot.
        figure_bytes: Size of the file that figures are taken with.
    """

    boot: str
    filesystem: str
    tests: tuple[str, ...]
    expects: tuple[str, ...] = ()
    figure_bytes: int = 8 << 20

    @property
    def name(self) -> str:
        """For example `6.12-bpf-ima/ext4`."""
        return f"{self.boot}/{self.filesystem}"


BOOTS = (  # in the order that lets two at a time end together
    Boot("host", None, "", ()),
    Boot("6.12-nobpf", "6.12", "lsm=yama", ("fanotify", "btf", "no-bpf-lsm")),
    Boot("6.1-arm64", "6.1-arm64", "lsm=yama", ("fanotify", "btf", "no-bpf-lsm")),
    Boot(
        "6.12-bpf-ima",
        "6.12",
        "lsm=bpf,integrity ima_policy=tcb",
        ("fanotify", "btf", "bpf-lsm", "ima"),
    ),
    Boot("6.1-bpf", "6.1", "lsm=bpf", ("fanotify", "btf", "bpf-lsm")),
    Boot("5.10", "5.10", "lsm=yama", ("fanotify", "no-bpf-lsm")),
)

# Disk images made on the host for each boot: name -> (size in MiB, command that formats it).
DISKS = {
    "ext4": (3072, ("mkfs.ext4", "-q", "-F", "-O", "verity")),
    "xfs": (1024, ("mkfs.xfs", "-q", "-f")),
    "btrfs": (1024, ("mkfs.btrfs", "-q", "-f")),
}

# What depends on the kernel runs on each that can do it, what depends on the filesystem on each of
# them, and the rest on one: two processors are to be done with all rows in a quarter of an hour.
# With ima_policy=tcb the emulated kernel hashes every file that root reads too, so that boot gets
# few. The host's own kernel runs what the guests run; `make test` runs all of the group there.
ROWS = (
    Row(
        "host",
        "own",
        FACTS
        + VERITY
        + IMA
        + RUN
        + TOOLCHAINS
        + CAPTURE
        + EBPF
        + WHICH
        + LAUNCHER
        + NOT_PERMITTED
        + TRACED,
    ),
    Row(
        "6.12-nobpf",
        "overlay",
        without(FACTS_HERE, "reads_that_end_early_are_completed_counted_and_no_loss")
        + TOOLCHAINS_HERE
        + PRODUCTS
        + NFS_HERE
        + without(EBPF_HERE, "what_is_too_late_is_counted[rm in-gone]"),
    ),
    Row("6.12-nobpf", "ext4", HERE + NO_IMA + VERITY + SEALING, ("fs-verity",), 1 << 30),
    Row("6.12-nobpf", "btrfs", HERE, ("fs-verity",)),
    Row("6.12-nobpf", "xfs", HERE, ("no-fs-verity",)),
    Row(
        "6.1-bpf",
        "ext4",
        FACTS_HERE + VERITY + CLOCK + NFS + without(EBPF_HERE, "many_at_once"),
        ("fs-verity",),
    ),
    Row("6.1-bpf", "btrfs", HERE + VERITY, ("fs-verity",)),
    Row("6.1-bpf", "overlay", HERE),
    Row("6.1-bpf", "tmpfs", HERE, ("no-fs-verity",)),
    Row("6.1-bpf", "xfs", HERE, ("no-fs-verity",)),
    # eBPF on 6.1 without bpf in lsm=: by tracepoints alone.
    Row(
        "6.1-arm64", "ext4", HERE + MATERIALS + EBPF_ARM + LAUNCHER + YAMA + TRACED, ("fs-verity",)
    ),
    Row("6.12-bpf-ima", "ext4", HERE + IMA + BOTH_HERE[:3], ("fs-verity",)),
    Row("6.12-bpf-ima", "overlay", HERE),
    Row("6.12-bpf-ima", "tmpfs", HERE, ("no-fs-verity",)),
    Row("5.10", "ext4", HERE + CAPTURE + LAUNCHER + YAMA + TRACED[:1], ("fs-verity",)),
)


def rows_of(boot: str) -> tuple[Row, ...]:
    """The rows of a boot."""
    return tuple(row for row in ROWS if row.boot == boot)
