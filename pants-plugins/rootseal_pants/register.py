"""What Pants loads: only wires, and picks the module for this version of Pants."""

from __future__ import annotations

from pants.version import PANTS_SEMVER

if not (2, 17) <= PANTS_SEMVER.release[:2] <= (2, 21):
    raise ImportError(
        f"Rootseal does not support Pants {PANTS_SEMVER} yet; it supports 2.17 to 2.21."
    )

from rootseal_pants import attest_rules, hook, setup_rules, wrap_get
from rootseal_pants.attest_goal import AttestGoal

hook.install()


def rules() -> list[object]:
    """The rules of the backend."""
    return [
        *setup_rules.rules(),
        *wrap_get.rules(),
        *attest_rules.rules(),
        *AttestGoal.rules(),
    ]
