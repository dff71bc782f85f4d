"""Rules that make capture ready, for the rule API of Pants up to 2.27 (`Get`)."""

from __future__ import annotations

from typing import Any

from pants.base.build_root import BuildRoot
from pants.core.util_rules import distdir
from pants.core.util_rules.distdir import DistDir
from pants.engine.fs import CreateDigest, Digest
from pants.engine.platform import Platform
from pants.engine.rules import Get, QueryRule, _uncacheable_rule, collect_rules, rule
from pants.option.global_options import GlobalOptions

from rootseal_pants.settings import (
    Capture,
    DaemonRequest,
    LauncherDirectory,
    LauncherRequest,
    ReadyDaemon,
    Settings,
    daemon_request,
    launcher_files,
    make_ready,
    resolve_settings,
)
from rootseal_pants.subsystem import RootsealSubsystem


@rule
async def settings_of_run(
    rootseal: RootsealSubsystem,
    global_options: GlobalOptions,
    build_root: BuildRoot,
    dist_dir: DistDir,
) -> Settings:
    """Read the options."""
    return resolve_settings(
        rootseal,
        workdir=global_options.pants_workdir,
        build_root=build_root.path,
        dist_dir=str(dist_dir.relpath),
    )


@_uncacheable_rule
async def ready_daemon(request: DaemonRequest) -> ReadyDaemon:
    """Make sure, once in every run, that a daemon answers.

    Pants compares the value with that of the run before: only a new launcher or another key makes
    it look at the actions again.
    """
    return make_ready(request)


@rule
async def launcher_directory(request: LauncherRequest) -> LauncherDirectory:
    """Put the launcher into the engine's store."""
    return LauncherDirectory(await Get(Digest, CreateDigest, launcher_files(request)))


@rule
async def prepare_capture(settings: Settings) -> Capture:
    """Everything that wrapping a process needs."""
    platform = Platform.create_for_localhost().value
    if not settings.enabled:
        return Capture(settings, None, None, platform)
    daemon = await Get(ReadyDaemon, DaemonRequest, daemon_request(settings))
    launcher = await Get(LauncherDirectory, LauncherRequest(daemon))
    return Capture(settings, launcher.digest, daemon, platform)


def _distdir_rules() -> list[object]:
    """The rules that know where dist/ is."""
    module: Any = distdir
    return list(module.rules())


def rules() -> list[object]:
    """The rules of this module."""
    return [*collect_rules(), *_distdir_rules(), QueryRule(Capture, ())]
