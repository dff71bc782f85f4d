"""Real records and bundles in small, made by the real encoders."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any, Callable, Mapping, Optional, Sequence

from rootseal import (
    bundle,
    canonical,
    diagnostics,
    digest,
    envelope,
    leaf_table,
    merkle,
    opens_table,
    predicate,
    record,
    seal,
    statement,
)
from rootseal.keys import KeyFileSigner, Signer
from rootseal.leaf_table import Domain, Leaf
from rootseal.manifest import read_manifest
from rootseal.observation import MountMark, Mutations, Observation, Posture, ProcessRecord
from rootseal.predicate import ActionDescription, Fallback, Host, Requested, StoredTables


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
        mutations=Mutations((), int((counts or {}).get("mutatedAfterOpen", 0))),
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
    return record.sign_record(
        observed or observation(), described or description(number), signer
    ).data


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


# --- Forgeries: signed with the right keys, wrong in one place --------------------------------


def forged_record(
    signer: Signer,
    number: int,
    *,
    change: Callable[[dict[str, Any]], None] = lambda document: None,
    change_statement: Callable[[dict[str, Any]], None] = lambda document: None,
    change_tables: Callable[[StoredTables], StoredTables] = lambda tables: tables,
    observed: Optional[Observation] = None,
) -> bytes:
    """A record whose predicate, statement or tables were changed before they were signed."""
    observed, described = observed or observation(), description(number)
    tables = predicate.store_tables(observed)
    document: Any = json.loads(
        canonical.encode(predicate.build_action_predicate(observed, described, tables).document)
    )
    change(document)
    subject = statement.action_subject(described.action_key)
    signed = json.loads(statement.encode([subject], statement.ACTION_TYPE, document))
    change_statement(signed)
    return record.encode_record(
        envelope.sign(canonical.encode(signed), signer), change_tables(tables)
    )


def forged_bundle(
    path: Path,
    *,
    capture: KeyFileSigner,
    signer: KeyFileSigner,
    records: Optional[Sequence[bytes]] = None,
    change: Callable[[dict[str, Any]], None] = lambda document: None,
    change_statement: Callable[[dict[str, Any]], None] = lambda document: None,
    engine_inputs: Optional[bytes] = None,
) -> None:
    """A bundle of three actions whose root says what `change` makes of it, signed by `signer`.

    Its tree is right for the records; everything else is as sealing three good records gives it.
    """
    good = [signed_record(capture, number) for number in (1, 2, 3)]
    seal_to(path, capture=capture, signer=signer, records=good)
    with bundle.BundleReader(path) as reader:
        signed: Any = json.loads(envelope.parse(reader.root_envelope).payload)
        inputs = reader.engine_inputs if engine_inputs is None else engine_inputs
    index = sorted(
        (bundle.NewRecord(description(number).action_key, _envelope_digest(item), len(item)), item)
        for number, item in enumerate(good if records is None else records, start=1)
    )
    hashes = (bundle.action_leaf_hash(e.action_key, e.envelope_sha256) for e, _ in index)
    signed["predicate"]["tree"] = {
        "root": merkle.root_of_hashes(hashes).hex(),
        "size": len(index),
    }
    change(signed["predicate"])
    change_statement(signed)
    bundle.write_bundle(
        path,
        root_envelope=envelope.sign(canonical.encode(signed), signer),
        engine_inputs=inputs,
        index=[entry for entry, _ in index],
        records=[item for _, item in index],
    )


def _envelope_digest(data: bytes) -> bytes:
    return digest.sha256(record.parse_record(data).envelope)
