"""The rules of the plugin for the rule API of Pants 2.23 and later (calls by name).

The same rules as setup_rules.py and attest_rules.py; `Get` is gone from Pants 2.32. What asks the
engine for nothing is in common_rules.py. See wrap_byname.py for what has been tried of it.
"""

# mypy: disable-error-code="attr-defined"

from __future__ import annotations

from pants.base.specs import Specs
from pants.core.goals.package import (
    EnvironmentAwarePackageRequest,
    PackageFieldSet,
    environment_aware_package,
)
from pants.engine.environment import EnvironmentName
from pants.engine.internals.session import SessionValues
from pants.engine.internals.specs_rules import find_valid_field_sets_for_target_roots
from pants.engine.intrinsics import create_digest, get_digest_entries
from pants.engine.platform import Platform
from pants.engine.rules import QueryRule, collect_rules, implicitly, rule
from pants.engine.target import NoApplicableTargetsBehavior, TargetRootsToFieldSetsRequest

from rootseal_pants import common_rules
from rootseal_pants.attest_types import (
    AttestedTarget,
    AttestRoots,
    AttestTarget,
    CurrentRun,
    attested_target,
)
from rootseal_pants.run_capture import RunCapture
from rootseal_pants.settings import (
    Capture,
    CaptureRequest,
    LauncherDirectory,
    LauncherRequest,
    Settings,
    launcher_files,
)


@rule
async def launcher_directory(request: LauncherRequest) -> LauncherDirectory:
    """Put the launcher into the engine's store."""
    return LauncherDirectory(await create_digest(launcher_files(request)))


@rule
async def prepare_capture(_: CaptureRequest, settings: Settings, values: SessionValues) -> Capture:
    """Everything that wrapping a process needs; with the daemon that its processes have."""
    platform = Platform.create_for_localhost().value
    if not settings.enabled:
        return Capture(settings, None, None, platform)
    daemon = values[RunCapture].ready_daemon()
    launcher = await launcher_directory(LauncherRequest(daemon))
    return Capture(settings, launcher.digest, daemon, platform)


@rule
async def find_attest_roots() -> AttestRoots:
    """Ask exactly as the package goal asks."""
    roots = await find_valid_field_sets_for_target_roots(
        TargetRootsToFieldSetsRequest(
            PackageFieldSet,
            goal_description="the `attest` goal",
            no_applicable_targets_behavior=NoApplicableTargetsBehavior.warn,
        ),
        **implicitly(),
    )
    return AttestRoots(tuple(roots.field_sets))


@rule(desc="List the files of a package")
async def attest_target(request: AttestTarget) -> AttestedTarget:
    """Package the target (or take the package that is there), and list its files."""
    package = await environment_aware_package(EnvironmentAwarePackageRequest(request.field_set))
    entries = await get_digest_entries(package.digest)
    return attested_target(request, package, entries)


def rules() -> list[object]:
    """The rules of this module."""
    return [
        *collect_rules(),
        *common_rules.rules(),
        QueryRule(Settings, ()),
        QueryRule(Capture, (CaptureRequest,)),
        QueryRule(AttestRoots, (Specs, EnvironmentName)),
        QueryRule(AttestedTarget, (AttestTarget, EnvironmentName)),
        QueryRule(CurrentRun, ()),
    ]
