"""Tests that lint the repository: layers, sizes, docs that name real things, threat model, names.

They read files only, so they run anywhere in a second.
"""

from __future__ import annotations

import ast
import collections
import re
import subprocess
from pathlib import Path
from typing import Iterable, Mapping

import pytest

REPO = Path(__file__).resolve().parent.parent
PACKAGE = REPO / "pants-plugins" / "rootseal"
PLUGIN = REPO / "pants-plugins" / "rootseal_pants"
FILE_LINES_MAX = 500  # of tests, half as much again: tables of cases are read by the case

# STYLE: imports go to the same layer or below. A module `cli_x` has the layer of `cli`.
LAYERS: Mapping[str, int] = {
    **dict.fromkeys(("errors", "digest", "canonical", "diagnostics", "checks", "files"), 0),
    **dict.fromkeys(("_native", "_core", "_native_trace", "_trace", "executable", "sizes"), 0),
    **dict.fromkeys(
        (
            "_native_build",
            "process_trace",
            "action",
            "observation",
            "merkle",
            "leaf_table",
            "leaf_path",
            "outputs",
        ),
        1,
    ),
    **dict.fromkeys(
        (
            "privileges",
            "keys",
            "wire",
            "schema",
            "opens_table",
            "keeper",
            "hardening",
            "build_id",
            "trace_ring",
            "key_file",
        ),
        1,
    ),
    **dict.fromkeys(("capture",), 2),
    **dict.fromkeys(("fsverity", "ima"), 1),
    **dict.fromkeys(("toolchain", "toolchain_files", "toolchain_moves"), 5),
    **dict.fromkeys(("predicate",), 3),
    **dict.fromkeys(("statement",), 4),
    **dict.fromkeys(("envelope", "bundle", "policy", "rego", "record", "manifest"), 5),
    **dict.fromkeys(("build_predicate", "record_check", "action_check"), 5),
    **dict.fromkeys(("verify", "policy_check", "prove", "verify_proof", "check"), 6),
    **dict.fromkeys(("daemon", "seal", "cli", "doctor", "run", "show", "__main__"), 7),
}
PLUGIN_MAY_IMPORT = {
    "errors",
    "canonical",
    "action",
    "wire",
    "fsverity",
    "build_id",
    "hardening",
    "key_file",
    "trace_ring",
    "diagnostics",
}
STDLIB_ONLY = (
    "errors",
    "canonical",
    "action",
    "wire",
    "fsverity",
    "keeper",
    "build_id",
    "hardening",
    "key_file",
    "trace_ring",
    "diagnostics",
    "sizes",
)
THIRD_PARTY = {"cffi", "cryptography", "rich", "securesystemslib", "tomli"}
VERIFIER_NEVER = ("capture", "daemon", "cli", "seal", "wire")


def tracked(*patterns: str) -> list[Path]:
    """Files of the repository (tracked, or new and not ignored) that match git patterns."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", *patterns]
    out = subprocess.run(command, cwd=REPO, capture_output=True, check=True).stdout.decode()
    return [
        REPO / name
        for name in sorted(set(filter(None, out.split("\0"))))
        if (REPO / name).is_file()
    ]


def relative(path: Path) -> str:
    return str(path.relative_to(REPO))


def imports_of(path: Path) -> set[str]:
    """Dotted names of every absolute import in a file, those inside functions included.

    `from rootseal import merkle` counts as `rootseal.merkle`.
    """
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"), str(path))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            if node.module in ("rootseal", "rootseal.capture"):
                names.update(f"{node.module}.{alias.name}" for alias in node.names)
            else:
                names.add(node.module)
    return names


def core_modules_of(names: Iterable[str]) -> set[str]:
    """First component below `rootseal` of each import of the core package."""
    return {name.split(".")[1] for name in names if name.startswith("rootseal.")}


def module_of(path: Path) -> str:
    """Name that LAYERS knows: the subpackage, or the file's stem."""
    parts = path.relative_to(PACKAGE).parts
    return parts[0] if len(parts) > 1 else path.stem


def layer_of(module: str) -> int | None:
    """Layer of a module; `cli_verify` has that of `cli`."""
    if module in LAYERS:
        return LAYERS[module]
    head = module.split("_")[0]
    return LAYERS.get(head) if head else None


def core_files() -> list[Path]:
    return [path for path in tracked("pants-plugins/rootseal/**.py") if path.name != "__init__.py"]


# --- layers ---------------------------------------------------------------------------------


def test_imports_go_down() -> None:
    wrong = []
    for path in core_files():
        own = layer_of(module_of(path))
        if own is None:
            wrong.append(f"{relative(path)}: give {module_of(path)!r} a layer in LAYERS")
            continue
        for other in core_modules_of(imports_of(path)) - {module_of(path), "__version__"}:
            layer = layer_of(other)
            if layer is None or layer > own:
                wrong.append(f"{relative(path)} (layer {own}) imports {other} (layer {layer})")
    assert not wrong, "\n".join(wrong)


def test_only_native_imports_the_extension() -> None:
    allowed = {
        "pants-plugins/rootseal/_native.py",
        "pants-plugins/rootseal/_native_build.py",
        "pants-plugins/rootseal/_native_trace.py",
        "setup.py",
    }
    found = {
        relative(path)
        for path in tracked("*.py")
        for name in imports_of(path)
        if name.split(".")[0] in ("cffi", "_cffi_backend")
        or name.split(".")[-1] in ("_core", "_trace")
    }
    assert found <= allowed, f"only _native.py may import the extension: {sorted(found - allowed)}"


def reachable(start: str) -> set[str]:
    """Core modules that importing `rootseal.<start>` brings in, itself included."""
    graph: dict[str, set[str]] = collections.defaultdict(set)
    for path in core_files():
        graph[module_of(path)] |= core_modules_of(imports_of(path))
    seen, todo = set(), [start]
    while todo:
        module = todo.pop()
        if module not in seen:
            seen.add(module)
            todo.extend(graph[module])
    return seen


@pytest.mark.parametrize("module", ["verify", "prove"])
def test_verifier_trusts_no_producer_code(module: str) -> None:
    used = reachable(module)
    bad = {name for name in used if name.split("_")[0] in VERIFIER_NEVER and name != module}
    assert not bad, f"rootseal.{module} reaches {sorted(bad)}"


def test_plugin_imports_only_stdlib_modules_of_the_core() -> None:
    for path in tracked("pants-plugins/rootseal_pants/**.py"):
        bad = core_modules_of(imports_of(path)) - PLUGIN_MAY_IMPORT
        assert not bad, f"{relative(path)} imports {sorted(bad)}; it may import {PLUGIN_MAY_IMPORT}"


@pytest.mark.parametrize("module", STDLIB_ONLY)
def test_modules_for_the_plugin_are_stdlib_only(module: str) -> None:
    for name in reachable(module):
        path = PACKAGE / f"{name}.py"
        if path.exists():
            bad = {item.split(".")[0] for item in imports_of(path)} & THIRD_PARTY
            assert not bad, f"rootseal.{module} reaches {relative(path)}, which imports {bad}"


def test_only_the_plugin_imports_pants() -> None:
    outside = [
        relative(path)
        for path in tracked("*.py")
        if any(name == "pants" or name.startswith("pants.") for name in imports_of(path))
        and not relative(path).startswith(("pants-plugins/rootseal_pants/", "tests/plugin/"))
        and not relative(path).startswith(("tests/integration/", "bench/"))
    ]
    assert not outside


# --- files ----------------------------------------------------------------------------------


def test_files_are_short_enough_to_read() -> None:
    long = {}
    for path in tracked("*.py", "*.c", "*.h", "*.sh"):
        lines = len(path.read_text("utf-8").splitlines())
        if lines > FILE_LINES_MAX * (1.5 if path.is_relative_to(REPO / "tests") else 1):
            long[relative(path)] = lines
    assert not long, f"split these (at most {FILE_LINES_MAX} lines): {long}"


def test_python_files_postpone_annotations() -> None:
    """3.9 is supported: annotations of newer syntax must not be evaluated there."""
    missing = [
        relative(path)
        for path in tracked("pants-plugins/**.py", "tests/**.py", "bench/**.py", "scripts/**.py")
        if any(
            isinstance(node, ast.FunctionDef)
            for node in ast.walk(ast.parse(path.read_text("utf-8")))
        )
        and "from __future__ import annotations" not in path.read_text("utf-8")
    ]
    assert not missing


def test_test_files_have_unique_names() -> None:
    """pytest imports them by base name: two of one name cannot run in one process."""
    names = collections.Counter(path.name for path in tracked("tests/**/test_*.py"))
    assert [name for name, count in names.items() if count > 1] == []


# Split so that this file does not contain what it forbids.
FORBIDDEN = {
    "a package registry's host": r"py"
    r"pi\.org|python"
    r"hosted|deb\."
    r"debian\.org|archive\.ubuntu\.com",
    "a registry's mirror": r"artifact-?" r"registry|pkg" r"\.dev/",
    "a path of one machine": r"/wo" r"rk/|/tm" r"p/lab|/ro" r"ot/|/opt/wh" r"eels",
    "a trailer of a tool": r"Co-authored" r"-by|Generated " r"with",
}
BINARY_SUFFIXES = (".png", ".bin", ".rootseal", ".gz", ".whl", ".pex")


def test_no_forbidden_strings() -> None:
    found = []
    for path in tracked():
        if path.suffix in BINARY_SUFFIXES or path == Path(__file__).resolve():
            continue
        text = path.read_bytes().decode("utf-8", "replace")
        for what, pattern in FORBIDDEN.items():
            match = re.search(pattern, text, re.IGNORECASE)
            if match:
                line = text.count("\n", 0, match.start()) + 1
                found.append(f"{relative(path)}:{line}: {what}: {match.group()!r}")
    assert not found, "\n".join(found)


def test_changelog_has_an_unreleased_section_with_lines() -> None:
    text = (REPO / "CHANGELOG.md").read_text("utf-8")
    section = re.search(r"^## Unreleased\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    assert section, "CHANGELOG.md needs '## Unreleased'"
    lines = [line for line in section.group(1).splitlines() if line.startswith("- ")]
    assert len(lines) == len(set(lines)), "a line is there twice (a merge?)"
    assert lines
