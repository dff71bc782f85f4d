"""The end of a run: every package that was built gets its attestation.

    run_goal_rules("package") -> attest_run -> targets and artifacts (rules, memoized)
                                            -> node graph -> actions -> manifest -> sealing.seal

This runs in the session and on the thread of the run itself, after its goals. A callback for
finished workunits would run later, on another thread, and could neither look anything up in the
engine safely nor make the run fail.
"""

from __future__ import annotations

import datetime
import logging
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Iterable, Optional, Sequence

from pants.base.exceptions import NativeEngineFailure
from pants.base.specs import Specs
from pants.engine.fs import FileDigest
from pants.engine.internals.scheduler import ExecutionError, SchedulerSession
from pants.engine.internals.selectors import Params
from pants.version import VERSION
from rootseal.errors import CaptureError, ConfigError, Error

from rootseal_pants import early_sealer, sealing
from rootseal_pants.attest_types import AttestedTarget, AttestRoots, AttestTarget, CurrentRun
from rootseal_pants.compat import bootstrap_environment, requested
from rootseal_pants.evidence import Evidence
from rootseal_pants.graph import NodeGraph, parse_graph
from rootseal_pants.manifest import Artifact, build_manifest, find_actions, source_name
from rootseal_pants.records import RecordStore
from rootseal_pants.settings import (
    AttestationPlace,
    Capture,
    CaptureRequest,
    ReadyDaemon,
    Settings,
)
from rootseal_pants.signing_key import check_signing_key
from rootseal_pants.vcs import VcsQuestion

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Run:
    """A run of Pants whose packages are to be attested.

    Attributes:
        session: The engine session of the run.
        specs: What the user named.
        run_id: Pants' name for the run.
        started_at: When it began, RFC 3339.
    """

    session: SchedulerSession
    specs: Specs
    run_id: str
    started_at: str


def now() -> str:
    """The time, RFC 3339."""
    return datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def prepare_to_attest(session: SchedulerSession) -> bool:
    """Before the goals: whether they should run, and nothing older that could be taken for theirs.

    Returns:
        False, once it is said, if the signing key cannot be one: else the end of the whole build
        would tell.
    """
    capture = _forget_the_last_run(session)
    if capture is None or capture.daemon is None:
        return True
    try:
        check_signing_key(capture.settings.key, capture.settings.public_key)
    except ConfigError as error:
        logger.error(f"Nothing was built, for it could not be attested: {error}")
        return False
    early_sealer.start(session, capture.daemon.executable)  # it gets ready meanwhile
    return True


def _forget_the_last_run(session: SchedulerSession) -> Optional[Capture]:
    """A run that fails leaves no attestation that could be taken for its own.

    Even one that has no daemon. What the last run sealed in dist/ gets writable again. What fails
    here fails the run with its own message: Pants cannot write the file, or the goals ask for the
    same daemon.
    """
    try:
        (place,) = requested(session, AttestationPlace, [Params()])
        sealing.remove_stale(place.out_dir)
        sealing.make_artifacts_writable(place.dist_dir)
        found: Sequence[Capture] = requested(session, Capture, [Params(CaptureRequest())])
        return found[0]
    except (Error, ExecutionError) as error:
        logger.warning(f"Before the goals: {error}")
        return None


def attest_run(run: Run) -> int:
    """Attest what the package goal of this run built; returns the exit code."""
    try:
        (capture,) = requested(run.session, Capture, [Params(CaptureRequest())])
        if capture.daemon is None:
            return 0
        return _attest(run, capture.settings, capture.daemon)
    except (Error, ExecutionError, OSError) as error:
        logger.error(f"Nothing was attested: {error}")
        return 1


def _attest(run: Run, settings: Settings, daemon: ReadyDaemon) -> int:
    sealing.remove_stale(settings.out_dir)  # done before the goals, unless that failed
    roots = requested_targets(run.session, run.specs)
    if not roots:
        return 0
    with VcsQuestion(settings.build_root) as vcs:
        return _attest_targets(run, settings, daemon, roots, vcs)


def _attest_targets(
    run: Run, settings: Settings, daemon: ReadyDaemon, roots: Sequence[Any], vcs: VcsQuestion
) -> int:
    environment = bootstrap_environment(run.session)
    subjects = [Params(AttestTarget(root), environment) for root in roots]
    targets = requested(run.session, AttestedTarget, subjects)
    artifacts = artifacts_by_hint(targets)
    sealing.check_artifacts(
        settings, (artifact for _, files in artifacts.values() for artifact in files)
    )
    findings = find_actions(dump_graph(run.session), artifacts)
    (current,) = requested(run.session, CurrentRun, [Params()])
    restore_records(run.session, RecordStore(settings.records_dir), findings.actions.values())
    manifest = build_manifest(
        findings,
        current_run_id=current.run_id,
        tool_version=VERSION,
        run={"id": run.run_id, "startedAt": run.started_at, "finishedAt": now()},
        vcs=vcs.answer(),
        policy=sealing.policy_of(settings),
        capture_keys=daemon.trusted_capture_keys,
        modes=sealing.input_modes(settings.build_root, findings.engine_inputs),
    )
    sealed = sealing.seal(run.session, settings, daemon, manifest)
    _prune_records(settings, set(findings.actions))
    sources = [source_name(action, current.run_id) for action in findings.actions.values()]
    logger.info(
        sealing.closing_line(
            sealed,
            targets=len(findings.targets),
            sources=sources,
            build_root=settings.build_root,
        )
    )
    return 0


def _prune_records(settings: Settings, keep: set[str]) -> None:
    """Keep the directory of records within its size; what is attested stays attested."""
    try:
        RecordStore(settings.records_dir).prune(max_bytes=settings.records_max_bytes, keep=keep)
    except OSError as error:
        logger.warning(f"Old action records cannot be removed: {error}")


def requested_targets(session: SchedulerSession, specs: Specs) -> tuple[Any, ...]:
    """The field sets that the package goal builds for these specs."""
    params = Params(specs, bootstrap_environment(session))
    (roots,) = requested(session, AttestRoots, [params])
    return tuple(roots.field_sets)


def artifacts_by_hint(
    targets: Sequence[AttestedTarget],
) -> dict[str, tuple[str, tuple[Artifact, ...]]]:
    """Address and artifacts of each target, by the hint of its node in the graph."""
    found = {}
    for target in targets:
        for path in target.dangling:
            logger.warning(
                f"{path} of {target.address} is a symlink that leads out of the package; it is "
                "not attested."
            )
        found[target.hint] = (target.address, target.artifacts)
    return found


def dump_graph(session: SchedulerSession) -> NodeGraph:
    """The node graph of this session, memoized nodes included."""
    with tempfile.TemporaryDirectory(prefix="rootseal-graph-") as directory:
        path = Path(directory, "graph.dot")
        session.visualize_graph_to_file(str(path))
        with path.open(encoding="utf-8", errors="surrogateescape", newline="\n") as lines:
            return parse_graph(lines)


def restore_records(
    session: SchedulerSession, store: RecordStore, actions: Iterable[Evidence]
) -> None:
    """Fetch the records that the plugin's directory has lost from the engine's own store."""
    for action in actions:
        if not store.holds(action.record, action.record_size):
            store.put(_record_from_engine(session, action))


def _record_from_engine(session: SchedulerSession, action: Evidence) -> bytes:
    digest = FileDigest(action.record, action.record_size)
    try:
        (record,) = session.single_file_digests_to_bytes([digest])
    except NativeEngineFailure as error:
        raise CaptureError(
            f"the record {action.record} of action {action.action_key[:16]} "
            f"({action.description}) is lost: neither the records directory nor Pants' store has "
            "it. Stop pantsd (remove .pids/) and build again with --no-local-cache."
        ) from error
    return record
