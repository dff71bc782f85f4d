"""The record of an action with very many materials, from the kernel's events to the verifier."""

from __future__ import annotations

from pathlib import Path

import pytest
from running_daemon import RunningDaemon

pytestmark = pytest.mark.requires("root", "fanotify", "launcher", "core")
MATERIALS = 100_000
FILES_PER_DIRECTORY = 500
RECORD_BYTES_MAX = 8_000_000


@pytest.mark.heavy
def test_a_hundred_thousand_materials_fit_a_small_record(
    daemon: RunningDaemon, sandbox: Path
) -> None:
    for number in range(MATERIALS):
        directory, name = divmod(number, FILES_PER_DIRECTORY)
        path = sandbox / f"third_party/library{directory % 7}/src/main/component{directory}"
        if name == 0:
            path.mkdir(parents=True)
        (path / f"source_{name}.c").write_bytes(b"%d" % number)
    read_all = "tar -cf - third_party | cat > /dev/null"
    done = daemon.run(sandbox, ["/bin/sh", "-c", read_all], "--option=require-zero-drops=1")
    assert done.returncode == 0, done.stderr
    assert done.record.stat().st_size <= RECORD_BYTES_MAX
    found = [path for path in done.materials() if path.startswith(b"third_party/")]
    assert len(found) == MATERIALS
