"""The run manifest: what a build-tool adapter tells `rootseal seal` (docs/formats.md)."""

from __future__ import annotations

import dataclasses
from typing import Dict, List, Mapping, Tuple

from rootseal import canonical, keys, leaf_table, schema
from rootseal.build_predicate import (
    ARTIFACT_SHAPE,
    CAPTURE_KEY_COUNT_MAX,
    POLICY_SHAPE,
    RUN_SHAPE,
    SOURCES,
    TARGET_COUNT_MAX,
    TOOL_SHAPE,
    VCS_SHAPE,
    Artifact,
    check_policy_level,
)
from rootseal.bundle import RECORD_COUNT_MAX
from rootseal.errors import ConfigError, EncodingError, StatementError
from rootseal.leaf_table import Leaf
from rootseal.observation import DigestSource, LeafKind, Posture

MANIFEST_BYTES_MAX = 1 << 28
_OUTPUT_SHAPE = schema.nullable(  # null: the tool did not take the stream
    schema.object_of({"sha256": schema.digest_text, "size": schema.integer()})
)
_SHAPE = schema.object_of(
    {
        "version": schema.exactly(1),
        "tool": TOOL_SHAPE,
        "run": RUN_SHAPE,
        "vcs": VCS_SHAPE,
        "policy": POLICY_SHAPE,
        "captureKeys": schema.list_of(schema.text(4096), CAPTURE_KEY_COUNT_MAX),
        "actions": schema.list_of(
            schema.object_of(
                {
                    "actionKey": schema.digest_text,
                    "record": schema.digest_text,
                    "source": schema.one_of(SOURCES),
                    "description": schema.text(1 << 16),
                    "exitCode": schema.integer(255, -127),
                    "stdout": _OUTPUT_SHAPE,
                    "stderr": _OUTPUT_SHAPE,
                }
            ),
            RECORD_COUNT_MAX,
        ),
        "targets": schema.list_of(
            schema.object_of(
                {
                    "address": schema.text(4096),
                    "actions": schema.list_of(schema.digest_text, RECORD_COUNT_MAX),
                    "artifacts": schema.list_of(ARTIFACT_SHAPE, 1 << 20),
                }
            ),
            TARGET_COUNT_MAX,
        ),
        "engineInputs": schema.list_of(
            schema.object_of(
                {
                    "path": schema.path_text,
                    "sha256": schema.digest_text,
                    "size": schema.integer(),
                    "mode": schema.integer(leaf_table.MODE_MAX),
                }
            ),
            1 << 24,
        ),
    }
)


@dataclasses.dataclass(frozen=True)
class ManifestAction:
    """One action of the run.

    Attributes:
        action_key: 32 bytes.
        record: Name of its record, hex.
        source: How the build tool came by the result; one of `build_predicate.SOURCES`.
        description: What the build tool calls it.
        exit_code: Exit code of the result.
        outputs: Digest and size of stdout and stderr, as JSON.
    """

    action_key: bytes
    record: str
    source: str
    description: str
    exit_code: int
    outputs: Mapping[str, object]


@dataclasses.dataclass(frozen=True)
class ManifestTarget:
    """One target of the run: its address, the records of its actions, and what it delivered."""

    address: str
    records: Tuple[str, ...]
    artifacts: Tuple[Artifact, ...]


@dataclasses.dataclass(frozen=True)
class Manifest:
    """A manifest that agrees with itself.

    Attributes:
        head: The fields `tool`, `run`, `vcs` and `policy`, as they go into the root predicate.
        run_id: `run.id`.
        required_posture: `policy.posture`.
        require_zero_drops: `policy.requireZeroDrops`.
        strict: Whether `policy.hardening` is strict.
        fsverity: `policy.fsverity`.
        capture_keys: Capture keys that are trusted beside this machine's.
        actions: Each record once.
        targets: Each address once, in order.
        engine_inputs: Files that the build tool itself read.
    """

    head: Mapping[str, object]
    run_id: str
    required_posture: Posture
    require_zero_drops: bool
    strict: bool
    fsverity: str
    capture_keys: Tuple[keys.PublicKey, ...]
    actions: Tuple[ManifestAction, ...]
    targets: Tuple[ManifestTarget, ...]
    engine_inputs: Tuple[Leaf, ...]


def parse_manifest(data: bytes) -> Manifest:
    """Read a manifest.

    Raises:
        ConfigError: It is not one, or contradicts itself; says where.
    """
    try:
        value = canonical.parse(data, bytes_max=MANIFEST_BYTES_MAX)
        return read_manifest(value)
    except EncodingError as error:
        raise ConfigError(f"the manifest: {error}") from None


def read_manifest(value: object) -> Manifest:
    """Read a manifest that is already parsed (`parse_manifest` of its bytes)."""
    try:
        document = schema.check(value, _SHAPE, "manifest")
        policy = schema.as_object(document["policy"])
        check_policy_level(policy)
    except StatementError as error:
        raise ConfigError(str(error)) from None
    manifest = Manifest(
        head={name: document[name] for name in ("tool", "run", "vcs", "policy")},
        run_id=str(schema.as_object(document["run"])["id"]),
        required_posture=Posture(policy["posture"]),
        require_zero_drops=policy["requireZeroDrops"] is True,
        strict=policy["hardening"] == "strict",
        fsverity=str(policy["fsverity"]),
        capture_keys=tuple(
            keys.parse_public_key(str(pem).encode("utf-8"), where=f"manifest.captureKeys[{index}]")
            for index, pem in enumerate(schema.as_list(document["captureKeys"]))
        ),
        actions=_read_actions(schema.as_list(document["actions"])),
        targets=_read_targets(schema.as_list(document["targets"])),
        engine_inputs=tuple(_read_input(item) for item in schema.as_list(document["engineInputs"])),
    )
    _check_targets(manifest)
    return manifest


def _read_actions(items: List[object]) -> Tuple[ManifestAction, ...]:
    actions: Dict[str, ManifestAction] = {}
    for value in items:
        item = schema.as_object(value)
        action = ManifestAction(
            action_key=bytes.fromhex(str(item["actionKey"])),
            record=str(item["record"]),
            source=str(item["source"]),
            description=str(item["description"]),
            exit_code=schema.as_integer(item["exitCode"]),
            outputs={"stdout": item["stdout"], "stderr": item["stderr"]},
        )
        earlier = actions.setdefault(action.record, action)
        if earlier.action_key != action.action_key:
            raise ConfigError(f"manifest.actions: record {action.record} stands for two actions")
    if not actions:
        raise ConfigError("manifest.actions is empty; a build without actions has nothing to seal")
    return tuple(actions.values())


def _read_targets(items: List[object]) -> Tuple[ManifestTarget, ...]:
    targets: Dict[str, ManifestTarget] = {}
    for value in items:
        item = schema.as_object(value)
        address = str(item["address"])
        if address in targets:
            raise ConfigError(f"manifest.targets has {address!r} twice")
        artifacts = []
        for entry in schema.as_list(item["artifacts"]):
            field = schema.as_object(entry)
            size = schema.as_integer(field["size"])
            artifacts.append(Artifact(str(field["name"]), str(field["sha256"]), size))
        records = tuple(str(name) for name in schema.as_list(item["actions"]))
        ordered = tuple(sorted(artifacts, key=lambda artifact: artifact.name))
        targets[address] = ManifestTarget(address, records, ordered)
    return tuple(targets[address] for address in sorted(targets))


def _check_targets(manifest: Manifest) -> None:
    records = {action.record for action in manifest.actions}
    digests: Dict[str, str] = {}
    for target in manifest.targets:
        for name in target.records:
            if name not in records:
                raise ConfigError(
                    f"manifest.targets: {target.address} names record {name}, "
                    "which is not among the actions"
                )
        for artifact in target.artifacts:
            if digests.setdefault(artifact.name, artifact.sha256) != artifact.sha256:
                raise ConfigError(f"manifest.targets: {artifact.name!r} has two digests")


def _read_input(value: object) -> Leaf:
    item = schema.as_object(value)
    return Leaf(
        path=canonical.path_bytes(str(item["path"])),
        digest=bytes.fromhex(str(item["sha256"])),
        size=schema.as_integer(item["size"]),
        mode=schema.as_integer(item["mode"]),
        kind=LeafKind.FILE,
        source=DigestSource.WALK,  # the build tool's word, so the weakest source there is
    )
