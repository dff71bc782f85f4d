"""Sealing the artifacts of a build with fs-verity before the root statement names them.

From here on the kernel refuses to write them, and corruption below the filesystem is an I/O error.
Each file is sealed first and hashed afterwards, so the SHA-256 that is compared with the manifest
is that of the content that can no longer change.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Dict, Mapping, Optional, Sequence

from rootseal import canonical, fsverity
from rootseal.build_predicate import Artifact, ArtifactSeals
from rootseal.errors import BackendUnavailable, CaptureError, ConfigError, IncompleteError

MODES = ("off", "auto", "on")


def seal_artifacts(
    directory: Optional[Path], artifacts: Sequence[Artifact], *, mode: str
) -> ArtifactSeals:
    """Seal each artifact where its filesystem can.

    Args:
        directory: The artifact directory; None where the caller has no files to seal.
        artifacts: The artifacts of the manifest.
        mode: `off` seals nothing; `auto` seals what can be sealed and counts what failed; `on`
            refuses where any artifact cannot be sealed.

    Raises:
        ConfigError: Mode `on` without a directory, or an unknown mode.
        BackendUnavailable: Mode `on` and a filesystem without fs-verity.
        CaptureError: Mode `on` and a file that could not be sealed.
        IncompleteError: A file is missing, or not what the manifest says.
    """
    if mode not in MODES:
        raise ConfigError(f"fsverity is {mode!r}; it must be one of {', '.join(MODES)}")
    if mode == "on" and directory is None:
        raise ConfigError("fsverity is `on`, but no artifact directory is given (--artifacts DIR)")
    if mode == "off" or directory is None:
        return ArtifactSeals(False, 0, ())
    found: Dict[str, str] = {}
    available, failures = False, 0
    for artifact in sorted({item.name: item for item in artifacts}.values(), key=_name):
        try:
            found[artifact.name] = _seal_one(directory, artifact)
            available = True
        except BackendUnavailable:
            if mode == "on":
                raise
        except CaptureError:
            if mode == "on":
                raise
            available = True
            failures += 1
    return ArtifactSeals(available, failures, tuple(found.items()))


def _name(artifact: Artifact) -> str:
    return artifact.name


def _seal_one(directory: Path, artifact: Artifact) -> str:
    # An artifact may be a symlink to another one: what it leads to is sealed.
    name = os.fsdecode(canonical.path_bytes(artifact.name))
    path = Path(os.path.realpath(directory / name))  # of a loop, a path that is no file
    if not path.is_file():
        raise IncompleteError(f"the artifact {artifact.name} is not in {directory}; build again")
    if Path(os.path.realpath(directory)) not in path.parents:  # a seal is for ever
        raise CaptureError(f"{path} is not sealed: {artifact.name} leads out of {directory}")
    measured = fsverity.seal_file(path)
    if (measured.sha256.hex(), measured.size) != (artifact.sha256, artifact.size):
        raise IncompleteError(
            f"{path} is not the artifact that was built: it has SHA-256 {measured.sha256.hex()}, "
            f"{artifact.sha256} was built. Remove it and build again."
        )
    return measured.fsverity.hex()


def environment_mode(environ: Mapping[str, str], otherwise: str) -> str:
    """The mode that ROOTSEAL_FSVERITY asks for: 0|off|auto|1|on; `otherwise` if it is not set."""
    value = environ.get("ROOTSEAL_FSVERITY", "").strip().lower()
    if not value:
        return otherwise
    mode = {"0": "off", "1": "on"}.get(value, value)
    if mode not in MODES:
        raise ConfigError(f"ROOTSEAL_FSVERITY is {value!r}; use 0, off, auto, 1 or on")
    return mode
