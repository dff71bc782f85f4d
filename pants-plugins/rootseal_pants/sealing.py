"""From a finished run to the files in dist/rootseal/: manifest, `rootseal seal`, a closing line.

Owns the output directory and the records directory of the run. Trusts neither: the executable
checks every record again, and the artifacts are hashed from the files that are really in dist/.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Iterable, Iterator, Mapping, Sequence

from rootseal import fsverity
from rootseal.canonical import path_text
from rootseal.errors import CaptureError

from rootseal_pants import early_sealer
from rootseal_pants.manifest import Artifact, EngineInput
from rootseal_pants.settings import ReadyDaemon, Settings

BUNDLE_NAME = "build.rootseal"
SEAL_TIMEOUT_SECONDS = 3600
_READ_BYTES = 1 << 20


@dataclass(frozen=True)
class Sealed:
    """What `rootseal seal` wrote, and what it said of it."""

    bundle: str
    summary: Mapping[str, Any]


def remove_stale(out_dir: str) -> None:
    """Remove the attestation of the last run: from here on it is not that of what is in dist/.

    Raises:
        CaptureError: A file of it cannot be removed.
    """
    out = Path(out_dir)
    for stale in (out / BUNDLE_NAME, *out.glob("targets/*.intoto.json")):
        try:
            stale.unlink()
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            raise CaptureError(f"{stale} of the last run cannot be removed: {error}") from error


def check_artifacts(settings: Settings, artifacts: Iterable[Artifact]) -> None:
    """Make sure that the files in dist/ are what the engine built.

    Raises:
        CaptureError: A file is missing, has other content, or is where the attestation goes.
    """
    for artifact in artifacts:
        path = Path(settings.dist_dir, artifact.name)
        if path.is_relative_to(settings.out_dir):
            raise CaptureError(
                f"{path} is in the directory of the attestation, which would replace it; correct "
                "the output path of its target, or [rootseal].out"
            )
        try:
            found = _sha256(path)
        except OSError as error:
            raise CaptureError(
                f"{path} cannot be read ({error.strerror}), so it is not attested. Build again."
            ) from error
        if found != artifact.sha256:
            raise CaptureError(
                f"{path} is not the file that was built: its SHA-256 is {found}, and "
                f"{artifact.sha256} was built. Something changed it meanwhile; build again."
            )


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_READ_BYTES):
            digest.update(block)
    return digest.hexdigest()


def input_modes(build_root: str, inputs: Iterable[EngineInput]) -> dict[str, int]:
    """Permission bits of the engine inputs that are files of the build root."""
    modes = {}
    for item in inputs:
        try:
            modes[item.path] = Path(build_root, item.path).stat().st_mode & 0o7777
        except OSError:
            continue  # a download, or a file that is gone: the engine knows no mode either
    return modes


def make_artifacts_writable(dist_dir: str) -> None:
    """Replace what earlier runs sealed in dist/ by copies: Pants writes dist/ in place.

    All of them, not only those of the last run: that may have packaged other targets.

    Raises:
        CaptureError: A sealed file cannot be replaced.
    """
    fsverity.unseal_below(dist_dir)


def policy_of(settings: Settings) -> dict[str, object]:
    """The policy of the manifest, by the same rule as that of `rootseal run`."""
    must_hold = settings.hardening == "strict" or settings.fanotify == "on"
    return {
        "captureMode": settings.capture_mode,
        "fanotify": settings.fanotify,
        "fsverity": settings.fsverity,
        "hardening": settings.hardening,
        "requireZeroDrops": settings.require_zero_drops or settings.hardening == "strict",
        "posture": "held" if must_hold else "walked",
    }


def seal(
    session: Any, settings: Settings, daemon: ReadyDaemon, manifest: Mapping[str, object]
) -> Sealed:
    """Write the manifest and have `rootseal seal` sign it.

    Raises:
        CaptureError: It is refused, or cannot be written; no bundle and no statement is left then.
    """
    out = Path(settings.out_dir)
    bundle, manifest_path = out / BUNDLE_NAME, out / "manifest.json"
    try:
        out.mkdir(parents=True, exist_ok=True)
        with _alone(out), _nothing_left_on_failure(settings.out_dir):
            remove_stale(settings.out_dir)  # of a run at the same time
            _write_whole(manifest_path, json.dumps(manifest, indent=1, sort_keys=True) + "\n")
            done = early_sealer.run(
                session,
                [daemon.executable, *_seal_arguments(settings, daemon, manifest_path, bundle)],
                timeout_seconds=SEAL_TIMEOUT_SECONDS,
            )
            return Sealed(str(bundle), _summary(done))
    except OSError as error:
        raise CaptureError(
            f"the attestation cannot be written to {out} ({error.strerror}); make room there, or "
            "correct [rootseal].out"
        ) from error


@contextlib.contextmanager
def _alone(out: Path) -> Iterator[None]:
    """Runs at the same time seal one after the other, so that no bundle is half of another."""
    descriptor = os.open(out, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _nothing_left_on_failure(out_dir: str) -> Iterator[None]:
    try:
        yield
    except BaseException:  # an interrupt, too
        remove_stale(out_dir)
        raise


def _summary(done: subprocess.CompletedProcess[bytes]) -> Mapping[str, Any]:
    """What `rootseal seal` said of what it signed."""
    if done.returncode != 0:
        why = done.stderr.decode(errors="replace").strip() or f"exit code {done.returncode}"
        raise CaptureError(f"`rootseal seal` refused this build: {why}")
    try:
        summary = json.loads(done.stdout)["summary"]
    except (ValueError, KeyError, TypeError) as error:
        raise CaptureError(
            f"`rootseal seal --json` gave an unexpected answer: {error!r}"
        ) from error
    return dict(summary)


def _seal_arguments(
    settings: Settings, daemon: ReadyDaemon, manifest_path: Path, bundle: Path
) -> list[str]:
    return [
        "seal",
        str(manifest_path),
        "--records",
        settings.records_dir,
        "--out",
        str(bundle),
        "--targets",
        str(bundle.parent / "targets"),
        "--artifacts",
        settings.dist_dir,
        "--capture-key",
        daemon.info.capture_key,
        *settings.toolchain_arguments,
        *(("--key", settings.key) if settings.key else ()),
        *(("--public-key", settings.public_key) if settings.public_key else ()),
        "--json",
    ]


def _write_whole(path: Path, text: str) -> None:
    """Write a file so that no reader ever sees half of it."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(text, "utf-8")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def closing_line(sealed: Sealed, *, targets: int, sources: Sequence[str], build_root: str) -> str:
    """What the user reads at the end of a run."""
    summary = sealed.summary
    where = os.path.relpath(sealed.bundle, build_root)
    counts = {source: sources.count(source) for source in sorted(set(sources))}
    origin = ", ".join(f"{count} {source}" for source, count in counts.items())
    names = ", ".join(summary.get("losses", ()))
    losses = names and f", LOSSES {names}: `rootseal verify` refuses it, build again"
    return (
        f"Attested {targets} target{'s' * (targets != 1)}: {summary['actions']} actions "
        f"({origin}), {summary['materials']} materials, posture {summary['posture']}{losses}. "
        f"Wrote {path_text(os.fsencode(where))}"
    )
