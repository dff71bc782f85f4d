"""Toolchain manifests: signing and reading, comparing with the disk, requiring one of a build."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Optional

import core_factory
import pytest
from rootseal import (
    canonical,
    daemon_tools,
    digest,
    envelope,
    keys,
    leaf_table,
    statement,
    toolchain,
    toolchain_moves,
)
from rootseal import toolchain_files as on_disk
from rootseal.bundle import BundleReader
from rootseal.errors import ConfigError, Error, PolicyError, SignatureError, VerificationError
from rootseal.leaf_table import Domain
from rootseal.observation import Posture
from rootseal.policy import Policy
from rootseal.toolchain import Toolchain, ToolScope
from rootseal.verify import verify_bundle

SIGNER = keys.generate("ed25519")
TRUSTED = (SIGNER.public_key,)


@pytest.fixture
def tools(tmp_path: Path) -> Path:
    """A small toolchain."""
    folder = tmp_path / "tools"
    (folder / "lib").mkdir(parents=True)
    (folder / "cc").write_bytes(b"cc")
    (folder / "cc").chmod(0o755)
    (folder / "lib" / "libc.so").write_bytes(b"libc")
    (folder / "lib" / os.fsdecode(b"odd\n\xff")).write_bytes(b"odd")
    (folder / "link").symlink_to("cc")
    os.mkfifo(folder / "fifo")
    return folder


def sealed(folder: Path) -> Toolchain:
    return on_disk.seal_directories([os.fsencode(folder)], mode="off")


def differences(found: Toolchain) -> dict[str, str]:
    compared = on_disk.compare(found, read_all=False)
    return {os.fsdecode(Path(os.fsdecode(d.path)).name): d.reason for d in compared.differences}


def test_regular_files_are_listed_and_read_back(tools: Path) -> None:
    found = sealed(tools)
    assert [Path(os.fsdecode(file.path)).name for file in found.files] == [
        "cc",
        "libc.so",
        os.fsdecode(b"odd\n\xff"),
    ]
    assert found.files[0].sha256 == digest.sha256(b"cc")
    assert toolchain.read_toolchain(toolchain.sign_toolchain(found, SIGNER), TRUSTED) == found
    assert differences(found) == {}


def test_each_kind_of_difference_is_named(tools: Path) -> None:
    found = sealed(tools)
    (tools / "cc").write_bytes(b"CC")
    (tools / "lib" / "libc.so").chmod(0o600)
    (tools / "lib" / os.fsdecode(b"odd\n\xff")).unlink()
    (tools / "new").write_bytes(b"")
    assert differences(found) == {
        "cc": "content",
        "libc.so": "mode",
        os.fsdecode(b"odd\n\xff"): "missing",
        "new": "added",
    }
    (tools / "cc").write_bytes(b"longer")
    assert differences(found)["cc"] == "size"
    (tools / "cc").unlink()
    (tools / "cc").symlink_to("lib/libc.so")
    assert "no regular file" in differences(found)["cc"]


def test_empty_and_missing_directories_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="hold no regular file"):
        toolchain.sign_toolchain(sealed(tmp_path / "empty"), SIGNER)
    with pytest.raises(ConfigError, match="is not a directory"):
        sealed(tmp_path / "missing")


def test_another_key_is_refused(tools: Path) -> None:
    data = toolchain.sign_toolchain(sealed(tools), SIGNER)
    with pytest.raises(SignatureError):
        toolchain.read_toolchain(data, (keys.generate("ed25519").public_key,))


def test_every_flipped_byte_is_refused(tools: Path) -> None:
    data = toolchain.sign_toolchain(sealed(tools), SIGNER)
    for position in range(0, len(data), 7):
        changed = bytearray(data)
        changed[position] ^= 1
        with pytest.raises(Error):
            toolchain.read_toolchain(bytes(changed), TRUSTED)


def test_every_shorter_manifest_is_refused(tools: Path) -> None:
    data = toolchain.sign_toolchain(sealed(tools), SIGNER)
    for length in (*range(0, len(data), 11), len(data) - 1):
        with pytest.raises(Error):
            toolchain.read_toolchain(data[:length], TRUSTED)


def test_what_the_same_key_signed_for_something_else_is_no_manifest(tools: Path) -> None:
    payload = envelope.parse(toolchain.sign_toolchain(sealed(tools), SIGNER)).payload
    signed = statement.parse(payload, predicate_type=toolchain.TOOLCHAIN_TYPE)
    for kind in (statement.BUILD_TYPE, statement.ACTION_TYPE):
        other = statement.encode(signed.subjects, kind, signed.predicate)  # type: ignore[arg-type]
        with pytest.raises(VerificationError):
            toolchain.read_toolchain(envelope.sign(other, SIGNER), TRUSTED)


def resign(found: Toolchain, **changes: object) -> bytes:
    """A manifest that says something else, genuinely signed."""
    payload = envelope.parse(toolchain.sign_toolchain(found, SIGNER)).payload
    signed = statement.parse(payload, predicate_type=toolchain.TOOLCHAIN_TYPE)
    assert isinstance(signed.predicate, dict)
    body = statement.encode(
        signed.subjects, toolchain.TOOLCHAIN_TYPE, {**signed.predicate, **changes}
    )
    return envelope.sign(body, SIGNER)


@pytest.mark.parametrize(
    "change",
    [
        {"tree": {"root": "0" * 64, "size": 3}},
        {"files": []},
        {"directories": ["/elsewhere"]},
        {"surplus": 1},
    ],
)
def test_manifest_that_contradicts_itself_is_refused(
    tools: Path, change: dict[str, object]
) -> None:
    with pytest.raises(VerificationError):
        toolchain.read_toolchain(resign(sealed(tools), **change), TRUSTED)


def test_order_and_relative_paths_are_refused(tools: Path) -> None:
    found = sealed(tools)
    backwards = dataclasses.replace(found, files=found.files[::-1])
    with pytest.raises(VerificationError, match="order of path"):
        toolchain.read_toolchain(toolchain.sign_toolchain(backwards, SIGNER), TRUSTED)
    relative = dataclasses.replace(
        found, files=(dataclasses.replace(found.files[0], path=b"cc"), *found.files[1:])
    )
    with pytest.raises(VerificationError, match="not an absolute path"):
        toolchain.read_toolchain(toolchain.sign_toolchain(relative, SIGNER), TRUSTED)


# --- requiring one --------------------------------------------------------------------------


ROOT = b"/tmp/sandbox"


def materials(*extra: leaf_table.Leaf) -> bytes:
    base = (
        core_factory.leaf(b"src/a.c", b"int a;"),
        core_factory.leaf(b"tool/in/sandbox", b"generated", kind=1),
        core_factory.leaf(b"/opt/copy/of/cc", b"cc", kind=1),
        core_factory.leaf(b"/opt/copy/of/libc.so", b"libc", kind=3),
        core_factory.leaf(b"sandbox/own.so", b"built", kind=3),
        core_factory.leaf(b"/usr/include/stdio.h", b"data"),
    )
    return leaf_table.encode(Domain.MATERIAL, [*base, *extra]).raw


def test_tools_are_known_by_content_not_by_path(tools: Path) -> None:
    allowed = toolchain.trusted_tools([("a.toolchain", sealed(tools))], ToolScope.EXECUTED)
    toolchain.require_tools(materials(), ROOT, allowed, iter(()), about="it")
    other = core_factory.leaf(os.fsencode(tools / "cc"), b"patched", kind=1)
    with pytest.raises(PolicyError) as caught:
        toolchain.require_tools(materials(other), ROOT, allowed, iter(()), about="it")
    assert f"it executed {canonical.path_text(other.path)}" in str(caught.value)
    assert caught.value.data["sha256"] == digest.sha256_hex(b"patched")


def test_an_unknown_library_is_named(tools: Path) -> None:
    allowed = toolchain.trusted_tools([("a.toolchain", sealed(tools))], ToolScope.EXECUTED)
    other = core_factory.leaf(b"/opt/evil.so", b"evil", kind=3)
    with pytest.raises(PolicyError, match=r"it opened machine code /opt/evil\.so") as caught:
        toolchain.require_tools(materials(other), ROOT, allowed, iter(()), about="it")
    assert caught.value.data["used"] == "opened machine code"


@pytest.mark.parametrize(
    "root", ["/", "/usr", "/usr/bin", "/lib", "/usr/lib/gcc", "/usr/local/lib/x"]
)
def test_a_root_with_the_systems_tools_is_refused(tools: Path, root: str) -> None:
    allowed = toolchain.trusted_tools([("a.toolchain", sealed(tools))], ToolScope.EXECUTED)
    with pytest.raises(ConfigError, match=f"the root {root} overlaps the system's /"):
        toolchain.check_root(os.fsencode(root), allowed)
    with pytest.raises(PolicyError, match="it cannot be judged: the root"):
        toolchain.require_tools(materials(), os.fsencode(root), allowed, iter(()), about="it")


def test_a_root_with_files_of_a_manifest_is_refused(tools: Path) -> None:
    allowed = toolchain.trusted_tools([("a.toolchain", sealed(tools))], ToolScope.EXECUTED)
    for root in (tools, tools.parent, tools / "lib"):
        with pytest.raises(ConfigError, match=r"which a\.toolchain lists"):
            toolchain.check_root(os.fsencode(root), allowed)
    for beside in (tools / "li", tools.parent / "tool", "/usr/src/app", "/binary", "/opt"):
        toolchain.check_root(os.fsencode(beside), allowed)


def moves(*steps: tuple[bytes, bytes]) -> list[tuple[int, bytes, bytes]]:
    return [(time, *step) for time, step in enumerate(steps)]


@pytest.mark.parametrize(
    ("steps", "found"),
    [
        ([(b"/opt/cc", b"t")], {b"t"}),
        ([(b"/opt/cc", ROOT + b"/a/../t")], {b"t"}),
        ([(ROOT + b"/../cc", b"t")], {b"t"}),
        ([(ROOT + b"x/cc", b"t")], {b"t"}),
        ([(b"/opt/cc", b"t"), (b"t", b"u")], {b"t", b"u"}),
        ([(b"/opt", b"d"), (b"d/bin/cc", b"u")], {b"d", b"u"}),
        ([(b"t", b"u"), (b"/opt/cc", b"t")], {b"t"}),  # in the order of time
        ([(b"own", b"other"), (b"/opt/cc", b"/opt/dd"), (b"own", b"/opt/own")], set()),
        ([(b"/opt", ROOT), (b"/opt/cc", b"../t")], set()),
    ],
)
def test_names_of_what_came_from_outside(
    steps: list[tuple[bytes, bytes]], found: set[bytes]
) -> None:
    assert toolchain_moves.brought_in(iter(moves(*steps)), ROOT) == found
    late_first = reversed(moves(*steps))
    assert toolchain_moves.brought_in(late_first, ROOT) == found


def test_an_unknown_tool_that_was_moved_in_is_named(tools: Path) -> None:
    allowed = toolchain.trusted_tools([("a.toolchain", sealed(tools))], ToolScope.EXECUTED)
    known, unknown = materials(), materials(core_factory.leaf(b"d/evil", b"evil", kind=1))
    brought = moves((b"/opt/d", b"d"), (b"/opt/a.c", b"src"), (b"/opt/cc", b"/opt/copy/of/cc"))
    toolchain.require_tools(known, ROOT, allowed, iter(brought), about="it")
    with pytest.raises(PolicyError, match=r"it executed d/evil .* linked in from outside"):
        toolchain.require_tools(unknown, ROOT, allowed, iter(brought), about="it")
    toolchain.require_tools(unknown, ROOT, allowed, iter(brought[1:]), about="it")


def test_manifests_are_bounded_each_and_together(tmp_path: Path) -> None:
    """A client of the daemon names up to 64 of them, and may name one file again and again."""
    path = tmp_path / "manifest"
    path.write_bytes(bytes(10))
    paths = [os.fsencode(path)] * 3
    assert len(daemon_tools._read_all(paths, 10, 30)) == 3
    with pytest.raises(ConfigError, match="too large together"):
        daemon_tools._read_all(paths, 10, 29)
    with pytest.raises(ConfigError, match="larger than 9 bytes"):
        daemon_tools._read_all(paths, 9, 30)


def test_scope_all_covers_what_was_read(tools: Path) -> None:
    allowed = toolchain.trusted_tools([("a.toolchain", sealed(tools))], ToolScope.ALL)
    with pytest.raises(PolicyError, match="it read "):
        toolchain.require_tools(materials(), ROOT, allowed, iter(()), about="it")


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A genuine bundle whose actions execute /usr/bin/cc with the content `cc`."""
    path = tmp_path / "build.rootseal"
    core_factory.seal_to(path, capture=SIGNER, signer=SIGNER)
    return path


def judge(bundle: Path, allowed: Optional[Toolchain], *, require_zero_losses: bool = True) -> None:
    found = [] if allowed is None else [("a.toolchain", allowed)]
    tools = toolchain.trusted_tools(found, ToolScope.EXECUTED) if found else None
    policy = Policy(tools=tools, require_zero_losses=require_zero_losses)
    with BundleReader(bundle) as reader:
        verify_bundle(reader, trusted=TRUSTED, capture_keys=None, artifacts=(), policy=policy)


def test_verify_accepts_a_build_of_known_tools(bundle: Path, tools: Path) -> None:
    judge(bundle, sealed(tools))


def test_verify_refuses_a_build_with_another_tool(bundle: Path, tools: Path) -> None:
    (tools / "cc").write_bytes(b"another compiler")
    with pytest.raises(PolicyError, match="executed /usr/bin/cc") as caught:
        judge(bundle, sealed(tools))
    assert caught.value.check == "POLICY"


def test_captures_that_see_no_execution_are_refused(tmp_path: Path, tools: Path) -> None:
    walked = core_factory.observation(
        posture=Posture.WALKED, counts=core_factory.counters(fanotifyAvailable=0)
    )
    record = core_factory.signed_record(SIGNER, observed=walked)
    path = tmp_path / "build.rootseal"
    policy = {**core_factory.manifest([record])["policy"], "posture": "walked"}  # type: ignore[dict-item]
    core_factory.seal_to(path, capture=SIGNER, signer=SIGNER, records=[record], policy=policy)
    with pytest.raises(PolicyError, match="does not see what was executed"):
        judge(path, sealed(tools))


def test_captures_that_lost_something_may_have_used_another_tool(
    tmp_path: Path, tools: Path
) -> None:
    """Where the verifier accepts losses; the build itself is sealed all the same."""
    lossy = core_factory.observation(counts=core_factory.counters(ringbufExecDrops=1))
    record = core_factory.signed_record(SIGNER, observed=lossy)
    path = tmp_path / "build.rootseal"
    policy = {**core_factory.manifest([record])["policy"], "requireZeroDrops": False}  # type: ignore[dict-item]
    core_factory.seal_to(path, capture=SIGNER, signer=SIGNER, records=[record], policy=policy)
    judge(path, None, require_zero_losses=False)
    with pytest.raises(PolicyError, match=r"ringbufExecDrops.*no other tool was used") as caught:
        judge(path, sealed(tools), require_zero_losses=False)
    assert caught.value.check == "POLICY"
