"""What capture needs to know of a run: options, daemon, launcher. Types, and how they are made.

The rules that connect these are in common_rules.py, and in setup_rules.py or byname_rules.py, one
for each rule API.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path

from pants.engine.fs import CreateDigest, Digest, FileContent
from rootseal import fsverity, key_file, trace_ring
from rootseal.errors import ConfigError

from rootseal_pants.demands import Demands
from rootseal_pants.identity import LAUNCHER_DIRECTORY
from rootseal_pants.option_values import check_out, check_values
from rootseal_pants.runtime import DaemonInfo, ensure_daemon, find_executable
from rootseal_pants.signing_key import is_key_uri
from rootseal_pants.subsystem import RootsealSubsystem

CAPTURE_KEY_BYTES_MAX = 4096  # what a run manifest may hold (rootseal/manifest.py)
TOOLCHAIN_BYTES_MAX = 64 * 1024 * 1024  # what the daemon accepts (envelope.ENVELOPE_BYTES_MAX)


@dataclass(frozen=True)
class Settings:
    """The options, resolved: every path is absolute.

    Attributes:
        enabled: If false, nothing is captured.
        executable: The option of that name.
        build_root: Absolute path.
        dist_dir: Absolute path.
        out_dir: Where the attestation goes.
        records_dir: Where action records are kept.
        records_max_bytes: Size above which old records are removed.
        key: Path or URI of the signing key, or empty.
        public_key: Path of its public key, or empty; needed where the key is a URI.
        trusted_capture_keys: Path of each key that is trusted beside this machine's.
        sandboxes: The directory that Pants makes sandboxes in.
        daemon_socket: Path of the daemon's socket, or empty for the usual places.
        trace_ring_bytes: Size that the ring of the daemon's trace must have; 0: any.
        capture_mode: As in the manifest's policy; so are the next four.
        fanotify: off, auto or on.
        fsverity: off, auto or on.
        hardening: off, standard or strict.
        require_zero_drops: Whether any loss fails its action.
        toolchain_arguments: Arguments of `rootseal seal` that require toolchain manifests.
        toolchain_files: Absolute paths of those manifests and keys, by their path beside the
            launcher: the launcher names them to the daemon, which fails the action.
        launcher_arguments: Arguments of the launcher that are the same for all actions.
    """

    enabled: bool
    executable: str
    build_root: str
    dist_dir: str
    out_dir: str
    records_dir: str
    records_max_bytes: int
    key: str
    public_key: str
    trusted_capture_keys: tuple[str, ...]
    sandboxes: str
    daemon_socket: str
    trace_ring_bytes: int
    capture_mode: str
    fanotify: str
    fsverity: str
    hardening: str
    require_zero_drops: bool
    toolchain_arguments: tuple[str, ...]
    toolchain_files: tuple[tuple[str, str], ...]
    launcher_arguments: tuple[str, ...]


@dataclass(frozen=True)
class AttestationPlace:
    """Where the attestation goes, known without a daemon; the fields are those of `Settings`."""

    dist_dir: str
    out_dir: str


@dataclass(frozen=True)
class DaemonRequest:
    """Asks for a daemon that answers; the fields are those of `Settings`."""

    executable: str
    build_root: str
    socket: str
    trace_ring_bytes: int
    trusted_capture_keys: tuple[str, ...]
    toolchain_files: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class ReadyDaemon:
    """A daemon that answered in this run.

    Attributes:
        info: What it said of itself.
        executable: Path of the `rootseal` executable.
        launcher_sha256: Of the launcher's bytes.
        capture_key: PEM text of this machine's capture key.
        trusted_capture_keys: PEM text of the keys that are trusted beside it.
        toolchain_files: Path beside the launcher, content: manifests and keys that are required.
    """

    info: DaemonInfo
    executable: str
    launcher_sha256: str
    capture_key: str
    trusted_capture_keys: tuple[str, ...]
    toolchain_files: tuple[tuple[str, bytes], ...] = field(repr=False)


@dataclass(frozen=True)
class LauncherRequest:
    """Asks for the launcher as a directory of the engine's store."""

    daemon: ReadyDaemon


@dataclass(frozen=True)
class LauncherDirectory:
    """The launcher, called `exec`, in a directory."""

    digest: Digest


@dataclass(frozen=True)
class CaptureRequest:
    """Asks for what wrapping a process needs in this run."""


@dataclass(frozen=True)
class Capture:
    """What wrapping a process needs.

    Attributes:
        settings: The options.
        launcher: Directory with the launcher in it.
        daemon: The daemon.
        platform: Name of this host's platform.
    """

    settings: Settings
    launcher: Digest | None
    daemon: ReadyDaemon | None
    platform: str


def resolve_settings(
    rootseal: RootsealSubsystem,
    *,
    demands: Demands,
    workdir: str,
    build_root: str,
    dist_dir: str,
    sandboxes: str,
) -> Settings:
    """Read the options once.

    Args:
        rootseal: The options.
        demands: What follows from those that say how much is demanded.
        workdir: Pants' working directory.
        build_root: Absolute.
        dist_dir: Relative to the build root.
        sandboxes: The directory that Pants makes sandboxes in.
    """
    check_values(rootseal)
    root = build_root
    place = attestation_place(rootseal, root, dist_dir)
    dist = Path(place.dist_dir)
    if rootseal.enabled and demands.fsverity == "on":
        _require_fsverity(dist)
    return Settings(
        enabled=rootseal.enabled,
        executable=rootseal.executable,
        build_root=root,
        dist_dir=place.dist_dir,
        out_dir=place.out_dir,
        records_dir=str(Path(root, rootseal.records_dir or Path(workdir, "rootseal", "records"))),
        records_max_bytes=rootseal.records_max_bytes,
        key=_signing_key(rootseal.key, root),
        public_key=_public_key(rootseal, root),
        trusted_capture_keys=tuple(
            str(Path(root, Path(path).expanduser())) for path in rootseal.trusted_capture_keys
        ),
        sandboxes=sandboxes,
        daemon_socket=rootseal.daemon_socket,
        trace_ring_bytes=trace_ring.read_size(rootseal.trace_ring, "[rootseal].trace_ring"),
        capture_mode=demands.capture_mode,
        fanotify=demands.fanotify,
        fsverity=demands.fsverity,
        hardening=demands.hardening,
        require_zero_drops=demands.require_zero_drops,
        toolchain_arguments=_toolchain_arguments(rootseal, root),
        toolchain_files=_toolchain_files(rootseal, root),
        launcher_arguments=_launcher_arguments(rootseal, demands),
    )


def attestation_place(
    rootseal: RootsealSubsystem, build_root: str, dist_dir: str
) -> AttestationPlace:
    """Where the attestation goes; see `resolve_settings`."""
    check_out(rootseal)
    dist = Path(build_root, dist_dir)
    return AttestationPlace(str(dist), str(dist / rootseal.out))


def _require_fsverity(dist: Path) -> None:
    """Refuse at once what sealing would refuse after the whole build."""
    place = next(path for path in (dist, *dist.parents) if path.is_dir())
    if not fsverity.can_seal(place):
        raise fsverity.unavailable(str(place))


def _signing_key(key: str, root: str) -> str:
    """A key URI (awskms:, gcpkms:, …) as it is, a path as an absolute one, empty as empty."""
    if not key or is_key_uri(key):
        return key
    return str(Path(root, Path(key).expanduser()))


def _public_key(rootseal: RootsealSubsystem, root: str) -> str:
    """Absolute path of the public key; refused at once, not after the whole build, if missing."""
    path = str(Path(root, Path(rootseal.public_key).expanduser())) if rootseal.public_key else ""
    if rootseal.enabled and not path and is_key_uri(rootseal.key):
        raise ConfigError(
            f"[rootseal].key is the key URI {rootseal.key}; set [rootseal].public_key to the PEM "
            "file of its public key"
        )
    return path


def _read_key(path: str, what: str) -> str:
    """The PEM text of a capture key; `what` names the option in errors."""
    try:
        content = key_file.read(Path(path), private=False)
        key_file.check_public(content, path)
    except OSError as error:
        raise ConfigError(
            f"the capture key {path} cannot be read: {error.strerror}; correct "
            "[rootseal].trusted_capture_keys, or run `rootseal doctor` if it is this machine's own"
        ) from error
    except ConfigError as error:
        raise ConfigError(f"{what}: {error}") from error
    if len(content) > CAPTURE_KEY_BYTES_MAX:
        raise ConfigError(f"{what}: {path} is larger than {CAPTURE_KEY_BYTES_MAX} bytes")
    if not content.isascii():
        raise ConfigError(f"{what}: {path} is not ASCII; remove what is beside the key")
    return content.decode("ascii")


def _read_tool(path: str) -> bytes:
    """A manifest or key; the daemon judges its content."""
    try:
        with Path(path).open("rb") as stream:
            content = stream.read(TOOLCHAIN_BYTES_MAX + 1)
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be read: {error.strerror}; correct [rootseal].toolchains or "
            "[rootseal].toolchain_keys"
        ) from error
    if len(content) > TOOLCHAIN_BYTES_MAX:
        raise ConfigError(
            f"{path} is too large for a toolchain manifest; correct [rootseal].toolchains"
        )
    return content


def _toolchain_arguments(rootseal: RootsealSubsystem, root: str) -> tuple[str, ...]:
    """Manifests, keys and scope for `rootseal seal`; nothing if no manifest is required."""
    if bool(rootseal.toolchains) != bool(rootseal.toolchain_keys):
        raise ConfigError(
            "[rootseal].toolchains and [rootseal].toolchain_keys need each other: set both or none"
        )
    if not rootseal.toolchains:
        return ()
    paths = (f"--{option}={path}" for option, path in _toolchain_paths(rootseal, root))
    return (f"--toolchain-scope={rootseal.toolchain_scope}", *paths)


def _toolchain_paths(rootseal: RootsealSubsystem, root: str) -> list[tuple[str, str]]:
    """Option and absolute path of each manifest and key."""
    return [
        (option, str(Path(root, Path(path).expanduser())))
        for option, paths in (
            ("toolchain", rootseal.toolchains),
            ("toolchain-key", rootseal.toolchain_keys),
        )
        for path in paths
    ]


def _toolchain_files(rootseal: RootsealSubsystem, root: str) -> tuple[tuple[str, str], ...]:
    """They travel with the launcher: another manifest makes other actions, on any machine."""
    return tuple(
        (f"{option}/{number}/{Path(path).name}", path)
        for number, (option, path) in enumerate(_toolchain_paths(rootseal, root))
    )


def _launcher_arguments(rootseal: RootsealSubsystem, demands: Demands) -> tuple[str, ...]:
    options = {
        "capture-mode": demands.capture_mode,
        "fanotify": demands.fanotify,
        "fsverity": demands.fsverity,
        "hardening": demands.hardening,
        "require-zero-drops": "1" if demands.require_zero_drops else "0",
        "max-digests": str(rootseal.max_digests),
        "max-record-bytes": str(rootseal.max_record_bytes),
        "max-hashed-bytes": str(rootseal.max_hashed_bytes),
    }
    if rootseal.toolchains:
        options["toolchain-scope"] = rootseal.toolchain_scope
    return (
        *(f"--option={name}={value}" for name, value in options.items()),
        *(
            f"--option={path.partition('/')[0]}={LAUNCHER_DIRECTORY}/{path}"
            for path, _ in _toolchain_files(rootseal, "")
        ),
        f"--descendants={rootseal.descendants}",
        "--stdio-only",  # pantsd's own store would be inherited open
        *((f"--socket={rootseal.daemon_socket}",) if rootseal.daemon_socket else ()),
    )


def make_ready(request: DaemonRequest) -> ReadyDaemon:
    """Make sure that a daemon answers, and read the keys that are trusted."""
    executable = find_executable(request.executable, request.build_root)
    info = ensure_daemon(executable, request.socket, request.trace_ring_bytes)
    return ReadyDaemon(
        info=info,
        executable=executable,
        launcher_sha256=hashlib.sha256(Path(info.launcher).read_bytes()).hexdigest(),
        capture_key=_read_key(info.capture_key, "this machine's capture key"),
        trusted_capture_keys=tuple(
            _read_key(path, "[rootseal].trusted_capture_keys")
            for path in request.trusted_capture_keys
        ),
        toolchain_files=tuple((name, _read_tool(path)) for name, path in request.toolchain_files),
    )


def daemon_request(settings: Settings) -> DaemonRequest:
    """The request that follows from the options."""
    return DaemonRequest(
        settings.executable,
        settings.build_root,
        settings.daemon_socket,
        settings.trace_ring_bytes,
        settings.trusted_capture_keys,
        settings.toolchain_files,
    )


def launcher_files(request: LauncherRequest) -> CreateDigest:
    """The launcher as the engine's store is to hold it."""
    content = Path(request.daemon.info.launcher).read_bytes()
    tools = (FileContent(path, data) for path, data in request.daemon.toolchain_files)
    return CreateDigest([FileContent("exec", content, is_executable=True), *tools])
