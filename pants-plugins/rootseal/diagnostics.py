"""The counters of `summary.diagnostics`: which exist, and which of them mean loss.

One table is the source for the capture backends, the predicate, the gate and the verifier. A
counter that is absent is never read as zero: see `diagnostics_from_json`.
"""

from __future__ import annotations

import dataclasses
from typing import Mapping, Tuple

from rootseal.errors import EncodingError


@dataclasses.dataclass(frozen=True)
class Counter:
    """One counter.

    Attributes:
        name: The JSON field name.
        gating: Whether a value other than zero means that something was, or may have been, missed.
        meaning: What a value other than zero means.
        remedy: What to do about it.
    """

    name: str
    gating: bool
    meaning: str
    remedy: str


_NONE = "Nothing to do."
_REPORT = "Run `rootseal doctor` and report the action, the kernel and this counter."

COUNTERS: Tuple[Counter, ...] = (
    # What was available and done: never gating.
    Counter("fanotifyAvailable", False, "1 if fanotify permission events were used.", _NONE),
    Counter(
        "fanotifyEventsHashed", False, "Events whose file was hashed, or found in the cache.", _NONE
    ),
    Counter("fanotifyDigestsMerged", False, "Distinct material leaves that fanotify gave.", _NONE),
    Counter(
        "fsVerityAvailable", False, "1 if a filesystem of the products supports fs-verity.", _NONE
    ),
    Counter("fsVerityFilesSealed", False, "Products sealed with fs-verity.", _NONE),
    Counter(
        "fsVeritySealFailures",
        False,
        "Products left unsealed though their filesystem has fs-verity.",
        "Let nobody write the outputs, and copy hard links; `--fsverity on` refuses and names the "
        "file and the reason.",
    ),
    Counter("partialReadFallbacks", False, "Reads that were completed by a second read.", _NONE),
    Counter("digestCacheHits", False, "Opens whose digest came from the digest cache.", _NONE),
    Counter("bytesHashed", False, "Bytes read and hashed for this action.", _NONE),
    Counter(
        "descendantsKilled",
        False,
        "Descendants killed after the action's own process ended.",
        _NONE,
    ),
    Counter(
        "excludedMounts",
        False,
        "Mounts of a pseudo filesystem (proc, sysfs, ...), not marked.",
        _NONE,
    ),
    # Opens that a trace backend saw, and the typed exclusions among them.
    Counter("tracedOpens", False, "Successful opens that a trace backend saw.", _NONE),
    Counter(
        "excludedPathOnlyOpens", False, "Opens with O_PATH, through which nothing is read.", _NONE
    ),
    Counter("excludedIrregularOpens", False, "Opens of directories, devices and pipes.", _NONE),
    Counter("excludedPseudoFileOpens", False, "Opens of files of proc, sysfs and the like.", _NONE),
    Counter("excludedAnonymousOpens", False, "Opens of files without a path (memfd).", _NONE),
    Counter("excludedWriteOnlyOpens", False, "Opens for writing only: products.", _NONE),
    Counter("deniedIoUringCalls", False, "io_uring calls that were refused to the action.", _NONE),
    # Loss: each is gating.
    Counter(
        "fanotifyTimeouts",
        True,
        "Hashes that were abandoned for time: none ever is, so always 0.",
        _REPORT,
    ),
    Counter("fanotifyQueueOverflows", True, "Times the kernel dropped events.", _REPORT),
    Counter(
        "fanotifyDigestsCapHit",
        True,
        "Files left out because the action reached its digest cap.",
        "Raise the digest cap (--max-digests, [rootseal].max_digests).",
    ),
    Counter(
        "recordBytesCapHit",
        True,
        "Entries left out because the action record reached its size cap, or disk and memory were "
        "full.",
        "Raise the record cap (--max-record-bytes, [rootseal].max_record_bytes), or free disk "
        "space where the daemon keeps its state.",
    ),
    Counter(
        "hashedBytesCapHit",
        True,
        "Files left out because the action reached its cap of hashed bytes.",
        "Raise the cap (--max-hashed-bytes, [rootseal].max_hashed_bytes).",
    ),
    Counter(
        "processTableCapHit",
        True,
        "Processes left out because the action reached its process cap.",
        "Split the action, or report the need for a larger cap.",
    ),
    Counter(
        "ringbufOpenatDrops",
        True,
        "Open events that the trace ring buffer dropped.",
        "Raise the ring size (`rootseal daemon ensure --trace-ring`, [rootseal].trace_ring).",
    ),
    Counter(
        "ringbufReadTapDrops",
        True,
        "Read events that the ring dropped: reads need none here, so always 0.",
        "Raise the ring size (`rootseal daemon ensure --trace-ring`, [rootseal].trace_ring).",
    ),
    Counter(
        "ringbufExecDrops",
        True,
        "Exec events that the trace ring buffer dropped.",
        "Raise the ring size (`rootseal daemon ensure --trace-ring`, [rootseal].trace_ring).",
    ),
    Counter(
        "ringbufForkDrops",
        True,
        "Fork and exit events that the ring buffer dropped.",
        "Raise the ring size (`rootseal daemon ensure --trace-ring`, [rootseal].trace_ring).",
    ),
    Counter(
        "ringbufFileOpDrops",
        True,
        "File operation events that the ring dropped.",
        "Raise the ring size (`rootseal daemon ensure --trace-ring`, [rootseal].trace_ring).",
    ),
    Counter(
        "ringbufNetworkDrops",
        True,
        "Network events that the trace ring dropped.",
        "Raise the ring size (`rootseal daemon ensure --trace-ring`, [rootseal].trace_ring).",
    ),
    Counter(
        "ringbufSyscallDrops",
        True,
        "Other system call events that the ring dropped.",
        "Raise the ring size (`rootseal daemon ensure --trace-ring`, [rootseal].trace_ring).",
    ),
    Counter(
        "traceMapFull",
        True,
        "Processes that the full table of the trace refused; it has room for 131,072 at a time.",
        "Run fewer actions at once.",
    ),
    Counter(
        "traceProgramMisses",
        True,
        "Runs of a trace program that the kernel skipped, on the whole host.",
        _REPORT,
    ),
    Counter("traceTruncated", True, "Paths, arguments or environments that were cut.", _REPORT),
    Counter("unhashedOpensTotal", True, "Opens of regular files without a digest.", _REPORT),
    Counter(
        "blockDeviceOpens",
        True,
        "Opens of block devices, whose content has no digest.",
        "Give the action files, not devices.",
    ),
    Counter("fallbackHashFailures", True, "Files that could not be read to be hashed.", _REPORT),
    Counter(
        "mutatedAfterOpen",
        True,
        "Materials that others changed after they were hashed, or that cannot be looked at then.",
        "Build again.",
    ),
    Counter(
        "foreignProducts",
        True,
        "Products whose content nobody of the action is seen to have made.",
        "Keep other programs out of the action's root while it runs, and build again.",
    ),
    Counter(
        "unstableFiles",
        True,
        "Files that kept changing while they were hashed, or got other names while opens of them "
        "were passed.",
        "Build again.",
    ),
    Counter(
        "namespaceEscapes", True, "Times a process left the captured mount namespace.", _REPORT
    ),
    Counter("unmarkedMounts", True, "Mounts that can hold files and could not be marked.", _REPORT),
    Counter("tracerDetaches", True, "Processes that the tracer lost.", _REPORT),
    Counter(
        "handlerErrors",
        True,
        "Errors of the capture's own threads.",
        "On NFS with root_squash use --capture-mode trace:ptrace --fanotify off; otherwise run "
        "`rootseal doctor` and report the action, the kernel and this counter.",
    ),
    Counter("lateEvents", True, "Events that came after the scope was closed.", _REPORT),
    Counter(
        "scopeRestarts",
        True,
        "Interruptions of the capture: each fails the action, so always 0.",
        "Build again.",
    ),
)

LOST = "the capture of this action lost something"
"""How a loss is told that fails its action."""

BY_OTHERS = frozenset({"mutatedAfterOpen", "foreignProducts", "unstableFiles"})
"""Losses that other programs caused: the same action may lose nothing another time."""

NAMES: Tuple[str, ...] = tuple(counter.name for counter in COUNTERS)
BY_NAME: Mapping[str, Counter] = {counter.name: counter for counter in COUNTERS}
_NAMES = frozenset(NAMES)
_GATING = tuple(counter.name for counter in COUNTERS if counter.gating)
COUNTER_VALUE_MAX = 2**53 - 1  # the largest integer every JSON reader keeps exact


def zeros() -> dict[str, int]:
    """All counters, each 0."""
    return dict.fromkeys(NAMES, 0)


def losses(counters: Mapping[str, int]) -> dict[str, int]:
    """The gating counters that are not zero.

    Args:
        counters: Every counter of `NAMES`; a missing one is an `EncodingError`.
    """
    checked = diagnostics_from_json(counters)
    return {name: checked[name] for name in _GATING if checked[name]}


def loss_details(counters: Mapping[str, int]) -> dict[str, object]:
    """Each of these counters with its value, meaning and remedy: how losses are told to machines.

    Args:
        counters: Names of `NAMES` and values.
    """
    return {
        name: {
            "value": value,
            "meaning": BY_NAME[name].meaning,
            "remedy": BY_NAME[name].remedy,
        }
        for name, value in sorted(counters.items())
    }


def add(left: Mapping[str, int], right: Mapping[str, int]) -> dict[str, int]:
    """Sum of two complete sets of counters, capped at `COUNTER_VALUE_MAX`."""
    a, b = diagnostics_from_json(left), diagnostics_from_json(right)
    return {name: min(a[name] + b[name], COUNTER_VALUE_MAX) for name in NAMES}


def diagnostics_from_json(value: object) -> dict[str, int]:
    """Read a set of counters: every known name present, no unknown name, each an int >= 0.

    Raises:
        EncodingError: Names the first counter that is absent, unknown or malformed.
    """
    if not isinstance(value, Mapping):
        raise EncodingError("diagnostics is not an object")
    numbers = value.values()
    integers = value.keys() == _NAMES and set(map(type, numbers)) == {int}
    if integers and min(numbers) >= 0 and max(numbers) <= COUNTER_VALUE_MAX:
        return {name: value[name] for name in NAMES}
    for name in value:
        if name not in BY_NAME:
            raise EncodingError(f"diagnostics has the unknown counter {name!r}")
    result = {}
    for name in NAMES:  # something is wrong: find the first
        number = value.get(name)
        if number is None:
            raise EncodingError(
                f"diagnostics lacks the counter {name}; absence is never read as zero"
            )
        if type(number) is not int or not 0 <= number <= COUNTER_VALUE_MAX:
            raise EncodingError(f"diagnostics counter {name} is not an integer from 0 to 2^53-1")
        result[name] = number
    return result
