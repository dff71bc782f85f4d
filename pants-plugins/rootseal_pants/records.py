"""Where the plugin keeps action records: a content-addressed directory (docs/formats.md).

Owns the files below its directory. Pants' own caches hold every record too, so what is lost here
can be fetched again; nothing here is trusted, since `rootseal seal` checks every record.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

from rootseal.errors import CaptureError, ConfigError


@dataclass(frozen=True)
class RecordStore:
    """Action records by the SHA-256 of their bytes.

    Attributes:
        directory: Absolute path; made when the first record is stored.
    """

    directory: str

    def path(self, name: str) -> Path:
        """Where the record with this name (64 hex digits) is or would be."""
        if len(name) != 64 or not set(name) <= set("0123456789abcdef"):
            raise ConfigError(f"{name!r} is not the name of a record (64 hex digits)")
        return Path(self.directory, name[:2], name)

    def put(self, record: bytes) -> str:
        """Store a record and return its name. A reader never sees half of it.

        Raises:
            CaptureError: It cannot be written.
        """
        name = hashlib.sha256(record).hexdigest()
        try:
            self._put(self.path(name), record)
        except OSError as error:
            raise CaptureError(
                f"a record cannot be kept in {self.directory}: {error.strerror}; make room there, "
                "or correct [rootseal].records_dir"
            ) from error
        return name

    def _put(self, path: Path, record: bytes) -> None:
        if self.holds(path.name, len(record)):
            os.utime(path)
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f"{path.name}.{os.getpid()}.{id(record)}.tmp")
        try:
            temporary.write_bytes(record)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)

    def holds(self, name: str, size: int) -> bool:
        """Whether a record of this name and size is there (its bytes are checked when sealed)."""
        try:
            return self.path(name).stat().st_size == size
        except (FileNotFoundError, NotADirectoryError):
            return False

    def prune(self, *, max_bytes: int, keep: set[str]) -> int:
        """Remove the records unused for longest until at most `max_bytes` are left.

        Args:
            max_bytes: What may stay, in bytes. Records in `keep` stay in any case.
            keep: Names of the records of this run.

        Returns:
            How many records were removed.
        """
        found = []
        for path in Path(self.directory).glob("[0-9a-f][0-9a-f]/*"):
            try:
                status = path.stat()
            except FileNotFoundError:
                continue
            found.append((status.st_mtime_ns, status.st_size, path))
        total = sum(size for _, size, _ in found)
        removed = 0
        for _, size, path in sorted(found):
            if total <= max_bytes:
                break
            if path.name not in keep:
                path.unlink(missing_ok=True)
                total -= size
                removed += 1
        return removed
