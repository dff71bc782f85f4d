"""The wrap for Pants 2.23 and later, on the engine that is installed.

`captured_execute` gets the functions of `native_engine` that later versions have, each of them
answered by the engine of Pants 2.17: processes, launcher, records and daemon are real.
"""

from __future__ import annotations

import asyncio
import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable, Optional

import pytest
from pants.engine.environment import EnvironmentName
from pants.engine.fs import (
    CreateDigest,
    Digest,
    DigestContents,
    DigestEntries,
    DigestSubset,
    FileContent,
    PathGlobs,
)
from pants.engine.internals.session import RunId, SessionValues
from pants.engine.process import FallibleProcessResult, Process
from pants.testutil.rule_runner import QueryRule, RuleRunner
from rootseal.errors import ConfigError
from rootseal_pants import common_rules, wrap_byname
from rootseal_pants.evidence import Evidence, evidence_from_label
from rootseal_pants.identity import LAUNCHER_DIRECTORY, RECORD_FILE
from rootseal_pants.manifest import NOTE_DIRECTORY
from rootseal_pants.run_capture import RunCapture
from rootseal_pants.settings import Settings
from rootseal_pants.verdicts import CaptureFailed
from rootseal_pants.wrapping import RecordStore

WRITE = Process(
    ["/bin/bash", "-c", "echo hi > out.txt; echo said"],
    description="write a file",
    output_files=["out.txt"],
)
Change = Callable[[FallibleProcessResult], FallibleProcessResult]


def bare_engine(*options: str) -> RuleRunner:
    """An engine that has the plugin's options, and does not wrap."""
    answers = [(Digest, CreateDigest), (Digest, DigestSubset), (Digest, PathGlobs)]
    answers += [(DigestContents, Digest), (DigestEntries, Digest)]
    queries = [QueryRule(product, [subject]) for product, subject in answers]
    queries += [QueryRule(Settings, []), QueryRule(RunId, [])]
    queries += [QueryRule(FallibleProcessResult, [Process, EnvironmentName])]
    rules: list[Any] = [*common_rules.rules(), *queries]
    runner = RuleRunner(rules=rules, inherent_environment=None)
    runner.set_options(options)
    return runner


def run_bare(runner: RuleRunner, process: Process) -> FallibleProcessResult:
    """Have the engine run a process."""
    return runner.request(FallibleProcessResult, [process, EnvironmentName(None)])


@dataclass
class LaterEngine:
    """What `native_engine` is from Pants 2.23 on, as far as the wrap needs it.

    Attributes:
        runner: Answers.
        values: Of the session.
        changes: What becomes of the results of the first processes.
        asked: The processes that were run.
        notes: The globs that were asked for.
    """

    runner: RuleRunner
    values: SessionValues
    changes: list[Change] = field(default_factory=list)
    asked: list[Process] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    async def native(self, process: Process, environment: Environment) -> FallibleProcessResult:
        self.asked.append(process)
        result = run_bare(self.runner, process)
        return self.changes.pop(0)(result) if self.changes else result

    async def session_values(self) -> SessionValues:
        return self.values

    async def run_id(self) -> RunId:
        return self.runner.request(RunId, [])

    async def create_digest(self, request: CreateDigest) -> Digest:
        return self.runner.request(Digest, [request])

    async def digest_subset_to_digest(self, request: DigestSubset) -> Digest:
        return self.runner.request(Digest, [request])

    async def get_digest_contents(self, digest: Digest) -> DigestContents:
        return self.runner.request(DigestContents, [digest])

    async def get_digest_entries(self, digest: Digest) -> DigestEntries:
        return self.runner.request(DigestEntries, [digest])

    async def path_globs_to_digest(self, globs: PathGlobs) -> Digest:
        self.notes.extend(globs.globs)
        return self.runner.request(Digest, [globs])

    def execute(self, process: Process, kind: str = "local") -> FallibleProcessResult:
        """Run a process as the rule for processes does."""
        wrapped = wrap_byname.captured_execute(self, self.native, process, Environment(kind))
        return asyncio.run(wrapped)

    def evidence(self) -> Evidence:
        """The one note that was left."""
        (note,) = self.notes
        directory, _, label = note.partition("/")
        assert directory == NOTE_DIRECTORY
        return evidence_from_label(label)


@dataclass(frozen=True)
class Environment:
    """As far as the wrap looks at it."""

    environment_type: str


@dataclass(frozen=True)
class Started:
    """What starting a session gives."""

    scheduler_session: Any


def started(runner: RuleRunner) -> LaterEngine:
    """An engine in a session that was started as the hook does."""
    seen: list[SessionValues] = []

    def start(values: SessionValues) -> Started:
        seen.append(values)
        return Started(runner.scheduler)

    wrap_byname.new_session(start, SessionValues({str: "of the runner"}))
    (values,) = seen
    assert values[str] == "of the runner"
    return LaterEngine(runner, values)


@pytest.fixture(scope="module")
def runner(executable: str, daemon_socket: str) -> RuleRunner:
    return bare_engine(
        f"--rootseal-executable={executable}", f"--rootseal-daemon-socket={daemon_socket}"
    )


@pytest.fixture
def engine(runner: RuleRunner) -> LaterEngine:
    """An engine in a new session."""
    return started(runner)


def without_record(result: FallibleProcessResult, runner: RuleRunner) -> FallibleProcessResult:
    empty = runner.request(Digest, [CreateDigest([])])
    return dataclasses.replace(result, output_digest=empty)


def with_record(
    result: FallibleProcessResult, runner: RuleRunner, content: bytes
) -> FallibleProcessResult:
    digest = runner.request(Digest, [CreateDigest([FileContent(RECORD_FILE, content)])])
    return dataclasses.replace(result, output_digest=digest)


def from_run(result: FallibleProcessResult, run_id: Optional[int]) -> FallibleProcessResult:
    metadata = dataclasses.replace(result.metadata, source_run_id=run_id)
    return dataclasses.replace(result, metadata=metadata)


def test_the_result_is_that_of_the_bare_process_and_its_record_is_kept(
    engine: LaterEngine, runner: RuleRunner
) -> None:
    result, bare = engine.execute(WRITE), run_bare(runner, WRITE)
    assert (result.stdout, result.output_digest) == (b"said\n", bare.output_digest)
    (asked,) = engine.asked
    assert asked.argv[0] == f"./{LAUNCHER_DIRECTORY}/exec"
    evidence = engine.evidence()
    settings = engine.values[RunCapture].settings()
    assert RecordStore(settings.records_dir).holds(evidence.record, evidence.record_size)
    assert (evidence.problem, evidence.description) == ("", "write a file")


def test_the_launcher_is_stored_once_for_a_run(engine: LaterEngine) -> None:
    engine.execute(WRITE)
    stored = engine.values[RunCapture].launcher
    engine.execute(dataclasses.replace(WRITE, argv=("/bin/bash", "-c", "echo again > out.txt")))
    assert engine.values[RunCapture].launcher is stored
    assert {p.immutable_input_digests[LAUNCHER_DIRECTORY] for p in engine.asked} == {stored}


def test_other_sessions_run_their_processes_bare(runner: RuleRunner) -> None:
    engine = LaterEngine(runner, SessionValues({}))
    assert engine.execute(WRITE).exit_code == 0
    assert (engine.asked, engine.notes) == ([WRITE], [])


def test_switched_off_there_is_no_capture_and_no_daemon(tmp_path: Path) -> None:
    missing = tmp_path / "none"
    options = ("--no-rootseal-enabled", f"--rootseal-executable={missing}")
    engine = started(bare_engine(*options))
    assert engine.execute(WRITE).exit_code == 0
    assert (engine.asked, engine.notes) == ([WRITE], [])


def test_a_workspace_process_runs_bare_and_has_no_record(engine: LaterEngine) -> None:
    assert engine.execute(WRITE, "workspace").exit_code == 0
    assert engine.asked == [WRITE]
    evidence = engine.evidence()
    assert evidence.record == ""
    assert evidence.problem.startswith("it runs in the workspace")


def test_a_result_of_this_run_without_a_record_is_refused(
    engine: LaterEngine, runner: RuleRunner
) -> None:
    engine.changes = [lambda result: without_record(result, runner)]
    with pytest.raises(CaptureFailed, match=r"\(write a file\) ended .* and left no record"):
        engine.execute(WRITE)
    assert (len(engine.asked), engine.notes) == (1, [])


def test_a_result_from_memory_whose_record_is_refused_is_made_anew(
    engine: LaterEngine, runner: RuleRunner
) -> None:
    """Of a process that ran in another run of this pantsd: a new capture key, say."""
    engine.changes = [lambda result: from_run(with_record(result, runner, b"{}"), 4_000_000_000)]
    assert engine.execute(WRITE).exit_code == 0
    first, second = engine.asked
    salts = [[a for a in p.argv if a.startswith("--option=attempt=")] for p in (first, second)]
    assert (len(salts[0]), len(salts[1])) == (0, 1)
    assert engine.evidence().record != ""


def test_two_runs_are_never_equal(runner: RuleRunner) -> None:
    """Else the engine would take what a process left in the run before, unseen."""
    assert started(runner).values != started(runner).values


def test_the_daemon_is_asked_for_once_in_a_run(engine: LaterEngine) -> None:
    run = engine.values[RunCapture]
    assert run.ready_daemon() is run.ready_daemon()


def test_what_is_wrong_with_the_options_is_said_by_the_first_process() -> None:
    engine = started(bare_engine("--rootseal-max-digests=0"))
    for _ in range(2):
        with pytest.raises(ConfigError, match=r"\[rootseal\].max_digests must be from 1 to "):
            engine.execute(WRITE)
    assert engine.asked == []


def test_no_daemon_is_said_by_each_process_and_looked_for_once(tmp_path: Path) -> None:
    program = tmp_path / "rootseal"
    program.write_text(f"#!/bin/sh\necho called >> {tmp_path}/calls\nexit 3\n")
    program.chmod(0o755)
    socket = tmp_path / "daemon.sock"
    engine = started(
        bare_engine(f"--rootseal-executable={program}", f"--rootseal-daemon-socket={socket}")
    )
    said = []
    for _ in range(2):
        with pytest.raises(Exception, match="daemon ensure") as caught:
            engine.execute(WRITE)
        said.append(caught.value)
    assert said[0] is said[1]
    assert (tmp_path / "calls").read_text() == "called\n"
    assert engine.asked == []
