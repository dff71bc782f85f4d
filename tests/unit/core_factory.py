"""Real records and bundles in small, made by the real encoders."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Mapping, Optional, Sequence

from rootseal import diagnostics, digest, leaf_table, opens_table, record, seal
from rootseal.keys import KeyFileSigner, Signer
from rootseal.leaf_table import Domain, Leaf
from rootseal.manifest import read_manifest
from rootseal.observation import MountMark, Observation, Posture, ProcessRecord
from rootseal.predicate import ActionDescription, Fallback, Host, Requested


def leaf(path: bytes, content: bytes = b"", *, kind: int = 0, source: int = 0) -> Leaf:
    return Leaf(path, digest.sha256(content), len(content), 0o644, kind, source)


def counters(**changes: int) -> dict[str, int]:
    return {**diagnostics.zeros(), "fanotifyAvailable": 1, **changes}


def observation(
    *,
    materials: Sequence[Leaf] = (leaf(b"src/a.c", b"int a;"), leaf(b"/usr/bin/cc", b"cc", kind=1)),
    products: Sequence[Leaf] = (leaf(b"out/a.o", b"object", source=8),),
    posture: Posture = Posture.HELD,
    counts: Optional[Mapping[str, int]] = None,
) -> Observation:
    process = ProcessRecord(
        11, 10, b"/usr/bin/cc", b"cc", (b"cc", b"-c", b"src/a.c"), digest.sha256(b"cc"), None, 0
    )
    return Observation(
        backend="fanotify",
        posture=posture,
        materials=leaf_table.encode(Domain.MATERIAL, materials),
        products=leaf_table.encode(Domain.PRODUCT, products),
        opens=opens_table.encode([range(len(set(materials)))]),
        processes=(process,),
        mounts=(MountMark(b"/", "ext4", True, ""), MountMark(b"/proc", "proc", False, "pseudo")),
        counters=counters() if counts is None else counts,
    )


def description(number: int = 1, **changes: object) -> ActionDescription:
    base = ActionDescription(
        action_key=digest.sha256(b"action %d" % number),
        cmd=(b"cc", b"-c", b"src/a.c", b"-o", b"out/a.o"),
        exit_code=0,
        signal=None,
        environ=((b"PATH", digest.sha256(b"/usr/bin")),),
        root=b"/sandbox/%d" % number,
        working_directory=b".",
        requested=Requested("auto", "auto", "auto", "standard", False),
        requested_posture=Posture.WALKED,
        fallbacks=(Fallback("ebpf", "none", "not built"),),
        host=Host("6.1.0", "x86_64", "0.1.0"),
        started_at="2026-01-02T03:04:05Z",
        finished_at="2026-01-02T03:04:06.5Z",
        output_files=(b"out/a.o",),
        output_directories=(),
        descendants_killed=0,
    )
    return dataclasses.replace(base, **changes)  # type: ignore[arg-type]


def signed_record(
    signer: Signer,
    number: int = 1,
    *,
    observed: Optional[Observation] = None,
    described: Optional[ActionDescription] = None,
) -> bytes:
    return record.sign_record(observed or observation(), described or description(number), signer)


ARTIFACT = b"the artifact"


def manifest_action(record_bytes: bytes, number: int, **changes: object) -> dict[str, object]:
    empty = {"sha256": digest.sha256_hex(b""), "size": 0}
    return {
        "actionKey": description(number).action_key.hex(),
        "record": digest.sha256_hex(record_bytes),
        "source": "ran",
        "description": f"Compile number {number}",
        "exitCode": 0,
        "stdout": empty,
        "stderr": empty,
        **changes,
    }


def manifest(records: Sequence[bytes], **changes: object) -> dict[str, object]:
    """A manifest over records of actions 1, 2, …: two targets that share the first action."""
    names = [digest.sha256_hex(item) for item in records]
    artifact = {"name": "app.bin", "sha256": digest.sha256_hex(ARTIFACT), "size": len(ARTIFACT)}
    other = {"name": "lib/lib.a", "sha256": digest.sha256_hex(b"lib"), "size": 3}
    return {
        "version": 1,
        "tool": {"name": "pants", "version": "2.17.1"},
        "run": {
            "id": "run-1",
            "startedAt": "2026-01-02T03:04:05Z",
            "finishedAt": "2026-01-02T03:05:05Z",
        },
        "vcs": {"system": "git", "commit": "0" * 40, "dirty": False},
        "policy": {
            "captureMode": "auto",
            "fanotify": "auto",
            "fsverity": "auto",
            "hardening": "standard",
            "requireZeroDrops": True,
            "posture": "held",
        },
        "captureKeys": [],
        "actions": [manifest_action(item, index + 1) for index, item in enumerate(records)],
        "targets": [
            {"address": "//app:app", "actions": names, "artifacts": [artifact]},
            {"address": "//lib:lib", "actions": names[:1], "artifacts": [other]},
        ],
        "engineInputs": [
            {"path": "BUILD", "sha256": digest.sha256_hex(b"BUILD"), "size": 5, "mode": 420}
        ],
        **changes,
    }


def seal_to(
    path: Path,
    *,
    capture: KeyFileSigner,
    signer: KeyFileSigner,
    records: Optional[Sequence[bytes]] = None,
    targets_dir: Optional[Path] = None,
    **changes: object,
) -> seal.SealedBuild:
    """A bundle of three actions, or of the given records (of actions 1, 2, …)."""
    if records is None:
        records = [signed_record(capture, number) for number in (1, 2, 3)]
    return seal.seal(
        read_manifest(manifest(records, **changes)),
        records=seal.RecordsInMemory({digest.sha256_hex(item): item for item in records}),
        trusted=[capture.public_key],
        signer=signer,
        out=path,
        targets_dir=targets_dir,
    )
