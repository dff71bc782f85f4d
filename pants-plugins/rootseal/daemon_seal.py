"""Sealing what an action delivers with fs-verity, before its record is signed.

    declared products → sealed and measured with the client's rights → counters of the record

The content of a sealed file is read once more: what is signed is what can no longer change. Build
tools that deliver somewhere else (Pants copies to dist/) seal there: seal_artifacts.py.
"""

from __future__ import annotations

import dataclasses
import os
from typing import List, Sequence

from rootseal import diagnostics, fsverity, outputs
from rootseal.daemon_announce import Announcement
from rootseal.daemon_peer import Peer, as_user
from rootseal.errors import BackendUnavailable, CaptureError, ZeroDropsError
from rootseal.leaf_table import Leaf
from rootseal.observation import Observation

FAILURES_SHOWN = 3


def require_fsverity(announced: Announcement, peer: Peer) -> None:
    """With `fsverity=on`: refuse an action whose outputs cannot be sealed, before it has run.

    Raises:
        BackendUnavailable: A filesystem that an output would be on has no fs-verity.
    """
    if not announced.seals_outputs or announced.requested.fsverity != "on":
        return
    with as_user(peer):
        for place in _places(announced):
            if not fsverity.can_seal(place):
                raise fsverity.unavailable(os.fsdecode(place))


def seal_outputs(observation: Observation, announced: Announcement, peer: Peer) -> Observation:
    """Seal the declared products where that is wanted, and say in the counters what became of it.

    Raises:
        ZeroDropsError: `fsverity=on`, and a product could not be sealed; or a product is not what
            the capture saw it to be.
    """
    if announced.requested.fsverity == "off":
        return observation
    sealed = 0
    failures: List[CaptureError] = []
    with as_user(peer):
        available = any(fsverity.can_seal(place) for place in _places(announced))
        for leaf in _outputs(observation, announced):
            try:
                _seal_one(os.path.join(announced.root, leaf.path), leaf)
                sealed, available = sealed + 1, True
            except BackendUnavailable as error:
                failures.append(error)
            except SealFailed as error:
                available = True
                failures.append(error)
    if announced.requested.fsverity == "on" and failures:
        raise _required(failures)
    if not available:
        return observation
    counts = {
        "fsVerityAvailable": 1,
        "fsVerityFilesSealed": sealed,
        "fsVeritySealFailures": sum(isinstance(error, SealFailed) for error in failures),
    }
    counters = diagnostics.add(observation.counters, {**diagnostics.zeros(), **counts})
    return dataclasses.replace(observation, counters=counters)


class SealFailed(CaptureError):
    """A file could not be sealed although its filesystem can."""


def _places(announced: Announcement) -> List[bytes]:
    """The existing directories that outputs are in, or will be made in."""
    declared = (*announced.output_files, *announced.output_dirs)
    places = {announced.root} if not declared else set()
    for path in declared:
        place = os.path.join(announced.root, path)
        while not os.path.isdir(place) and place != announced.root:
            place = os.path.dirname(place)
        places.add(place)
    return sorted(places)


def _outputs(observation: Observation, announced: Announcement) -> List[Leaf]:
    """The products to seal: regular files that declared outputs are, hold or lead to."""
    if not announced.seals_outputs:
        return []
    declared = (*announced.output_files, *announced.output_dirs)
    return outputs.delivered(observation.products.raw, announced.root, declared)[0]


def _seal_one(path: bytes, leaf: Leaf) -> None:
    name = os.fsdecode(path)
    try:
        found = fsverity.seal_file(name)
    except BackendUnavailable:
        raise
    except CaptureError as error:
        raise SealFailed(str(error)) from None
    if (found.sha256, found.size) != (leaf.digest, leaf.size):
        raise ZeroDropsError(
            f"{name} changed after the action had ended: it was sealed with SHA-256 "
            f"{found.sha256.hex()}, {leaf.digest.hex()} was captured. Remove it and run again.",
            {"unstableFiles": 1},
        )


def _required(failures: Sequence[CaptureError]) -> ZeroDropsError:
    text = "; ".join(str(error) for error in failures[:FAILURES_SHOWN])
    more = len(failures) - FAILURES_SHOWN
    if more > 0:
        text += f"; and {more} more"
    return ZeroDropsError(
        f"fs-verity is required, but fsVeritySealFailures is {len(failures)}: {text}",
        {"fsVeritySealFailures": len(failures)},
    )
