"""Pants' node graph, as it dumps it for graphviz: parsing, and what can be reached from where.

Pure, but for reading lines. The graph is the one thing that says which actions a target is made
of: it keeps memoized nodes, and shared actions are below every target that needs them.
"""

from __future__ import annotations

import re
from collections import deque
from dataclasses import dataclass
from typing import Iterable, Mapping, Sequence

from rootseal.errors import EncodingError

_NODE = re.compile(r'\s+(\d+) \[ ?label ?= ?"(.*)" ?\]\s*$')
_EDGE = re.compile(r"\s+(\d+) -> (\d+) \[")
_RULE = re.compile(r"@rule\(([\w.]+)\((.*?)\)\)")


@dataclass(frozen=True)
class NodeGraph:
    """A dumped graph.

    Attributes:
        labels: Label of each node, by its number.
        edges: Numbers of the nodes that a node depends on, each once, by its number. (The engine
            dumps an edge twice where a node asked twice: in its last run, and to see whether it
            must run.)
    """

    labels: Mapping[int, str]
    edges: Mapping[int, Sequence[int]]

    def reachable(self, start: Iterable[int]) -> frozenset[int]:
        """The nodes that are reachable from `start`, these included."""
        seen = set(start)
        waiting = deque(seen)
        while waiting:
            for node in self.edges.get(waiting.popleft(), ()):
                if node not in seen:
                    seen.add(node)
                    waiting.append(node)
        return frozenset(seen)

    def rules_named(self, name: str) -> dict[int, str]:
        """Nodes of a rule, and the hint of each: what its parameters say of themselves."""
        found = {}
        start = f"@rule({name}("
        for node, label in self.labels.items():
            if label.startswith(start):
                match = _RULE.match(label)
                if match is None:
                    raise EncodingError(f"a node of Pants' graph has the odd label {label[:200]!r}")
                found[node] = match[2]
        return found

    def nodes_of_kind(self, kind: str) -> dict[int, str]:
        """Nodes of the engine itself, for example `Process`, and their labels."""
        start = f"{kind}("
        return {node: label for node, label in self.labels.items() if label.startswith(start)}


def parse_graph(lines: Iterable[str]) -> NodeGraph:
    """Read a dump of the graph.

    Raises:
        EncodingError: A line is neither a node nor an edge, or an edge names no node.
    """
    labels: dict[int, str] = {}
    edges: dict[int, dict[int, None]] = {}
    for line in lines:
        if match := _EDGE.match(line):
            edges.setdefault(int(match[1]), {})[int(match[2])] = None
        elif match := _NODE.match(line):
            labels[int(match[1])] = _unescaped(match[2])
        elif line.strip() not in ("digraph {", "}", ""):
            raise EncodingError(f"a line of Pants' graph is not understood: {line[:200]!r}")
    for node, targets in edges.items():
        if node not in labels or any(target not in labels for target in targets):
            raise EncodingError(f"an edge of Pants' graph from node {node} has no node at its end")
    return NodeGraph(labels, {node: tuple(targets) for node, targets in edges.items()})


def _unescaped(label: str) -> str:
    return re.sub(r"\\(.)", lambda match: {"n": "\n", "l": "\n"}.get(match[1], match[1]), label)
