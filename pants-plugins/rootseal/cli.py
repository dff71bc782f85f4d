"""The `rootseal` command: wiring only. Each command group registers itself (`cli_*.py`).

Exit codes: 0 good, 1 refused, 2 usage or configuration, 3 internal.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from typing import Callable, Mapping, NoReturn, Optional, Sequence, Tuple

from rootseal import __version__, cli_later, cli_output
from rootseal.errors import ConfigError, Error

Handler = Callable[[argparse.Namespace], int]

# Which module registers which commands, in the order of `--help`. Only the module of the command
# that runs is imported: the others would cost every start of the launcher's and Pants' helpers.
GROUPS: Mapping[str, Tuple[str, ...]] = {
    "cli_run": ("run",),
    "cli_keys": ("keygen",),
    "cli_seal": ("seal",),
    "cli_verify": ("verify", "verify-proof"),
    "cli_prove": ("prove",),
    "cli_show": ("show",),
    "cli_toolchain": ("toolchain",),
    "cli_daemon": ("daemon",),
    "cli_doctor": ("doctor",),
}

_INTERRUPTED = 130


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One line and exit code 2, without the usage text around it."""
        self.exit(
            cli_output.EXIT_USAGE,
            f"rootseal: {cli_output.printable(message)} (see `{self.prog} --help`)\n",
        )


def build_parser(command: Optional[str] = None) -> argparse.ArgumentParser:
    """The parser with every command, or with one of them if `command` is its name."""
    parser = _Parser(
        prog="rootseal",
        description="Capture every action of a build and seal it into one signed attestation.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"rootseal {__version__}")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    owners = [module for module, commands in GROUPS.items() if command in commands]
    for module in owners or GROUPS:
        importlib.import_module(f"rootseal.{module}").register(subparsers)
    return parser


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Run one command and return its exit code; never a traceback."""
    words = tuple(sys.argv[1:] if argv is None else argv)
    parser = build_parser(words[0] if words else None)
    if cli_later.is_awaited(words):
        cli_later.leave(_run_later(parser, words[0]))
    return _run(parser.parse_args(words))


def _run_later(parser: argparse.ArgumentParser, command: str) -> int:
    """Wait for the arguments of a command, and run it with them."""
    try:
        later = cli_later.read_arguments()
        if later is None:
            return cli_output.EXIT_GOOD
        arguments = parser.parse_args((command, *later))
    except Error as error:
        return cli_output.report(error, as_json=False)
    except KeyboardInterrupt:
        return _INTERRUPTED
    except SystemExit as end:  # of the parser, which has said why
        return int(end.code or cli_output.EXIT_GOOD)
    return _run(arguments)


def _run(arguments: argparse.Namespace) -> int:
    handler: Handler = arguments.handler
    try:
        code = handler(arguments)
        sys.stdout.flush()
    except Error as error:
        return cli_output.report(error, as_json=_wants_json(arguments))
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return cli_output.EXIT_INTERNAL
    except KeyboardInterrupt:
        return _INTERRUPTED
    except RecursionError:
        deep = ConfigError("the input is nested too deeply")
        return cli_output.report(deep, as_json=_wants_json(arguments))
    except Exception as fault:  # the edge of the process: fail, in one line
        if os.environ.get("ROOTSEAL_DEBUG"):
            raise
        found = Error(f"internal error ({type(fault).__name__}: {fault}); set ROOTSEAL_DEBUG=1")
        return cli_output.report(found, as_json=_wants_json(arguments))
    return code


def _wants_json(arguments: argparse.Namespace) -> bool:
    return bool(getattr(arguments, "json", False))


if __name__ == "__main__":
    sys.exit(main())
