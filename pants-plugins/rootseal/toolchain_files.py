"""Toolchain manifests and the disk: listing and sealing directories, comparing them again."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import stat
from pathlib import Path
from typing import Callable, Dict, Iterator, List, Optional, Sequence, Tuple

from rootseal import digest, fsverity
from rootseal.errors import BackendUnavailable, CaptureError, ConfigError
from rootseal.toolchain import FILE_COUNT_MAX, Toolchain, ToolFile

Progress = Callable[[int, int], None]


@dataclasses.dataclass(frozen=True)
class Difference:
    """One file that is not as the manifest says.

    Attributes:
        path: Absolute.
        reason: `missing`, `added`, `content`, `mode`, `size`, or why it cannot be read.
    """

    path: bytes
    reason: str


@dataclasses.dataclass(frozen=True)
class Comparison:
    """What comparing a toolchain found.

    Attributes:
        differences: Everything that is not as it was, by path.
        measured: Files that were measured with fs-verity.
        hashed: Files that were read.
    """

    differences: Tuple[Difference, ...]
    measured: int
    hashed: int


def list_files(directories: Sequence[bytes]) -> List[bytes]:
    """Every regular file below the directories, sorted; symlinks are not followed.

    Raises:
        ConfigError: A directory cannot be read, or there are too many files.
    """
    found: List[bytes] = []
    for directory in directories:
        if not _is_directory(directory):
            raise ConfigError(f"{os.fsdecode(directory)} is not a directory")
        for path in _walk(directory):
            found.append(path)
            if len(found) > FILE_COUNT_MAX:
                raise ConfigError(
                    f"more than {FILE_COUNT_MAX} files; seal fewer directories per manifest"
                )
    return sorted(set(found))


def _walk(directory: bytes) -> Iterator[bytes]:
    def refuse(error: OSError) -> None:
        raise ConfigError(f"cannot read {os.fsdecode(error.filename)}: {error.strerror}")

    for top, _, names in os.walk(directory, onerror=refuse):
        for name in names:
            path = top + b"/" + name
            with contextlib.suppress(FileNotFoundError):  # it went away while we looked
                if stat.S_ISREG(os.lstat(path).st_mode):
                    yield path


def _is_directory(path: bytes) -> bool:
    return Path(os.fsdecode(path)).is_dir()


def seal_directories(
    directories: Sequence[bytes], *, mode: str, progress: Optional[Progress] = None
) -> Toolchain:
    """List every file, sealed with fs-verity where `mode` and the filesystem say so.

    Args:
        directories: Any paths; they are made absolute and free of symlinks.
        mode: `off`, `auto` (a file that cannot be sealed is listed without a seal) or `on`.
        progress: Called with (files done, files in all).

    Raises:
        ConfigError: A directory cannot be read.
        CaptureError: A file cannot be read; or cannot be sealed, in mode `on`.
    """
    absolute = tuple(sorted({os.path.realpath(item) for item in directories}))
    paths = list_files(absolute)
    files = []
    for number, path in enumerate(paths):
        files.append(_seal_file(path, mode))
        if progress is not None:
            progress(number + 1, len(paths))
    return Toolchain(absolute, tuple(files))


def _seal_file(path: bytes, mode: str) -> ToolFile:
    name = os.fsdecode(path)
    permissions = stat.S_IMODE(os.lstat(path).st_mode)
    if mode != "off":
        try:
            # Packages link their tools among themselves; the caller named the directories to seal.
            found = fsverity.seal_file(name, other_names=True)
            return ToolFile(path, found.sha256, found.fsverity, found.size, permissions)
        except (BackendUnavailable, CaptureError):
            if mode == "on":
                raise
    sha256, size = _hash(path)
    return ToolFile(path, sha256, None, size, permissions)


def _hash(path: bytes) -> Tuple[bytes, int]:
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        with os.fdopen(os.open(path, flags), "rb", buffering=0) as stream:
            return digest.sha256_file(stream)
    except OSError as error:
        raise CaptureError(f"cannot read {os.fsdecode(path)}: {error.strerror}") from None


def compare(
    toolchain: Toolchain, *, read_all: bool, progress: Optional[Progress] = None
) -> Comparison:
    """Compare a toolchain with what is on this machine's disk.

    A file that was sealed and is sealed here is measured, which costs the same for any size.

    Args:
        toolchain: What the signed manifest says.
        read_all: Read the sealed files too.
        progress: Called with (files done, files in all).
    """
    differences: Dict[bytes, str] = {}
    measured = 0
    for number, file in enumerate(toolchain.files):
        try:
            reason, used_seal = _compare_file(file, read_all=read_all)
            measured += used_seal
            if reason:
                differences[file.path] = reason
        except CaptureError as error:
            differences[file.path] = str(error)
        if progress is not None:
            progress(number + 1, len(toolchain.files))
    known = {file.path for file in toolchain.files}
    existing = [path for path in toolchain.directories if _is_directory(path)]
    for path in list_files(existing):
        if path not in known:
            differences[path] = "added"
    ordered = tuple(Difference(path, reason) for path, reason in sorted(differences.items()))
    return Comparison(ordered, measured, len(toolchain.files) - measured)


def _compare_file(file: ToolFile, *, read_all: bool) -> Tuple[str, bool]:
    """Why it differs (empty if it does not), and whether its seal was enough."""
    try:
        status = os.lstat(file.path)
    except OSError:
        return "missing", False
    if not stat.S_ISREG(status.st_mode):
        return "it is no regular file any more", False
    if status.st_size != file.size:
        return "size", False
    if stat.S_IMODE(status.st_mode) != file.mode:
        return "mode", False
    if file.fsverity is not None and not read_all:
        name = os.fsdecode(file.path)
        if fsverity.check_sealed(name, expected=file.fsverity, size=file.size):
            return "", True
    return ("" if _hash(file.path)[0] == file.sha256 else "content"), False
