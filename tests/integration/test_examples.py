"""The root of this checkout: its examples and its own wheel, packaged and attested by itself."""

from __future__ import annotations

import hashlib
import os
import shutil
import zipfile
from pathlib import Path
from typing import Iterator

import pytest
from pants_repo import REPO, PantsRepo, find_executables

POLICY = REPO / "examples" / "policy"
PEXES = ("invoice.pex", "report.pex")


def checkout(home: Path, dist: Path) -> PantsRepo:
    """This checkout as a repository, with its own Pants directories."""
    pants, rootseal = find_executables()
    home.mkdir()
    repo = PantsRepo(REPO, home, pants, rootseal)
    repo.dist = dist
    repo.options["PANTS_ROOTSEAL_EXECUTABLE"] = str(rootseal)
    repo.options["PANTS_ROOTSEAL_DAEMON_SOCKET"] = str(repo.socket)
    return repo


@pytest.fixture
def dist() -> Iterator[Path]:
    """A directory for artifacts; it must be below the build root."""
    made = REPO / "build" / f"test-dist-{os.getpid()}"
    yield made
    shutil.rmtree(made, ignore_errors=True)


def test_everything_is_attested_and_pex_files_are_those_of_plain_pants(
    tmp_path: Path, dist: Path
) -> None:
    captured = checkout(tmp_path / "captured", dist / "captured")
    captured.start_daemon("state")
    try:
        captured.run("package", "::").succeeded()
        captured.verify("--policy", str(POLICY / "recommended.toml"))
        captured.verify("--rego", str(POLICY / "recommended.rego"))
        targets = {item["address"]: item for item in captured.manifest().document["targets"]}
        names = {item["name"] for target in targets.values() for item in target["artifacts"]}
        assert {*PEXES, "tools.tar.gz"} < names
        (wheel,) = (name for name in names if name.endswith(".whl"))
        assert wheel.startswith("rootseal-")
        check_wheel(captured.dist / wheel)
        generated = captured.manifest().records("`examples/src/data:generate`")
        for address in ("examples/src/python/invoice:app", "examples/src/python/report:app"):
            assert set(generated.values()) <= set(targets[address]["actions"])
        again = captured.run("package", "::").succeeded()
        assert set(captured.manifest().sources) == {"memoized"}
        assert "memoized" in again.output
    finally:
        captured.stop()

    plain = checkout(tmp_path / "plain", dist / "plain")
    try:
        plain.run("--no-pantsd", "--no-rootseal-enabled", "package", "examples::").succeeded()
    finally:
        plain.stop_pantsd()
    for name in PEXES:
        with_plugin, without = (repo.dist / name for repo in (captured, plain))
        assert sha256(with_plugin) == sha256(without)


def check_wheel(path: Path) -> None:
    """What a user needs who has nothing but the wheel, and each compiled part as it must be."""
    with zipfile.ZipFile(path) as wheel:
        entries = {entry.filename: entry for entry in wheel.infolist()}
        modules = {
            str(module.relative_to(REPO / "pants-plugins"))
            for package in ("rootseal", "rootseal_pants")
            for module in (REPO / "pants-plugins" / package).rglob("*.py")
        }
        assert {"rootseal/cli.py", "rootseal_pants/register.py"} < modules
        assert modules <= entries.keys()
        (metadata,) = (name for name in entries if name.endswith(".dist-info/entry_points.txt"))
        assert b"rootseal = rootseal.cli:main" in wheel.read(metadata)
        programs = [f"rootseal/bin/{name}" for name in ("rootseal-exec", "rootseal-scope")]
        for name in ("rootseal/_core.abi3.so", *programs):
            assert wheel.read(name).startswith(b"\x7fELF")
            assert name not in programs or entries[name].external_attr >> 16 & 0o111 == 0o111
        trace = "rootseal/bin/trace.bpf.o"  # made where clang and libbpf are, as here or not
        if (REPO / "pants-plugins" / trace).exists():
            assert wheel.read(trace).startswith(b"\x7fELF")


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
