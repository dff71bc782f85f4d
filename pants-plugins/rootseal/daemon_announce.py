"""What a launcher announces, and how the action is to be captured: decided before it starts.

Pure: an ANNOUNCE frame and the state of this host go in, an `Announcement` and a `Decision` come
out.
"""

from __future__ import annotations

import dataclasses
import os
from typing import Dict, List, Mapping, Optional, Sequence, Tuple

from rootseal.capture.scope import CaptureLimits
from rootseal.errors import BackendUnavailable, ConfigError, EncodingError
from rootseal.hardening import WEAK_MODES, at_level
from rootseal.observation import Posture
from rootseal.predicate import Fallback, Requested
from rootseal.toolchain import ToolScope
from rootseal.wire import Frame, Tag

PATH_BYTES_MAX = 4096
INPUTS_MAX = 4096
TOOLCHAINS_MAX = 64
NAMESPACE_WAYS = ("direct", "helper", "none")
CAPTURE_MODES = ("auto", "walk", "trace", "trace:auto", "trace:ebpf", "trace:ptrace", "ima")
EBPF_MODES = ("auto", "trace", "trace:auto", "trace:ebpf")
SWITCH = ("off", "auto", "on")
HARDENING = ("off", "standard", "strict")
_LIMIT_OPTIONS = {
    "max-digests": "max_digests",
    "max-record-bytes": "max_record_bytes",
    "max-hashed-bytes": "max_hashed_bytes",
}
_PATH_OPTIONS = {  # repeatable, and how often
    "inputs": INPUTS_MAX,
    "toolchain": TOOLCHAINS_MAX,
    "toolchain-key": TOOLCHAINS_MAX,
}


@dataclasses.dataclass(frozen=True)
class ToolDemand:
    """What must list the tools of an action.

    Attributes:
        manifests: Absolute paths of signed toolchain manifests; empty if nothing is required.
        keys: Absolute paths of the public keys that may have signed them.
        scope: Which files must be in them.
    """

    manifests: Tuple[bytes, ...] = ()
    keys: Tuple[bytes, ...] = ()
    scope: ToolScope = ToolScope.EXECUTED


@dataclasses.dataclass(frozen=True)
class Announcement:
    """An action before it starts.

    Attributes:
        action_key: 32 bytes.
        argv: The action's command, not empty.
        environ: Name and value of each variable, in order; an entry without `=` is a name alone.
        cwd: Absolute.
        root: Absolute.
        output_files: Relative to the root, without `..`.
        output_dirs: Relative to the root, without `..`; `.` is the root.
        namespace: One of `NAMESPACE_WAYS`.
        trace_refused: Why its launcher cannot trace (docs/protocol.md); empty: it can, or has not
            tried.
        requested: What was asked of the capture.
        limits: Caps of this action.
        inputs: Absolute paths to walk beside the root.
        tools: What must list the tools that it uses.
        seals_outputs: Whether its declared outputs stay where they are, to be sealed there.
    """

    action_key: bytes
    argv: Tuple[bytes, ...]
    environ: Tuple[Tuple[bytes, bytes], ...] = dataclasses.field(repr=False)
    cwd: bytes
    root: bytes
    output_files: Tuple[bytes, ...]
    output_dirs: Tuple[bytes, ...]
    namespace: str
    trace_refused: str
    requested: Requested
    limits: CaptureLimits
    inputs: Tuple[bytes, ...]
    tools: ToolDemand
    seals_outputs: bool

    @property
    def strict(self) -> bool:
        """Whether only a complete capture that held every opener will do."""
        return self.requested.hardening == "strict"


@dataclasses.dataclass(frozen=True)
class Decision:
    """How an action will be captured.

    Attributes:
        backend: `fanotify`, `ptrace`, `ebpf`, `walk` or `ima`.
        requested_posture: What the caller would have at best.
        fallbacks: Each step down from it.
        traced: Who watches beside fanotify: `ebpf`, `ptrace` or nobody.
    """

    backend: str
    requested_posture: Posture
    fallbacks: Tuple[Fallback, ...]
    traced: str = ""


@dataclasses.dataclass(frozen=True)
class Missing:
    """Why this daemon, or its launchers, cannot use a backend; None where they can.

    Attributes:
        fanotify: Not used at all.
        ebpf: Not used at all.
        ptrace: Not used at all.
        removal: Why fanotify would hinder this action, so that ptrace is better.
    """

    fanotify: Optional[BackendUnavailable]
    ebpf: Optional[BackendUnavailable]
    ptrace: Optional[BackendUnavailable]
    removal: Optional[BackendUnavailable] = None


def read_announcement(frame: Frame) -> Announcement:
    """Read an ANNOUNCE frame.

    Raises:
        EncodingError: Something is missing or malformed: not our launcher.
        ConfigError: An option that the caller gave is wrong; says what is right.
    """
    key = frame.one(Tag.ACTION_KEY)
    if len(key) != 32:
        raise EncodingError("the action key is not 32 bytes")
    argv = frame.all(Tag.ARG)
    if not argv or any(b"\0" in argument for argument in argv):
        raise EncodingError("the action has no command, or a NUL in it")
    options, paths = _options(frame.all(Tag.OPTION))
    root = _absolute(frame.one(Tag.ROOT))
    return Announcement(
        action_key=key,
        argv=argv,
        environ=tuple(_variable(entry) for entry in frame.all(Tag.ENV)),
        cwd=_absolute(frame.one(Tag.CWD)),
        root=root,
        output_files=tuple(_relative(path) for path in frame.all(Tag.OUTPUT_FILE)),
        output_dirs=tuple(_relative(path) for path in frame.all(Tag.OUTPUT_DIR)),
        namespace=_one_of("namespace", frame.text(Tag.NAMESPACE), NAMESPACE_WAYS),
        trace_refused=frame.text(Tag.TRACE_REFUSED),
        requested=_requested(options),
        limits=_limits(options),
        inputs=tuple(_absolute(path) for path in paths["inputs"]),
        tools=_tools(options, paths, root),
        seals_outputs=_flag("seal-outputs", options),
    )


def decide(announced: Announcement, missing: Missing) -> Decision:
    """Choose the backend, before the action starts; what is asked for and impossible is refused.

    Args:
        announced: The action.
        missing: What cannot be used here.

    Raises:
        BackendUnavailable: What was asked for is impossible here; names the remedy.
        ConfigError: What was asked for contradicts itself.
    """
    requested = announced.requested
    mode, fanotify = requested.capture_mode, requested.fanotify
    wants_none = mode in ("walk", "ima") and fanotify != "on"
    if announced.strict and (fanotify == "off" or mode in WEAK_MODES):
        raise ConfigError(
            "hardening strict needs fanotify and a trace: it contradicts "
            + (f"fanotify={fanotify}" if fanotify == "off" else f"capture-mode={mode}")
        )
    if mode == "ima" and fanotify == "on":
        raise ConfigError(
            "fanotify=on contradicts capture-mode=ima, which reads the kernel's own measurements "
            "and nothing else; leave one of the two away"
        )
    if wants_none:
        return Decision(mode, Posture.WALKED, ())
    if mode == "trace:ptrace":
        if fanotify == "on":
            return _with_ptrace(announced, missing)
        if missing.ptrace is not None:
            raise missing.ptrace
        return Decision("ptrace", Posture.HELD, ())
    if fanotify == "off":
        if mode == "trace:ebpf":
            return _ebpf_alone(missing)
        return _without_fanotify(missing, (), must_trace=mode != "auto")
    problem = missing.fanotify or _namespace_problem(announced.namespace)
    if problem is None and _may_choose(announced) and missing.ptrace is None:
        problem = missing.removal
    if problem is None:
        return _with_fanotify(requested, missing)
    if fanotify == "on" or announced.strict:
        raise problem
    if mode == "trace:ebpf":
        step = Fallback("fanotify+ebpf", "ebpf", problem.reason)
        return dataclasses.replace(
            _ebpf_alone(missing), requested_posture=Posture.HELD, fallbacks=(step,)
        )
    step = Fallback("fanotify", _best_without(missing), problem.reason)
    return _without_fanotify(missing, (step,), must_trace=mode != "auto")


def _may_choose(announced: Announcement) -> bool:
    """Whether the caller leaves it to us who watches."""
    requested = announced.requested
    named = requested.fanotify == "on" or requested.capture_mode == "trace:ebpf"
    return not (named or announced.strict)


def _ebpf_alone(missing: Missing) -> Decision:
    """Nobody is held: what is opened is hashed afterwards."""
    if missing.ebpf is not None:
        raise missing.ebpf
    return Decision("ebpf", Posture.OBSERVED, ())


def _best_without(missing: Missing) -> str:
    """The strongest backend beside fanotify."""
    if missing.ptrace is None:
        return "ptrace"
    return "ebpf" if missing.ebpf is None else "walk"


def _with_fanotify(requested: Requested, missing: Missing) -> Decision:
    """fanotify, and eBPF as the second witness where it is wanted and works."""
    mode = requested.capture_mode
    if mode not in EBPF_MODES:
        return Decision("fanotify", Posture.HELD, ())
    if missing.ebpf is None:
        return Decision("fanotify", Posture.HELD, (), traced="ebpf")
    if mode == "trace:ebpf" or requested.hardening == "strict":
        raise missing.ebpf
    if mode != "auto" and requested.fanotify != "on":  # a trace was asked for: there is another
        step = Fallback("ebpf", "ptrace", missing.ebpf.reason)
        return _without_fanotify(missing, (step,), must_trace=True)
    step = Fallback("fanotify+ebpf", "fanotify", missing.ebpf.reason)
    return Decision("fanotify", Posture.HELD, (step,))


def _with_ptrace(announced: Announcement, missing: Missing) -> Decision:
    """fanotify, and ptrace as the second witness: asked for by name, so no step down."""
    for problem in (missing.fanotify, missing.ptrace, _namespace_problem(announced.namespace)):
        if problem is not None:
            raise problem
    if announced.namespace != "direct":
        raise BackendUnavailable(
            "fanotify",
            "beside ptrace the launcher must enter the namespace itself (a traced rootseal-scope "
            "gets no privilege)",
            "Run the action as root, or use --fanotify=auto.",
        )
    return Decision("fanotify", Posture.HELD, (), traced="ptrace")


def _without_fanotify(
    missing: Missing, steps: Tuple[Fallback, ...], *, must_trace: bool
) -> Decision:
    """ptrace holds the openers too; eBPF sees them; the walk, unless a trace is a must."""
    if missing.ptrace is None:
        return Decision("ptrace", Posture.HELD, steps)
    if missing.ebpf is not None and must_trace:
        raise missing.ptrace
    used = _best_without(missing)
    step = Fallback("ptrace", used, missing.ptrace.reason)
    return Decision(used, Posture.HELD, (*steps, step))


def _namespace_problem(way: str) -> Optional[BackendUnavailable]:
    if way != "none":
        return None
    return BackendUnavailable(
        "fanotify",
        "the action cannot get a private mount namespace (no CAP_SYS_ADMIN, no rootseal-scope)",
        "Run `sudo make install-helper`.",
    )


def _requested(options: Mapping[str, str]) -> Requested:
    hardening = _one_of("hardening", options.get("hardening", "standard"), HARDENING)
    zero_drops = _flag("require-zero-drops", options)
    mode = options.get("capture-mode", "auto")
    switches = {
        name: at_level(hardening, mode, name, _one_of(name, options.get(name, "auto"), SWITCH))
        for name in ("fanotify", "fsverity")
    }
    return Requested(
        capture_mode=_one_of("capture-mode", mode, CAPTURE_MODES),
        **switches,
        hardening=hardening,
        require_zero_drops=zero_drops or hardening == "strict",
    )


def _limits(options: Mapping[str, str]) -> CaptureLimits:
    values: Dict[str, int] = {}
    for name, field in _LIMIT_OPTIONS.items():
        text = options.get(name)
        if text is None:
            continue
        if not (text.isascii() and text.isdigit() and len(text) <= 20):
            raise ConfigError(f"{name} must be a number, not {text[:64]!r}")
        values[field] = int(text)
    return CaptureLimits(**values)


def _tools(
    options: Mapping[str, str], paths: Mapping[str, Sequence[bytes]], root: bytes
) -> ToolDemand:
    """Paths are relative to the root, so that a build tool can bring the manifests along."""
    scopes = [scope.value for scope in ToolScope]
    scope = _one_of("toolchain-scope", options.get("toolchain-scope", scopes[0]), scopes)
    manifests, keys = paths["toolchain"], paths["toolchain-key"]
    if bool(manifests) != bool(keys):
        raise ConfigError(
            "a required toolchain needs both its manifest (--toolchain) and the public key of its "
            "signer (--toolchain-key)"
        )
    return ToolDemand(
        tuple(_absolute(os.path.join(root, path)) for path in manifests),
        tuple(_absolute(os.path.join(root, path)) for path in keys),
        ToolScope(scope),
    )


def _options(entries: Sequence[bytes]) -> Tuple[Dict[str, str], Dict[str, List[bytes]]]:
    """Options that are given once, as text, and those of paths, which may be repeated."""
    known = {"capture-mode", "fanotify", "fsverity", "hardening", "require-zero-drops"}
    known.update(_LIMIT_OPTIONS)
    known.update(("toolchain-scope", "seal-outputs"))
    known.add("attempt")  # has no effect: it only makes caches see another command
    options: Dict[str, str] = {}
    paths: Dict[str, List[bytes]] = {name: [] for name in _PATH_OPTIONS}
    for entry in entries:
        raw_name, separator, value = entry.partition(b"=")
        name = raw_name.decode("ascii", "replace")
        if name in paths and separator:
            paths[name].append(value)
        elif name not in known or not separator or name in options:
            raise ConfigError(f"the option {name[:64]!r} is unknown, malformed or given twice")
        else:
            options[name] = value.decode("ascii", "replace")
    for name, limit in _PATH_OPTIONS.items():
        if len(paths[name]) > limit:
            raise ConfigError(f"{len(paths[name])} {name} are named; at most {limit} can be")
    return options, paths


def _flag(name: str, options: Mapping[str, str]) -> bool:
    return _one_of(name, options.get(name, "0"), ("0", "1")) == "1"


def _one_of(name: str, value: str, choices: Sequence[str]) -> str:
    if value not in choices:
        raise ConfigError(f"{name} must be one of {', '.join(choices)}, not {value[:64]!r}")
    return value


def _variable(entry: bytes) -> Tuple[bytes, bytes]:
    name, _, value = entry.partition(b"=")
    return name, value


def _absolute(path: bytes) -> bytes:
    if not path.startswith(b"/") or len(path) > PATH_BYTES_MAX or b"\0" in path:
        raise EncodingError(f"not an absolute path of at most {PATH_BYTES_MAX} bytes")
    return path


def _relative(path: bytes) -> bytes:
    """An output path that cannot lead out of the root by its own text."""
    parts = path.split(b"/")
    if path.startswith(b"/") or b".." in parts or not path or b"\0" in path:
        raise EncodingError("an output is not a path below the root")
    if len(path) > PATH_BYTES_MAX:
        raise EncodingError(f"an output path is longer than {PATH_BYTES_MAX} bytes")
    return path
