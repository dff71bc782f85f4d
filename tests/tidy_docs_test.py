"""Tests that the documents name only things that exist, and that the threat model is complete."""

from __future__ import annotations

import ast
import functools
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parent.parent
DOCUMENTS = sorted(
    [*REPO.glob("*.md"), *(REPO / "docs").rglob("*.md"), *REPO.glob("examples/**/*.md")]
)
PATH_PREFIXES = (
    "pants-plugins/",
    "native/",
    "bpf/",
    "tests/",
    "bench/",
    "docs/",
    "examples/",
    "scripts/",
)
MADE_BY_A_BUILD = ("pants-plugins/rootseal/bin/", "native/build/")
LISTED_COMMANDS = ("setup", "build", "test", "lint", "fmt", "asan", "fuzz", "bench", "soak")
LISTED_COMMANDS += ("demo", "lab", "ci", "nightly")
VERDICTS = {"stopped", "detected", "accepted"}
THREAT_MODEL = REPO / "docs" / "threat-model.md"


def without_fences(text: str) -> str:
    return re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)


def make_targets() -> set[str]:
    return set(
        re.findall(r"^([a-z][a-z-]*):", (REPO / "Makefile").read_text("utf-8"), re.MULTILINE)
    )


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_named_files_exist(document: Path) -> None:
    text = document.read_text("utf-8")
    named = set(re.findall(r"`([^`\s]+)`", without_fences(text)))
    files = {name for name in named if name.startswith(PATH_PREFIXES)}
    files = {name.split("::")[0].split(":")[0] for name in files}
    concrete = {name for name in files if not re.search(r"[*{}<>$…]", name)}
    missing = [
        name
        for name in sorted(concrete)
        if not (REPO / name).exists() and not name.startswith(MADE_BY_A_BUILD)
    ]
    assert not missing, f"{document.name} names files that do not exist: {missing}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)", document.read_text("utf-8")):
        if not re.match(r"[a-z]+:", target):
            assert (document.parent / target).exists(), f"{document.name} links to {target}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_named_make_targets_exist(document: Path) -> None:
    named = set(re.findall(r"`(?:sudo )?make ([a-z][a-z-]*)", document.read_text("utf-8")))
    fenced = "\n".join(re.findall(r"^```.*?^```", document.read_text("utf-8"), re.M | re.S))
    named |= set(re.findall(r"^(?:\$ )?(?:sudo )?make ([a-z][a-z-]*)", fenced, re.MULTILINE))
    assert named <= make_targets(), f"not in the Makefile: {sorted(named - make_targets())}"


@functools.cache
def cli_commands() -> frozenset[str]:
    """Commands that `rootseal --help` lists."""
    code = "import sys; sys.argv[0] = 'rootseal'; from rootseal.cli import main; main()"
    argv = [sys.executable, "-c", code, "--help"]
    environment = {**os.environ, "PYTHONPATH": str(REPO / "pants-plugins")}
    done = subprocess.run(argv, capture_output=True, text=True, env=environment)
    shown = re.findall(r"^ {4}([a-z-]+)(?: |$)", done.stdout, re.MULTILINE)
    assert len(shown) > 5, done.stdout + done.stderr
    return frozenset(shown)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_named_commands_exist(document: Path) -> None:
    if document.name == "CHANGELOG.md":
        return  # history may name what is gone
    pattern = r"(?:`|^ +|\$ )(?:\.venv/bin/)?rootseal ([a-z][a-z-]+)\b"
    named = set(re.findall(pattern, document.read_text("utf-8"), re.MULTILINE))
    assert named <= cli_commands(), f"no such command: {sorted(named - cli_commands())}"


def test_make_alone_lists_every_command() -> None:
    shown = subprocess.run(["make"], cwd=REPO, capture_output=True, text=True, check=True).stdout
    for name in LISTED_COMMANDS:
        assert re.search(rf"^ +make {name} ", shown, re.MULTILINE), f"`make` does not list {name}"


def test_readme_names_the_exact_python_and_pants_versions_of_the_repository() -> None:
    readme = (REPO / "README.md").read_text("utf-8")
    config = REPO / "pants.toml"
    if not config.exists():
        pytest.skip("optional: pants.toml does not exist yet")
    version = re.search(r'^pants_version = "(.*)"', config.read_text("utf-8"), re.MULTILINE)
    assert version and version.group(1) in readme


# --- threat model ---------------------------------------------------------------------------


def threat_rows() -> list[list[str]]:
    """Cells of each row of the threat tables: id, threat, verdict, test."""
    rows = []
    for line in THREAT_MODEL.read_text("utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split(" | ")]
        if re.match(r"\| *[A-Z]+-?\d+ ", line):
            rows.append(cells)
    return rows


def test_names_in(path: Path) -> set[str]:
    tree = ast.parse(path.read_text("utf-8"))
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    return {n.name for n in ast.walk(tree) if isinstance(n, kinds) and n.name.startswith("test_")}


test_names_in.__test__ = False  # type: ignore[attr-defined]


def test_threat_rows_are_well_formed() -> None:
    rows = threat_rows()
    assert rows
    assert all(len(row) == 4 for row in rows), [row for row in rows if len(row) != 4]
    identifiers = [row[0] for row in rows]
    assert len(identifiers) == len(set(identifiers))
    for row in rows:
        assert row[2].split(":")[0].split(",")[0] in VERDICTS, f"{row[0]}: verdict {row[2]!r}"
        if row[2] == "accepted":
            pytest.fail(f"{row[0]}: an accepted threat says why: `accepted: reason`")


def test_each_threat_names_a_test_that_exists() -> None:
    wrong = []
    for identifier, _, verdict, cell in threat_rows():
        named = re.findall(r"`(tests/[^`]+\.py)::(test_\w+)`", cell)
        if not named and not verdict.startswith("accepted"):
            wrong.append(f"{identifier}: names no test")
        for file, name in named:
            path = REPO / file
            if not path.exists() or name not in test_names_in(path):
                wrong.append(f"{identifier}: {file}::{name} does not exist")
    assert not wrong, "\n".join(wrong)


def test_each_adversarial_test_is_in_the_threat_model() -> None:
    text = THREAT_MODEL.read_text("utf-8")
    missing = [
        f"{path.relative_to(REPO)}::{name}"
        for path in sorted((REPO / "tests" / "adversarial").rglob("*.py"))
        for name in sorted(test_names_in(path))
        if f"`{path.relative_to(REPO)}::{name}`" not in text
    ]
    assert not missing, "\n".join(missing)
