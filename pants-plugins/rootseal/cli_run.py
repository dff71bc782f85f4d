"""`rootseal run -- COMMAND`: one action without a build tool, captured and sealed."""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import os
import platform
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Dict, Iterator, List, Mapping, Optional, Sequence, Tuple

from rootseal import (
    __version__,
    action,
    canonical,
    diagnostics,
    digest,
    files,
    hardening,
    keys,
)
from rootseal.cli_keys import add_signing, signer_from
from rootseal.cli_output import exit_code_of, printable
from rootseal.cli_progress import shown_progress
from rootseal.cli_run_outputs import (
    artifacts_of,
    declared_outputs,
    make_outputs_writable,
    seals_outputs,
)
from rootseal.cli_run_usage import CAPS, check_results, check_usage, working_directory
from rootseal.cli_sizes import size
from rootseal.cli_toolchain import add_toolchain, tools_from
from rootseal.daemon_announce import CAPTURE_MODES, HARDENING, SWITCH
from rootseal.daemon_peer import groups_of
from rootseal.daemon_place import place_for
from rootseal.daemon_start import IDLE_EXIT_SECONDS, ensure, places_of
from rootseal.errors import (
    CaptureError,
    CaptureLost,
    ConfigError,
    Error,
    PostureError,
    ToolchainError,
    ZeroDropsError,
)
from rootseal.manifest import read_manifest
from rootseal.observation import Posture
from rootseal.record import RECORD_BYTES_MAX
from rootseal.record_check import VerifiedRecord, verify_record
from rootseal.seal import RecordsInMemory, seal

CLOCK_TICK_SECONDS = 0.01  # files made within one tick of the coarse clock cannot be told apart
FORWARDED = (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGWINCH)


def register(subparsers: Any) -> None:
    """Add `run`."""
    parser = subparsers.add_parser("run", help="capture one command and seal what it did")
    parser.add_argument("--root", metavar="DIR", default=".", help="the action's root (default: .)")
    parser.add_argument(
        "--output",
        metavar="PATH",
        action="append",
        default=[],
        help="file, or directory (with a trailing slash), that the command delivers: a subject of "
        "the attestation (repeatable)",
    )
    parser.add_argument("--out", metavar="BUNDLE", help="bundle to write; default: none")
    parser.add_argument("--record", metavar="FILE", help="keep the action record here too")
    parser.add_argument("--socket", metavar="PATH", default="", help="daemon instead of the usual")
    parser.add_argument("--helper", metavar="PATH", default="", help=argparse.SUPPRESS)
    parser.add_argument(
        "--descendants",
        metavar="POLICY",
        default="kill:2",
        help="processes that outlive the command: kill:SECONDS or wait (default: %(default)s)",
    )
    add_capture(parser)
    add_toolchain(parser)
    add_signing(parser)
    parser.add_argument(
        "--json",
        action="store_true",
        help="print one JSON object as the last line of stdout (before it: the command's own)",
    )
    parser.add_argument("argv", nargs=argparse.REMAINDER, metavar="-- COMMAND")
    parser.set_defaults(handler=run)


def add_capture(parser: argparse.ArgumentParser) -> None:
    """The flags that say how to capture."""
    parser.add_argument(
        "--capture-mode",
        choices=CAPTURE_MODES,
        default="auto",
        help="who watches. walk: look at files before and after, sees no reads; trace: every call, "
        "by eBPF (trace:ebpf, root), by ptrace (trace:ptrace, anyone) or by what works "
        "(trace:auto); ima: the kernel's own measurements; auto: the strongest that works here "
        "(default: %(default)s)",
    )
    for name, text in (
        ("fanotify", "hold each opener while its file is hashed"),
        ("fsverity", "seal outputs so that the kernel refuses to change them"),
    ):
        variable = f"ROOTSEAL_{name.upper()}"
        parser.add_argument(
            f"--{name}",
            choices=SWITCH,
            help=f"{text}; on: or refuse (default: ${variable} (0|off|auto|1|on), else auto)",
        )
    parser.add_argument(
        "--hardening",
        choices=HARDENING,
        help="off: walk or trace, as chosen, fanotify and fs-verity only if asked for; standard: "
        "both where they work, losses reported; strict: fanotify and a trace, nothing lost, or "
        "refuse (default: $ROOTSEAL_HARDENING, else standard)",
    )
    parser.add_argument(
        "--require-zero-drops",
        action="store_true",
        help="fail if anything may have been missed (also: $ROOTSEAL_REQUIRE_ZERO_DROPS, 0|off|1|"
        "on)",
    )
    parser.add_argument(
        "--max-digests", metavar="N", type=int, help="files this action may read (default: 262144)"
    )
    for name, text in (
        ("max-record-bytes", "bytes that its record's tables may take"),
        ("max-hashed-bytes", "bytes that may be hashed for it"),
    ):
        parser.add_argument(
            f"--{name}", metavar="SIZE", type=size, help=f"{text}, like 64M; beyond: incomplete"
        )
    parser.add_argument(
        "--input",
        metavar="PATH",
        action="append",
        default=[],
        help="file or directory outside the root that the walk backend looks at (repeatable)",
    )


def run(arguments: argparse.Namespace) -> int:
    """Run the command under capture; the exit status is the command's."""
    argv = arguments.argv[1:] if arguments.argv[:1] == ["--"] else arguments.argv
    if not argv:
        raise ConfigError("run needs a command after `--`")
    options = capture_options(arguments, os.environ)
    check_usage(arguments)
    tools = tools_from(arguments)
    place = place_for(os.environ, os.getuid(), arguments.socket, "")
    idle = 0 if os.getuid() == 0 else IDLE_EXIT_SECONDS
    places, own = places_of(os.getuid(), arguments.socket), ("--idle-exit", str(idle))
    daemon = ensure(place, places, own, ())
    signer = signer_from(arguments) if arguments.out else None
    make_outputs_writable(arguments)
    key = action.action_key(_key_fields(arguments, argv))
    with _record_directory() as directory:
        record = directory / "record"
        command = _launcher_command(arguments, daemon, key, record, options)
        command.append(f"--error={directory / 'error'}")
        _forget_the_last_run(arguments)
        started = _now()
        time.sleep(CLOCK_TICK_SECONDS)
        code = _run_launcher([*command, "--", *argv], str(daemon["socket"]))
        if not record.exists():
            error = _why(directory / "error")
            if arguments.json:
                raise error
            return exit_code_of(error)  # the launcher has said why
        data = files.read_bounded(record, bytes_max=RECORD_BYTES_MAX, what="the action record")
    if arguments.record:
        with files.complete_file(arguments.record) as stream:
            stream.write(data)
    capture_key = keys.load_public_key(str(daemon["captureKey"]))
    verified = verify_record(data, action_key=key, envelope_sha256=None, trusted=(capture_key,))
    if signer is not None:
        manifest = _manifest(arguments, argv, verified, data, (started, _now()))
        seal(
            read_manifest(manifest),
            records=RecordsInMemory({digest.sha256_hex(data): data}),
            trusted=(capture_key,),
            signer=signer,
            out=Path(arguments.out),
            targets_dir=None,
            artifacts_dir=Path(arguments.root),
            tools=tools,
        )
    _report(verified, arguments.out, code, arguments.json)
    return code


def capture_options(arguments: argparse.Namespace, environ: Mapping[str, str]) -> Dict[str, str]:
    """OPTION entries for the launcher.

    Raises:
        ConfigError: A switch of the environment has an unknown value, or what was asked for
            contradicts itself.
    """
    switches = {
        name: hardening.switch(name, getattr(arguments, name), environ)
        for name in ("fanotify", "fsverity")
    }
    demanded = _level(arguments, environ)
    zero_drops = [*hardening.zero_drops_variable(environ)]
    level, mode = demanded.value, arguments.capture_mode
    hardening.check_level(
        demanded,
        hardening.Said(mode, f"--capture-mode={mode}"),
        [*switches.values(), *zero_drops],
    )
    if arguments.require_zero_drops:
        zero_drops.append(hardening.Said("on", "--require-zero-drops"))
    options = {
        "capture-mode": mode,
        **{name: hardening.at_level(level, mode, name, s.value) for name, s in switches.items()},
        "hardening": level,
        "require-zero-drops": str(int(any(said.value == "on" for said in zero_drops))),
    }
    for name in CAPS:
        value = getattr(arguments, name.replace("-", "_"))
        if value is not None:
            options[name] = str(value)
    return options


def _level(arguments: argparse.Namespace, environ: Mapping[str, str]) -> hardening.Said:
    """What the flag and the variable demand; the flag may strengthen the variable."""
    said = [*hardening.level_variable(environ)]
    if arguments.hardening is not None:
        said.append(hardening.Said(arguments.hardening, f"--hardening={arguments.hardening}"))
    standard = hardening.Said("standard", "the default")
    return hardening.strengthened(said or [standard], hardening.LEVELS)


def drop_to(environ: Mapping[str, str]) -> Optional[str]:
    """Under sudo as root: the identity of who called it, for the launcher's --drop-to.

    Raises:
        ConfigError: The variables of sudo are not numbers.
    """
    if os.geteuid() != 0 or "SUDO_UID" not in environ:
        return None
    try:
        uid, gid = int(environ["SUDO_UID"]), int(environ.get("SUDO_GID", environ["SUDO_UID"]))
    except ValueError:
        raise ConfigError("SUDO_UID or SUDO_GID is not a number; unset both") from None
    if uid == 0:
        return None
    return f"{uid}:{gid}:" + ",".join(str(group) for group in groups_of(uid, gid))


@contextlib.contextmanager
def _record_directory() -> Iterator[Path]:
    """A directory for the record that the launcher can write even after it dropped to SUDO_UID."""
    with tempfile.TemporaryDirectory(prefix="rootseal-run-") as name:
        if drop_to(os.environ) is not None:
            os.chown(name, int(os.environ["SUDO_UID"]), -1)
        yield Path(name)


def _key_fields(arguments: argparse.Namespace, argv: Sequence[str]) -> Dict[str, object]:
    root, cwd = Path(os.path.realpath(arguments.root)), Path(working_directory())
    inside = cwd == root or root in cwd.parents
    output_files, directories = declared_outputs(arguments)
    return action.command_fields(
        argv=[os.fsencode(argument) for argument in argv],
        environ=[(name, value) for name, value in os.environb.items()],
        working_directory=os.fsencode(cwd.relative_to(root) if inside else cwd),
        output_files=[os.fsencode(path) for path in output_files],
        output_directories=[os.fsencode(path) for path in directories],
        platform=f"{platform.system().lower()}_{platform.machine()}",
    )


def _launcher_command(
    arguments: argparse.Namespace,
    daemon: Mapping[str, object],
    key: bytes,
    record: Path,
    options: Mapping[str, str],
) -> List[str]:
    command = [
        str(daemon["launcher"]),
        f"--action={key.hex()}",
        f"--root={arguments.root}",
        f"--record={record}",
        f"--socket={daemon['socket']}",
        f"--descendants={arguments.descendants}",
    ]
    output_files, directories = declared_outputs(arguments)
    command += [f"--output-file={path}" for path in output_files]
    command += [f"--output-dir={path}" for path in directories]
    command += [f"--option={name}={value}" for name, value in options.items()]
    command += [f"--option=inputs={os.path.realpath(path)}" for path in arguments.input]
    command += _toolchain_options(arguments)
    if seals_outputs(arguments, options):
        command.append("--option=seal-outputs=1")
    if arguments.helper:
        command.append(f"--helper={arguments.helper}")
    identity = drop_to(os.environ)
    if identity is not None:
        command.append(f"--drop-to={identity}")
    return command


def _toolchain_options(arguments: argparse.Namespace) -> List[str]:
    """What has the daemon fail the action; `seal` and `verify` repeat the judgement."""
    if not arguments.toolchain:
        return []
    found = [f"--option=toolchain-scope={arguments.toolchain_scope}"]
    for name in ("toolchain", "toolchain_key"):
        option = name.replace("_", "-")
        paths = (os.path.realpath(path) for path in getattr(arguments, name))
        found += [f"--option={option}={path}" for path in paths]
    return found


def _run_launcher(command: Sequence[str], socket: str) -> int:
    """Run the launcher on our own terminal; returns the command's status, 128 + signal if killed.

    What the terminal sends reaches the command directly; what was sent to us is passed on.
    """
    before: Dict[int, Any] = {}
    process: Optional[subprocess.Popen[bytes]] = None
    pending: List[int] = []

    def forward(number: int, _: object) -> None:
        if process is None:
            pending.append(number)
        else:
            process.send_signal(number)

    numbers: Tuple[int, ...] = (signal.SIGINT, signal.SIGQUIT, *FORWARDED)
    for number in numbers:
        if signal.getsignal(number) is not signal.SIG_IGN:
            handler = forward if number in FORWARDED else _ignore
            before[number] = signal.signal(number, handler)
    try:
        try:
            process = subprocess.Popen(command, close_fds=False)
        except OSError as error:
            raise ConfigError(
                f"cannot run {command[0]}: {error.strerror}; run `make build`"
            ) from None
        for number in pending:
            process.send_signal(number)
        with shown_progress(socket, process.pid):
            code = process.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return 128 - code if code < 0 else code


def _ignore(number: int, frame: object) -> None:
    """The terminal has sent it to the command too; a handler, unlike SIG_IGN, is not inherited."""


def _manifest(
    arguments: argparse.Namespace,
    argv: Sequence[str],
    verified: VerifiedRecord,
    data: bytes,
    times: Tuple[str, str],
) -> Dict[str, object]:
    """A run manifest (docs/formats.md) of one action."""
    requested = capture_options(arguments, os.environ)
    strict = requested["hardening"] == "strict"
    must_hold = strict or requested["fanotify"] == "on"
    name = digest.sha256_hex(data)
    artifacts = artifacts_of(verified, Path(arguments.root))
    target = {"address": "command", "actions": [name], "artifacts": artifacts}
    return {
        "version": 1,
        "tool": {"name": "rootseal run", "version": __version__},
        "run": {"id": secrets.token_hex(16), "startedAt": times[0], "finishedAt": times[1]},
        "vcs": None,
        "policy": {
            "captureMode": requested["capture-mode"],
            "fanotify": requested["fanotify"],
            "fsverity": requested["fsverity"],
            "hardening": requested["hardening"],
            "requireZeroDrops": strict or requested["require-zero-drops"] == "1",
            "posture": (Posture.HELD if must_hold else Posture.WALKED).value,
        },
        "captureKeys": [],
        "actions": [
            {
                "actionKey": verified.predicate.action_key.hex(),
                "record": name,
                "source": "ran",
                "description": canonical.path_text(os.fsencode(" ".join(argv)))[:4096],
                "exitCode": verified.predicate.document["exitcode"],
                "stdout": None,
                "stderr": None,
            }
        ],
        "targets": [target] if artifacts else [],
        "engineInputs": [],
    }


def _forget_the_last_run(arguments: argparse.Namespace) -> None:
    """A run that fails leaves nothing behind that could be taken for its own."""
    check_results(arguments)
    for path in filter(None, (arguments.out, arguments.record)):
        try:
            Path(path).unlink(missing_ok=True)
        except OSError as error:
            raise ConfigError(f"cannot replace {path}: {error.strerror}") from None


def _why(path: Path) -> Error:
    """The error that the daemon told the launcher, as it was raised there."""
    if not path.exists():
        text = "the launcher ended without a record; see what it said on stderr"
        return CaptureLost(text, {})
    text = path.read_text("utf-8", "replace")
    code, message, details = (text.split("\n", 2) + ["", ""])[:3]
    values = json.loads(details) if details.strip() else {}
    if code == ZeroDropsError.__name__:
        return ZeroDropsError(message, {name: item["value"] for name, item in values.items()})
    if code == PostureError.__name__:
        return PostureError(message, values["requested"], values["achieved"])
    if code == ToolchainError.__name__:
        return ToolchainError(message, values)
    if code == ConfigError.__name__:
        return ConfigError(message)
    return Error(message) if code == "InternalError" else CaptureError(message)


def _report(verified: VerifiedRecord, out: Optional[str], code: int, as_json: bool) -> None:
    """One line on stderr, and for machines one on stdout; the rest of stdout is the command's."""
    predicate = verified.predicate
    if as_json:
        document = {
            "ok": True,
            "exitCode": code,
            "posture": predicate.posture.value,
            "losses": diagnostics.loss_details(verified.losses),
            "bundle": out,
        }
        print(json.dumps(document))
    text = (
        f"rootseal: {predicate.materials.tree_size} materials, {predicate.products.tree_size} "
        f"products, {predicate.process_count} processes, posture {predicate.posture.value}"
    )
    if verified.losses:
        text += f", losses: {', '.join(sorted(verified.losses))}"
    print(printable(text + (f" → {out}" if out else "")), file=sys.stderr)


def _now() -> str:
    return datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
