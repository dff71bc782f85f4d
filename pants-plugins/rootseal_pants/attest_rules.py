"""Rules that say which targets are attested, and which files each of them leaves in dist/."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import PurePath

from pants.base.specs import Specs
from pants.core.goals.package import (
    BuiltPackage,
    EnvironmentAwarePackageRequest,
    PackageFieldSet,
)
from pants.engine.engine_aware import EngineAwareParameter
from pants.engine.environment import EnvironmentName
from pants.engine.fs import Digest, DigestEntries, FileEntry, SymlinkEntry
from pants.engine.internals.session import RunId
from pants.engine.rules import Get, QueryRule, collect_rules, rule
from pants.engine.target import (
    NoApplicableTargetsBehavior,
    TargetRootsToFieldSets,
    TargetRootsToFieldSetsRequest,
)

from rootseal_pants.manifest import Artifact


@dataclass(frozen=True)
class AttestRoots:
    """What `pants package` builds for the specs of this run."""

    field_sets: tuple[PackageFieldSet, ...]


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


@dataclass(frozen=True)
class AttestTarget(EngineAwareParameter):
    """One target to attest; its node in the graph is where the search for actions starts."""

    field_set: PackageFieldSet

    def debug_hint(self) -> str:
        """The label of the node: the address, and the kind of package."""
        return f"{self.field_set.address.spec} {type(self.field_set).__name__}"


@dataclass(frozen=True)
class AttestedTarget:
    """A target that was packaged, and its files.

    Attributes:
        address: The target's address.
        hint: What its node in the graph is called.
        digest: The engine's digest of what it leaves in dist/.
        artifacts: Its files; the names are relative to dist/.
        dangling: Symlinks of it that lead out of it; they are not attested.
    """

    address: str
    hint: str
    digest: Digest
    artifacts: tuple[Artifact, ...]
    dangling: tuple[str, ...]


@rule(desc="List the files of a package")
async def attest_target(request: AttestTarget) -> AttestedTarget:
    """Package the target (or take the package that is there), and list its files."""
    package = await Get(BuiltPackage, EnvironmentAwarePackageRequest(request.field_set))
    entries = await Get(DigestEntries, Digest, package.digest)
    files = {entry.path: entry.file_digest for entry in entries if isinstance(entry, FileEntry)}
    dangling = []
    for entry in entries:
        if isinstance(entry, SymlinkEntry):
            target = os.path.normpath(PurePath(entry.path).parent / entry.target)
            if target in files:
                files[entry.path] = files[target]
            else:
                dangling.append(entry.path)
    return AttestedTarget(
        address=request.field_set.address.spec,
        hint=request.debug_hint(),
        digest=package.digest,
        artifacts=tuple(
            Artifact(path, digest.fingerprint, digest.serialized_bytes_length)
            for path, digest in sorted(files.items())
        ),
        dangling=tuple(dangling),
    )


@dataclass(frozen=True)
class CurrentRun:
    """The engine's number of this run."""

    run_id: int


@rule
async def current_run(run_id: RunId) -> CurrentRun:
    """Ask the engine."""
    return CurrentRun(int(run_id))


def rules() -> list[object]:
    """The rules of this module."""
    return [
        *collect_rules(),
        QueryRule(AttestRoots, (Specs, EnvironmentName)),
        QueryRule(AttestedTarget, (AttestTarget, EnvironmentName)),
        QueryRule(CurrentRun, ()),
    ]
