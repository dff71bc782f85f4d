"""What every capture backend offers: engines that open scopes that give observations."""

from __future__ import annotations

import dataclasses
from typing import Iterable, List, Mapping, MutableMapping, Protocol, Sequence, Tuple

from rootseal.errors import ConfigError
from rootseal.leaf_table import Leaf
from rootseal.observation import MountMark, Observation

DIGESTS_MAX_DEFAULT = 262_144
RECORD_BYTES_MAX_DEFAULT = 256 * 2**20
HASHED_BYTES_MAX_DEFAULT = 2**40
PROCESSES_MAX_DEFAULT = 262_144

DIGESTS_MAX_LIMIT = 2**24  # a leaf table holds no more (docs/formats.md)
RECORD_BYTES_MAX_LIMIT = 2**30
PROCESSES_MAX_LIMIT = 2**22
LEAF_BYTES = 64  # of a table entry beside its path, at most


@dataclasses.dataclass(frozen=True)
class CaptureLimits:
    """Caps of one action. Reaching one marks that action incomplete and touches no other.

    Attributes:
        max_digests: Distinct materials (path and digest) of the action.
        max_record_bytes: Bytes of its tables before compression.
        max_hashed_bytes: Bytes read to be hashed.
        max_processes: Processes in its process table.
    """

    max_digests: int = DIGESTS_MAX_DEFAULT
    max_record_bytes: int = RECORD_BYTES_MAX_DEFAULT
    max_hashed_bytes: int = HASHED_BYTES_MAX_DEFAULT
    max_processes: int = PROCESSES_MAX_DEFAULT

    def __post_init__(self) -> None:
        """Refuse a cap that no table could hold.

        Raises:
            ConfigError: Names the cap and its range.
        """
        bounds = (
            ("max_digests", self.max_digests, DIGESTS_MAX_LIMIT),
            ("max_record_bytes", self.max_record_bytes, RECORD_BYTES_MAX_LIMIT),
            ("max_hashed_bytes", self.max_hashed_bytes, 2**62),
            ("max_processes", self.max_processes, PROCESSES_MAX_LIMIT),
        )
        for name, value, limit in bounds:
            if not 1 <= value <= limit:
                raise ConfigError(f"{name} must be from 1 to {limit}, not {value}")


class RecordRoom:
    """What is left of `max_record_bytes` for the tables of one action."""

    def __init__(self, limits: CaptureLimits, counters: MutableMapping[str, int]) -> None:
        """All of it; leaves for which there is no room are counted in `recordBytesCapHit`."""
        self._left = limits.max_record_bytes
        self._counters = counters

    def keep(self, leaves: Iterable[Leaf]) -> List[Leaf]:
        """Those that fit, in their order."""
        return [leaf for leaf in leaves if self._takes(leaf)]

    def _takes(self, leaf: Leaf) -> bool:
        size = len(leaf.path) + LEAF_BYTES
        if size > self._left:
            self._counters["recordBytesCapHit"] += 1
            return False
        self._left -= size
        return True


class Scope(Protocol):
    """The capture of one action. `finish` or `abort` ends it; any thread may call both."""

    @property
    def mounts(self) -> Tuple[MountMark, ...]:
        """Mounts of the action's namespace and what was done about each."""
        ...

    def progress(self) -> Mapping[str, int]:
        """How far the capture is; small, cheap, for display only."""
        ...

    def finish(
        self, *, outputs_files: Sequence[bytes], outputs_dirs: Sequence[bytes]
    ) -> Observation:
        """End the capture once the action's processes are gone.

        Args:
            outputs_files: Declared output files, relative to the root.
            outputs_dirs: Declared output directories, relative to the root.

        Raises:
            CaptureError: The scope was ended before, or its tables could not be built.
        """
        ...

    def abort(self) -> None:
        """Drop the scope and all it saw. Does nothing when the scope has ended."""
        ...


class Engine(Protocol):
    """Opens scopes; serves all of them."""

    def open_scope(self, *, pid: int, root: bytes, limits: CaptureLimits) -> Scope:
        """Start to capture the action of a process that has not been let run yet.

        Args:
            pid: The action's first process, blocked, already in its private mount namespace.
            root: The action's root directory as that process sees it, absolute.
            limits: Caps of this action.

        Raises:
            BackendUnavailable: This host cannot capture this way (now).
            CaptureError: This process or root cannot be captured.
        """
        ...

    def close(self) -> None:
        """End the engine; scopes that are still open are aborted."""
        ...
