"""NFS, served by this kernel to itself: the server changes files as another machine would."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Iterator, Set

import nfs_server
import pytest
from fanotify_action import Lab, build_fixture
from nfs_server import Served
from rootseal import diagnostics, digest, fsverity, leaf_table
from rootseal.doctor_mounts import look_at_mounts
from rootseal.leaf_table import Domain
from rootseal.observation import DigestSource, MountMark, Posture
from running_daemon import Done, RunningDaemon, is_observed_and_not_held, until

pytestmark = pytest.mark.requires("root", "fanotify", "launcher", "core")
REASON = "served by others: content can change after it was hashed"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    if not os.environ.get("ROOTSEAL_LAB_EMULATED"):
        pytest.skip("optional: a server of NFS is started in the kernel lab only")
    with nfs_server.nfs(tmp_path_factory.mktemp("nfs")) as found:
        yield found


@pytest.fixture(scope="module")
def lab(served: Served, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    found = Lab(build_fixture(tmp_path_factory.mktemp("fixture")), digest_cache_entries=4096)
    yield found
    found.engine.close()


@pytest.fixture
def here(served: Served, request: pytest.FixtureRequest) -> Served:
    """A directory of the test's own on the server."""
    name = request.node.name.replace("[", "-").replace("]", "")
    (served.place / name).mkdir()
    return Served(served.place / name, served.behind / name)


def test_what_it_serves_is_only_observed(
    lab: Lab, served: Served, here: Served, root: Path
) -> None:
    material = here.place / "material"
    (here.behind / "material").write_bytes(b"content\n")
    seen = lab.run(root, ["/bin/sh", "-c", f"read -r line <{material}"])
    (leaf,) = seen.material(os.fsencode(material))
    assert leaf.source == DigestSource.FANOTIFY_OPEN_TIME
    assert leaf.digest == digest.sha256(b"content\n")
    assert seen.observation.posture is Posture.OBSERVED
    assert diagnostics.losses(seen.counters) == {}
    mount = MountMark(os.fsencode(served.place), "nfs4", True, REASON)
    assert mount in seen.observation.mounts
    (found,) = (item for item in look_at_mounts(Posture.HELD) if item.mount == mount)
    assert (found.posture, found.can_seal) == (Posture.OBSERVED, False)
    assert not fsverity.can_seal(served.place)


def test_it_is_hashed_at_each_open(lab: Lab, here: Served, tmp_path: Path) -> None:
    """Neither the cache of digests nor the marks of "hash once" spare it."""
    material, size = here.place / "material", 8 << 20
    (here.behind / "material").write_bytes(bytes(size))
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        seen = lab.run(tmp_path / name, ["wc", "-c", material, material])
        assert len(seen.material(os.fsencode(material))) == 1
        assert seen.counters["bytesHashed"] >= 2 * size


def test_the_record_says_so_and_a_verifier_that_requires_held_refuses_it(
    daemon: RunningDaemon, here: Served, sandbox: Path, tmp_path: Path
) -> None:
    (here.behind / "material").write_bytes(b"content\n")
    words = ("--socket", str(daemon.socket), "--", "cat", str(here.place / "material"))
    is_observed_and_not_held(tmp_path, sandbox, *words)


def test_a_filesystem_of_the_server_that_is_reached_meanwhile_is_counted(
    lab: Lab, served: Served, root: Path
) -> None:
    """The kernel mounts it by itself when somebody enters: no mark was there to be set before."""
    (served.behind / "inner" / "material").write_bytes(b"content\n")
    seen = lab.run(root, ["/bin/cat", served.place / "inner" / "material"])
    assert seen.exit_code == 0
    assert diagnostics.losses(seen.counters) == {"unmarkedMounts": 1}
    point = os.fsencode(served.place / "inner")
    (mount,) = (found for found in seen.observation.mounts if found.mount_point == point)
    assert (mount.filesystem, mount.marked) == ("nfs4", False)


BEFORE, AFTER = b"before\n", b"after!\n"
BACKENDS = {
    "auto": ("--option=capture-mode=auto",),
    "ptrace": ("--option=capture-mode=trace:ptrace", "--option=fanotify=off"),
    "ebpf": ("--option=capture-mode=trace:ebpf", "--option=fanotify=off"),
}


def read_both(daemon: RunningDaemon, here: Served, sandbox: Path, backend: str) -> Done:
    """An action that reads two files, which the server changes then, and one of them again."""
    for name in ("once", "twice"):
        (here.behind / name).write_bytes(BEFORE)
    script = f"cd {here.place}; cat once twice; echo >{sandbox}/read; read x; cat twice"
    with nfs_server.without_delegations():
        process = daemon.start(sandbox, ["/bin/sh", "-c", script], *BACKENDS[backend])
        until((sandbox / "read").exists, "the files are read")
        for name in ("once", "twice"):
            (here.behind / name).write_bytes(AFTER)
        done = daemon.end(process, sandbox / "the-record", b"\n")
    assert (done.returncode, done.stdout) == (0, 2 * BEFORE + AFTER), done.stderr
    return done


def digests(done: Done, path: Path) -> Set[bytes]:
    """Those of the materials of one path."""
    table = leaf_table.decompress(done.verified().record.tables.materials)
    leaves = leaf_table.iter_leaves(table, Domain.MATERIAL)
    return {leaf.digest for leaf in leaves if leaf.path == os.fsencode(path)}


@pytest.mark.parametrize("backend", ["auto", "ptrace"])
def test_a_change_on_the_server_is_seen(
    daemon: RunningDaemon, here: Served, sandbox: Path, backend: str
) -> None:
    """Also of a file that nobody opens any more: at the end the server is asked."""
    done = read_both(daemon, here, sandbox, backend)
    before, after = digest.sha256(BEFORE), digest.sha256(AFTER)
    assert digests(done, here.place / "once") == {before}
    assert digests(done, here.place / "twice") == {before, after}
    found = {(item["path"], item["digestLater"]) for item in done.field("mutations")}
    assert found == {(str(here.place / name), after.hex()) for name in ("once", "twice")}
    assert done.verified().losses == {"mutatedAfterOpen": 2}
    capture = done.field("capture")
    assert capture["posture"] == {"requested": "held", "achieved": "observed"}
    (step,) = (step for step in capture["fallbacks"] if step["from"] == "held")
    assert "nfs4" in step["reason"]


def test_by_ebpf_alone_a_change_on_the_server_is_seen_or_counted(
    daemon: RunningDaemon, here: Served, sandbox: Path
) -> None:
    """A file that changed before it could be hashed is no material: that open is a loss."""
    done = read_both(daemon, here, sandbox, "ebpf")
    losses = done.verified().losses
    assert set(losses) <= {"mutatedAfterOpen", "unhashedOpensTotal"}
    assert sum(losses.values()) == 2
    assert digests(done, here.place / "once") <= {digest.sha256(BEFORE)}
    assert done.field("capture", "posture", "achieved") == "observed"


def test_products_are_found_and_what_was_removed_is_none(lab: Lab, here: Served) -> None:
    """The kernel knows the inode of a removed file for a while; the server says that it is gone."""
    root, aside = here.place / "root", here.place / "aside"
    root.mkdir()
    aside.mkdir()
    (root / "input").write_bytes(b"input\n")
    (root / "unused").write_bytes(b"")
    script = (
        "echo made >a; echo moved >t; mv t b; ln -s a link; echo more >>input; rm unused; "
        f"cd {aside}; echo aside >kept; for i in 1 2 3 4; do echo $i >$i; cat $i; rm $i; done"
    )
    seen = lab.run(root, ["/bin/sh", "-c", script])
    assert (seen.exit_code, diagnostics.losses(seen.counters)) == (0, {})
    wanted = {b"a": b"made\n", b"b": b"moved\n", b"link": b"a", b"input": b"input\nmore\n"}
    wanted[os.fsencode(aside / "kept")] = b"aside\n"
    found = {leaf.path: leaf.digest for leaf in seen.products}
    assert found == {path: digest.sha256(content) for path, content in wanted.items()}


def test_what_is_written_through_a_mapping_is_a_product(lab: Lab, here: Served) -> None:
    seen = lab.do(here.place, "mmap-closed", "mapped", "text")
    assert diagnostics.losses(seen.counters) == {}
    content = (here.behind / "mapped").read_bytes()
    assert content and seen.product(b"mapped").digest == digest.sha256(content)


REMOVES = """import os
os.mkdir("d")
for name in "d/a", "d/b":
    with open(name, "w") as stream:
        stream.write(name)
for name in "d/a", "d/b":
    os.unlink(name)
os.rmdir("d")
"""


def test_an_action_in_a_root_on_nfs_can_remove_what_it_made(
    daemon: RunningDaemon, here: Served
) -> None:
    """What an event of fanotify still holds would only be renamed, and `d` would not be empty."""
    argv = ["/usr/bin/python3", "-ISc", REMOVES + "open('left', 'w').write('left')"]
    done = daemon.run(here.place, argv)
    assert (done.returncode, done.verified().losses) == (0, {}), done.stderr
    assert done.products()[b"left"].digest == digest.sha256(b"left")
    assert done.field("capture", "backend") == "ptrace"
    steps = {step["from"]: step for step in done.field("capture", "fallbacks")}
    assert steps["fanotify"]["to"] == "ptrace" and "NFS" in steps["fanotify"]["reason"]


def test_an_action_that_removes_its_own_root(lab: Lab, here: Served) -> None:
    """A server says of such a directory that it is stale, not that it is not there."""
    root = here.place / "root"
    root.mkdir()
    script = f"echo x >f; cd /; rm -r {root}"
    seen = lab.run(root, ["/bin/sh", "-c", script])
    assert (seen.exit_code, seen.products, diagnostics.losses(seen.counters)) == (0, [], {})
    root.mkdir()
    seen = lab.run(root, ["/bin/sh", "-c", f"{script}; mkdir {root}; echo new >{root}/f"])
    assert (seen.exit_code, diagnostics.losses(seen.counters)) == (0, {})
    assert seen.product(b"f").digest == digest.sha256(b"new\n")


@pytest.mark.parametrize("backend", ["auto", "ptrace"])
def test_a_file_that_the_server_keeps_from_root(
    daemon: RunningDaemon, served: Served, sandbox: Path, backend: str
) -> None:
    """With root_squash: the kernel refuses what it cannot open for a daemon of root as well.

    The tracer reads by what the user has opened.
    """
    material = served.behind / "squashed" / f"material-{backend}"
    material.write_bytes(b"content\n")
    os.chown(material, nfs_server.NOBODY - 1, nfs_server.NOBODY - 1)
    material.chmod(0o600)
    path = served.place / "squashed" / material.name
    with pytest.raises(PermissionError):
        path.read_bytes()  # which mounts it
    for folder in (sandbox, *served.place.parents, *sandbox.parents):
        if not folder.stat().st_mode & 0o001:
            folder.chmod(0o711)  # pytest keeps its own folders to root
    os.chown(sandbox, nfs_server.NOBODY - 1, nfs_server.NOBODY - 1)
    user = f"--drop-to={nfs_server.NOBODY - 1}:{nfs_server.NOBODY - 1}"
    done = daemon.run(sandbox, ["/bin/cat", str(path)], user, *BACKENDS[backend])
    if backend == "ptrace":
        assert (done.returncode, done.stdout) == (0, b"content\n"), done.stderr
        assert digests(done, path) == {digest.sha256(b"content\n")}
        assert done.verified().losses == {}
    else:
        assert (done.returncode, done.stdout) == (1, b""), done.stderr
        assert "Operation not permitted" in done.stderr
        assert done.verified().losses["handlerErrors"] == 1
