"""A required toolchain fails the action itself: a real daemon, launcher and files."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import List, Tuple

import pytest
from rootseal import digest, keys, toolchain, toolchain_files
from running_daemon import RunningDaemon, one_line, rootseal

pytestmark = pytest.mark.requires("root", "fanotify", "launcher", "core")
BACKENDS = ["capture-mode=walk", "capture-mode=trace:ptrace"]  # the first with fanotify=on
SHELL = Path("/bin/sh").resolve()
LOADER = Path(next(Path("/lib64").glob("ld-linux*"))).resolve()


class Tools:
    """A folder of tools, and its signed manifest."""

    def __init__(self, folder: Path) -> None:
        """Copies of the shell, the loader and of one more tool."""
        self.folder = folder / "tools"
        self.folder.mkdir()
        for path in (SHELL, LOADER):
            shutil.copy(path, self.folder)
        self.tool = Path(shutil.copy("/bin/true", self.folder / "tool"))
        self.manifest, self.key = folder / "a.toolchain", folder / "a.pub"
        signer = keys.generate("ed25519")
        found = toolchain_files.seal_directories([os.fsencode(self.folder)], mode="off")
        self.manifest.write_bytes(toolchain.sign_toolchain(found, signer))
        self.key.write_text(signer.public_key.pem)

    def options(self, backend: str) -> Tuple[str, ...]:
        """The launcher's."""
        found = [backend, f"toolchain={self.manifest}", f"toolchain-key={self.key}"]
        if "walk" in backend:
            found.append("fanotify=on")
        return tuple(f"--option={option}" for option in found)


@pytest.fixture
def tools(tmp_path: Path) -> Tools:
    return Tools(tmp_path)


def shell(text: str) -> List[str]:
    return ["/bin/sh", "-c", text]


@pytest.mark.parametrize("backend", BACKENDS, ids=["fanotify", "ptrace"])
def test_known_tools_pass_wherever_they_are(
    daemon: RunningDaemon, sandbox: Path, tmp_path: Path, tools: Tools, backend: str
) -> None:
    elsewhere = shutil.copy(tools.tool, tmp_path / "elsewhere")
    shutil.copy("/bin/false", sandbox / "own")  # inside the sandbox: an input, not a tool
    script = f"{tools.tool} && {elsewhere} && ! ./own"
    done = daemon.run(sandbox, shell(script), *tools.options(backend))
    assert done.returncode == 0, done.stderr
    assert os.fsencode(elsewhere) in done.materials()


@pytest.mark.parametrize("backend", BACKENDS, ids=["fanotify", "ptrace"])
def test_an_unknown_tool_fails_the_action_and_nothing_is_signed(
    daemon: RunningDaemon, sandbox: Path, tmp_path: Path, tools: Tools, backend: str
) -> None:
    unknown = shutil.copy("/bin/false", tmp_path / "unknown")
    before = daemon.counts()
    done = daemon.run(sandbox, shell(f"{unknown}; exit 0"), *tools.options(backend))
    assert done.returncode == 125
    text = one_line(done.stderr)
    content = digest.sha256(Path(unknown).read_bytes()).hex()
    assert f"the action executed {unknown} (sha256 {content})" in text
    assert f"in no trusted toolchain ({tools.manifest})" in text
    assert "rootseal toolchain seal" in text
    assert not done.record.exists()
    assert daemon.counts()["recorded"] == before["recorded"]
    assert daemon.counts()["refused"] == before["refused"] + 1


def test_a_modified_tool_is_named_with_the_manifest_that_lists_it(
    daemon: RunningDaemon, sandbox: Path, tools: Tools
) -> None:
    genuine = digest.sha256(tools.tool.read_bytes()).hex()
    with tools.tool.open("ab") as stream:
        stream.write(b"patched")
    done = daemon.run(sandbox, shell(f"{tools.tool}"), *tools.options(BACKENDS[0]))
    assert done.returncode == 125
    text = one_line(done.stderr)
    assert f"executed {tools.tool} (sha256" in text
    assert f"which {tools.manifest} lists with the content {genuine}" in text
    assert not done.record.exists()


def test_scope_all_fails_an_action_that_maps_an_unknown_library(
    daemon: RunningDaemon, sandbox: Path, tools: Tools
) -> None:
    options = (*tools.options(BACKENDS[0]), "--option=toolchain-scope=all")
    done = daemon.run(sandbox, ["/bin/sh", "-c", "true"], *options)
    assert done.returncode == 125
    assert "the action read /" in one_line(done.stderr)


@pytest.mark.parametrize("mode", ["walk", "ima"])
def test_a_capture_that_sees_no_execution_is_refused_before_the_action_runs(
    daemon: RunningDaemon, sandbox: Path, tools: Tools, mode: str
) -> None:
    options = (f"--option=capture-mode={mode}", *tools.options("fanotify=off")[1:])
    done = daemon.run(sandbox, ["/bin/touch", "ran"], *options)
    assert done.returncode == 125
    assert "does not see what is executed" in one_line(done.stderr)
    assert not (sandbox / "ran").exists()


def test_manifests_that_cannot_be_believed_are_refused_before_the_action_runs(
    daemon: RunningDaemon, sandbox: Path, tmp_path: Path, tools: Tools
) -> None:
    def refusal() -> str:
        done = daemon.run(sandbox, ["/bin/touch", "ran"], *tools.options(BACKENDS[0]))
        assert done.returncode == 125
        assert not (sandbox / "ran").exists()
        return one_line(done.stderr)

    other = tmp_path / "other.pub"
    other.write_text(keys.generate("ed25519").public_key.pem)
    genuine, tools.key = tools.key, other
    assert f"{tools.manifest} is not accepted" in refusal()
    tools.key = genuine
    tools.manifest.unlink()
    assert f"cannot read {tools.manifest}" in refusal()
    os.mkfifo(tools.manifest)
    assert f"{tools.manifest} is no regular file" in refusal()


def test_the_command_line_fails_the_command(
    daemon: RunningDaemon, sandbox: Path, tmp_path: Path, tools: Tools
) -> None:
    out = tmp_path / "out.rootseal"
    unknown = shutil.copy("/bin/false", tmp_path / "unknown")
    key = tmp_path / "sign.key"
    assert rootseal("keygen", str(key)).returncode == 0
    fixed = ["run", "--socket", str(daemon.socket), "--key", str(key), "--out", str(out)]
    fixed += [
        "--toolchain",
        str(tools.manifest),
        "--toolchain-key",
        str(tools.key),
        "--",
        "/bin/sh",
    ]
    done = rootseal(*fixed, "-c", f"{unknown}; exit 0", cwd=sandbox)
    assert done.returncode == 1
    assert f"executed {unknown}" in done.stderr
    assert not out.exists()
    done = rootseal(*fixed, "-c", f"exec {tools.tool}", cwd=sandbox)
    assert done.returncode == 0, done.stderr
    assert out.exists()
