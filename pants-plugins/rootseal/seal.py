"""Sealing: a run manifest and its action records become one signed bundle.

manifest + records directory → every record verified → tree → root statement → bundle file,
and one signed statement per target. Records are read one at a time, twice: to be verified, and
to be copied (compared by digest again).
"""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Dict, Iterable, Iterator, List, Mapping, Optional, Protocol, Sequence, Tuple

from rootseal import (
    __version__,
    build_predicate,
    bundle,
    digest,
    envelope,
    files,
    leaf_table,
    merkle,
    predicate,
    record_check,
    schema,
    statement,
)
from rootseal.build_predicate import Target, Totals
from rootseal.bundle import NewRecord
from rootseal.checks import Check, checking
from rootseal.errors import ConfigError, EncodingError, Error, IncompleteError, PolicyError
from rootseal.keys import PublicKey, Signer
from rootseal.leaf_table import Domain
from rootseal.manifest import Manifest, ManifestAction, ManifestTarget
from rootseal.record import RECORD_BYTES_MAX
from rootseal.seal_artifacts import seal_artifacts
from rootseal.toolchain import TrustedTools
from rootseal.verify import Progress

_UNSAFE_IN_NAME = re.compile(r"[^A-Za-z0-9._@+=-]+")
_NAME_CHARACTERS_MAX = 150


class Records(Protocol):
    """Where records are kept, by name."""

    def read(self, name: str) -> Optional[bytes]:
        """The bytes of a record, or None if it is not there."""


@dataclasses.dataclass(frozen=True)
class RecordDirectory:
    """Records as files `DIR/<first two hex digits>/<record hex>`."""

    path: Path

    def read(self, name: str) -> Optional[bytes]:
        """The bytes of a record, or None if there is no such file."""
        place = self.path / name[:2] / name
        if not place.exists():
            return None
        return files.read_bounded(place, bytes_max=RECORD_BYTES_MAX, what="the record")


@dataclasses.dataclass(frozen=True)
class RecordsInMemory:
    """Records that are held as bytes, by name."""

    records: Mapping[str, bytes]

    def read(self, name: str) -> Optional[bytes]:
        """The bytes of a record, or None."""
        return self.records.get(name)


@dataclasses.dataclass(frozen=True)
class SealedBuild:
    """What sealing made.

    Attributes:
        bundle: The bundle file.
        root_envelope_sha256: Digest of the root envelope, hex.
        tree_root: Root of the action tree, hex.
        summary: `summary` of the root predicate.
        targets: Address and file of each target statement.
    """

    bundle: Path
    root_envelope_sha256: str
    tree_root: str
    summary: Mapping[str, object]
    targets: Mapping[str, Path]


@dataclasses.dataclass(frozen=True, order=True)
class _Sealed:
    """A verified record on its way into the tree; sorts in leaf order."""

    index: NewRecord
    action: ManifestAction = dataclasses.field(compare=False)
    keyid: str = dataclasses.field(compare=False)
    posture: str = dataclasses.field(compare=False)
    losses: Tuple[str, ...] = dataclasses.field(compare=False)


def seal(
    manifest: Manifest,
    *,
    records: Records,
    trusted: Sequence[PublicKey],
    signer: Signer,
    out: Path,
    targets_dir: Optional[Path],
    artifacts_dir: Optional[Path] = None,
    tools: Optional[TrustedTools] = None,
    progress: Optional[Progress] = None,
) -> SealedBuild:
    """Verify every record of a run and write its signed bundle.

    Args:
        manifest: The run.
        records: Where its records are.
        trusted: Capture keys of this machine; those of the manifest are trusted beside them.
        signer: Signs the root and the target statements.
        out: The bundle file.
        targets_dir: Directory for the statements per target, or None for none.
        artifacts_dir: Where the artifacts are, to be sealed as `policy.fsverity` says.
        tools: What actions may have executed from outside their sandboxes, or None for anything.
        progress: Called with (records done, records in all).

    Raises:
        VerificationError: A record is missing, not genuine, incomplete or too weak; names it.
        CaptureError: An artifact could not be sealed though `policy.fsverity` is `on`.
        Error: The bundle cannot be written.
    """
    known = {key.keyid: key for key in (*trusted, *manifest.capture_keys)}
    totals, sealed = Totals(), []
    for number, action in enumerate(manifest.actions):
        trust = (tuple(known.values()), tools)
        sealed.append(_verify_action(manifest, action, records, trust, totals))
        if progress is not None:
            progress(number + 1, len(manifest.actions))
    sealed.sort()
    inputs = leaf_table.encode(Domain.ENGINE_INPUT, manifest.engine_inputs)
    stored_inputs = leaf_table.compress(inputs.raw)
    seals = seal_artifacts(
        artifacts_dir,
        [artifact for target in manifest.targets for artifact in target.artifacts],
        mode=manifest.fsverity,
    )
    totals.add_seals(seals)
    document = _root_predicate(manifest, sealed, known, totals)
    document["engineInputs"] = predicate.table_reference(inputs, stored_inputs)
    document["fsverity"] = seals.document
    root_statement = _root_statement(manifest, document)
    root_envelope = envelope.sign(root_statement, signer)
    bundle.write_bundle(
        out,
        root_envelope=root_envelope,
        engine_inputs=stored_inputs,
        index=[item.index for item in sealed],
        records=_records_again(records, sealed),
    )
    root_sha256 = digest.sha256_hex(root_envelope)
    written: Dict[str, Path] = {}
    if targets_dir is not None:
        try:
            written = _write_targets(manifest, sealed, document, root_sha256, signer, targets_dir)
        except Error:
            discard((out, *statement_paths(manifest.targets, targets_dir).values()))
            raise
    tree_root = str(schema.as_object(document["tree"])["root"])
    summary = schema.as_object(document["summary"])
    return SealedBuild(out, root_sha256, tree_root, summary, written)


def _verify_action(
    manifest: Manifest,
    action: ManifestAction,
    records: Records,
    trust: Tuple[Sequence[PublicKey], Optional[TrustedTools]],
    totals: Totals,
) -> _Sealed:
    trusted, tools = trust
    about = f"action {action.action_key.hex()[:16]} ({action.description})"
    data = _read_named(records, action, about)
    verified = record_check.verify_record(
        data, action_key=action.action_key, envelope_sha256=None, trusted=trusted, about=about
    )
    allow = not manifest.require_zero_drops
    record_check.refuse_losses(verified.predicate, verified.losses, allow=allow, about=about)
    achieved = verified.predicate.posture
    with checking(Check.RECORD_POSTURE, PolicyError, about=about):
        if achieved.rank < manifest.required_posture.rank:
            raise PolicyError(
                f"posture {achieved.value} is weaker than the required "
                f"{manifest.required_posture.value}; run `rootseal doctor`"
            )
    record_check.check_witnesses(verified.predicate, strict=manifest.strict, about=about)
    with checking(Check.RECORD_OUTPUTS, PolicyError, about=about):
        record_check.check_exit_code(verified.predicate, action.exit_code)
    record_check.check_tools(verified, tools, about=about)
    totals.add(verified.predicate, verified.counters)
    index = NewRecord(action.action_key, verified.envelope_sha256, len(data))
    losses = tuple(sorted(verified.losses))
    return _Sealed(index, action, verified.keyid, achieved.value, losses)


def _read_named(records: Records, action: ManifestAction, about: str) -> bytes:
    with checking(Check.RECORD_FORMAT, IncompleteError, about=about):
        data = records.read(action.record)
        if data is None:
            raise IncompleteError(
                f"its record {action.record} is missing; build again so that the action is "
                "captured again (in Pants: delete the local cache, or use --no-local-cache)",
                data={"actionKey": action.action_key.hex(), "record": action.record},
            )
        if digest.sha256_hex(data) != action.record:
            raise IncompleteError(
                f"its record {action.record} has other content than its name says; "
                "delete that file and build again"
            )
    return data


def _records_again(records: Records, sealed: Sequence[_Sealed]) -> Iterator[bytes]:
    for item in sealed:
        data = records.read(item.action.record)
        if data is None or digest.sha256_hex(data) != item.action.record:
            raise EncodingError(f"record {item.action.record} changed while it was being sealed")
        yield data


def _root_predicate(
    manifest: Manifest, sealed: Sequence[_Sealed], known: Mapping[str, PublicKey], totals: Totals
) -> Dict[str, object]:
    """The root predicate but for its `engineInputs` and `fsverity`."""
    hashes = (
        bundle.action_leaf_hash(item.index.action_key, item.index.envelope_sha256)
        for item in sealed
    )
    targets = _targets(manifest, sealed)
    sources = dict.fromkeys(build_predicate.SOURCES, 0)
    for item in sealed:
        sources[item.action.source] += 1
    used = sorted({item.keyid for item in sealed})
    return {
        "summary": {**totals.summary(len(targets)), "sources": sources},
        "tree": {"root": merkle.root_of_hashes(hashes).hex(), "size": len(sealed)},
        "rootseal": {"version": __version__},
        **manifest.head,
        "captureKeys": [known[keyid].pem for keyid in used],
        "targets": [build_predicate.target_document(target) for target in targets],
    }


def _root_statement(manifest: Manifest, document: Mapping[str, object]) -> bytes:
    found = build_predicate.read_build_predicate(document)  # what no verifier reads, none signs
    subjects = build_predicate.build_subjects(
        found.targets, run_id=manifest.run_id, tree_root=found.tree_root
    )
    return statement.encode(subjects, statement.BUILD_TYPE, document)


def _targets(manifest: Manifest, sealed: Sequence[_Sealed]) -> List[Target]:
    position = {item.action.record: index for index, item in enumerate(sealed)}
    return [
        Target(
            target.address,
            target.artifacts,
            build_predicate.ranges_of([position[name] for name in target.records]),
        )
        for target in manifest.targets
    ]


def _write_targets(
    manifest: Manifest,
    sealed: Sequence[_Sealed],
    document: Mapping[str, object],
    root_sha256: str,
    signer: Signer,
    directory: Path,
) -> Dict[str, Path]:
    position = {item.action.record: index for index, item in enumerate(sealed)}
    paths = statement_paths(manifest.targets, directory)
    build = {
        "rootEnvelope": {"sha256": root_sha256},
        "tree": document["tree"],
        "run": manifest.head["run"],
    }
    for target in manifest.targets:
        if target.address not in paths:
            continue
        indices = sorted({position[record] for record in target.records})
        content = {
            "address": target.address,
            "build": build,
            "actions": [_target_action(index, sealed[index]) for index in indices],
        }
        subjects = sorted({artifact.subject for artifact in target.artifacts})
        signed = statement.encode(subjects, statement.TARGET_TYPE, content)
        with files.complete_file(paths[target.address]) as stream:
            stream.write(envelope.sign(signed, signer))
    return paths


def statement_paths(targets: Sequence[ManifestTarget], directory: Path) -> Dict[str, Path]:
    """Where the statement of each target is: of those with artifacts, as it needs a subject.

    The root lists the others all the same.
    """
    names = target_file_names(targets)
    return {
        target.address: directory / name for target, name in zip(targets, names) if target.artifacts
    }


def discard(paths: Iterable[Path]) -> None:
    """Remove what could be taken for the result of a run that was refused.

    Raises:
        ConfigError: A file cannot be removed.
    """
    for path in paths:
        try:
            path.unlink()
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            raise ConfigError(f"cannot remove the older {path}: {error.strerror}") from None


def target_file_names(targets: Sequence[ManifestTarget]) -> List[str]:
    """File name of each target's statement: its address made safe, and unique among them."""
    names: List[str] = []
    taken = set()
    for target in targets:
        safe = _UNSAFE_IN_NAME.sub(".", target.address).strip(".") or "target"
        if len(safe) > _NAME_CHARACTERS_MAX or safe.lower() in taken:
            tail = digest.sha256_hex(target.address.encode("utf-8"))[:16]
            safe = f"{safe[:_NAME_CHARACTERS_MAX]}.{tail}"
        taken.add(safe.lower())
        names.append(f"{safe}.intoto.json")
    return names


def _target_action(leaf_index: int, item: _Sealed) -> Dict[str, object]:
    return {
        "leafIndex": leaf_index,
        "actionKey": item.index.action_key.hex(),
        "envelope": {"sha256": item.index.envelope_sha256.hex()},
        "source": item.action.source,
        "description": item.action.description,
        "exitCode": item.action.exit_code,
        "posture": item.posture,
        "losses": list(item.losses),
        **item.action.outputs,
    }
