"""Rules that ask the engine for nothing: the same for both rule APIs of Pants."""

from __future__ import annotations

from typing import Any

from pants.base.build_root import BuildRoot
from pants.core.util_rules import distdir
from pants.core.util_rules.distdir import DistDir
from pants.engine.env_vars import CompleteEnvironmentVars
from pants.engine.internals.options_parsing import _Options
from pants.engine.internals.session import RunId, SessionValues
from pants.engine.rules import QueryRule, _uncacheable_rule, collect_rules, rule
from pants.option.global_options import GlobalOptions

from rootseal_pants.attest_types import CurrentRun
from rootseal_pants.demands import demands_of
from rootseal_pants.settings import (
    AttestationPlace,
    DaemonRequest,
    ReadyDaemon,
    Settings,
    attestation_place,
    make_ready,
    resolve_settings,
)
from rootseal_pants.subsystem import RootsealSubsystem


@rule
async def settings_of_run(
    rootseal: RootsealSubsystem,
    options: _Options,
    session_values: SessionValues,
    global_options: GlobalOptions,
    build_root: BuildRoot,
    dist_dir: DistDir,
) -> Settings:
    """Read the options."""
    return resolve_settings(
        rootseal,
        demands=demands_of(options.options, session_values[CompleteEnvironmentVars]),
        workdir=global_options.pants_workdir,
        build_root=build_root.path,
        dist_dir=str(dist_dir.relpath),
        sandboxes=global_options.local_execution_root_dir,
    )


@rule
async def place_of_run(
    rootseal: RootsealSubsystem, build_root: BuildRoot, dist_dir: DistDir
) -> AttestationPlace:
    """Read the one option that says where the attestation goes."""
    return attestation_place(rootseal, build_root.path, str(dist_dir.relpath))


@_uncacheable_rule
async def ready_daemon(request: DaemonRequest) -> ReadyDaemon:
    """Make sure, once in every run, that a daemon answers.

    Pants compares the value with that of the run before: only a new launcher or another key makes
    it look at the actions again.
    """
    return make_ready(request)


@rule
async def current_run(run_id: RunId) -> CurrentRun:
    """Ask the engine."""
    return CurrentRun(int(run_id))


def rules() -> list[object]:
    """The rules of this module, and those that know where dist/ is."""
    module: Any = distdir
    return [*collect_rules(), *module.rules(), QueryRule(AttestationPlace, ())]
