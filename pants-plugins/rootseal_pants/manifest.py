"""The run manifest that is handed to `rootseal seal` (docs/formats.md, "Run manifest"). Pure."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import Iterable, Mapping, Sequence

from rootseal.canonical import path_text
from rootseal.errors import CaptureError, EncodingError

from rootseal_pants.evidence import Evidence, evidence_from_label
from rootseal_pants.graph import NodeGraph

WRAPPER_RULES = (
    "rootseal_pants.wrap_get.captured_execute",
    "pants.engine.intrinsics.execute_process",  # with wrap_byname.py
)
NOTE_RULE = "rootseal_pants.wrap_get.note_action"
NOTE_DIRECTORY = ".rootseal-note"  # with wrap_byname.py, in a glob of the build root
TARGET_RULES = (
    "rootseal_pants.attest_rules.attest_target",
    "rootseal_pants.byname_rules.attest_target",
)

_DIGEST_FILE = re.compile(
    r"DigestFile\((.*)\) == .*Fingerprint<([0-9a-f]{64})>, size_bytes: (\d+)", re.DOTALL
)
_DOWNLOAD = re.compile(
    r"DownloadedFile\(.*?url='(.*?)'.*?FileDigest\('([0-9a-f]{64})', (\d+)\)", re.DOTALL
)


@dataclass(frozen=True)
class Artifact:
    """A file in dist/.

    Attributes:
        name: Path relative to dist/.
        sha256: 64 hex digits.
        size: In bytes.
    """

    name: str
    sha256: str
    size: int


@dataclass(frozen=True)
class EngineInput:
    """A file that the engine itself read or downloaded: no action did.

    Attributes:
        path: Relative to the build root, or the URL of a download.
        sha256: 64 hex digits.
        size: In bytes.
    """

    path: str
    sha256: str
    size: int


@dataclass(frozen=True)
class TargetActions:
    """A target, what it left in dist/, and the actions that it is made of."""

    address: str
    artifacts: tuple[Artifact, ...]
    actions: tuple[Evidence, ...]


@dataclass(frozen=True)
class Findings:
    """What the graph says of a run."""

    targets: tuple[TargetActions, ...]
    engine_inputs: tuple[EngineInput, ...]

    @property
    def actions(self) -> dict[str, Evidence]:
        """All actions, by the name of their record, sorted."""
        found = {action.record: action for target in self.targets for action in target.actions}
        return dict(sorted(found.items()))


def find_actions(
    graph: NodeGraph, targets: Mapping[str, tuple[str, tuple[Artifact, ...]]]
) -> Findings:
    """Find the actions of each target in the graph, and make sure that none is missing.

    Args:
        graph: The engine's node graph at the end of the run.
        targets: Address and artifacts of each target, by the hint of its node.

    Raises:
        CaptureError: An action without evidence; names it, and what to do.
    """
    starts: dict[str, set[int]] = {}
    for node, hint in _rules_named(graph, TARGET_RULES).items():
        starts.setdefault(hint, set()).add(node)
    evidence = _evidence(graph)
    wrappers = frozenset(_rules_named(graph, WRAPPER_RULES))
    processes = graph.nodes_of_kind("Process")
    found: list[TargetActions] = []
    everything: set[int] = set()
    for hint, (address, artifacts) in sorted(targets.items()):
        start = {node for label, nodes in starts.items() if _is_hint(label, hint) for node in nodes}
        if not start:
            raise CaptureError(
                f"Pants' node graph has no node for {address}. Stop pantsd (remove .pids/) and "
                "build again; if it stays so, report it with your version of Pants."
            )
        reached = graph.reachable(start)
        everything |= reached
        _refuse_bare_processes(graph, reached, wrappers, processes, address)
        _refuse_silent_wrappers(graph, reached & wrappers, evidence, processes, address)
        actions = {evidence[node] for node in reached if node in evidence}
        _refuse_unrecorded(actions, address)
        unique = {action.record: action for action in sorted(actions, key=_order)}
        found.append(TargetActions(address, artifacts, tuple(unique.values())))
    return Findings(_merged(found), _engine_inputs(graph, everything))


def _rules_named(graph: NodeGraph, names: Sequence[str]) -> dict[int, str]:
    return {node: hint for name in names for node, hint in graph.rules_named(name).items()}


def _evidence(graph: NodeGraph) -> dict[int, Evidence]:
    """The notes of actions, by node."""
    labels = graph.rules_named(NOTE_RULE)
    start = f"Snapshot({NOTE_DIRECTORY}/"
    for node, label in graph.nodes_of_kind("Snapshot").items():
        if label.startswith(start):
            labels[node] = label[len(start) :].split(")", 1)[0]
    return {node: evidence_from_label(label) for node, label in labels.items()}


def _merged(targets: Sequence[TargetActions]) -> tuple[TargetActions, ...]:
    """One entry for each address: a target may be packaged in more than one way."""
    by_address: dict[str, TargetActions] = {}
    for target in targets:
        earlier = by_address.setdefault(target.address, target)
        if earlier is not target:
            artifacts = sorted({*earlier.artifacts, *target.artifacts}, key=lambda item: item.name)
            actions = {item.record: item for item in (*earlier.actions, *target.actions)}
            by_address[target.address] = TargetActions(
                target.address, tuple(artifacts), tuple(actions.values())
            )
    return tuple(by_address.values())


def _is_hint(label: str, hint: str) -> bool:
    """Whether a node's label is this hint, maybe beside those of other parameters."""
    return label == hint or hint in label.split(", ")


def _order(action: Evidence) -> tuple[str, str, int]:
    return (action.action_key, action.record, action.run_id)


def _refuse_bare_processes(
    graph: NodeGraph,
    reached: frozenset[int],
    wrappers: frozenset[int],
    processes: Mapping[int, str],
    address: str,
) -> None:
    """Every process of the engine must have been asked for by the wrapper."""
    wrapped = {child for node in reached & wrappers for child in graph.edges.get(node, ())}
    for node in sorted(reached & set(processes)):
        if node not in wrapped:
            raise CaptureError(
                f"{_short(processes[node])}, which {address} is made of, ran without capture. "
                "Stop pantsd (remove .pids/) and build again."
            )


def _refuse_silent_wrappers(
    graph: NodeGraph,
    wrappers: frozenset[int],
    evidence: Mapping[int, Evidence],
    processes: Mapping[int, str],
    address: str,
) -> None:
    """Every wrapper that ran a process must have left exactly one note."""
    for node in sorted(wrappers):
        children = graph.edges.get(node, ())
        ran = [processes[child] for child in children if child in processes]
        if len([child for child in children if child in evidence]) != 1:
            name = _short(ran[0]) if ran else "an action"
            raise CaptureError(
                f"{name}, which {address} is made of, has no record in Pants' node graph. "
                "Stop pantsd (remove .pids/) and build again; if it stays so, report it."
            )


def _refuse_unrecorded(actions: Iterable[Evidence], address: str) -> None:
    for action in actions:
        if not action.record:
            raise CaptureError(
                f"action {action.action_key[:16]} ({action.description}), which {address} is made "
                f"of, has no record: {action.problem}, and build again."
            )


def _short(label: str) -> str:
    return label.split(" == ", 1)[0][:200]


def _engine_inputs(graph: NodeGraph, nodes: set[int]) -> tuple[EngineInput, ...]:
    found = set()
    for kind, pattern in (("DigestFile", _DIGEST_FILE), ("DownloadedFile", _DOWNLOAD)):
        for node, label in graph.nodes_of_kind(kind).items():
            if node not in nodes or label.endswith("== <None>"):
                continue
            match = pattern.match(label)
            if match is None:
                raise EncodingError(f"a node of Pants' graph has the odd label {label[:200]!r}")
            found.add(EngineInput(match[1], match[2], int(match[3])))
    return tuple(sorted(found, key=lambda item: (item.path, item.sha256)))


def source_name(action: Evidence, current_run_id: int) -> str:
    """Where the result of an action came from, in the words of the manifest."""
    if action.run_id != current_run_id:
        return "memoized"
    if action.source == "ran":
        return "remote-execution" if action.remote else "ran"
    return {"hit_locally": "local-cache", "hit_remotely": "remote-cache"}.get(
        action.source, "memoized"
    )


def build_manifest(
    findings: Findings,
    *,
    current_run_id: int,
    tool_version: str,
    run: Mapping[str, str],
    vcs: Mapping[str, object] | None,
    policy: Mapping[str, object],
    capture_keys: Sequence[str],
    modes: Mapping[str, int],
) -> dict[str, object]:
    """The manifest as a JSON object.

    Args:
        findings: What the graph said.
        current_run_id: The engine's number of this run.
        tool_version: Version of Pants.
        run: id, startedAt and finishedAt.
        vcs: State of the version control system, or None.
        policy: How was captured.
        capture_keys: PEM text of the keys that are trusted beside this machine's.
        modes: Permission bits of engine inputs, by path; what is not there counts as 0.
    """
    return {
        "version": 1,
        "tool": {"name": "pants", "version": tool_version},
        "run": dict(run),
        "vcs": None if vcs is None else dict(vcs),
        "policy": dict(policy),
        "captureKeys": list(capture_keys),
        "actions": [_action_json(action, current_run_id) for action in findings.actions.values()],
        "targets": [
            {
                "address": target.address,
                "actions": [action.record for action in target.actions],
                "artifacts": [_artifact_json(artifact) for artifact in target.artifacts],
            }
            for target in findings.targets
        ],
        "engineInputs": [
            {
                "path": path_text(os.fsencode(item.path)),
                "sha256": item.sha256,
                "size": item.size,
                "mode": modes.get(item.path, 0),
            }
            for item in findings.engine_inputs
        ],
    }


def _artifact_json(artifact: Artifact) -> dict[str, object]:
    name = path_text(os.fsencode(artifact.name))
    return {"name": name, "sha256": artifact.sha256, "size": artifact.size}


def _action_json(action: Evidence, current_run_id: int) -> dict[str, object]:
    return {
        "actionKey": action.action_key,
        "record": action.record,
        "source": source_name(action, current_run_id),
        "description": action.description,
        "exitCode": action.exit_code,
        "stdout": vars(action.stdout),
        "stderr": vars(action.stderr),
    }
