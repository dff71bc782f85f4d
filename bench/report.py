"""Write docs/benchmarks.md, its chart and its raw data from the results in build/bench."""

from __future__ import annotations

import argparse
import html
import json
import sys
from pathlib import Path
from typing import Any, Mapping, Sequence

REPO = Path(__file__).resolve().parent.parent
TARGET = REPO / "docs" / "benchmarks.md"
CHART = REPO / "docs" / "benchmarks.svg"
RAW = REPO / "docs" / "benchmarks.json"
BAR_HEIGHT, BAR_GAP, LABEL_WIDTH, BAR_WIDTH = 14, 6, 330, 420
RATIO_SHOWN_MAX = 10.0  # longer bars are cut, their number stays

HEAD = """# Benchmarks

Written by `make bench` from the JSON that each script in `bench/` leaves in build/bench; do not
edit. Every sample is in [benchmarks.json](benchmarks.json). Variants of one benchmark ran
alternately in one session; times are medians, ratios are to the first row. Compare ratios, not
seconds: machines differ.
"""


def seconds_text(seconds: float) -> str:
    """A duration with a unit that suits it."""
    for limit, factor, unit in ((1e-3, 1e6, "µs"), (1.0, 1e3, "ms")):
        if seconds < limit:
            return f"{seconds * factor:.1f} {unit}"
    return f"{seconds:.2f} s"


def verdict(goals: Mapping[str, Mapping[str, Any]], name: str) -> str:
    """The goal of a variant and whether it was met; empty where there is none."""
    goal = goals.get(name)
    if goal is None:
        return ""
    return f"{goal['goal']}: {'met' if goal['met'] else '**missed**'}"


def section(document: Mapping[str, Any]) -> str:
    """The part of the page that one result fills."""
    machine = document["machine"]
    lines = [f"## {document['question']}", ""]
    lines += [
        "| variant | median | fastest | slowest | ratio | goal |",
        "|---|---|---|---|---|---|",
    ]
    goals = {goal["variant"]: goal for goal in document.get("goals", [])}
    for name, row in document["variants"].items():
        cells = (seconds_text(row[key]) for key in ("medianSeconds", "minSeconds", "maxSeconds"))
        lines.append(
            f"| {name} | {' | '.join(cells)} | {row['ratio']:.2f}× | {verdict(goals, name)} |"
        )
    lines += [""] + [f"- {name}: {value}" for name, value in document["facts"].items()]
    commit = machine["commit"][:12] + (" with changes" if machine["dirty"] else "")
    where = (f"commit {commit}", f"kernel {machine['kernel']}", machine["memory"])
    cpus = f"{machine['cpus']} × {machine['cpu']}"
    lines.append(", ".join((f"- `{document['command']}`", document["measuredAt"], cpus, *where)))
    return "\n".join(lines)


def bars(documents: Sequence[Mapping[str, Any]]) -> list[tuple[str, float]]:
    """Label and ratio of each captured or traced way of what was also run bare."""
    found = []
    for document in documents:
        names = list(document["variants"])
        if names[0] != "bare":
            continue
        for name in names[1:]:
            label = f"{document['name']}: {name}"
            found.append((label, float(document["variants"][name]["ratio"])))
    return found


def chart(rows: Sequence[tuple[str, float]]) -> str:
    """An SVG with a bar for each ratio; the line is the bare run."""
    scale = BAR_WIDTH / RATIO_SHOWN_MAX
    height = len(rows) * (BAR_HEIGHT + BAR_GAP) + BAR_GAP
    width = LABEL_WIDTH + BAR_WIDTH + 60
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        'font-family="sans-serif" font-size="11">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
    ]
    for number, (label, ratio) in enumerate(rows):
        top = BAR_GAP + number * (BAR_HEIGHT + BAR_GAP)
        length = min(ratio, RATIO_SHOWN_MAX) * scale
        colour = "#b0b0b0" if "strace" in label else "#2f6f9f"
        text = f'y="{top + BAR_HEIGHT - 3}" fill="black"'
        parts += [
            f'<text x="{LABEL_WIDTH - 6}" {text} text-anchor="end">{html.escape(label)}</text>',
            f'<rect x="{LABEL_WIDTH}" y="{top}" width="{length:.1f}" height="{BAR_HEIGHT}" '
            f'fill="{colour}"/>',
            f'<text x="{LABEL_WIDTH + length + 4:.1f}" {text}>{ratio:.2f}×</text>',
        ]
    bare = LABEL_WIDTH + scale
    parts.append(
        f'<line x1="{bare:.1f}" y1="0" x2="{bare:.1f}" y2="{height}" stroke="#c03030" '
        'stroke-dasharray="3 3"/>'
    )
    return "\n".join([*parts, "</svg>"]) + "\n"


def page(documents: Sequence[Mapping[str, Any]]) -> str:
    """The whole page."""
    if not documents:
        return HEAD + "\nNo results yet: run `make bench`.\n"
    ordered = sorted(documents, key=lambda document: str(document["name"]))
    figure = "![Ratios to the bare run](benchmarks.svg)\n\n" if bars(ordered) else ""
    return HEAD + "\n" + figure + "\n\n".join(section(document) for document in ordered) + "\n"


def main() -> int:
    """Read every result, write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    results = REPO / "build" / "bench"
    parser.add_argument("directory", nargs="?", type=Path, default=results, help="of the results")
    directory = parser.parse_args().directory
    documents = [json.loads(path.read_text("utf-8")) for path in sorted(directory.glob("*.json"))]
    TARGET.write_text(page(documents), "utf-8")
    RAW.write_text(json.dumps(documents, indent=1, sort_keys=True) + "\n", "utf-8")
    if bars(documents):
        CHART.write_text(chart(bars(documents)), "utf-8")
    print(f"{TARGET.relative_to(REPO)}: {len(documents)} results")
    return 0


if __name__ == "__main__":
    sys.exit(main())
