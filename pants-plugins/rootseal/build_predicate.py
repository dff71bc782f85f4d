"""Predicates of a build (the root) and of one target; built, and read back strictly.

Pure. docs/predicate.md describes every field.
"""

from __future__ import annotations

import dataclasses
from typing import Dict, List, Mapping, Optional, Sequence, Tuple

from rootseal import diagnostics, hardening, keys, predicate, schema
from rootseal.errors import ConfigError, StatementError
from rootseal.observation import Posture
from rootseal.predicate import ActionPredicate, TableReference
from rootseal.statement import Subject

TARGET_COUNT_MAX = 1 << 17
RANGE_COUNT_MAX = 1 << 20
CAPTURE_KEY_COUNT_MAX = 1024
SOURCES = ("ran", "local-cache", "remote-cache", "memoized", "remote-execution")


@dataclasses.dataclass(frozen=True)
class Artifact:
    """A file that the build delivered.

    Attributes:
        name: Path text relative to the artifact directory.
        sha256: Hex.
        size: Bytes.
    """

    name: str
    sha256: str
    size: int

    @property
    def subject(self) -> Subject:
        """The subject that stands for it."""
        return Subject(self.name, self.sha256)


@dataclasses.dataclass(frozen=True)
class ArtifactSeals:
    """What became of the artifacts' fs-verity seals.

    Attributes:
        available: Whether a filesystem of the artifacts supports fs-verity.
        failures: Artifacts that could not be sealed although their filesystem can.
        digests: (artifact name, fs-verity digest in hex) of each sealed artifact, by name.
    """

    available: bool
    failures: int
    digests: Tuple[Tuple[str, str], ...]

    @property
    def document(self) -> Dict[str, object]:
        """As the root predicate has it."""
        return {
            "available": self.available,
            "filesSealed": len(self.digests),
            "sealFailures": self.failures,
            "files": [{"name": name, "fsverity": value} for name, value in self.digests],
        }


@dataclasses.dataclass(frozen=True)
class Target:
    """A target of the build tool.

    Attributes:
        address: As the build tool writes it.
        artifacts: What it delivered.
        ranges: Leaf indices of its actions as half-open ranges, ascending and disjoint.
    """

    address: str
    artifacts: Tuple[Artifact, ...]
    ranges: Tuple[Tuple[int, int], ...]

    @property
    def action_count(self) -> int:
        """Number of its actions."""
        return sum(end - start for start, end in self.ranges)


@dataclasses.dataclass
class Totals:
    """Sums over actions, added one at a time (mutable on purpose: 10,000 actions)."""

    actions: int = 0
    materials: int = 0
    products: int = 0
    processes: int = 0
    fanotify_only_digests: int = 0
    posture: Optional[Posture] = None
    diagnostics: Dict[str, int] = dataclasses.field(default_factory=diagnostics.zeros)

    def add(self, action: ActionPredicate, counters: Mapping[str, int]) -> None:
        """Add one action with its complete counters."""
        self.actions += 1
        self.materials += action.materials.tree_size
        self.products += action.products.tree_size
        self.processes += action.process_count
        self.fanotify_only_digests += action.fanotify_only_digests
        self.diagnostics = diagnostics.add(self.diagnostics, counters)
        if self.posture is None or action.posture.rank < self.posture.rank:
            self.posture = action.posture

    def add_seals(self, seals: ArtifactSeals) -> None:
        """Add the artifacts' seals; a file that its own action tried to seal is counted once."""
        for name, count in (
            ("fsVerityAvailable", int(seals.available)),
            ("fsVerityFilesSealed", len(seals.digests)),
            ("fsVeritySealFailures", seals.failures),
        ):
            self.diagnostics[name] = max(self.diagnostics[name], count)

    def summary(self, target_count: int) -> Dict[str, object]:
        """The part of `summary` that follows from the actions."""
        if self.posture is None:
            raise ConfigError("a build without actions has nothing to attest")
        return {
            "actions": self.actions,
            "materials": self.materials,
            "products": self.products,
            "processes": self.processes,
            "targets": target_count,
            "posture": self.posture.value,
            "losses": sorted(diagnostics.losses(self.diagnostics)),
            "diagnostics": dict(self.diagnostics),
            "fanotifyOnlyDigests": self.fanotify_only_digests,
        }


@dataclasses.dataclass(frozen=True)
class BuildPredicate:
    """A root predicate that was read, and the whole document."""

    summary: Mapping[str, object]
    tree_root: bytes
    tree_size: int
    capture_keys: Tuple[keys.PublicKey, ...]
    targets: Tuple[Target, ...]
    engine_inputs: TableReference
    seals: ArtifactSeals
    fsverity: str
    required_posture: Posture
    require_zero_drops: bool
    strict: bool
    run_id: str
    document: Mapping[str, object] = dataclasses.field(repr=False)


TOOL_SHAPE = schema.object_of({"name": schema.text(256), "version": schema.text(256)})
RUN_SHAPE = schema.object_of(
    {"id": schema.text(256), "startedAt": schema.time_text, "finishedAt": schema.time_text}
)
VCS_SHAPE = schema.nullable(
    schema.object_of(
        {"system": schema.text(64), "commit": schema.hex_text, "dirty": schema.boolean}
    )
)
POLICY_SHAPE = schema.object_of(
    {
        "captureMode": schema.text(64),
        "fanotify": schema.text(64),
        "fsverity": schema.text(64),
        "hardening": schema.one_of(hardening.LEVELS),
        "requireZeroDrops": schema.boolean,
        "posture": schema.one_of(predicate.POSTURES),
    }
)
ARTIFACT_SHAPE = schema.object_of(
    {"name": schema.path_text, "sha256": schema.digest_text, "size": schema.integer()}
)
_RANGE_SHAPE = schema.list_of(schema.integer(1 << 24), 2)
_BUILD_SHAPE = schema.object_of(
    {
        "summary": schema.object_of(
            {
                **predicate.SUMMARY_FIELDS,
                "actions": schema.integer(),
                "targets": schema.integer(),
                "posture": schema.one_of(predicate.POSTURES),
                "sources": schema.object_of({name: schema.integer() for name in SOURCES}),
            }
        ),
        "tree": schema.object_of({"root": schema.digest_text, "size": schema.integer(1 << 24, 1)}),
        "rootseal": schema.object_of({"version": schema.text(256)}),
        "tool": TOOL_SHAPE,
        "run": RUN_SHAPE,
        "vcs": VCS_SHAPE,
        "policy": POLICY_SHAPE,
        "captureKeys": schema.list_of(schema.text(4096), CAPTURE_KEY_COUNT_MAX),
        "targets": schema.list_of(
            schema.object_of(
                {
                    "address": schema.text(4096),
                    "artifacts": schema.list_of(ARTIFACT_SHAPE, 1 << 20),
                    "actions": schema.list_of(_RANGE_SHAPE, RANGE_COUNT_MAX),
                }
            ),
            TARGET_COUNT_MAX,
        ),
        "engineInputs": predicate.table_shape,
        "fsverity": schema.object_of(
            {
                "available": schema.boolean,
                "filesSealed": schema.integer(),
                "sealFailures": schema.integer(),
                "files": schema.list_of(
                    schema.object_of({"name": schema.path_text, "fsverity": schema.digest_text}),
                    1 << 20,
                ),
            }
        ),
    }
)


def target_document(target: Target) -> Dict[str, object]:
    """A target as the root predicate lists it."""
    return {
        "address": target.address,
        "artifacts": [dataclasses.asdict(item) for item in target.artifacts],
        "actions": [list(item) for item in target.ranges],
    }


def ranges_of(indices: Sequence[int]) -> Tuple[Tuple[int, int], ...]:
    """Leaf indices as the fewest half-open ranges, ascending and disjoint."""
    ranges: List[Tuple[int, int]] = []
    for index in sorted(set(indices)):
        if ranges and ranges[-1][1] == index:
            ranges[-1] = (ranges[-1][0], index + 1)
        else:
            ranges.append((index, index + 1))
    return tuple(ranges)


def read_build_predicate(value: object) -> BuildPredicate:
    """Read a root predicate strictly.

    Whether it agrees with the records is for the checks of `verify`.

    Raises:
        StatementError: Names the field.
    """
    document = schema.check(value, _BUILD_SHAPE, "predicate")
    tree, policy = schema.as_object(document["tree"]), schema.as_object(document["policy"])
    check_policy_level(policy)
    return BuildPredicate(
        summary=schema.as_object(document["summary"]),
        tree_root=bytes.fromhex(str(tree["root"])),
        tree_size=schema.as_integer(tree["size"]),
        capture_keys=_read_capture_keys(schema.as_list(document["captureKeys"])),
        targets=tuple(_read_target(item) for item in schema.as_list(document["targets"])),
        engine_inputs=predicate.read_table_reference(document["engineInputs"]),
        seals=_read_seals(schema.as_object(document["fsverity"])),
        fsverity=str(policy["fsverity"]),
        required_posture=Posture(policy["posture"]),
        require_zero_drops=policy["requireZeroDrops"] is True,
        strict=policy["hardening"] == "strict",
        run_id=str(schema.as_object(document["run"])["id"]),
        document=document,
    )


def check_policy_level(policy: Mapping[str, object]) -> None:
    """Refuse a policy that calls itself strict and is not.

    Raises:
        StatementError: Names what contradicts the level.
    """
    held = Posture(policy["posture"]).rank >= Posture.HELD.rank
    weak = hardening.weakness(policy, held=held)
    if weak:
        raise StatementError(f"policy: hardening strict contradicts {weak}")


def build_subjects(
    targets: Sequence[Target], *, run_id: str, tree_root: bytes
) -> Tuple[Subject, ...]:
    """Subjects of the root statement: every artifact once, by name.

    A statement needs a subject, so a build without artifacts has its tree as the only one.
    """
    subjects = sorted({item.subject for target in targets for item in target.artifacts})
    return tuple(subjects) or (Subject(f"run:{run_id}", tree_root.hex()),)


def _read_capture_keys(items: Sequence[object]) -> Tuple[keys.PublicKey, ...]:
    found = []
    for index, item in enumerate(items):
        where = f"predicate.captureKeys[{index}]"
        try:
            key = keys.parse_public_key(str(item).encode("utf-8"), where=where)
        except ConfigError as error:
            raise StatementError(str(error)) from None
        if key.pem != item:
            raise StatementError(f"{where} is not in the PEM form that is signed")
        found.append(key)
    if [key.keyid for key in found] != sorted({key.keyid for key in found}):
        raise StatementError("predicate.captureKeys is not in order of key ids, or repeats one")
    return tuple(found)


def _read_seals(item: Mapping[str, object]) -> ArtifactSeals:
    files = [schema.as_object(entry) for entry in schema.as_list(item["files"])]
    digests = tuple((str(entry["name"]), str(entry["fsverity"])) for entry in files)
    names = [name for name, _ in digests]
    if names != sorted(set(names)):
        raise StatementError("predicate.fsverity.files is not in order of name, or repeats one")
    if item["filesSealed"] != len(digests):
        raise StatementError("predicate.fsverity.filesSealed is not the number of its files")
    failures = schema.as_integer(item["sealFailures"])
    if (digests or failures) and item["available"] is not True:
        raise StatementError("predicate.fsverity has files that were sealed without fs-verity")
    return ArtifactSeals(item["available"] is True, failures, digests)


def _read_target(value: object) -> Target:
    item = schema.as_object(value)
    artifacts = tuple(_read_artifact(entry) for entry in schema.as_list(item["artifacts"]))
    ranges = []
    for entry in schema.as_list(item["actions"]):
        numbers = schema.as_list(entry)
        if len(numbers) != 2:
            raise StatementError("predicate.targets: a range of actions is not a pair")
        ranges.append((schema.as_integer(numbers[0]), schema.as_integer(numbers[1])))
    return Target(str(item["address"]), artifacts, tuple(ranges))


def _read_artifact(value: object) -> Artifact:
    item = schema.as_object(value)
    return Artifact(str(item["name"]), str(item["sha256"]), schema.as_integer(item["size"]))
