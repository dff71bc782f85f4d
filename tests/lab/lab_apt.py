"""Debian's packages for the lab, of releases and architectures that are not this machine's.

apt works in a state of its own below build/lab/apt, so nothing of the machine's own apt changes
and nothing is installed. The archives are those that the machine's apt is configured with, with
another release's name: a mirror or a proxy that serves one serves the others.
"""

from __future__ import annotations

import dataclasses
import os
import subprocess
import time
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]
LAB = REPO / "build" / "lab"
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
INDEX_SECONDS_MAX = 86400  # how old a list of packages may be
FORMAT = "$(ORIGIN)|$(LABEL)|$(COMPONENT)|$(SITE)"


class LabError(Exception):
    """The lab cannot run; the message says what to do."""


@dataclasses.dataclass(frozen=True)
class Archive:
    """Debian's packages of one release for one architecture.

    Attributes:
        release: Its code name, such as `bullseye`.
        architecture: As Debian names it, such as `arm64`.
    """

    release: str
    architecture: str

    @property
    def folder(self) -> Path:
        """Where apt keeps its state for this archive."""
        return LAB / "apt" / f"{self.release}-{self.architecture}"


def run(*command: str, cwd: Path | None = None) -> str:
    """What a command printed.

    Raises:
        LabError: It failed, with the last lines that it wrote.
    """
    environment = {**os.environ, "LC_ALL": "C"}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)
    if done.returncode != 0:
        last = (done.stderr.strip() or done.stdout.strip() or "no output").splitlines()[-4:]
        raise LabError(f"{' '.join(command[:3])} … failed: {' / '.join(last)}")
    return done.stdout


def sites(text: str) -> list[tuple[str, str]]:
    """Debian's archives among apt's index targets: (address, what follows the release's name)."""
    found = {}
    for line in text.splitlines():
        origin, label, component, site = line.split("|")
        if origin == "Debian" and component == "main" and site:
            found[site] = "-security" if label == "Debian-Security" else ""
    return sorted(found.items())


def sources(archive: Archive, found: list[tuple[str, str]]) -> str:
    """The sources.list of an archive. What has ended is not signed anew: dates are not checked."""
    signed = f" signed-by={KEYRING}" if KEYRING.exists() else ""
    options = f"[arch={archive.architecture} check-valid-until=no{signed}]"
    lines = [f"deb {options} {site} {archive.release}{suffix} main\n" for site, suffix in found]
    return "".join(lines)


def options(archive: Archive) -> list[str]:
    """apt's options that make it work for this archive alone."""
    settings = {
        "APT::Architecture": archive.architecture,
        "APT::Architectures": archive.architecture,
        "Dir::State": str(archive.folder / "state"),
        "Dir::State::status": "/dev/null",
        "Dir::Cache": str(archive.folder / "cache"),
        "Dir::Etc::SourceList": str(archive.folder / "sources.list"),
        "Dir::Etc::SourceParts": "/dev/null",
        "Acquire::Languages": "none",
        "APT::Sandbox::User": "root",  # the folder is not open to the user _apt
    }
    return [f"-o{name}={value}" for name, value in settings.items()]


def update(archive: Archive) -> None:
    """Make sure that the archive's list of packages is there and not old."""
    stamp = archive.folder / "updated"
    if stamp.exists() and time.time() - stamp.stat().st_mtime < INDEX_SECONDS_MAX:
        return
    found = sites(run("apt-get", "indextargets", "--format", FORMAT, "Created-By: Packages"))
    if not found:
        raise LabError("apt has no archive of Debian; on Debian 12 run: sudo apt-get update")
    for name in ("state/lists/partial", "cache/archives/partial"):
        (archive.folder / name).mkdir(parents=True, exist_ok=True)
    (archive.folder / "sources.list").write_text(sources(archive, found), "ascii")
    run("apt-get", *options(archive), "update", "-q", "--error-on=any")
    run("apt-get", *options(archive), "autoclean", "-q")  # older versions of what was downloaded
    stamp.touch()


def depends(archive: Archive, package: str) -> str:
    """What `apt-cache depends` says of a package's hard dependencies."""
    update(archive)
    return run("apt-cache", *options(archive), "depends", "--important", package)


def download(archive: Archive, package: str, folder: Path) -> list[Path]:
    """Download one package into a folder."""
    update(archive)
    run("apt-get", *options(archive), "download", "-q", package, cwd=folder)
    return sorted(folder.glob("*.deb"))


def download_closure(archive: Archive, packages: tuple[str, ...]) -> list[Path]:
    """Download packages with everything that they depend on."""
    update(archive)
    words = ["install", "-y", "-q", "--no-install-recommends", "--download-only", *packages]
    run("apt-get", *options(archive), *words)
    return sorted((archive.folder / "cache" / "archives").glob("*.deb"))
