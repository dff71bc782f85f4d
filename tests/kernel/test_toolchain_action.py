"""A required toolchain fails the action itself: a real daemon, launcher and files."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any, List, Tuple

import pytest
from rootseal import digest, keys, toolchain, toolchain_files
from rootseal.observation import LeafKind
from running_daemon import RunningDaemon, one_line, rootseal

NEEDS = ("root", "fanotify", "launcher", "core")
HELD = ("capture-mode=walk", "fanotify=on")
BACKENDS = [
    pytest.param(HELD, id="fanotify"),
    pytest.param(("capture-mode=trace:ptrace", "fanotify=off"), id="ptrace"),
    pytest.param(("capture-mode=trace:ptrace", "fanotify=on"), id="fanotify+ptrace"),
    pytest.param(
        ("capture-mode=trace:ebpf", "fanotify=on"),
        id="fanotify+ebpf",
        marks=pytest.mark.requires(*NEEDS, "ebpf"),
    ),
    pytest.param(
        ("capture-mode=trace:ebpf", "fanotify=off"),
        id="ebpf",
        marks=pytest.mark.requires(*NEEDS, "ebpf"),
    ),
]
pytestmark = pytest.mark.requires(*NEEDS)
PROGRAMS = tuple(
    Path(f"/bin/{name}").resolve() for name in ("sh", "bash", "cp", "ln", "mv", "true")
)


class Tools:
    """A folder of tools, and its signed manifest."""

    def __init__(self, folder: Path) -> None:
        """Copies of two shells, of one more tool, and of the loader and libraries of them all."""
        self.folder = folder / "tools"
        self.folder.mkdir()
        for path in {*PROGRAMS, *libraries()}:
            shutil.copy(path, self.folder)
        self.tool = Path(shutil.copy("/bin/true", self.folder / "tool"))
        self.manifest, self.key = folder / "a.toolchain", folder / "a.pub"
        signer = keys.generate("ed25519")
        found = toolchain_files.seal_directories([os.fsencode(self.folder)], mode="off")
        self.manifest.write_bytes(toolchain.sign_toolchain(found, signer))
        self.key.write_text(signer.public_key.pem)

    def options(self, backend: Tuple[str, ...]) -> Tuple[str, ...]:
        """The launcher's."""
        found = [*backend, f"toolchain={self.manifest}", f"toolchain-key={self.key}"]
        return tuple(f"--option={option}" for option in found)


@pytest.fixture
def tools(tmp_path: Path) -> Tools:
    return Tools(tmp_path)


def libraries() -> List[Path]:
    """What the programs map, the loader too, by their real paths."""
    done = subprocess.run(["ldd", *PROGRAMS], capture_output=True, text=True, check=True)
    found = re.findall(r"(/\S+) \(0x", done.stdout)
    assert len(found) > len(PROGRAMS)
    return [Path(path).resolve() for path in found]


def library(path: Path, more: bytes = b"") -> Path:
    """A copy of one of them; a loader does not mind what follows after its end."""
    source = next(item for item in libraries() if item.name.startswith("libc."))
    path.write_bytes(source.read_bytes() + more)
    return path


# How a known program comes to map {}: bash's `enable` looks for a builtin in it, in vain.
WAYS = {
    "preload": "LD_PRELOAD={} /bin/true",
    "dlopen": "/bin/bash -c 'enable -f {} none' 2> error || true",
}


# How the unknown program {} comes to run, and what the action is then said to have done.
RUNS = {
    "symbolic link": ("ln -s {} t && ./t", "executed {}"),
    "interpreter": ("./own", "executed {}"),
    "script": ("{}.sh", "executed {}.sh"),
    "loader": ("{loader} {}", "opened machine code {}"),
}
# A trace tells these; with fanotify alone they are known names in the sandbox.
MOVES = {
    "hard link": "ln {} t && ./t",
    "rename": "mv {} t && ./t",
    "directory": "mv {}.d d && mv d e && e/t",
    "library": "ln {}.so own.so && LD_PRELOAD=./own.so /bin/true",
}


def shell(text: str) -> List[str]:
    return ["/bin/sh", "-c", text]


@pytest.mark.parametrize("backend", BACKENDS)
def test_known_tools_pass_wherever_they_are(
    daemon: RunningDaemon, sandbox: Path, tmp_path: Path, tools: Tools, backend: Tuple[str, ...]
) -> None:
    elsewhere = shutil.copy(tools.tool, tmp_path / "elsewhere")
    shutil.copy("/bin/false", sandbox / "own")  # inside the sandbox: an input, not a tool
    script = f"{tools.tool} && {elsewhere} && ! ./own"
    done = daemon.run(sandbox, shell(script), *tools.options(backend))
    assert done.returncode == 0, done.stderr
    assert os.fsencode(elsewhere) in done.materials()


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_unknown_tool_fails_the_action_and_nothing_is_signed(
    daemon: RunningDaemon, sandbox: Path, tmp_path: Path, tools: Tools, backend: Tuple[str, ...]
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


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("way", RUNS)
def test_an_unknown_program_is_named_however_it_runs(
    daemon: RunningDaemon,
    sandbox: Path,
    tmp_path: Path,
    tools: Tools,
    backend: Tuple[str, ...],
    way: str,
) -> None:
    unknown = Path(shutil.copy("/bin/false", tmp_path / "unknown"))
    (tmp_path / "unknown.sh").write_text("#!/bin/sh\n")
    (tmp_path / "unknown.sh").chmod(0o755)
    (sandbox / "own").write_text(f"#!{unknown}\n")
    (sandbox / "own").chmod(0o755)
    loader = next(path for path in libraries() if path.name.startswith("ld-"))
    script, said = (text.format(unknown, loader=loader) for text in RUNS[way])
    done = daemon.run(sandbox, shell(f"{script}; exit 0"), *tools.options(backend))
    assert done.returncode == 125, done.stderr
    assert f"the action {said} (sha256 " in one_line(done.stderr)
    assert not done.record.exists()


@pytest.mark.parametrize("backend", BACKENDS[1:4])
@pytest.mark.parametrize("way", MOVES)
def test_an_unknown_tool_that_is_moved_into_the_sandbox_is_no_input(
    daemon: RunningDaemon,
    sandbox: Path,
    tmp_path: Path,
    tools: Tools,
    backend: Tuple[str, ...],
    way: str,
) -> None:
    unknown = Path(shutil.copy("/bin/false", tmp_path / "unknown"))
    library(tmp_path / "unknown.so", b"patched")
    (tmp_path / "unknown.d").mkdir()
    shutil.copy(unknown, tmp_path / "unknown.d" / "t")
    script = f"{MOVES[way].format(unknown)}; exit 0"
    done = daemon.run(sandbox, shell(script), *tools.options(backend))
    assert done.returncode == 125, done.stderr
    assert "which it moved or linked in from outside and is in no" in one_line(done.stderr)
    assert not done.record.exists()


@pytest.mark.parametrize("backend", BACKENDS[1:4])
def test_what_the_action_made_or_the_manifest_lists_may_be_moved_in(
    daemon: RunningDaemon, sandbox: Path, tmp_path: Path, tools: Tools, backend: Tuple[str, ...]
) -> None:
    shutil.copy("/bin/false", sandbox / "own")
    made = tmp_path / "made"
    script = f"cp own {made} && mv {made} t && ! ./t; ln {tools.tool} u && ./u && mv own v && ! ./v"
    done = daemon.run(sandbox, shell(script), *tools.options(backend))
    assert done.returncode == 0, done.stderr


def test_a_modified_tool_is_named_with_the_manifest_that_lists_it(
    daemon: RunningDaemon, sandbox: Path, tools: Tools
) -> None:
    genuine = digest.sha256(tools.tool.read_bytes()).hex()
    with tools.tool.open("ab") as stream:
        stream.write(b"patched")
    done = daemon.run(sandbox, shell(f"{tools.tool}"), *tools.options(HELD))
    assert done.returncode == 125
    text = one_line(done.stderr)
    assert f"executed {tools.tool} (sha256" in text
    assert f"which {tools.manifest} lists with the content {genuine}" in text
    assert not done.record.exists()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("way", WAYS)
def test_an_unknown_library_of_a_known_program_fails_the_action(
    daemon: RunningDaemon,
    sandbox: Path,
    tmp_path: Path,
    tools: Tools,
    backend: Tuple[str, ...],
    way: str,
) -> None:
    unknown = library(tmp_path / "unknown.so", b"patched")
    done = daemon.run(sandbox, shell(WAYS[way].format(unknown)), *tools.options(backend))
    assert done.returncode == 125
    text = one_line(done.stderr)
    content = digest.sha256(unknown.read_bytes()).hex()
    assert f"the action opened machine code {unknown} (sha256 {content})" in text
    assert f"in no trusted toolchain ({tools.manifest})" in text
    assert not done.record.exists()


@pytest.mark.parametrize("backend", BACKENDS)
def test_known_libraries_pass_wherever_they_are_and_data_need_not_be_listed(
    daemon: RunningDaemon, sandbox: Path, tmp_path: Path, tools: Tools, backend: Tuple[str, ...]
) -> None:
    known = library(tmp_path / "elsewhere.so")
    library(sandbox / "own.so", b"in the sandbox: an input, not a tool")
    (tmp_path / "data").write_text("line\n")
    script = [WAYS["preload"].format(path) for path in (known, sandbox / "own.so")]
    made = tmp_path / "made.so"  # by the action itself
    script += [f"cp own.so {made}", WAYS["preload"].format(made)]
    script += [WAYS["dlopen"].format(known), f"read line < {tmp_path}/data"]
    done = daemon.run(sandbox, shell("; ".join(script)), *tools.options(backend))
    assert done.returncode == 0, done.stderr
    kinds = {path: leaf.kind for path, leaf in done.materials().items()}
    assert kinds[os.fsencode(known)] == kinds[b"own.so"] == LeafKind.CODE
    assert kinds[os.fsencode(tmp_path / "data")] == LeafKind.FILE


def test_scope_all_fails_an_action_that_reads_unknown_data(
    daemon: RunningDaemon, sandbox: Path, tmp_path: Path, tools: Tools
) -> None:
    (tmp_path / "data").write_text("line\n")
    words = shell(f"read line < {tmp_path}/data")
    assert daemon.run(sandbox, words, *tools.options(HELD)).returncode == 0
    done = daemon.run(sandbox, words, *tools.options(HELD), "--option=toolchain-scope=all")
    assert done.returncode == 125
    assert "the action read /" in one_line(done.stderr)


@pytest.mark.parametrize("root", ["/", "/usr", "tools"])
def test_a_root_that_holds_tools_is_refused_before_the_action_runs(
    daemon: RunningDaemon, tmp_path: Path, tools: Tools, root: str
) -> None:
    place = tmp_path / root
    done = daemon.run(place, ["/bin/touch", str(tmp_path / "ran")], *tools.options(HELD))
    assert done.returncode == 125
    assert f"the root {place} overlaps" in one_line(done.stderr)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("mode", ["walk", "ima"])
def test_a_capture_that_sees_no_execution_is_refused_before_the_action_runs(
    daemon: RunningDaemon, sandbox: Path, tools: Tools, mode: str
) -> None:
    options = tools.options((f"capture-mode={mode}", "fanotify=off"))
    done = daemon.run(sandbox, ["/bin/touch", "ran"], *options)
    assert done.returncode == 125
    assert "does not see what is executed" in one_line(done.stderr)
    assert not (sandbox / "ran").exists()


def test_manifests_that_cannot_be_believed_are_refused_before_the_action_runs(
    daemon: RunningDaemon, sandbox: Path, tmp_path: Path, tools: Tools
) -> None:
    def refusal() -> str:
        done = daemon.run(sandbox, ["/bin/touch", "ran"], *tools.options(HELD))
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


def test_what_cannot_be_read_is_refused_and_never_left_out(
    tmp_path: Path, unprivileged_user: Any
) -> None:
    """A manifest without it would be signed, and `verify` would call it whole."""
    tools, key = tmp_path / "tools", tmp_path / "sign.key"
    out, public = tmp_path / "out" / "a.toolchain", str(key.with_suffix(".pub"))
    (tools / "closed").mkdir(parents=True)
    out.parent.mkdir(mode=0o777)
    for folder in (out.parent, tmp_path, *tmp_path.parents):
        folder.chmod(folder.stat().st_mode | 0o001)  # pytest keeps its own folders to root
    (tools / "closed" / "file").write_text("content\n")
    os.link(tools / "closed" / "file", tools / "again")
    shutil.copy("/bin/true", tools / "set-user")
    (tools / "set-user").chmod(0o4755)
    os.mkfifo(tools / "fifo")
    (tools / "elsewhere").symlink_to("/etc")
    assert rootseal("keygen", str(key)).returncode == 0
    os.chown(key, unprivileged_user.uid, -1)
    os.chown(out.parent, unprivileged_user.uid, -1)

    def as_user(*words: str) -> subprocess.CompletedProcess[str]:
        ids = {"user": unprivileged_user.uid, "group": unprivileged_user.uid, "extra_groups": []}
        return rootseal("toolchain", *words, **ids)

    seal = ("seal", str(tools), "--out", str(out), "--key", str(key))
    verify = ("verify", str(out), "--key", public)
    for place in (tools / "closed", tools / "again"):
        place.chmod(0o000)
        done = as_user(*seal)
        assert (done.returncode, out.exists()) == (2, False), done.stderr
        assert f"cannot read {place}: Permission denied" in done.stderr
        place.chmod(0o755)
    done = as_user(*seal, "--json")
    assert done.returncode == 0 and json.loads(done.stdout)["files"] == 3, done.stderr
    assert as_user(*verify).returncode == 0
    (tools / "closed").chmod(0o000)
    assert as_user(*verify).returncode == 2
    (tools / "closed").chmod(0o755)
    (tools / "set-user").chmod(0o755)
    (tools / "again").unlink()
    os.mkfifo(tools / "again")
    done = as_user(*verify, "--json")
    told = {
        item["path"]: item["reason"]
        for item in json.loads(done.stdout)["error"]["data"]["differences"]
    }
    assert told == {
        str(tools / "set-user"): "mode",
        str(tools / "again"): "it is no regular file any more",
    }


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
