"""When the digest cache of a daemon is read and written."""

from __future__ import annotations

import logging
import threading
from pathlib import Path
from typing import Any, Dict

from rootseal.errors import NativeError

# Written again after this much growth: each digest is written a few times in its life, not often.
GROWTH_ENTRIES_MIN = 1 << 14
GROWTH_SHARE = 0.25
_log = logging.getLogger("rootseal.daemon")


class CacheKeeper:
    """The cache file of one fanotify engine."""

    def __init__(self, engine: Any, path: Path) -> None:
        """Load what is there.

        Args:
            engine: `FanotifyEngine`, or None: then there is nothing to keep.
            path: The file.
        """
        self._engine = engine
        self._path = path
        self._lock = threading.Lock()
        self._kept = self._learned = self._failures = 0
        self._loaded: Dict[str, object] = {"loaded": 0, "dropped": 0, "reason": ""}
        if engine is not None:
            self._load()

    def _load(self) -> None:
        found = self._engine.load_cache(self._path)
        self._kept = found.entries
        self._loaded = {
            "loaded": found.entries,
            "dropped": found.dropped,
            "reason": found.reason,
        }
        if found.reason:
            _log.info("starts without %s: %s", self._path, found.reason)
        else:
            text = "took %d digests from %s, dropped %d of filesystems not mounted as before"
            _log.info(text, found.entries, self._path, found.dropped)

    def status(self) -> Dict[str, object]:
        """For the daemon's status: what is held, and what became of the file."""
        held = 0 if self._engine is None else self._engine.cache_entries()
        return {"entries": held, "saveFailures": self._failures, **self._loaded}

    def save_if_grown(self) -> None:
        """After an action: write the file if much was learned since, unless somebody does."""
        if self._engine is None:
            return
        grown = self._engine.cache_learned() - self._learned
        if grown < max(GROWTH_ENTRIES_MIN, GROWTH_SHARE * self._kept):
            return
        if self._lock.acquire(blocking=False):
            try:
                self._write()
            finally:
                self._lock.release()

    def save(self) -> None:
        """Write the file if anything was learned; a failure is logged: only time is lost."""
        if self._engine is None or self._engine.cache_learned() == self._learned:
            return
        with self._lock:
            self._write()

    def _write(self) -> None:
        learned = self._engine.cache_learned()
        try:
            self._kept = self._engine.save_cache(self._path)
            self._learned = learned
        except (OSError, NativeError) as error:
            self._failures += 1
            _log.warning("cannot keep the digest cache in %s: %s", self._path, error)
