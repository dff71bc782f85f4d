"""Check 20 for a whole build: what a policy demands of its actions and targets. Pure."""

from __future__ import annotations

import fnmatch
import re
from typing import Optional, Pattern, Sequence

from rootseal import canonical, leaf_table
from rootseal.build_predicate import Target
from rootseal.checks import Check, checking
from rootseal.errors import PolicyError
from rootseal.leaf_table import Domain
from rootseal.observation import Posture
from rootseal.policy import Policy
from rootseal.record_check import VerifiedRecord


def check_policy_targets(targets: Sequence[Target], policy: Policy) -> None:
    """Every required target is there.

    Raises:
        PolicyError: Names the first that is not.
    """
    with checking(Check.POLICY, PolicyError):
        missing = set(policy.required_targets) - {target.address for target in targets}
        if missing:
            raise PolicyError(
                f"the required target {min(missing)!r} is not in this build",
                data={"missing": sorted(missing)},
            )


def check_policy_action(verified: VerifiedRecord, policy: Policy, *, about: str) -> None:
    """One action's counters are within their bounds, and it read nothing forbidden.

    Raises:
        PolicyError: Names the counter, or the path.
    """
    with checking(Check.POLICY, PolicyError, about=about):
        for name, least in policy.counters_min:
            if verified.counters[name] < least:
                raise _counter(name, verified.counters[name], "at least", least)
        for name, most in policy.counters_max:
            if verified.counters[name] > most:
                raise _counter(name, verified.counters[name], "at most", most)
        if policy.forbidden_materials:
            _check_materials(verified, _matcher(policy.forbidden_materials))


def _counter(name: str, value: int, bound: str, wanted: int) -> PolicyError:
    return PolicyError(
        f"the counter {name} is {value}, {bound} {wanted} is required",
        data={"counter": name, "value": value, "required": wanted},
    )


def _matcher(globs: Sequence[str]) -> Pattern[str]:
    """`*` and `?` match slashes too: a glob that forbids should rather match too much."""
    return re.compile("|".join(fnmatch.translate(glob) for glob in globs))


def _check_materials(verified: VerifiedRecord, forbidden: Pattern[str]) -> None:
    if verified.predicate.posture.rank < Posture.OBSERVED.rank:
        raise PolicyError(
            f"posture {verified.predicate.posture.value} does not see reads, so it cannot show "
            "that no forbidden material was read"
        )
    found = _first_match(verified.record.tables.materials, forbidden)
    if found is not None:
        raise PolicyError(f"it read the forbidden material {found!r}", data={"path": found})


def _first_match(stored: bytes, forbidden: Pattern[str]) -> Optional[str]:
    raw = leaf_table.decompress(stored)
    for leaf in leaf_table.iter_leaves(raw, Domain.MATERIAL):
        text = canonical.path_text(leaf.path)
        if forbidden.match(text):
            return text
    return None
