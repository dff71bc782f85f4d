"""The `rootseal` command: wiring only. Each command group registers itself (`cli_*.py`).

Exit codes: 0 good, 1 refused, 2 usage or configuration, 3 internal.
"""

from __future__ import annotations

import argparse
import os
import sys
from typing import Any, Callable, NoReturn, Optional, Sequence, Tuple

from rootseal import (
    __version__,
    cli_daemon,
    cli_doctor,
    cli_keys,
    cli_output,
    cli_prove,
    cli_run,
    cli_seal,
    cli_show,
    cli_toolchain,
    cli_verify,
)
from rootseal.errors import ConfigError, Error

Handler = Callable[[argparse.Namespace], int]


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One line and exit code 2, without the usage text around it."""
        self.exit(
            cli_output.EXIT_USAGE,
            f"rootseal: {cli_output.printable(message)} (see `{self.prog} --help`)\n",
        )


def build_parser() -> argparse.ArgumentParser:
    """The parser with every command."""
    parser = _Parser(
        prog="rootseal",
        description="Capture every action of a build and seal it into one signed attestation.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"rootseal {__version__}")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    groups: Tuple[Any, ...] = (cli_run, cli_keys, cli_seal, cli_verify, cli_prove, cli_show)
    groups += (cli_toolchain, cli_daemon, cli_doctor)
    for group in groups:
        group.register(subparsers)
    return parser


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Run one command and return its exit code; never a traceback."""
    arguments = build_parser().parse_args(argv)
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
        return 130
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
