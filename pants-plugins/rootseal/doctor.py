"""What this host can capture, why not, and the exact remedy. Looks; changes nothing."""

from __future__ import annotations

import ctypes
import dataclasses
import gzip
import os
import platform
import resource
import struct
from pathlib import Path
from typing import Dict, List, Optional, Tuple

from rootseal import wire
from rootseal.capture import ima
from rootseal.daemon import LAUNCHER
from rootseal.daemon_backends import (
    GROUPS_RESERVED,
    probe_access,
    probe_ebpf,
    probe_fanotify,
    probe_ptrace,
)
from rootseal.daemon_limits import GOOD_LIMIT, limit_remedy
from rootseal.daemon_options import options_of
from rootseal.errors import BackendUnavailable, CaptureError
from rootseal.executable import rootseal_command, system_daemon_command
from rootseal.observation import Posture
from rootseal.privileges import CAP_BPF, CAP_SYS_ADMIN, has_capability

HELPER_PLACES = (
    "/usr/local/libexec/rootseal/rootseal-scope",
    "/usr/libexec/rootseal/rootseal-scope",
)
KERNEL_MIN = (5, 10)
ACCESS_KERNEL_MIN = (6, 14)
GROUPS_GOOD = 32
AWAKE_BY_OPTION = ("switched off", "only asked for")  # reasons that --stay-awake on ends
_XATTR_MAGIC = struct.Struct("<II")


@dataclasses.dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        name: For machines, lowerCamelCase.
        good: Whether it is as Rootseal would like it.
        needed: Whether the strongest posture of this release needs it.
        found: What is there.
        remedy: What to do if it is not good; empty if nothing can or need be done.
    """

    name: str
    good: bool
    needed: bool
    found: str
    remedy: str


@dataclasses.dataclass(frozen=True)
class Diagnosis:
    """Everything that was found.

    Attributes:
        findings: In the order to be shown.
        posture: The posture that an action of this user would reach now.
        reason: Why not `held`, or not by fanotify; empty if by fanotify.
        postures: Each posture and whether it can be reached.
    """

    findings: Tuple[Finding, ...]
    posture: Posture
    reason: str
    postures: Dict[str, bool]


def diagnose() -> Diagnosis:
    """Look at everything."""
    system = _daemon("systemDaemon", (wire.SYSTEM_SOCKET,))
    own = _daemon("userDaemon", wire.user_socket_paths(os.getuid()))
    findings = (
        _kernel(),
        _launcher(),
        _privileges(),
        _fanotify(system[1]),
        _group_limit(),
        _access(system[1] or own[1]),
        _descriptors(system[1] or own[1]),
        _awake(system[1] or own[1]),
        _helper(),
        system[0],
        own[0],
        _file("btf", "/sys/kernel/btf/vmlinux", "A kernel with CONFIG_DEBUG_INFO_BTF."),
        _bpf(),
        _ebpf(system[1] or own[1]),
        _ptrace(),
        _fs_verity(),
        _ima(),
    )
    daemon = system[1] or own[1]
    posture, reason = _reachable(findings, daemon)
    order = list(Posture)
    reached = {item.value: order.index(item) <= order.index(posture) for item in order}
    by_name = {finding.name: finding for finding in findings}
    reached[Posture.OBSERVED.value] = by_name["ebpf"].good  # the only one that observes
    return Diagnosis(findings, posture, reason, reached)


def _reachable(
    findings: Tuple[Finding, ...], daemon: Optional[Dict[str, object]]
) -> Tuple[Posture, str]:
    by_name = {finding.name: finding for finding in findings}
    if daemon is not None:
        backend, why = daemon["backend"], f"the daemon: {daemon['reason']}"
    else:
        backend = "fanotify" if by_name["fanotify"].good else "walk"
        why = by_name["fanotify"].found
    if backend == "fanotify" and not by_name["privileges"].good and not by_name["helper"].good:
        backend, why = "walk", "actions cannot get a private mount namespace"
    if backend != "fanotify" and by_name["ptrace"].good:
        return Posture.HELD, f"by ptrace, not fanotify: {why}"
    if backend == "fanotify":
        return Posture.HELD, ""
    return (Posture.OBSERVED if by_name["ebpf"].good else Posture.WALKED), why


def _version() -> Tuple[int, ...]:
    """Major and minor number of the kernel."""
    numbers = platform.release().split("-")[0].split(".")
    return tuple(int(part) for part in numbers[:2] if part.isdigit())


def _kernel() -> Finding:
    release = platform.release()
    good = _version() >= KERNEL_MIN
    remedy = "" if good else "Use a kernel of version 5.10 or newer."
    return Finding("kernel", good, True, f"{release} {platform.machine()}", remedy)


def _launcher() -> Finding:
    good = os.access(LAUNCHER, os.X_OK)
    return Finding("launcher", good, True, str(LAUNCHER), "" if good else "Run `make build`.")


def _privileges() -> Finding:
    good = has_capability(CAP_SYS_ADMIN)
    found = f"uid {os.getuid()}, {'with' if good else 'without'} CAP_SYS_ADMIN"
    return Finding(
        "privileges", good, False, found, "" if good else "None: the helper replaces it."
    )


def _fanotify(system: Optional[Dict[str, object]]) -> Finding:
    if system is not None and system["backend"] == "fanotify":
        return Finding("fanotify", True, False, "permission events, by the system daemon", "")
    problem = probe_fanotify()
    if problem is None:
        return Finding("fanotify", True, False, "permission events work", "")
    remedy = problem.remedy
    if os.getuid() != 0:
        remedy = f"Run `{system_daemon_command()}`."
    return Finding("fanotify", False, False, problem.reason, remedy)


def _group_limit() -> Finding:
    path = Path("/proc/sys/fs/fanotify/max_user_groups")
    if not path.exists():
        return Finding("fanotifyGroups", False, False, f"{path} is missing", "")
    limit = int(path.read_text())
    reserved = min(GROUPS_RESERVED, limit // 2)
    found = f"{limit} of a user ({path}): {max(1, limit - reserved)} actions at once, more wait"
    remedy = f"For more at once, without a restart: {_sudo()}sysctl fs.fanotify.max_user_groups="
    return Finding("fanotifyGroups", limit >= GROUPS_GOOD, False, found, f"{remedy}{8 * limit}")


def _descriptors(daemon: Optional[Dict[str, object]]) -> Finding:
    """What the limit of open files allows: that of the daemon, else that of this process."""
    limit, found = resource.getrlimit(resource.RLIMIT_NOFILE)[1], "of this process; no daemon runs"
    share = daemon.get("descriptors") if daemon is not None else None
    if isinstance(share, dict):
        limit = int(share["limit"])
        found = (
            f"of the daemon: {share['actions']} actions and {share['clients']} clients at once, "
            "more actions wait"
        )
    good = limit >= GOOD_LIMIT
    options = options_of(daemon.get("options")) if daemon is not None else ()
    owner = daemon.get("uid") if daemon is not None else None
    command = limit_remedy(options, owner=owner if isinstance(owner, int) else None)
    remedy = "" if good else f"For more at once: {command}"
    return Finding("descriptors", good, False, f"{limit} open files {found}", remedy)


def _awake(daemon: Optional[Dict[str, object]]) -> Finding:
    """Whether idle CPUs stay awake while opens are dense; only the daemon knows."""
    status = daemon.get("awake") if daemon is not None else None
    if not isinstance(status, dict):
        return Finding("stayAwake", False, False, "no daemon runs, so nothing asks for it", "")
    if status["on"]:
        return Finding("stayAwake", True, False, "idle CPUs stay awake while opens are dense", "")
    remedy = ""
    if any(text in str(status["reason"]) for text in AWAKE_BY_OPTION):
        command = rootseal_command("daemon", "ensure", "--stay-awake", "on", sudo=True)
        remedy = f"Opens may be slower on a virtual machine; to switch it on: {command}"
    return Finding("stayAwake", False, False, str(status["reason"]), remedy)


def _sudo() -> str:
    return "" if os.getuid() == 0 else "sudo "


def _access(daemon: Optional[Dict[str, object]]) -> Finding:
    """Whether a file that changes between its open and a read or mmap is caught there."""
    name, good = "accessComparison", "what changes between open and read or mmap is caught there"
    late = "what changes after its open is found at the end only"
    if daemon is not None and daemon["backend"] == "fanotify":
        if daemon.get("comparesAtAccess"):
            return Finding(name, True, False, f"{good}, by the daemon", "")
        late += ", by the daemon"
    if _version() < ACCESS_KERNEL_MIN:
        remedy = "Use a kernel of version 6.14 or newer (ext4, xfs or btrfs)."
        return Finding(name, False, False, f"the kernel has no FAN_PRE_ACCESS: {late}", remedy)
    problem = probe_access()
    if daemon is not None and problem is None:
        remedy = "Run the daemon with --compare-at-access=auto."
        return Finding(name, False, False, late, remedy)
    if problem is None:
        return Finding(name, True, False, good, "")
    return Finding(name, False, False, f"FAN_PRE_ACCESS: {problem}: {late}", "See fanotify.")


def helper_problem(path: str) -> Optional[str]:
    """Why the helper at a path does not work; None if it does."""
    try:
        found = Path(path).stat()
    except OSError as error:
        return f"{path}: {error.strerror}"
    if found.st_uid != 0 or found.st_mode & 0o022:
        return f"{path} is not root's alone"
    if not os.access(path, os.X_OK):
        return f"{path} may not be executed"
    if os.statvfs(path).f_flag & os.ST_NOSUID:
        return f"{path} is on a file system mounted nosuid"
    if found.st_mode & 0o4000:
        return None
    try:
        value = os.getxattr(path, "security.capability")
    except OSError:
        return f"{path} has no file capability"
    permitted = _XATTR_MAGIC.unpack_from(value)[1] if len(value) >= _XATTR_MAGIC.size else 0
    return None if permitted >> CAP_SYS_ADMIN & 1 else f"{path} lacks cap_sys_admin"


def _helper() -> Finding:
    remedy = "Run `sudo make install-helper` (SECURITY.md says why it is safe)."
    problems = []
    for path in HELPER_PLACES:
        problem = helper_problem(path)
        if problem is None:
            if _no_new_privileges():
                return Finding(
                    "helper", False, False, "no_new_privs is set, so it has no effect", ""
                )
            return Finding("helper", True, False, path, "")
        problems.append(problem)
    return Finding("helper", False, False, "; ".join(problems), remedy)


def _no_new_privileges() -> bool:
    return int(ctypes.CDLL(None).prctl(39, 0, 0, 0, 0)) == 1  # PR_GET_NO_NEW_PRIVS


def _daemon(name: str, places: Tuple[str, ...]) -> Tuple[Finding, Optional[Dict[str, object]]]:
    problems = []
    for path in places:
        try:
            found = wire.status(path)
        except wire.DaemonError as error:
            problems.append(str(error))
            continue
        text = f"{found['socket']}, posture {found['posture']}, pid {found['pid']}"
        return Finding(name, True, False, text, ""), found
    own = rootseal_command("daemon", "ensure")
    remedy = f"Run `{system_daemon_command() if name == 'systemDaemon' else own}`."
    return Finding(name, False, False, "; ".join(problems), remedy), None


def _file(name: str, path: str, remedy: str) -> Finding:
    good = Path(path).exists()
    return Finding(
        name, good, False, path if good else f"{path} is missing", "" if good else remedy
    )


def _bpf() -> Finding:
    admin = has_capability(CAP_BPF)
    path = Path("/proc/sys/kernel/unprivileged_bpf_disabled")
    setting = path.read_text().strip() if path.exists() else "absent"
    lsm = _text("/sys/kernel/security/lsm") or "unknown"
    found = f"{'with' if admin else 'without'} CAP_BPF, unprivileged_bpf_disabled={setting}"
    remedy = "" if admin else f"Run the system daemon as root: {system_daemon_command()}"
    return Finding("bpf", admin, False, f"{found}, lsm={lsm}", remedy)


def _ebpf(daemon: Optional[Dict[str, object]]) -> Finding:
    """The trace beside fanotify: which loader, which programs, and why not the others."""
    status = daemon.get("trace") if daemon is not None else probe_ebpf()
    if not isinstance(status, dict):
        return Finding("ebpf", False, False, "the daemon does not say", "")
    if status["loader"] is None:
        return Finding("ebpf", False, False, str(status["reason"]), str(status["remedy"]))
    attached = [item["name"] for item in status["programs"] if item["attached"]]
    refused = [
        f"{item['name']}: {item['reason']}" for item in status["programs"] if not item["attached"]
    ]
    found = f"loader {status['loader']} ({status['reason']}), opens by {status['opens']}"
    found += f", attached {', '.join(attached)}"
    if refused:
        found += f"; not attached {'; '.join(refused)}"
    return Finding("ebpf", True, False, found, "")


def _ptrace() -> Finding:
    setting = _text("/proc/sys/kernel/yama/ptrace_scope")
    yama = "no Yama" if setting is None else f"kernel.yama.ptrace_scope={setting}"
    problem = probe_ptrace(LAUNCHER)
    if problem is None:
        return Finding("ptrace", True, False, f"a test process was traced, {yama}", "")
    return Finding("ptrace", False, False, f"{problem.reason}, {yama}", problem.remedy)


def _fs_verity() -> Finding:
    config = _kernel_config()
    if config is None:
        good = Path("/proc/sys/fs/verity").exists() or (
            Path("/proc/keys").exists() and bool(Path("/sys/fs/ext4/features/verity").exists())
        )
    else:
        good = "CONFIG_FS_VERITY=y" in config
    found = "the kernel has it" if good else "the kernel lacks CONFIG_FS_VERITY"
    return Finding(
        "fsVerity",
        good,
        False,
        found,
        "" if good else "Use a kernel with CONFIG_FS_VERITY to seal artifacts and tools.",
    )


def _kernel_config() -> Optional[List[str]]:
    packed, plain = Path("/proc/config.gz"), Path(f"/boot/config-{platform.release()}")
    try:
        if packed.exists():
            return gzip.decompress(packed.read_bytes()).decode("utf-8", "replace").splitlines()
        return plain.read_text("utf-8", "replace").splitlines() if plain.exists() else None
    except OSError:
        return None


def _ima() -> Finding:
    """What `--capture-mode ima` would find: the list is there without a policy that fills it."""
    try:
        ima.probe()
    except BackendUnavailable as error:
        return Finding("ima", False, False, error.reason, f"For --capture-mode ima: {error.remedy}")
    except CaptureError as error:
        return Finding("ima", False, False, str(error), "Reboot.")
    covers = "it covers what the kernel's policy does (docs/ima.md)"
    return Finding("ima", True, False, f"files are measured with SHA-256; {covers}", "")


def _text(path: str) -> Optional[str]:
    try:
        return Path(path).read_text("utf-8", "replace").strip()
    except OSError:
        return None
