"""The `ima` backend: the kernel's own measurements of an action's window, over a walk.

    open: list read to its end, checked → window = what is appended until finish
    finish: walk's observation + window → leaves with source `ima`, violations → losses

What a window is not: the kernel lists a path with a content once per boot, so what anyone read
before (the walk's own snapshot too) is not in it; it does not say which process read; other actions
at the same time fall into it; and the policy decides what is measured at all (`ima_policy=tcb`
leaves out files that users other than root only read, and everything on tmpfs, proc and sysfs). So
nothing here shows that a file was not read: the posture stays `walked`, and `ima` is the source of
each digest that the kernel confirmed.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import AbstractSet, Dict, List, Mapping, Optional, Sequence, Tuple

from rootseal import diagnostics, ima, leaf_table
from rootseal.capture import ima_files
from rootseal.capture.scope import CaptureLimits, Scope
from rootseal.errors import BackendUnavailable, CaptureError, EncodingError, VerificationError
from rootseal.ima import Measurement
from rootseal.leaf_table import Domain, Leaf
from rootseal.observation import (
    MUTATIONS_MAX,
    DigestSource,
    LeafTable,
    MountMark,
    Mutations,
    Observation,
)

LIST = Path("/sys/kernel/security/ima/binary_runtime_measurements")
COUNT = "runtime_measurements_count"  # beside it: how many entries it has
VIOLATIONS = "violations"  # beside it: how many there were, those included that found no memory
TPM = Path("/sys/class/tpm/tpm0")
LIST_BYTES_MAX = 256 * 2**20
_READ_BYTES = 1 << 20
_BOOT = "Boot with `ima_policy=tcb ima_hash=sha256`."


class ImaWindow:
    """What the kernel measures from the moment this is made. Owns descriptors of three files."""

    def __init__(self, path: Path = LIST) -> None:
        """Read and check the list as it is.

        Raises:
            BackendUnavailable: No IMA, no permission, or nothing is measured.
            CaptureError: The list is not what the kernel writes.
        """
        self._open: List[int] = []
        self._known = 0
        try:
            self._list, self._count, self._violations = (
                self._opened(item)
                for item in (path, path.with_name(COUNT), path.with_name(VIOLATIONS))
            )
            _check(self._entries())
            self._violations_before = _number(self._violations)
        except BaseException:
            self.close()
            raise

    def _opened(self, path: Path) -> int:
        try:
            self._open.append(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
        except PermissionError:
            raise BackendUnavailable(
                "ima", "only root may read the measurement list", "Use the system daemon."
            ) from None
        except OSError as error:
            raise BackendUnavailable("ima", f"{path}: {error.strerror}", _BOOT) from None
        return self._open[-1]

    def violations(self) -> int:
        """How many there were since this was made, by the kernel's own counter."""
        return _number(self._violations) - self._violations_before

    def entries(self) -> Tuple[Measurement, ...]:
        """What was appended since the last call, each entry checked against its template hash.

        Raises:
            CaptureError: An entry is not what the kernel writes, or the list was cut.
        """
        found = self._entries()
        for entry in found:
            if not entry.is_violation and ima.template_hash(entry) != entry.template_hash:
                raise CaptureError(f"the IMA entry of {entry.name!r} is not what its hash says")
        return found

    def _entries(self) -> Tuple[Measurement, ...]:
        """What was appended; all that the kernel had counted before must be there."""
        counted = _number(self._count)
        found = _parse(self._read())
        self._known += len(found)
        if self._known < counted:
            raise CaptureError(
                f"the IMA list was cut: it gave {self._known} entries, the kernel counts {counted}"
            )
        return found

    def _read(self) -> bytes:
        """To the end of the list; the kernel goes on where the last read stopped."""
        pieces: List[bytes] = []
        size = 0
        while True:
            piece = os.read(self._list, _READ_BYTES)
            if not piece:
                return b"".join(pieces)
            size += len(piece)
            if size > LIST_BYTES_MAX:
                raise CaptureError(f"the IMA list is larger than {LIST_BYTES_MAX} bytes; reboot")
            pieces.append(piece)

    def close(self) -> None:
        """Give the files back; harmless when done twice."""
        while self._open:
            os.close(self._open.pop())


def _check(entries: Sequence[Measurement]) -> None:
    """Whether this kernel measures in a way that can be used, and its list is genuine."""
    files = [entry for entry in entries if entry.is_file and not entry.is_violation]
    if not files:
        raise BackendUnavailable("ima", "the policy measures nothing", _BOOT)
    if not any(map(_is_sha256, files)):
        last = files[-1]
        how = last.algorithm if last.kind == "ima" else "fs-verity"
        raise BackendUnavailable("ima", f"it measures with {how}, not SHA-256", _BOOT)
    try:
        ima.check_list(entries, pcrs=read_pcrs())
    except VerificationError as error:
        raise CaptureError(f"the IMA measurement list is not genuine: {error}") from None


def _is_sha256(entry: Measurement) -> bool:
    """Whether its digest is what a leaf has: SHA-256 of the content."""
    return entry.kind == "ima" and entry.algorithm == "sha256"


def _number(descriptor: int) -> int:
    """A number that the kernel shows in a file of its own."""
    text = os.pread(descriptor, 64, 0)
    try:
        return int(text)
    except ValueError:
        raise CaptureError(f"the kernel's count of IMA is {text!r}, no number") from None


def _parse(data: bytes) -> Tuple[Measurement, ...]:
    try:
        return ima.parse_binary(data)
    except EncodingError as error:
        raise CaptureError(str(error)) from None


def read_pcrs(tpm: Path = TPM) -> Optional[Mapping[int, bytes]]:
    """SHA-256 PCRs 0 to 9, None without a TPM; empty if the TPM shows none (before Linux 5.12)."""
    if not tpm.exists():
        return None
    found: Dict[int, bytes] = {}
    for index in range(10):
        try:
            text = (tpm / "pcr-sha256" / str(index)).read_text("ascii")
            found[index] = bytes.fromhex(text.strip())
        except (OSError, ValueError):
            continue
    return found


def probe() -> None:
    """Find out whether this process could open a window now.

    Raises:
        BackendUnavailable: Why not, and what to do.
        CaptureError: The list is not genuine.
    """
    ImaWindow().close()


class ImaScope:
    """One action: a walk, and the window beside it. Owns both."""

    def __init__(
        self, walk: Scope, window: ImaWindow, *, root: bytes, limits: CaptureLimits
    ) -> None:
        """Args: walk: Has its first snapshot. window: Is open. root, limits: The action's."""
        self._walk = walk
        self._window = window
        self._root = root
        self._limits = limits

    @property
    def mounts(self) -> Tuple[MountMark, ...]:
        """Empty: nothing is marked."""
        return ()

    def progress(self) -> Mapping[str, int]:
        """That of the walk."""
        return self._walk.progress()

    def finish(
        self, *, outputs_files: Sequence[bytes], outputs_dirs: Sequence[bytes]
    ) -> Observation:
        """Close the window and put it into the walk's observation; see `Scope.finish`."""
        try:
            violations = self._window.violations()  # first: those after it are in the list
            entries = self._window.entries()
            base = self._walk.finish(outputs_files=outputs_files, outputs_dirs=outputs_dirs)
        finally:
            self._window.close()
        return merge(base, entries, violations, root=self._root, limits=self._limits)

    def abort(self) -> None:
        """End both."""
        self._window.close()
        self._walk.abort()


def merge(
    base: Observation,
    entries: Sequence[Measurement],
    violations: int = 0,
    *,
    root: bytes,
    limits: CaptureLimits,
) -> Observation:
    """A walk's observation with what the kernel measured meanwhile.

    Args:
        base: Of the walk.
        entries: Of the window.
        violations: As the kernel counted them: one that found no memory is not in the list.
        root: The action's root.
        limits: Caps of this action.
    """
    counters = dict(base.counters)
    top = _as_listed(root.rstrip(b"/") + b"/")
    sure = [entry for entry in entries if not entry.is_violation]
    measured = {
        (_relative(entry.name, top), entry.digest)
        for entry in sure
        if entry.is_file and _is_sha256(entry)
    }
    materials = _confirmed(base.materials, Domain.MATERIAL, measured)
    products = _confirmed(base.products, Domain.PRODUCT, measured)
    known = {(_as_listed(leaf.path), leaf.digest) for leaf in materials}
    outside = {item for item in measured - known if item[0].startswith(b"/")}
    leaves, mutations = ima_files.find(outside, root=root, limits=limits, counters=counters)
    violations = max(violations, len(entries) - len(sure))
    left_out = violations + max(0, len(mutations) - MUTATIONS_MAX)
    _add(counters, "mutatedAfterOpen", violations + len(mutations))
    _add(counters, "unhashedOpensTotal", _without_a_leaf(sure, top, {leaf[0] for leaf in known}))
    return Observation(
        backend="walk+ima",
        posture=base.posture,
        materials=leaf_table.encode(Domain.MATERIAL, materials + leaves),
        products=leaf_table.encode(Domain.PRODUCT, products),
        opens=base.opens,
        processes=base.processes,
        mounts=base.mounts,
        counters=counters,
        # Of a violation the kernel says which file, but neither digest.
        mutations=base.mutations + Mutations(tuple(mutations[:MUTATIONS_MAX]), left_out),
    )


def _add(counters: Dict[str, int], name: str, more: int) -> None:
    counters[name] = min(counters[name] + more, diagnostics.COUNTER_VALUE_MAX)


def _without_a_leaf(entries: Sequence[Measurement], top: bytes, known: AbstractSet[bytes]) -> int:
    """Files that were measured, but not by path and SHA-256: the record cannot name them."""
    return len(
        {
            (entry.name, entry.digest)
            for entry in entries
            if entry.is_nameless_file
            or (
                (entry.is_file and not _is_sha256(entry))
                and not entry.name.startswith(top)
                and entry.name not in known
            )
        }
    )


def _as_listed(path: bytes) -> bytes:
    """A path as the kernel writes it into the list."""
    return path.replace(b" ", b"_")


def _relative(name: bytes, top: bytes) -> bytes:
    return name[len(top) :] if name.startswith(top) else name


def _confirmed(
    table: LeafTable, domain: Domain, measured: AbstractSet[Tuple[bytes, bytes]]
) -> List[Leaf]:
    """The leaves of a table; `ima` is the source of those that the kernel measured the same."""
    return [
        leaf._replace(source=int(DigestSource.IMA))
        if (_as_listed(leaf.path), leaf.digest) in measured
        else leaf
        for leaf in leaf_table.iter_leaves(table.raw, domain)
    ]
