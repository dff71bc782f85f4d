"""The options of the [rootseal] scope."""

from __future__ import annotations

from enum import Enum

from pants.option.option_types import (
    BoolOption,
    EnumOption,
    IntOption,
    StrListOption,
    StrOption,
)
from pants.option.subsystem import Subsystem


class Switch(Enum):
    """A feature that can be forbidden, used where it works, or demanded."""

    OFF = "off"
    AUTO = "auto"
    ON = "on"


class Hardening(Enum):
    """How much is demanded of every capture."""

    OFF = "off"
    STANDARD = "standard"
    STRICT = "strict"


class RootsealSubsystem(Subsystem):
    """Options that decide how actions are captured, and where the attestation goes."""

    options_scope = "rootseal"
    help = (
        "Capture of every process that Pants runs, and the signed attestation of what it packages."
    )

    enabled = BoolOption(
        default=True,
        help="Capture every process and attest every run of the package goal. If false, Pants "
        "works as if the backend were not there, and nothing is attested.",
    )
    capture_mode = StrOption(
        default="auto",
        help="Which capture backend to use: auto, walk, trace, trace:ebpf, trace:ptrace, "
        "trace:auto or ima. `auto` takes the strongest one that works on the host and records "
        "why a stronger one does not.",
    )
    fanotify = EnumOption(
        default=Switch.AUTO,
        help="Whether every open is held by the kernel until the file is hashed. `on` refuses to "
        "build where that is not possible.",
    )
    fsverity = EnumOption(
        default=Switch.AUTO,
        help="Whether files are sealed and measured with fs-verity. `on` refuses to build where "
        "the filesystem cannot do it.",
    )
    toolchains = StrListOption(
        help="Paths of signed toolchain manifests (`rootseal toolchain seal`). If any is given, an "
        "action that executes a file, or loads a library, from outside its sandbox that is in "
        "none of them, by content, fails, naming the file; another manifest makes all actions run "
        "again.",
    )
    toolchain_keys = StrListOption(
        help="Paths of the public keys (PEM) that may have signed the manifests of `toolchains`.",
    )
    toolchain_scope = StrOption(
        default="executed",
        help="Which files outside the sandboxes must be in the manifests of `toolchains`: "
        "`executed` (programs, scripts and libraries), or `all` that were read.",
    )
    hardening = EnumOption(
        default=Hardening.STANDARD,
        help="How much to demand: `off` leaves fanotify and fs-verity to those who ask for them, "
        "`standard` takes the strongest that the host offers and reports losses, `strict` demands "
        "held opens, a trace and no losses at all.",
    )
    require_zero_drops = BoolOption(
        default=False,
        help="Fail an action, and so the build, if any event of it may have been missed.",
    )
    key = StrOption(
        default="",
        help="Path of the private key (PEM, Ed25519 or ECDSA P-256) that signs the attestation, or "
        "a key URI of securesystemslib (`awskms:…`, `gcpkms:…`, `hsm:…`), which needs `public_key` "
        "too. If empty, a key of your own is used, which `rootseal` creates the first time.",
    )
    public_key = StrOption(
        default="",
        help="Path of the public key (PEM) of `key`, relative to the build root or absolute. "
        "Needed if `key` is a key URI.",
    )
    executable = StrOption(
        default="",
        help="Path of the `rootseal` executable, relative to the build root or absolute. If empty, "
        "`.venv/bin/rootseal` below the build root is taken if it exists, else the one on PATH.",
    )
    out = StrOption(
        default="rootseal",
        help="Directory for the attestation alone, below the distribution directory (dist/). What "
        "is left of an older attestation there is removed when a run begins.",
    )
    trusted_capture_keys = StrListOption(
        help="Paths of public keys (PEM) of other machines whose captures are accepted, for "
        "results that come from a remote cache or from remote execution. This machine's own "
        "key is always accepted.",
    )
    descendants = StrOption(
        default="kill:2",
        help="What happens to processes that an action leaves behind: `kill:SECONDS` waits that "
        "long and then kills them, `wait` waits for them.",
    )
    max_digests = IntOption(
        default=262144,
        help="The largest number of distinct files that one action may read. Reaching it marks "
        "the action incomplete.",
    )
    max_record_bytes = IntOption(
        default=256 * 1024 * 1024,
        help="The largest size of the tables of one action's record before they are compressed, "
        "in bytes. Reaching it marks the action incomplete.",
    )
    max_hashed_bytes = IntOption(
        default=1024 * 1024 * 1024 * 1024,
        help="The largest number of bytes that are hashed for one action. Reaching it marks the "
        "action incomplete.",
    )
    trace_ring = StrOption(
        default="",
        advanced=True,
        help="Size of the ring buffer through which eBPF tells the daemon what actions do, a power "
        "of two from 64K to 1G; what it cannot hold is counted as lost. If empty, the daemon's own "
        "(16M). It belongs to the daemon, not to the actions: an idle one of your own with another "
        "size is replaced, one that is busy or somebody else's is an error that says so. It has no "
        "effect where the daemon has no eBPF.",
    )
    records_dir = StrOption(
        default="",
        advanced=True,
        help="Directory where action records are kept, relative to the build root or absolute. If "
        "empty, `rootseal/records` below the Pants working directory (.pants.d).",
    )
    records_max_bytes = IntOption(
        default=4 * 1024 * 1024 * 1024,
        advanced=True,
        help="The size of the directory of action records, in bytes, above which the records that "
        "were not used for longest are removed at the end of a run.",
    )
    daemon_socket = StrOption(
        default="",
        advanced=True,
        help="Absolute path of the daemon's socket, if that is at none of the usual places. It "
        "becomes part of the identity of every action, so that caches are not shared with other "
        "machines.",
    )
