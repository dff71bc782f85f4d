"""The predicate of one action: built from what was seen, and read back strictly.

Pure: no clock, no files. docs/predicate.md describes every field.
"""

from __future__ import annotations

import dataclasses
from typing import Dict, List, Mapping, Optional, Tuple

from rootseal import (
    canonical,
    diagnostics,
    digest,
    hardening,
    leaf_table,
    predicate_ledger,
    predicate_mounts,
    predicate_mutations,
    predicate_trace,
    schema,
)
from rootseal.errors import EncodingError, StatementError
from rootseal.observation import (
    LeafTable,
    Observation,
    Posture,
    ProcessRecord,
)

LIST_ITEMS_MAX = 1 << 20
POSTURES = predicate_mounts.POSTURES


@dataclasses.dataclass(frozen=True)
class StoredTables:
    """The tables of a record as they are stored: zlib streams."""

    materials: bytes = dataclasses.field(repr=False)
    products: bytes = dataclasses.field(repr=False)
    opens: bytes = dataclasses.field(repr=False)


@dataclasses.dataclass(frozen=True)
class Requested:
    """What the caller asked of the capture; the words are those of the command line."""

    capture_mode: str
    fanotify: str
    fsverity: str
    hardening: str
    require_zero_drops: bool


@dataclasses.dataclass(frozen=True)
class Fallback:
    """Something weaker was used than was wanted, and why."""

    wanted: str
    used: str
    reason: str


@dataclasses.dataclass(frozen=True)
class Host:
    """Where the capture ran: `uname -r`, `uname -m`, and our version."""

    kernel: str
    machine: str
    rootseal_version: str


@dataclasses.dataclass(frozen=True)
class ActionDescription:
    """What is known of an action beside what was observed.

    Attributes:
        action_key: 32 bytes.
        cmd: The original argv.
        exit_code: Exit code, 128 + signal when killed.
        signal: The signal that ended the action, or None.
        environ: Name and SHA-256 of the value of each variable; values are never kept.
        root: Absolute path of the action's root (the sandbox).
        working_directory: Relative to the root, `.` for the root itself.
        requested: What was asked of the capture.
        requested_posture: The posture that was asked for.
        fallbacks: Each step down from what was asked for.
        host: Where it ran.
        started_at: RFC 3339, UTC with `Z`.
        finished_at: RFC 3339, UTC with `Z`.
        output_files: Declared output files, relative to the root.
        output_directories: Declared output directories, relative to the root.
        descendants_killed: Descendants killed after the action's own process had ended.
    """

    action_key: bytes
    cmd: Tuple[bytes, ...]
    exit_code: int
    signal: Optional[int]
    environ: Tuple[Tuple[bytes, bytes], ...]
    root: bytes
    working_directory: bytes
    requested: Requested
    requested_posture: Posture
    fallbacks: Tuple[Fallback, ...]
    host: Host
    started_at: str
    finished_at: str
    output_files: Tuple[bytes, ...]
    output_directories: Tuple[bytes, ...]
    descendants_killed: int


@dataclasses.dataclass(frozen=True)
class TableReference:
    """What a predicate says about a leaf table."""

    tree_root: bytes
    tree_size: int
    stored_sha256: str
    stored_size: int


@dataclasses.dataclass(frozen=True)
class ActionPredicate:
    """A predicate that was read; the numbers a verifier judges by, and the whole document.

    Attributes:
        counters: As found; `diagnostics.diagnostics_from_json` judges it.
    """

    action_key: bytes
    materials: TableReference
    products: TableReference
    opens_sha256: str
    opens_size: int
    process_count: int
    posture: Posture
    require_zero_drops: bool
    counters: Mapping[str, object]
    losses: Tuple[str, ...]
    fanotify_only_digests: int
    document: Mapping[str, object] = dataclasses.field(repr=False)


_TABLE_SHAPE = schema.object_of(
    {
        "treeRoot": schema.digest_text,
        "treeSize": schema.integer(1 << 24),
        "table": schema.object_of(
            {"sha256": schema.digest_text, "size": schema.integer(leaf_table.STORED_BYTES_MAX)}
        ),
    }
)
_POSTURE_SHAPE = schema.one_of(POSTURES)


def _capture_shape(mounts: schema.Shape) -> schema.Shape:
    return schema.object_of(
        {
            "requested": schema.object_of(
                {
                    "captureMode": schema.text(64),
                    "fanotify": schema.text(64),
                    "fsverity": schema.text(64),
                    "hardening": schema.one_of(hardening.LEVELS),
                    "requireZeroDrops": schema.boolean,
                }
            ),
            "backend": schema.text(256),
            "posture": schema.object_of({"requested": _POSTURE_SHAPE, "achieved": _POSTURE_SHAPE}),
            "fallbacks": schema.list_of(
                schema.object_of(
                    {"from": schema.text(256), "to": schema.text(256), "reason": schema.text(4096)}
                ),
                64,
            ),
            "ebpf": predicate_ledger.PROGRAMS_SHAPE,
            "mounts": mounts,
            "host": schema.object_of(
                {
                    "kernel": schema.text(256),
                    "machine": schema.text(256),
                    "rootsealVersion": schema.text(256),
                }
            ),
            "startedAt": schema.time_text,
            "finishedAt": schema.time_text,
        }
    )


_PROCESS_SHAPE = schema.object_of(
    {
        "program": schema.path_text,
        "processid": schema.integer(),
        "parentpid": schema.integer(),
        "programdigest": schema.nullable(schema.digest_text),
        "comm": schema.path_text,
        "cmdline": schema.list_of(schema.path_text, LIST_ITEMS_MAX),
        "exedigest": schema.nullable(schema.digest_text),
        "exitcode": schema.nullable(schema.integer(255 + 128)),
    },
    group=predicate_trace.TRACE_FIELDS,
)
SUMMARY_FIELDS: Mapping[str, schema.Shape] = {
    "materials": schema.integer(),
    "products": schema.integer(),
    "processes": schema.integer(),
    "losses": schema.list_of(schema.text(128), len(diagnostics.NAMES)),
    "diagnostics": schema.map_of(schema.anything, 1024),  # judged by a check of its own
    "fanotifyOnlyDigests": schema.integer(),
}


def _action_shape(mounts: schema.Shape) -> schema.Shape:
    return schema.object_of(
        {
            "summary": schema.object_of(SUMMARY_FIELDS),
            "actionKey": schema.digest_text,
            "cmd": schema.list_of(schema.path_text, LIST_ITEMS_MAX),
            "exitcode": schema.integer(255),
            "signal": schema.nullable(schema.integer(127, 1)),
            "environ": schema.list_of(
                schema.object_of({"name": schema.path_text, "valueDigest": schema.digest_text}),
                LIST_ITEMS_MAX,
            ),
            "sandbox": schema.object_of(
                {"root": schema.path_text, "workingDirectory": schema.path_text}
            ),
            "capture": _capture_shape(mounts),
            "declaredOutputs": schema.object_of(
                {
                    "files": schema.list_of(schema.path_text, LIST_ITEMS_MAX),
                    "directories": schema.list_of(schema.path_text, LIST_ITEMS_MAX),
                }
            ),
            "materials": _TABLE_SHAPE,
            "products": _TABLE_SHAPE,
            "opens": schema.object_of(
                {"sha256": schema.digest_text, "size": schema.integer(leaf_table.STORED_BYTES_MAX)}
            ),
            "processes": schema.list_of(_PROCESS_SHAPE, LIST_ITEMS_MAX),
            "environments": predicate_trace.ENVIRONMENTS_SHAPE,
            "ledger": predicate_ledger.LEDGER_SHAPE,
            "mutations": predicate_mutations.MUTATIONS_SHAPE,
            "mutationsLeftOut": predicate_mutations.LEFT_OUT_SHAPE,
            "descendantsKilled": schema.integer(),
        }
    )


_ACTION_SHAPE = _action_shape(predicate_mounts.MOUNTS_SHAPE)
_BUILT_SHAPE = _action_shape(schema.anything)  # its mounts were checked when they came to be


def store_tables(observation: Observation) -> StoredTables:
    """Compress the tables of an observation."""
    return StoredTables(
        leaf_table.compress(observation.materials.raw),
        leaf_table.compress(observation.products.raw),
        leaf_table.compress(observation.opens),
    )


def build_action_predicate(
    observation: Observation, action: ActionDescription, tables: StoredTables
) -> ActionPredicate:
    """Say what was seen of an action.

    Args:
        observation: What the backend saw.
        action: What else is known.
        tables: `store_tables(observation)`, to be stored in the same record.

    Returns:
        The predicate; its document has the summary first.

    Raises:
        EncodingError: Something contradicts itself or does not fit, so no reader would accept it.
    """
    try:
        document = _document(observation, action, tables)
        return _read(schema.check(document, _BUILT_SHAPE, "predicate"))
    except StatementError as error:
        raise EncodingError(f"the action cannot be described: {error}") from None


def _document(
    observation: Observation, action: ActionDescription, tables: StoredTables
) -> Dict[str, object]:
    environments = predicate_trace.Environments()
    processes = [_process(process, environments) for process in observation.processes]
    return {
        "summary": _summary(observation, action),
        "actionKey": action.action_key.hex(),
        "cmd": [canonical.path_text(argument) for argument in action.cmd],
        "exitcode": action.exit_code,
        "signal": action.signal,
        "environ": [
            {"name": canonical.path_text(name), "valueDigest": value_digest.hex()}
            for name, value_digest in action.environ
        ],
        "sandbox": {
            "root": canonical.path_text(action.root),
            "workingDirectory": canonical.path_text(action.working_directory),
        },
        "capture": _capture(observation, action),
        "declaredOutputs": {
            "files": [canonical.path_text(path) for path in action.output_files],
            "directories": [canonical.path_text(path) for path in action.output_directories],
        },
        "materials": table_reference(observation.materials, tables.materials),
        "products": table_reference(observation.products, tables.products),
        "opens": {"sha256": digest.sha256_hex(tables.opens), "size": len(tables.opens)},
        "processes": processes,
        "environments": environments.document(),
        "ledger": predicate_ledger.ledger_document(observation.ledger),
        "mutations": predicate_mutations.mutations_document(observation.mutations),
        "mutationsLeftOut": observation.mutations.left_out,
        "descendantsKilled": action.descendants_killed,
    }


def table_reference(table: LeafTable, stored: bytes) -> Dict[str, object]:
    """How a predicate refers to a leaf table and binds its stored bytes."""
    return {
        "treeRoot": table.tree_root.hex(),
        "treeSize": table.tree_size,
        "table": {"sha256": digest.sha256_hex(stored), "size": len(stored)},
    }


def read_table_reference(value: object) -> TableReference:
    """Read what `table_reference` wrote; the shape has been checked."""
    item = schema.as_object(value)
    stored = schema.as_object(item["table"])
    return TableReference(
        bytes.fromhex(str(item["treeRoot"])),
        schema.as_integer(item["treeSize"]),
        str(stored["sha256"]),
        schema.as_integer(stored["size"]),
    )


table_shape = _TABLE_SHAPE


def read_action_predicate(value: object) -> ActionPredicate:
    """Read a predicate strictly: all fields, no other field, and no contradiction among them.

    Raises:
        StatementError: Names the field.
    """
    return _read(schema.check(value, _ACTION_SHAPE, "predicate"))


def _read(document: Dict[str, object]) -> ActionPredicate:
    summary = schema.as_object(document["summary"])
    capture = schema.as_object(document["capture"])
    opens = schema.as_object(document["opens"])
    result = ActionPredicate(
        action_key=bytes.fromhex(str(document["actionKey"])),
        materials=read_table_reference(document["materials"]),
        products=read_table_reference(document["products"]),
        opens_sha256=str(opens["sha256"]),
        opens_size=schema.as_integer(opens["size"]),
        process_count=len(schema.as_list(document["processes"])),
        posture=Posture(schema.as_object(capture["posture"])["achieved"]),
        require_zero_drops=schema.as_object(capture["requested"])["requireZeroDrops"] is True,
        counters=schema.as_object(summary["diagnostics"]),
        losses=tuple(str(name) for name in schema.as_list(summary["losses"])),
        fanotify_only_digests=schema.as_integer(summary["fanotifyOnlyDigests"]),
        document=document,
    )
    _check_agreement(result, summary, capture)
    return result


def exit_of_wait_status(wait_status: int) -> Tuple[int, Optional[int]]:
    """Exit code (128 + signal when killed) and signal of a wait(2) status.

    Raises:
        EncodingError: The status is neither an exit nor a death by signal.
    """
    signal = wait_status & 0x7F
    if signal == 0:
        return (wait_status >> 8) & 0xFF, None
    if signal == 0x7F:
        raise EncodingError(f"wait status {wait_status:#x} is of a stopped process")
    return 128 + signal, signal


def _check_agreement(
    found: ActionPredicate, summary: Mapping[str, object], capture: Mapping[str, object]
) -> None:
    counts = {
        "materials": found.materials.tree_size,
        "products": found.products.tree_size,
        "processes": found.process_count,
    }
    for name, count in counts.items():
        if summary[name] != count:
            raise StatementError(
                f"predicate.summary.{name} is {summary[name]}, but there are {count}"
            )
    signal, exit_code = found.document["signal"], schema.as_integer(found.document["exitcode"])
    if signal is not None and exit_code != 128 + schema.as_integer(signal):
        raise StatementError("predicate.exitcode is not 128 plus the signal")
    requested = Posture(schema.as_object(capture["posture"])["requested"])
    if found.posture.rank < requested.rank and not schema.as_list(capture["fallbacks"]):
        raise StatementError(
            f"posture {found.posture.value} is below {requested.value}, but no fallback says why"
        )
    asked = schema.as_object(capture["requested"])
    weak = hardening.weakness(asked, held=found.posture.rank >= Posture.HELD.rank)
    if weak:
        raise StatementError(f"predicate.capture: hardening strict contradicts {weak}")
    if asked["hardening"] == "strict" and not hardening.has_two_witnesses(str(capture["backend"])):
        raise StatementError(
            f"predicate.capture: hardening strict, but captured by {capture['backend']} alone"
        )
    predicate_trace.check_environments(found.document)
    predicate_ledger.check(found.document["ledger"])
    predicate_mutations.check(found.document, found.counters)
    if summary["fanotifyOnlyDigests"] > found.materials.tree_size:  # type: ignore[operator]
        raise StatementError("predicate.summary.fanotifyOnlyDigests is more than the materials")


def _summary(observation: Observation, action: ActionDescription) -> Dict[str, object]:
    counters = diagnostics.diagnostics_from_json(observation.counters)
    counters["descendantsKilled"] = action.descendants_killed
    return {
        "materials": observation.materials.tree_size,
        "products": observation.products.tree_size,
        "processes": len(observation.processes),
        "losses": sorted(diagnostics.losses(counters)),
        "diagnostics": counters,
        "fanotifyOnlyDigests": observation.fanotify_only,
    }


def _capture(observation: Observation, action: ActionDescription) -> Dict[str, object]:
    requested, wanted = action.requested, action.requested_posture
    return {
        "requested": {
            "captureMode": requested.capture_mode,
            "fanotify": requested.fanotify,
            "fsverity": requested.fsverity,
            "hardening": requested.hardening,
            "requireZeroDrops": requested.require_zero_drops,
        },
        "backend": observation.backend,
        "posture": {"requested": wanted.value, "achieved": observation.posture.value},
        "fallbacks": [
            {"from": item.wanted, "to": item.used, "reason": item.reason}
            for item in action.fallbacks
        ],
        "ebpf": None if observation.ebpf is None else dataclasses.asdict(observation.ebpf),
        "mounts": predicate_mounts.mounts_document(observation.mounts),
        "host": {
            "kernel": action.host.kernel,
            "machine": action.host.machine,
            "rootsealVersion": action.host.rootseal_version,
        },
        "startedAt": action.started_at,
        "finishedAt": action.finished_at,
    }


def _process(
    process: ProcessRecord, environments: predicate_trace.Environments
) -> Dict[str, object]:
    def hex_or_none(value: Optional[bytes]) -> Optional[str]:
        return None if value is None else value.hex()

    arguments: List[str] = [canonical.path_text(argument) for argument in process.cmdline]
    trace = process.trace
    return {
        "program": canonical.path_text(process.program),
        "processid": process.processid,
        "parentpid": process.parentpid,
        "programdigest": hex_or_none(process.programdigest),
        "comm": canonical.path_text(process.comm),
        "cmdline": arguments,
        "exedigest": hex_or_none(process.exedigest),
        "exitcode": process.exitcode,
        **({} if trace is None else predicate_trace.trace_document(trace, environments)),
    }
