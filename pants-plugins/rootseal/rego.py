"""A policy in Rego over the signed root Statement, through regopy (the extra `rego`).

Accepted only if the policy's package says `allow` is true and produces nothing under `deny`,
`violation`, `violations`, `warn` or `warnings`, or such a name with more after an underscore
(`deny_network`), as other tools that run policies have it. What is undefined, odd or an error
refuses: a policy never fails open.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import json
import os
import re
import sys
from typing import Any, Iterator, Mapping

from rootseal.checks import Check, checking
from rootseal.errors import ConfigError, PolicyError

_PACKAGE = re.compile(r"^\s*package\s+([A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*)\s*(?:#.*)?$", re.MULTILINE)
_OBJECTION = re.compile(r"(?:deny|violations?|warn(?:ings?)?)(?:_.*)?", re.DOTALL)


def check_rego(text: str, statement: bytes, *, where: str) -> None:
    """Part of check 20: the policy accepts this Statement.

    Args:
        text: The policy, one module of either Rego dialect.
        statement: The verified payload of the root envelope, JSON; it is `input`.
        where: How errors name the policy.

    Raises:
        ConfigError: The policy cannot be evaluated, or the engine is not installed.
        PolicyError: It does not accept.
    """
    result = _evaluate(text, json.loads(statement), where)
    with checking(Check.POLICY, PolicyError):
        for name in sorted(filter(_OBJECTION.fullmatch, result)):
            if not _is_nothing(result[name]):
                raise PolicyError(
                    f"{where} objects in {name}: {json.dumps(result[name])[:500]}",
                    data={name: result[name]},
                )
        if result.get("allow") is not True:
            raise PolicyError(f"{where} does not say that allow is true")


def _is_nothing(value: object) -> bool:
    """Whether a rule objects to nothing; 0 is something, though it equals False."""
    return value is None or value is False or value == [] or value == {}


def _evaluate(text: str, document: object, where: str) -> Mapping[str, Any]:
    try:
        engine: Any = importlib.import_module("regopy")
    except ImportError:
        raise ConfigError("Rego policies need regopy: pip install 'rootseal[rego]'") from None
    package = _PACKAGE.search(text)
    if package is None:
        raise ConfigError(f"{where} has no package")
    try:
        with _stdout_is_stderr():
            interpreter = engine.Interpreter()
            interpreter.strict_built_in_errors = True
            interpreter.set_input(document)
            interpreter.add_module(where, text)
            output = interpreter.query(f"data.{package.group(1)}")
            expressions = output.results[0].expressions if output.ok() else []
    except Exception as error:  # noqa: BLE001 - whatever the engine raises, it accepts nothing
        said = " ".join(str(error).split())[:500]
        raise ConfigError(f"{where} cannot be evaluated: {said}") from None
    if len(expressions) != 1 or not isinstance(expressions[0], dict):
        raise ConfigError(f"{where} cannot be evaluated: its package has no rules with values")
    return expressions[0]


@contextlib.contextmanager
def _stdout_is_stderr() -> Iterator[None]:
    """The engine prints what it dislikes to descriptor 1, where `--json` has its one object."""
    libc = ctypes.CDLL(None)
    sys.stdout.flush()
    libc.fflush(None)
    kept = os.dup(1)
    try:
        os.dup2(2, 1)
        yield
    finally:
        libc.fflush(None)  # what it left in C's buffer would come out later
        os.dup2(kept, 1)
        os.close(kept)
