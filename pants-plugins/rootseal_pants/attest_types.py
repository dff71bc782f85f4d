"""Which targets are attested, and which files each of them leaves in dist/: types and results.

The rules are in attest_rules.py and byname_rules.py, one for each rule API.
"""

from __future__ import annotations

import os
import urllib.parse
from dataclasses import dataclass
from pathlib import PurePath

from pants.core.goals.package import BuiltPackage, PackageFieldSet
from pants.engine.engine_aware import EngineAwareParameter
from pants.engine.fs import Digest, DigestEntries, FileEntry, SymlinkEntry

from rootseal_pants.manifest import Artifact

_PLAIN_IN_LABELS = "/:#@=+"


@dataclass(frozen=True)
class AttestRoots:
    """What `pants package` builds for the specs of this run."""

    field_sets: tuple[PackageFieldSet, ...]


@dataclass(frozen=True)
class AttestTarget(EngineAwareParameter):
    """One target to attest; its node in the graph is where the search for actions starts."""

    field_set: PackageFieldSet

    def debug_hint(self) -> str:
        """The label of the node: the address, and the kind of package.

        Brackets and commas, which an address may have, have a meaning in labels: see graph.py.
        """
        address = urllib.parse.quote(self.field_set.address.spec, safe=_PLAIN_IN_LABELS)
        return f"{address} {type(self.field_set).__name__}"


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


@dataclass(frozen=True)
class CurrentRun:
    """The engine's number of this run."""

    run_id: int


def attested_target(
    request: AttestTarget, package: BuiltPackage, entries: DigestEntries
) -> AttestedTarget:
    """What a package holds.

    Args:
        request: The target.
        package: The package that was built of it.
        entries: Everything in the package.
    """
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
