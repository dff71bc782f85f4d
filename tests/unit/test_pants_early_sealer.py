"""The sealer that is started with the goals: who uses it, who ends it, and when it is no good."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import threading
import time
from pathlib import Path
from typing import Iterator

import pytest
from rootseal.errors import CaptureError
from rootseal_pants import early_sealer
from rootseal_pants.runtime import run_rootseal

SECONDS = 60.0
# Notes each start in the directory `log`: the process id, and the arguments it was started with.
SEALER = """\
#!/bin/sh
echo "$*" > "$(dirname "$0")/log/$$"
if [ "$2" = --arguments-on-stdin ]; then request=$(cat); else request="$*"; fi
[ "$request" ] || exit 0
"""
ANSWER = 'echo "pid $$ got $request"; echo "in $PLACE" >&2; exit 4\n'


class Sealer:
    """A program in the place of `rootseal`."""

    def __init__(self, directory: Path, script: str) -> None:
        self.path = str(directory / "rootseal")
        self.log = directory / "log"
        self.log.mkdir(parents=True)
        Path(self.path).write_text(SEALER + script, "utf-8")
        Path(self.path).chmod(0o755)

    def command(self, *words: str) -> list[str]:
        return [self.path, "seal", *words]

    def pids(self, count: int) -> list[int]:
        """The processes that were started, when there are as many."""
        for _ in range(1000):
            if len(found := self.started()) >= count:
                break
            time.sleep(0.02)
        assert len(found) == count
        return sorted(found)

    def started(self) -> dict[int, str]:
        files = (path for path in self.log.iterdir() if path.stat().st_size)
        return {int(path.name): path.read_text("utf-8").strip() for path in files}


@pytest.fixture
def sealer(tmp_path: Path) -> Sealer:
    return Sealer(tmp_path / "bin", ANSWER)


@pytest.fixture
def session() -> object:
    return object()


@contextlib.contextmanager
def waiting(session: object, sealer: Sealer) -> Iterator[int]:
    """A sealer that waits; gives its process."""
    with early_sealer.early_sealer(session):
        early_sealer.start(session, sealer.path)
        (pid,) = sealer.pids(1)
        yield pid


def run(session: object, sealer: Sealer, *words: str) -> tuple[int, str, str]:
    done = early_sealer.run(session, sealer.command(*words), timeout_seconds=SECONDS)
    return done.returncode, done.stdout.decode(), done.stderr.decode()


def is_gone(pid: int) -> bool:
    return not Path(f"/proc/{pid}").exists()


def test_the_one_that_waits_gets_the_arguments(session: object, sealer: Sealer) -> None:
    word = os.fsdecode(b"a\xff b%")
    with waiting(session, sealer) as pid:
        code, out, _ = run(session, sealer, word, "--json")
    assert code == 4 and out == f"pid {pid} got {json.dumps(['a%FF b%25', '--json'])}\n"
    assert list(sealer.started().values()) == ["seal --arguments-on-stdin"]
    assert is_gone(pid)


def test_without_one_it_is_started_with_them(session: object, sealer: Sealer) -> None:
    assert run(session, sealer, "m.json")[1].endswith("got seal m.json\n")
    with early_sealer.early_sealer(session):
        assert run(session, sealer, "m.json")[1].endswith("got seal m.json\n")
    early_sealer.start(session, sealer.path)  # no place is open
    assert set(sealer.started().values()) == {"seal m.json"}


@pytest.mark.parametrize("error", [None, KeyboardInterrupt, RuntimeError])
def test_it_ends_with_the_goals(
    session: object, sealer: Sealer, error: type[BaseException] | None
) -> None:
    with contextlib.suppress(error or ValueError), waiting(session, sealer) as pid:
        if error is not None:
            raise error
    assert is_gone(pid)


def test_one_goal_after_another_has_its_own(session: object, sealer: Sealer) -> None:
    with waiting(session, sealer) as first:
        run(session, sealer)
    with early_sealer.early_sealer(session):
        early_sealer.start(session, sealer.path)
        (second,) = set(sealer.pids(2)) - {first}
        assert f"pid {second} got" in run(session, sealer)[1]


def test_a_goal_inside_another_uses_that_ones(session: object, sealer: Sealer) -> None:
    with waiting(session, sealer) as pid:
        with early_sealer.early_sealer(session):
            early_sealer.start(session, sealer.path)
        assert not is_gone(pid)  # the outer goal ends it
        assert f"pid {pid} got" in run(session, sealer)[1]
    assert sealer.pids(1) == [pid]


def test_it_seals_once(session: object, sealer: Sealer) -> None:
    with waiting(session, sealer) as pid:
        run(session, sealer)
        assert f"pid {pid} " not in run(session, sealer, "again")[1]


def test_at_most_one_waits_and_only_for_its_own_session(session: object, sealer: Sealer) -> None:
    other = object()
    with waiting(session, sealer) as pid:
        with early_sealer.early_sealer(other):
            early_sealer.start(other, sealer.path)
            assert sealer.pids(1) == [pid]
            assert f"pid {pid} " not in run(other, sealer, "other")[1]
        assert not is_gone(pid)
        assert f"pid {pid} got" in run(session, sealer)[1]


def test_many_sessions_at_once_leave_no_process(sealer: Sealer) -> None:
    answers: list[tuple[int, str, str]] = []

    def goal() -> None:
        own = object()
        with early_sealer.early_sealer(own):
            early_sealer.start(own, sealer.path)
            answers.append(run(own, sealer, "x"))

    threads = [threading.Thread(target=goal) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [code for code, _, _ in answers] == [4] * 8
    assert all(is_gone(pid) for pid in sealer.pids(8))


def test_another_environment_or_executable_gets_a_new_one(
    session: object, sealer: Sealer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with waiting(session, sealer) as pid:
        monkeypatch.setenv("PLACE", "this run")
        _, out, error = run(session, sealer, "x")
        assert out.endswith("got seal x\n") and error == "in this run\n"
        assert is_gone(pid)
    other = Sealer(tmp_path / "other", ANSWER)
    with early_sealer.early_sealer(session):
        early_sealer.start(session, sealer.path)
        assert run(session, other, "x")[1].endswith("got seal x\n")


def test_one_that_died_while_it_waited_is_replaced(
    session: object, sealer: Sealer, caplog: pytest.LogCaptureFixture
) -> None:
    with waiting(session, sealer) as pid:
        os.kill(pid, signal.SIGKILL)
        assert early_sealer._place and early_sealer._place.sealer
        while not early_sealer._place.sealer.has_ended():
            time.sleep(0.01)
        assert run(session, sealer, "x")[1].endswith("got seal x\n")
    (message,) = caplog.messages
    assert "exit code -9" in message


def test_one_that_cannot_be_started_is_the_error_of_the_needed_one(
    session: object, sealer: Sealer, caplog: pytest.LogCaptureFixture
) -> None:
    Path(sealer.path).unlink()
    with early_sealer.early_sealer(session):
        early_sealer.start(session, sealer.path)
        with pytest.raises(Exception, match=r"cannot run .*: No such file"):
            run(session, sealer)
    assert not caplog.messages


def test_one_that_dies_at_work_is_not_replaced(session: object, tmp_path: Path) -> None:
    """It may have signed something: the build is refused, as it always was."""
    sealer = Sealer(tmp_path, "kill -KILL $$\n")
    with waiting(session, sealer):
        assert run(session, sealer, "x")[0] == -signal.SIGKILL
    sealer.pids(1)


def test_one_that_hangs_is_the_same_error(session: object, tmp_path: Path) -> None:
    sealer = Sealer(tmp_path, "exec sleep 600\n")
    command = sealer.command("x", "--json")
    with waiting(session, sealer), pytest.raises(CaptureError) as early:
        early_sealer.run(session, command, timeout_seconds=0.2)
    with pytest.raises(CaptureError) as plain:  # perhaps killed before its first line
        run_rootseal(command, timeout_seconds=0.2)
    assert str(early.value) == str(plain.value)
    assert all(is_gone(pid) for pid in sealer.started())
