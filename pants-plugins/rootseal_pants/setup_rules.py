"""Rules that make capture ready, for the rule API of Pants up to 2.27 (`Get`)."""

from __future__ import annotations

from pants.engine.fs import CreateDigest, Digest
from pants.engine.platform import Platform
from pants.engine.rules import Get, QueryRule, collect_rules, rule

from rootseal_pants import common_rules
from rootseal_pants.settings import (
    Capture,
    CaptureRequest,
    DaemonRequest,
    LauncherDirectory,
    LauncherRequest,
    ReadyDaemon,
    Settings,
    daemon_request,
    launcher_files,
)


@rule
async def launcher_directory(request: LauncherRequest) -> LauncherDirectory:
    """Put the launcher into the engine's store."""
    return LauncherDirectory(await Get(Digest, CreateDigest, launcher_files(request)))


@rule
async def prepare_capture(_: CaptureRequest, settings: Settings) -> Capture:
    """Everything that wrapping a process needs."""
    platform = Platform.create_for_localhost().value
    if not settings.enabled:
        return Capture(settings, None, None, platform)
    daemon = await Get(ReadyDaemon, DaemonRequest, daemon_request(settings))
    launcher = await Get(LauncherDirectory, LauncherRequest(daemon))
    return Capture(settings, launcher.digest, daemon, platform)


def rules() -> list[object]:
    """The rules of this module."""
    return [*collect_rules(), *common_rules.rules(), QueryRule(Capture, (CaptureRequest,))]
