"""Names of the numbers in trace events: calls, socket families, namespaces, requests.

Call ids are those of `enum rs_call` in bpf/event.h (a test compares them).
"""

from __future__ import annotations

import socket
from typing import Mapping

CALLS: Mapping[int, str] = {
    1: "open",
    2: "creat",
    3: "openat",
    4: "openat2",
    5: "open_by_handle_at",
    10: "write",
    11: "pwrite64",
    12: "writev",
    13: "pwritev",
    14: "sendto",
    15: "sendmsg",
    16: "sendmmsg",
    17: "sendfile",
    18: "copy_file_range",
    19: "splice",
    20: "socket",
    21: "connect",
    22: "bind",
    23: "socketcall",
    30: "rename",
    31: "renameat",
    32: "renameat2",
    33: "link",
    34: "linkat",
    35: "symlink",
    36: "symlinkat",
    37: "unlink",
    38: "unlinkat",
    39: "rmdir",
    40: "chmod",
    41: "fchmodat",
    42: "fchmodat2",
    43: "fchmod",
    44: "truncate",
    45: "ftruncate",
    46: "mknod",
    47: "mknodat",
    50: "memfd_create",
    51: "ptrace",
    52: "mount",
    53: "umount2",
    54: "open_tree",
    55: "move_mount",
    56: "fsopen",
    57: "fsmount",
    58: "fspick",
    59: "mount_setattr",
    60: "pivot_root",
    61: "chroot",
    62: "clone",
    63: "clone3",
    64: "unshare",
    65: "setns",
    66: "dup2",
    67: "dup3",
    68: "mprotect",
    69: "mmap",
    70: "prctl",
    71: "setsid",
    72: "init_module",
    73: "finit_module",
    74: "io_uring_setup",
    75: "process_vm_writev",
    76: "io_uring_open",
    77: "foreign_abi",
    78: "fsconfig",
    79: "file_open",
    80: "open_tree_attr",
    81: "memfd_secret",
    84: "dup",
    85: "fcntl",
    86: "io_uring_request",
}

RING_OPERATIONS: Mapping[int, str] = {
    16: "IORING_OP_CONNECT",
    35: "IORING_OP_RENAMEAT",
    36: "IORING_OP_UNLINKAT",
    38: "IORING_OP_SYMLINKAT",
    39: "IORING_OP_LINKAT",
    45: "IORING_OP_SOCKET",
    55: "IORING_OP_FTRUNCATE",
    56: "IORING_OP_BIND",
}

PRCTL: Mapping[int, str] = {
    4: "PR_SET_DUMPABLE",
    15: "PR_SET_NAME",
    22: "PR_SET_SECCOMP",
    38: "PR_SET_NO_NEW_PRIVS",
}

NAMESPACES: Mapping[int, str] = {
    0x00000080: "CLONE_NEWTIME",
    0x00020000: "CLONE_NEWNS",
    0x02000000: "CLONE_NEWCGROUP",
    0x04000000: "CLONE_NEWUTS",
    0x08000000: "CLONE_NEWIPC",
    0x10000000: "CLONE_NEWUSER",
    0x20000000: "CLONE_NEWPID",
    0x40000000: "CLONE_NEWNET",
}

PTRACE: Mapping[int, str] = {
    0: "PTRACE_TRACEME",
    4: "PTRACE_POKETEXT",
    5: "PTRACE_POKEDATA",
    7: "PTRACE_CONT",
    13: "PTRACE_SETREGS",
    16: "PTRACE_ATTACH",
    17: "PTRACE_DETACH",
    0x4206: "PTRACE_SEIZE",
}

_SOCKET_TYPE_MASK = 0xF  # the rest is SOCK_NONBLOCK and SOCK_CLOEXEC


def family(number: int) -> str:
    """`AF_INET` for 2, and so on; the number in decimal if it has no name here."""
    try:
        return socket.AddressFamily(number).name
    except ValueError:
        return str(number)


def socket_type(number: int) -> str:
    """`SOCK_STREAM` for 1, flags left out."""
    try:
        return socket.SocketKind(number & _SOCKET_TYPE_MASK).name
    except ValueError:
        return str(number)


def flags(value: int, names: Mapping[int, str]) -> str:
    """The names of the bits that are set, joined by `|`; unknown bits are left out."""
    return "|".join(name for bit, name in names.items() if value & bit)
