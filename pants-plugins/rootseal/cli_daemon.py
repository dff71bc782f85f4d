"""`rootseal daemon run|ensure|stop|status`."""

from __future__ import annotations

import argparse
import grp
import logging
import logging.handlers
import os
import pwd
import sys
from pathlib import Path
from typing import Any, FrozenSet, Mapping, Optional, Sequence

from rootseal import cli_sizes, cli_status, daemon, keys, wire
from rootseal.cli_output import add_json, emit, printable
from rootseal.cli_toolchain import load_toolchain
from rootseal.daemon_backends import GROUP_WAIT_SECONDS
from rootseal.daemon_options import Options
from rootseal.daemon_peer import Allowed
from rootseal.daemon_place import Place, place_for
from rootseal.daemon_start import IDLE_EXIT_SECONDS, LOG_BYTES_MAX, ensure, places_of, stop_and_wait
from rootseal.errors import ConfigError
from rootseal.trace_ring import read_size

RING_VARIABLE = "ROOTSEAL_TRACE_RING"
_AWAKE = {"auto": None, "on": True, "off": False}


def register(subparsers: Any) -> None:
    """Add `daemon`."""
    parser = subparsers.add_parser("daemon", help="the process that captures actions")
    commands = parser.add_subparsers(dest="daemon_command", metavar="COMMAND", required=True)
    run_parser = commands.add_parser("run", help="run a daemon here, until it is stopped")
    _add_place(run_parser)
    _add_service(run_parser)
    run_parser.add_argument("--log-file", metavar="FILE", default="", help="default: stderr")
    run_parser.add_argument(
        "--clients", type=cli_sizes.seconds, default=daemon.CONNECTIONS_MAX, help=argparse.SUPPRESS
    )
    run_parser.set_defaults(handler=run)
    ensure_parser = commands.add_parser("ensure", help="start a daemon unless one answers")
    _add_place(ensure_parser)
    _add_service(ensure_parser)
    add_json(ensure_parser)
    ensure_parser.set_defaults(handler=ensure_command)
    for name, handler, text in (
        ("stop", stop, "end the daemon"),
        ("status", status, "what the daemon says of itself"),
    ):
        command = commands.add_parser(name, help=text)
        _add_place(command)
        add_json(command)
        command.set_defaults(handler=handler)


def _add_place(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--socket", metavar="PATH", default="", help="socket instead of the usual")
    parser.add_argument("--state-dir", metavar="DIR", default="", help=argparse.SUPPRESS)


def _add_service(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--allow-uid",
        metavar="USER",
        action="append",
        default=[],
        help="serve this user too (name or number, repeatable); root and the own user always are",
    )
    parser.add_argument(
        "--allow-group",
        metavar="GROUP",
        action="append",
        default=[],
        help="serve the members of this group too (name or number, repeatable)",
    )
    parser.add_argument(
        "--idle-exit",
        metavar="SECONDS",
        type=cli_sizes.seconds,
        default=None,
        help="end after this long without a client; 0: never "
        f"(default: 0, but {IDLE_EXIT_SECONDS} for a user's daemon that `ensure` starts)",
    )
    parser.add_argument(
        "--toolchain",
        metavar="MANIFEST",
        action="append",
        default=[],
        help="signed toolchain manifest: its files are measured as long as they are sealed with "
        "fs-verity, which costs the same for any size, in place of being hashed (repeatable)",
    )
    parser.add_argument(
        "--toolchain-key",
        metavar="PUB",
        action="append",
        default=[],
        help="public key that may have signed a toolchain manifest (repeatable)",
    )
    parser.add_argument(
        "--trace-ring",
        metavar="SIZE",
        default=None,
        help="ring buffer of the eBPF trace, a power of two (64K to 1G, default 16M; also "
        f"${RING_VARIABLE}): what it cannot hold is counted as lost; `ensure` replaces an idle "
        "daemon that has another size, and refuses a busy one",
    )
    parser.add_argument(
        "--memory-budget",
        metavar="SIZE",
        type=cli_sizes.size,
        default=None,
        help="memory for what running actions opened; more goes to unlinked files in the state "
        "directory (like 1G; default: 512M)",
    )
    parser.add_argument(
        "--compare-at-access",
        choices=("auto", "off"),
        default=None,
        help="whether a file that changed since its open is hashed again when it is read or mapped "
        "(auto, the default: where the kernel can, Linux 6.14); off: such a change is found at the "
        "end only",
    )
    parser.add_argument(
        "--stay-awake",
        choices=tuple(_AWAKE),
        default=None,
        help="keep idle CPUs from deep sleep (PM QoS, /dev/cpu_dma_latency) while opens are dense: "
        "on virtual machines each wake-up costs more than hashing a small file (default: auto, on "
        "hosts with at most 16 CPUs)",
    )
    parser.add_argument(
        "--group-wait",
        metavar="SECONDS",
        type=cli_sizes.seconds,
        default=None,
        help="how long an action waits while other programs of the daemon's user hold all fanotify "
        f"groups, before it fails (default: {GROUP_WAIT_SECONDS})",
    )
    parser.add_argument("--no-fanotify", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--slots", type=cli_sizes.seconds, default=None, help=argparse.SUPPRESS)


def run(arguments: argparse.Namespace) -> int:
    """Run a daemon in the foreground."""
    _log_to(arguments.log_file)
    daemon.run(
        daemon.DaemonOptions(
            place=_place(arguments),
            allowed=_allowed(arguments),
            fanotify=not arguments.no_fanotify,
            idle_exit_seconds=arguments.idle_exit or 0,
            slots=arguments.slots or 0,
            clients=arguments.clients,
            sealed=_sealed(arguments),
            memory_bytes=_or_default(arguments.memory_budget, daemon.MEMORY_BYTES_DEFAULT),
            given=_given_options(arguments),
            trace_ring_bytes=_ring_bytes(arguments.trace_ring, os.environ),
            compare_at_access=arguments.compare_at_access != "off",
            stay_awake=_AWAKE[arguments.stay_awake or "auto"],
            group_wait_seconds=_or_default(arguments.group_wait, GROUP_WAIT_SECONDS),
        )
    )
    return 0


def ensure_command(arguments: argparse.Namespace) -> int:
    """Make sure that a daemon answers."""
    wanted = _given_options(arguments)
    places = places_of(os.getuid(), arguments.socket)
    found = ensure(
        _place(arguments), places, _defaults(), wanted, state_named=bool(arguments.state_dir)
    )
    text = f"daemon {found['version']} at {found['socket']}, posture {found['posture']}"
    if found["reason"]:
        text += f" ({found['reason']}. {found['remedy']})"
    emit(arguments, printable(text), found)
    return 0


def stop(arguments: argparse.Namespace) -> int:
    """End the daemon of this user (or the one at --socket) and wait until it is gone."""
    path = str(_place(arguments).socket)
    stopped = stop_and_wait(path)
    text = f"stopped the daemon at {path}" if stopped else f"no daemon runs at {path}"
    emit(arguments, printable(text), {"stopped": stopped, "socket": path})
    return 0


def status(arguments: argparse.Namespace) -> int:
    """Show the status of the daemon that this user's builds would use."""
    places = places_of(os.getuid(), arguments.socket)
    found = wire.find_daemon(places)
    if found is None:
        raise ConfigError(
            f"no daemon answers at {' or '.join(places)}; start one with `rootseal daemon ensure`"
        )
    lines = cli_status.status_lines(found)
    emit(arguments, "\n".join(printable(line) for line in lines), found)
    return 0


def _place(arguments: argparse.Namespace) -> Place:
    return place_for(os.environ, os.getuid(), arguments.socket, arguments.state_dir)


def _defaults() -> Options:
    """Of a daemon that `ensure` starts."""
    return ("--idle-exit", str(0 if os.getuid() == 0 else IDLE_EXIT_SECONDS))


def _given_options(arguments: argparse.Namespace) -> Options:
    """What the command line and the environment ask for, checked and in one form each.

    Raises:
        ConfigError: An option has a value that no daemon could start with.
    """
    allowed = _allowed(arguments)
    _sealed(arguments)
    ring = _ring_bytes(arguments.trace_ring, os.environ)
    given = {
        "--idle-exit": [arguments.idle_exit],
        "--slots": [arguments.slots],
        "--memory-budget": [arguments.memory_budget],
        "--allow-uid": sorted(allowed.uids),
        "--allow-group": sorted(allowed.gids),
        "--toolchain": [Path(path).absolute() for path in arguments.toolchain],
        "--toolchain-key": [Path(path).absolute() for path in arguments.toolchain_key],
        "--trace-ring": [ring or None],
        "--compare-at-access": [arguments.compare_at_access],
        "--stay-awake": [arguments.stay_awake],
        "--group-wait": [arguments.group_wait],
    }
    options = [
        word
        for name, values in given.items()
        for value in values
        if value is not None
        for word in (name, str(value))
    ]
    return (*options, "--no-fanotify") if arguments.no_fanotify else tuple(options)


def _ring_bytes(flag: Optional[str], environ: Mapping[str, str]) -> int:
    """Size of the trace's ring buffer, the flag before the variable; 0: neither says."""
    text = flag if flag is not None else environ.get(RING_VARIABLE, "")
    return read_size(text, f"--trace-ring (or {RING_VARIABLE})")


def _or_default(value: Optional[int], default: int) -> int:
    return default if value is None else value


def _sealed(arguments: argparse.Namespace) -> tuple[tuple[bytes, bytes, int], ...]:
    """The sealed files of the manifests."""
    if arguments.toolchain and not arguments.toolchain_key:
        raise ConfigError("--toolchain needs the public key of its signer (--toolchain-key)")
    trusted = keys.load_public_keys(arguments.toolchain_key)
    return tuple(
        (item.fsverity, item.sha256, item.size)
        for path in arguments.toolchain
        for item in load_toolchain(path, trusted).files
        if item.fsverity is not None
    )


def _allowed(arguments: argparse.Namespace) -> Allowed:
    return Allowed(_uids(arguments.allow_uid), _gids(arguments.allow_group))


def _uids(names: Sequence[str]) -> FrozenSet[int]:
    try:
        return frozenset(
            int(name) if name.isdigit() else pwd.getpwnam(name).pw_uid for name in names
        )
    except KeyError as error:
        raise ConfigError(f"--allow-uid: {error.args[0]}") from None


def _gids(names: Sequence[str]) -> FrozenSet[int]:
    try:
        return frozenset(
            int(name) if name.isdigit() else grp.getgrnam(name).gr_gid for name in names
        )
    except KeyError as error:
        raise ConfigError(f"--allow-group: {error.args[0]}") from None


def _log_to(path: str) -> None:
    handler: logging.Handler = logging.StreamHandler(sys.stderr)
    if path:
        handler = logging.handlers.RotatingFileHandler(
            path, maxBytes=LOG_BYTES_MAX, backupCount=1, encoding="utf-8"
        )
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
