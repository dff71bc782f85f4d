"""The node graph of Pants: parsing, reachability, and that no action can be missing unseen."""

from __future__ import annotations

import dataclasses
import json
from typing import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rootseal.errors import CaptureError, EncodingError
from rootseal.manifest import parse_manifest
from rootseal_pants.evidence import Evidence, FileSummary, evidence_from_label
from rootseal_pants.graph import NodeGraph, parse_graph
from rootseal_pants.manifest import (
    NOTE_DIRECTORY,
    NOTE_RULE,
    TARGET_RULES,
    WRAPPER_RULES,
    Artifact,
    EngineInput,
    build_manifest,
    find_actions,
    source_name,
)
from rootseal_pants.verdicts import WORKSPACE_PROBLEM

DUMP = r"""digraph {
    0 [ label = "Package" ]
    1 [ label = "@rule(a.b(hint one)) == Value(X(text='a \"b\" [ ] -> c'))" ]
    2 [ label = "Process(say \"hi\" == there) == ProcessResult(..)" ]
    12 [ label = "@rule(a.b()) == <None>" ]
    0 -> 1 [ ]
    1 -> 2 [ ]
    1 -> 12 [ ]
    1 -> 2 [ ]
    12 -> 1 [ ]
}
"""
EMPTY = FileSummary("0" * 64, 0)


def evidence(number: int, **changes: object) -> Evidence:
    made = Evidence(
        action_key=f"{number:064x}",
        record=f"{number + 1000:064x}",
        record_size=5,
        source="ran",
        remote=False,
        run_id=7,
        description=f"action {number}, with ) and \" and '))' é",
        exit_code=0,
        stdout=EMPTY,
        stderr=EMPTY,
    )
    return dataclasses.replace(made, **changes)  # type: ignore[arg-type]


def test_parse() -> None:
    graph = parse_graph(DUMP.splitlines(keepends=True))
    assert graph.labels[2].startswith('Process(say "hi" == there)')
    assert graph.edges == {0: (1,), 1: (2, 12), 12: (1,)}
    assert graph.rules_named("a.b") == {1: "hint one", 12: ""}
    assert set(graph.nodes_of_kind("Process")) == {2}
    assert graph.reachable([12]) == {12, 1, 2}
    assert graph.reachable([2]) == {2}


@pytest.mark.parametrize(
    "line", ["    3 [ label = ", "surprise", "    0 -> 99 [ ]", "    77 -> 0 [ ]", "    1 => 2"]
)
def test_a_line_that_is_not_understood_is_an_error(line: str) -> None:
    with pytest.raises(EncodingError, match="Pants' graph"):
        parse_graph([*DUMP.splitlines(keepends=True)[:-1], line + "\n", "}\n"])


@given(st.text())
def test_any_text_is_parsed_or_refused(text: str) -> None:
    try:
        parse_graph(text.splitlines(keepends=True))
    except EncodingError:
        return


def reachable_recursively(edges: dict[int, list[int]], start: int, seen: set[int]) -> set[int]:
    if start not in seen:
        seen.add(start)
        for node in edges.get(start, []):
            reachable_recursively(edges, node, seen)
    return seen


@given(st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12)), max_size=40))
def test_reachable_is_what_recursion_finds(pairs: list[tuple[int, int]]) -> None:
    edges: dict[int, list[int]] = {}
    for source, target in pairs:
        edges.setdefault(source, []).append(target)
    graph = NodeGraph(dict.fromkeys(range(13), "x"), edges)
    for start in range(13):
        assert graph.reachable([start]) == reachable_recursively(edges, start, set())


@given(st.text(max_size=500), st.integers(-127, 255))
def test_labels_keep_any_evidence(description: str, exit_code: int) -> None:
    made = evidence(1, description=description, exit_code=exit_code)
    try:
        label = made.label()
    except UnicodeEncodeError:
        return
    assert all(character.isalnum() or character in "-_" for character in label)
    assert evidence_from_label(label) == made


@given(st.text(max_size=100))
def test_any_label_is_read_or_refused(label: str) -> None:
    try:
        evidence_from_label(label)
    except EncodingError:
        return


# --- which actions a target is made of -------------------------------------------------------


class Build:
    """Writes a node graph as Pants would."""

    def __init__(self) -> None:
        self.labels: dict[int, str] = {}
        self.edges: dict[int, list[int]] = {}

    def node(self, label: str, below: Iterable[int] = ()) -> int:
        number = len(self.labels)
        self.labels[number] = label
        self.edges[number] = list(below)
        return number

    def action(self, noted: Evidence, attempts: int = 1) -> int:
        processes = [
            self.node(f"Process({noted.description}) == ProcessResult(..)") for _ in range(attempts)
        ]
        note = self.node(f"@rule({NOTE_RULE}({noted.label()})) == Value(ActionNoted())")
        return self.node(f"@rule({WRAPPER_RULES[0]}()) == Value(..)", [*processes, note])

    def target(self, hint: str, below: Iterable[int]) -> int:
        return self.node(f"@rule({TARGET_RULES[0]}({hint})) == Value(..)", below)

    @property
    def graph(self) -> NodeGraph:
        return NodeGraph(self.labels, self.edges)


FILE = Artifact("a.tar", "f" * 64, 3)
TARGETS = {"a:a X": ("a:a", (FILE,)), "b:b X": ("b:b", ())}


def two_targets(build: Build) -> None:
    shared = build.action(evidence(1))
    build.target("a:a X", [shared, build.action(evidence(2), attempts=3)])
    read = build.node(
        "DigestFile(dir/a (b).txt) == FileDigest(Digest { hash: Fingerprint<"
        + "e" * 64
        + ">, size_bytes: 63 })"
    )
    build.target("b:b X, env", [shared, read])
    build.action(evidence(3))  # of something else in the same session


def test_each_target_gets_its_own_and_the_shared_actions() -> None:
    build = Build()
    two_targets(build)
    findings = find_actions(build.graph, TARGETS)
    assert [(item.address, len(item.actions)) for item in findings.targets] == [
        ("a:a", 2),
        ("b:b", 1),
    ]
    assert list(findings.actions) == [evidence(1).record, evidence(2).record]
    assert findings.engine_inputs == (EngineInput("dir/a (b).txt", "e" * 64, 63),)


def test_notes_of_later_pants_are_globs_of_snapshots() -> None:
    build = Build()
    noted = evidence(5)
    process = build.node("Process(x) == ProcessResult(..)")
    note = build.node(f"Snapshot({NOTE_DIRECTORY}/{noted.label()}) == Snapshot(.., entries=0)")
    other = build.node("Snapshot(src/*.py, src/*.txt) == <None>")
    wrapper = build.node(f"@rule({WRAPPER_RULES[1]}()) == Value(..)", [process, note, other])
    build.node(f"@rule({TARGET_RULES[1]}(a:a X)) == Value(..)", [wrapper])
    (target,) = find_actions(build.graph, {"a:a X": ("a:a", (FILE,))}).targets
    assert target.actions == (noted,)


def test_a_target_that_is_packaged_in_two_ways_is_one_target() -> None:
    build = Build()
    shared = build.action(evidence(1))
    build.target("a:a X", [shared])
    build.target("a:a Y", [shared, build.action(evidence(2))])
    other = Artifact("a.zip", "e" * 64, 4)
    findings = find_actions(build.graph, {"a:a X": ("a:a", (FILE,)), "a:a Y": ("a:a", (other,))})
    (target,) = findings.targets
    assert target.artifacts == (FILE, other)
    assert len(target.actions) == 2


def test_a_target_without_a_node_is_an_error() -> None:
    build = Build()
    build.target("a:a X", [])
    with pytest.raises(CaptureError, match="no node for b:b"):
        find_actions(build.graph, TARGETS)


def test_a_process_that_was_not_wrapped_is_an_error() -> None:
    build = Build()
    two_targets(build)
    build.target("a:a X", [build.node("Process(bare) == ProcessResult(..)")])
    with pytest.raises(CaptureError, match=r"Process\(bare\), which a:a is made of, ran without"):
        find_actions(build.graph, TARGETS)


def test_an_action_without_its_note_is_an_error() -> None:
    build = Build()
    two_targets(build)
    process = build.node("Process(silent) == ProcessResult(..)")
    build.target("a:a X", [build.node(f"@rule({WRAPPER_RULES[0]}()) == <None>", [process])])
    with pytest.raises(CaptureError, match=r"Process\(silent\).* has no record"):
        find_actions(build.graph, TARGETS)


def test_an_action_that_was_killed_by_its_timeout_cannot_be_attested() -> None:
    build = Build()
    two_targets(build)
    killed = evidence(9, record="", problem="it was killed after its timeout of 1 s")
    build.target("b:b X", [build.action(killed)])
    with pytest.raises(CaptureError, match=r"action 0{16} .*b:b.*timeout of 1 s"):
        find_actions(build.graph, TARGETS)


def test_an_action_in_the_workspace_cannot_be_attested() -> None:
    build = Build()
    two_targets(build)
    bare = evidence(9, record="", problem=WORKSPACE_PROBLEM)
    build.target("b:b X", [build.action(bare)])
    with pytest.raises(CaptureError, match=r"b:b.*workspace.*another environment, and build again"):
        find_actions(build.graph, TARGETS)


def test_an_odd_engine_input_is_an_error() -> None:
    build = Build()
    two_targets(build)
    build.target("a:a X", [build.node("DigestFile(x) == Something")])
    with pytest.raises(EncodingError, match="odd label"):
        find_actions(build.graph, TARGETS)


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({}, "ran"),
        ({"run_id": 6}, "memoized"),
        ({"remote": True}, "remote-execution"),
        ({"source": "hit_locally"}, "local-cache"),
        ({"source": "hit_remotely"}, "remote-cache"),
        ({"source": "hit_remotely", "run_id": 6}, "memoized"),
    ],
)
def test_sources(changes: dict[str, object], name: str) -> None:
    assert source_name(evidence(1, **changes), 7) == name


def test_the_manifest_is_one_that_seal_reads() -> None:
    build = Build()
    two_targets(build)
    made = build_manifest(
        find_actions(build.graph, TARGETS),
        current_run_id=7,
        tool_version="2.17.1",
        run={
            "id": "run",
            "startedAt": "2026-01-02T03:04:05Z",
            "finishedAt": "2026-01-02T03:04:06Z",
        },
        vcs=None,
        policy={
            "captureMode": "auto",
            "fanotify": "auto",
            "fsverity": "auto",
            "hardening": "standard",
            "requireZeroDrops": False,
            "posture": "walked",
        },
        capture_keys=[],
        modes={"dir/a (b).txt": 0o644},
    )
    read = parse_manifest(json.dumps(made).encode())
    assert [item.address for item in read.targets] == ["a:a", "b:b"]
    assert [item.source for item in read.actions] == ["ran", "ran"]
    assert read.engine_inputs[0].mode == 0o644
