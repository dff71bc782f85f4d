"""A file of 4 GiB: hashed whole while its opener waits, in sight, and others go on meanwhile."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Dict, Iterator, List

import pytest
from running_daemon import RunningDaemon, running_daemon, until

pytestmark = [
    pytest.mark.requires("root", "fanotify", "launcher", "core"),
    pytest.mark.heavy,
]

SIZE = 4 * 2**30
ZEROS_SHA256 = "8479e43911dc45e89f934fe48d01297e16f51d17aa561d4d1c216b1ae0fcddca"


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[RunningDaemon]:
    (tmp_path / "daemon").mkdir()
    with running_daemon(tmp_path / "daemon") as running:
        yield running


def hashing(daemon: RunningDaemon) -> List[Dict[str, Any]]:
    """The actions that hash a large file now."""
    return [row for row in daemon.status()["activity"] if row["longHashes"]]


def test_four_gibibytes_are_hashed_whole_while_others_go_on(
    daemon: RunningDaemon, tmp_path: Path
) -> None:
    large, small = tmp_path / "large", tmp_path / "small"
    large.mkdir()
    small.mkdir()
    with (large / "sparse").open("wb") as file:
        file.truncate(SIZE)
    (small / "file").write_bytes(b"small")
    opener = daemon.start(large, ["head", "-c", "1", "sparse"])
    (row,) = until(lambda: hashing(daemon), "the large file is being hashed")
    assert (row["launcher"], row["longHashes"], row["longBytes"]) == (opener.pid, 1, SIZE)
    other = daemon.run(small, ["cat", "file"])
    assert (other.returncode, other.stdout) == (0, b"small")
    (later,) = hashing(daemon)  # it is not done: a small action takes far less than 4 GiB do
    assert row["bytesHashed"] < later["bytesHashed"] < SIZE + 2**30
    done = daemon.end(opener, large / "the-record")
    assert (done.returncode, done.stdout) == (0, b"\0")
    leaf = done.materials()[b"sparse"]
    assert (leaf.digest.hex(), leaf.size) == (ZEROS_SHA256, SIZE)
    assert daemon.status()["activity"] == []
    assert not any(
        done.field("summary", "diagnostics")[name]
        for name in ("unhashedOpensTotal", "fanotifyTimeouts", "hashedBytesCapHit")
    )
