"""What is kept of a system call that is recorded for itself: the same words for every backend.

A backend gives the numbers of the arguments in their places and the texts in the order of `TEXTS`;
docs/predicate.md lists what comes out. Pure.
"""

from __future__ import annotations

from typing import Dict, Mapping, Sequence, Tuple, Union

from rootseal import canonical
from rootseal.capture import trace_names

Details = Tuple[Tuple[str, Union[int, str]], ...]

# Names that one architecture has for the call of another.
_SAME = {
    "mmap2": "mmap",
    "sendfile64": "sendfile",
    "pkey_mprotect": "mprotect",
    "umount": "umount2",
    "fcntl64": "fcntl",
}

# For each call: which argument has which name, and the names of its texts.
_NUMBERS: Mapping[str, Mapping[str, int]] = {
    "memfd_create": {"flags": 1},
    "mount": {"flags": 3},
    "umount2": {"flags": 1},
    "open_tree": {"flags": 2},
    "open_tree_attr": {"flags": 2},
    "fspick": {"flags": 2},
    "mount_setattr": {"flags": 2},
    "fsconfig": {"fd": 0, "command": 1},
    "fsmount": {"fd": 0},
    "io_uring_setup": {"entries": 0},
    "process_vm_writev": {"pid": 0},
    "dup": {"from": 0, "to": 1},
    "dup2": {"from": 0, "to": 1},
    "dup3": {"from": 0, "to": 1},
    "fcntl": {"from": 0, "to": 1},
    "ptrace": {"pid": 1},
    "seccomp": {"operation": 0, "flags": 1},
}
TEXTS: Mapping[str, Tuple[str, ...]] = {
    "memfd_create": ("name",),
    "prctl": ("name",),
    "mount": ("source", "target", "type"),
    "umount2": ("target",),
    "chroot": ("path",),
    "fsopen": ("type",),
    "uselib": ("path",),
    "pivot_root": ("new", "old"),
    "open_tree": ("path",),
    "open_tree_attr": ("path",),
    "fspick": ("path",),
    "mount_setattr": ("path",),
    "move_mount": ("source", "target"),
    "copy_file_range": ("source", "destination"),
    "splice": ("source", "destination"),
    "sendfile": ("source", "destination"),
    "finit_module": ("path",),
}
FILE_CALLS = ("copy_file_range", "splice", "sendfile", "finit_module")  # texts are open files
_NAMESPACE_ARGUMENT = {"clone": 0, "clone3": 0, "unshare": 0, "setns": 1}
_PROT_WRITE, _MAP_ANONYMOUS = 2, 0x20
_SIGNAL_BITS = 0xFF  # of clone's flags
_EXACT_MAX = 2**53


def call_name(name: str) -> str:
    """The name that every architecture knows."""
    return _SAME.get(name, name)


def call_details(name: str, args: Sequence[int], texts: Sequence[bytes]) -> Details:
    """The details of a call, sorted by name.

    Args:
        name: As `call_name` gives it.
        args: At least four; those that are pointers mean nothing.
        texts: In the order of `TEXTS`; further ones are dropped, missing ones left out.
    """
    found: Dict[str, Union[int, str]] = dict(_special(name, args))
    for key, index in _NUMBERS.get(name, {}).items():
        value = args[index]
        found[key] = value if value < _EXACT_MAX else hex(value)
    for key, text in zip(TEXTS.get(name, ()), texts):
        found[key] = canonical.path_text(text)
    return tuple(sorted(found.items()))


def _special(name: str, args: Sequence[int]) -> Dict[str, Union[int, str]]:
    """Arguments that say more as words."""
    if name == "io_uring_request":
        return {"operation": trace_names.RING_OPERATIONS.get(args[0], str(args[0]))}
    if name in _NAMESPACE_ARGUMENT:
        value = args[_NAMESPACE_ARGUMENT[name]]
        value &= ~_SIGNAL_BITS if name == "clone" else -1
        return {"namespaces": trace_names.flags(value, trace_names.NAMESPACES)}
    if name == "ptrace":
        return {"request": trace_names.PTRACE.get(args[0], str(args[0]))}
    if name == "prctl":
        option = trace_names.PRCTL.get(args[0], str(args[0]))
        return {"option": option} if args[0] == 15 else {"option": option, "value": args[1]}
    if name not in ("mmap", "mprotect"):
        return {}
    words: Dict[str, Union[int, str]] = {"writable": _yes(args[2] & _PROT_WRITE)}
    if name == "mmap":
        words["anonymous"] = _yes(args[3] & _MAP_ANONYMOUS)
    return words


def _yes(bit: int) -> str:
    return "yes" if bit else "no"
