"""Write docs/benchmarks.md from the results in build/bench.

Usage: bench/report.py [RESULTS_DIRECTORY]
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, Mapping, Sequence

REPO = Path(__file__).resolve().parent.parent
TARGET = REPO / "docs" / "benchmarks.md"

HEAD = """# Benchmarks

Written by `make bench` from the JSON that each script in `bench/` leaves in build/bench; do not
edit. Variants of one benchmark ran alternately in one session; times are medians, ratios are to the
first row. Compare ratios, not seconds: machines differ.
"""


def seconds_text(seconds: float) -> str:
    """A duration with a unit that suits it."""
    for limit, factor, unit in ((1e-3, 1e6, "µs"), (1.0, 1e3, "ms")):
        if seconds < limit:
            return f"{seconds * factor:.1f} {unit}"
    return f"{seconds:.2f} s"


def section(document: Mapping[str, Any]) -> str:
    """The part of the page that one result fills."""
    machine = document["machine"]
    lines = [f"## {document['question']}", ""]
    lines += ["| variant | median | fastest | slowest | ratio |", "|---|---|---|---|---|"]
    for name, row in document["variants"].items():
        cells = (seconds_text(row[key]) for key in ("medianSeconds", "minSeconds", "maxSeconds"))
        lines.append(f"| {name} | {' | '.join(cells)} | {row['ratio']:.2f}× |")
    lines += [""] + [f"- {name}: {value}" for name, value in document["facts"].items()]
    commit = machine["commit"][:12] + (" with changes" if machine["dirty"] else "")
    where = (f"commit {commit}", f"kernel {machine['kernel']}", machine["memory"])
    cpus = f"{machine['cpus']} × {machine['cpu']}"
    lines.append(", ".join((f"- `{document['command']}`", document["measuredAt"], cpus, *where)))
    return "\n".join(lines)


def page(documents: Sequence[Mapping[str, Any]]) -> str:
    """The whole page."""
    if not documents:
        return HEAD + "\nNo results yet: run `make bench`.\n"
    ordered = sorted(documents, key=lambda document: str(document["name"]))
    return HEAD + "\n" + "\n\n".join(section(document) for document in ordered) + "\n"


def main() -> int:
    """Read every result, write the page."""
    directory = Path(sys.argv[1]) if len(sys.argv) > 1 else REPO / "build" / "bench"
    documents = [json.loads(path.read_text("utf-8")) for path in sorted(directory.glob("*.json"))]
    TARGET.write_text(page(documents), "utf-8")
    print(f"{TARGET.relative_to(REPO)}: {len(documents)} results")
    return 0


if __name__ == "__main__":
    sys.exit(main())
