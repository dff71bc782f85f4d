"""Rules that say what is attested, for the rule API of Pants up to 2.27 (`Get`)."""

from __future__ import annotations

from pants.base.specs import Specs
from pants.core.goals.package import BuiltPackage, EnvironmentAwarePackageRequest, PackageFieldSet
from pants.engine.environment import EnvironmentName
from pants.engine.fs import Digest, DigestEntries
from pants.engine.rules import Get, QueryRule, collect_rules, rule
from pants.engine.target import (
    NoApplicableTargetsBehavior,
    TargetRootsToFieldSets,
    TargetRootsToFieldSetsRequest,
)

from rootseal_pants.attest_types import (
    AttestedTarget,
    AttestRoots,
    AttestTarget,
    CurrentRun,
    attested_target,
)


@rule
async def find_attest_roots() -> AttestRoots:
    """Ask exactly as the package goal asks."""
    roots = await Get(
        TargetRootsToFieldSets,
        TargetRootsToFieldSetsRequest(
            PackageFieldSet,
            goal_description="the `attest` goal",
            no_applicable_targets_behavior=NoApplicableTargetsBehavior.warn,
        ),
    )
    return AttestRoots(tuple(roots.field_sets))


@rule(desc="List the files of a package")
async def attest_target(request: AttestTarget) -> AttestedTarget:
    """Package the target (or take the package that is there), and list its files."""
    package = await Get(BuiltPackage, EnvironmentAwarePackageRequest(request.field_set))
    entries = await Get(DigestEntries, Digest, package.digest)
    return attested_target(request, package, entries)


def rules() -> list[object]:
    """The rules of this module."""
    return [
        *collect_rules(),
        QueryRule(AttestRoots, (Specs, EnvironmentName)),
        QueryRule(AttestedTarget, (AttestTarget, EnvironmentName)),
        QueryRule(CurrentRun, ()),
    ]
