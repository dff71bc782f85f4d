"""What Pants loads: only wires, and picks the modules for this version of Pants."""

from __future__ import annotations

from typing import Any

from rootseal_pants.compat import BY_NAME, VERSION, wrap_module

if VERSION < (2, 17) or VERSION == (2, 22):
    raise ImportError(
        f"Rootseal does not support Pants {VERSION[0]}.{VERSION[1]}; it supports 2.17 to 2.21, "
        "and 2.23 and later (docs/pants.md)."
    )

from rootseal_pants import hook
from rootseal_pants.attest_goal import AttestGoal

hook.install(wrap_module())


def rules() -> list[Any]:
    """The rules of the backend."""
    if BY_NAME:
        from rootseal_pants import byname_rules

        return [*byname_rules.rules(), *AttestGoal.rules()]
    from rootseal_pants import attest_rules, setup_rules, wrap_get

    return [
        *setup_rules.rules(),
        *wrap_get.rules(),
        *attest_rules.rules(),
        *AttestGoal.rules(),
    ]


def auxiliary_goals() -> list[Any]:
    """The goals that run outside the engine, where Pants asks a backend for them (2.23 on)."""
    return [AttestGoal] if BY_NAME else []
