"""The `ima` backend: the kernel's own measurements of an action's window, over a walk.

    open: list read to its end, checked → window = what is appended until finish
    finish: walk's observation + window → leaves with source `ima`, violations → losses

What a window is not: IMA measures a file once until it changes, so a file that anyone read before
is not in it; it does not say which process read; other actions at the same time fall into it; and
the policy decides what is measured at all (`ima_policy=tcb` leaves out files that users other than
root only read, and everything on tmpfs, proc and sysfs). So nothing here shows that a file was not
read: the posture stays `walked`, and `ima` is the source of each digest that the kernel confirmed.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Dict, Iterable, List, Mapping, Optional, Sequence, Tuple

from rootseal import diagnostics, ima, leaf_table
from rootseal.capture.scope import Scope
from rootseal.errors import BackendUnavailable, CaptureError, EncodingError, VerificationError
from rootseal.ima import Measurement
from rootseal.leaf_table import Domain, Leaf
from rootseal.observation import (
    DigestSource,
    LeafKind,
    LeafTable,
    MountMark,
    Mutations,
    Observation,
)

LIST = Path("/sys/kernel/security/ima/binary_runtime_measurements")
TPM = Path("/sys/class/tpm/tpm0")
LIST_BYTES_MAX = 256 * 2**20
_READ_BYTES = 1 << 20
_BOOT = "Boot with `ima_policy=tcb ima_hash=sha256`."


class ImaWindow:
    """What the kernel measures from the moment this is made. Owns the list's descriptor."""

    def __init__(self, path: Path = LIST) -> None:
        """Read and check the list as it is.

        Raises:
            BackendUnavailable: No IMA, no permission, or nothing is measured.
            CaptureError: The list is not what the kernel writes.
        """
        try:
            self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except PermissionError:
            raise BackendUnavailable(
                "ima", "only root may read the measurement list", "Use the system daemon."
            ) from None
        except OSError as error:
            raise BackendUnavailable("ima", f"{path}: {error.strerror}", _BOOT) from None
        try:
            self._check(_parse(self._read()))
        except BaseException:
            self.close()
            raise

    def _check(self, entries: Sequence[Measurement]) -> None:
        if len(entries) < 2:
            raise BackendUnavailable("ima", "the policy measures nothing", _BOOT)
        if entries[-1].algorithm != "sha256":
            raise BackendUnavailable(
                "ima", f"it measures with {entries[-1].algorithm}, not SHA-256", _BOOT
            )
        try:
            ima.check_list(entries, pcrs=read_pcrs())
        except VerificationError as error:
            raise CaptureError(f"the IMA measurement list is not genuine: {error}") from None

    def entries(self) -> Tuple[Measurement, ...]:
        """What was appended since the last call, each entry checked against its template hash.

        Raises:
            CaptureError: An entry is not what the kernel writes.
        """
        found = _parse(self._read())
        for entry in found:
            if not entry.is_violation and ima.template_hash(entry) != entry.template_hash:
                raise CaptureError(f"the IMA entry of {entry.name!r} is not what its hash says")
        return found

    def _read(self) -> bytes:
        """To the end of the list; the kernel goes on where the last read stopped."""
        pieces: List[bytes] = []
        size = 0
        while True:
            piece = os.read(self._descriptor, _READ_BYTES)
            if not piece:
                return b"".join(pieces)
            size += len(piece)
            if size > LIST_BYTES_MAX:
                raise CaptureError(f"the IMA list is larger than {LIST_BYTES_MAX} bytes; reboot")
            pieces.append(piece)

    def close(self) -> None:
        """Give the list back; harmless when done twice."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def _parse(data: bytes) -> Tuple[Measurement, ...]:
    try:
        return ima.parse_binary(data)
    except EncodingError as error:
        raise CaptureError(str(error)) from None


def read_pcrs() -> Optional[Mapping[int, bytes]]:
    """SHA-256 PCRs 0 to 9, None without a TPM; empty if the TPM shows none."""
    if not TPM.exists():
        return None
    found: Dict[int, bytes] = {}
    for index in range(10):
        try:
            text = (TPM / "pcr-sha256" / str(index)).read_text("ascii")
            found[index] = bytes.fromhex(text.strip())
        except (OSError, ValueError):
            continue
    return found


class ImaScope:
    """One action: a walk, and the window beside it. Owns both."""

    def __init__(self, walk: Scope, window: ImaWindow, *, root: bytes) -> None:
        """Args: walk: Has its first snapshot. window: Is open. root: The action's root."""
        self._walk = walk
        self._window = window
        self._top = root.rstrip(b"/") + b"/"

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
            entries = self._window.entries()
            base = self._walk.finish(outputs_files=outputs_files, outputs_dirs=outputs_dirs)
        finally:
            self._window.close()
        return merge(base, entries, top=self._top)

    def abort(self) -> None:
        """End both."""
        self._window.close()
        self._walk.abort()


def merge(base: Observation, entries: Sequence[Measurement], *, top: bytes) -> Observation:
    """A walk's observation with what the kernel measured meanwhile.

    Args:
        base: Of the walk.
        entries: Of the window.
        top: The action's root with a slash at its end.
    """
    measured = {
        (_relative(entry.name, top), entry.digest)
        for entry in entries
        if entry.is_file and entry.kind == "ima" and not entry.is_violation
    }
    materials = _confirmed(base.materials, Domain.MATERIAL, measured)
    products = _confirmed(base.products, Domain.PRODUCT, measured)
    known = {leaf.path for leaf in (*materials, *products)}
    materials += _outside(sorted(item for item in measured if item[0] not in known))
    counters = dict(base.counters)
    violations = sum(entry.is_violation for entry in entries)
    counters["mutatedAfterOpen"] = min(
        counters["mutatedAfterOpen"] + violations, diagnostics.COUNTER_VALUE_MAX
    )
    return Observation(
        backend="walk+ima",
        posture=base.posture,
        materials=leaf_table.encode(Domain.MATERIAL, materials),
        products=leaf_table.encode(Domain.PRODUCT, products),
        opens=base.opens,
        processes=base.processes,
        mounts=base.mounts,
        counters=counters,
        # The kernel says which file, but neither digest.
        mutations=Mutations((), counters["mutatedAfterOpen"]),
    )


def _relative(path: bytes, top: bytes) -> bytes:
    return path[len(top) :] if path.startswith(top) else path


def _confirmed(
    table: LeafTable, domain: Domain, measured: Iterable[Tuple[bytes, bytes]]
) -> List[Leaf]:
    """The leaves of a table; `ima` is the source of those that the kernel measured the same.

    The kernel writes a space in a path as `_`, so a path is looked up in that form.
    """
    wanted = frozenset(measured)
    return [
        leaf._replace(source=int(DigestSource.IMA))
        if (leaf.path.replace(b" ", b"_"), leaf.digest) in wanted
        else leaf
        for leaf in leaf_table.iter_leaves(table.raw, domain)
    ]


def _outside(measured: Iterable[Tuple[bytes, bytes]]) -> List[Leaf]:
    """Files outside the root that were measured and are still there, as materials.

    A file that is gone was a temporary one: its size is not known, and nothing can be said of it.
    """
    leaves = []
    for path, found in measured:
        if not path.startswith(b"/") or len(path) > leaf_table.PATH_BYTES_MAX:
            continue
        try:
            status = os.lstat(path)
        except OSError:
            continue
        if stat.S_ISREG(status.st_mode):
            mode = stat.S_IMODE(status.st_mode)  # whether it was executed, the list does not say
            leaves.append(Leaf(path, found, status.st_size, mode, LeafKind.FILE, DigestSource.IMA))
    return leaves
