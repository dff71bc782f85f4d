"""Programs that the plugin starts without a fork: streams, end, and what they inherit."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rootseal_pants.child import Child

LONG = b"x" * 300_000  # several times what a pipe holds
SECONDS = 60.0


def shell(script: str) -> Child:
    return Child(["sh", "-c", script])


def test_it_gets_its_request_and_gives_both_outputs_and_its_code() -> None:
    child = shell("cat; cat /dev/null; echo worse >&2; exit 7")
    done = child.finish(LONG, timeout_seconds=SECONDS)
    assert (done.returncode, done.stdout, done.stderr) == (7, LONG, b"worse\n")
    assert child.delivered


def test_without_a_request_its_standard_input_is_empty() -> None:
    done = shell("wc -c").finish(timeout_seconds=SECONDS)
    assert done.stdout.strip() == b"0"


def test_a_request_that_is_not_read_is_not_delivered() -> None:
    child = shell("exit 3")
    assert child.finish(LONG, timeout_seconds=SECONDS).returncode == 3
    assert not child.delivered


def test_the_code_of_a_signal_is_negative() -> None:
    assert shell("kill -KILL $$").finish(timeout_seconds=SECONDS).returncode == -signal.SIGKILL


@pytest.mark.parametrize("script", ["exec sleep 600", "exec sleep 600 >&- 2>&-"])
def test_it_is_killed_and_reaped_when_time_is_up(script: str) -> None:
    child = shell(script)
    with pytest.raises(subprocess.TimeoutExpired):
        child.finish(timeout_seconds=0.2)
    assert is_reaped(child)


def test_it_ends_with_its_block() -> None:
    with pytest.raises(KeyboardInterrupt), shell("exec sleep 600") as child:
        raise KeyboardInterrupt
    assert is_reaped(child)


def test_it_reads_the_end_of_its_input_when_its_starter_dies() -> None:
    """What pantsd starts does not outlive it."""
    starter = (
        "from rootseal_pants.child import Child; import os, signal\n"
        "print(Child(['sh', '-c', 'cat; sleep 0.1'])._pid, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", starter], capture_output=True)
    assert done.returncode == -signal.SIGKILL
    wait_for_the_end_of(int(done.stdout))


def test_what_is_missing_or_no_program_is_an_error_of_the_system(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Child([str(tmp_path / "missing")])
    with pytest.raises(PermissionError):
        Child([str(tmp_path)])


def test_it_inherits_the_standard_streams_only(tmp_path: Path) -> None:
    before = open_descriptors()
    with (tmp_path / "store").open("wb") as store:
        os.set_inheritable(store.fileno(), True)  # as Pants opens its store
        done = Child(["ls", "/proc/self/fd"]).finish(timeout_seconds=SECONDS)
    assert done.stdout.split() == [b"0", b"1", b"2", b"3"]  # 3 is the listing's own
    assert open_descriptors() == before


def test_it_sees_the_environment_and_the_defaults_of_signals() -> None:
    os.environ["ROOTSEAL_TEST_CHILD"] = "seen"
    try:
        done = shell("echo $ROOTSEAL_TEST_CHILD; grep SigIgn /proc/self/status").finish(
            timeout_seconds=SECONDS
        )
    finally:
        del os.environ["ROOTSEAL_TEST_CHILD"]
    seen, ignored = done.stdout.splitlines()
    assert seen == b"seen"
    assert not int(ignored.split()[1], 16) & 1 << signal.SIGPIPE - 1


def test_it_works_in_a_process_without_standard_streams() -> None:
    """Pipes would get their numbers, and the child would lose one of them."""
    inner = (
        "import os\nfor number in range(3): os.close(number)\n"
        "from rootseal_pants.child import Child\n"
        "done = Child(['sh', '-c', 'cat; echo err >&2']).finish(b'in', timeout_seconds=60)\n"
        "os._exit(0 if (done.stdout, done.stderr) == (b'in', b'err\\n') else 1)"
    )
    assert subprocess.run([sys.executable, "-c", inner]).returncode == 0


def is_reaped(child: Child) -> bool:
    return not Path(f"/proc/{child._pid}").exists()


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def wait_for_the_end_of(pid: int) -> None:
    for _ in range(1000):
        path = Path(f"/proc/{pid}/stat")
        try:
            if path.read_text("utf-8").rsplit(")", 1)[1].split()[0] == "Z":
                return  # nobody reaps what this machine's init leaves; it has ended
        except (FileNotFoundError, ProcessLookupError):
            return
        time.sleep(0.02)
    pytest.fail(f"process {pid} still runs")
