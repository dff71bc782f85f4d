"""Every process runs below the launcher: the wrap for Pants 2.23 and later.

There the rule for a process is `pants.engine.intrinsics.execute_process`, whoever asks for one, by
name or by type; it has the engine run the process by `native_engine.execute_process`. Once a
scheduler with our rules is built, that name stands for the function below. It runs inside the
frame of that rule, so what it awaits of the engine are dependencies of the rule's node, and nothing
is added to the rule graph. What it needs of a run is in the session's values (run_capture.py);
sessions without it, as the one that resolves `plugins=`, run their processes bare.

    execute_process (rule) -> captured_execute -> native execute_process, launcher + argv
                                               -> native digest calls: record stripped and checked
                                               -> a Snapshot node that notes the evidence

docs/pants.md says what has been tried of it, with which versions.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from typing import Any, Awaitable, Callable, Iterator, Protocol

from pants.engine.fs import DigestSubset, PathGlobs
from pants.engine.internals import native_engine
from pants.engine.internals.session import SessionValues
from pants.engine.platform import Platform
from pants.engine.process import FallibleProcessResult, Process

from rootseal_pants.evidence import Evidence
from rootseal_pants.identity import action_text, output_prefix, process_key
from rootseal_pants.manifest import NOTE_DIRECTORY
from rootseal_pants.run_capture import RunCapture
from rootseal_pants.runtime import Verdict
from rootseal_pants.settings import Capture, LauncherRequest, launcher_files
from rootseal_pants.verdicts import (
    WORKSPACE_PROBLEM,
    CaptureFailed,
    no_record_problem,
    refused_message,
)
from rootseal_pants.wrapping import (
    RECORD_GLOBS,
    REST_GLOBS,
    Admission,
    Attempts,
    Decision,
    evidence_of,
    judge,
    outputs_of,
    wrapped_fields,
)

Execute = Callable[[Process, Any], Awaitable[FallibleProcessResult]]
_WORKSPACE = "workspace"


class Engine(Protocol):
    """The functions of `native_engine` that are awaited here; each is one of Pants' intrinsics."""

    def create_digest(self, request: Any, /) -> Awaitable[Any]:
        """Store files."""

    def digest_subset_to_digest(self, request: Any, /) -> Awaitable[Any]:
        """Take a part of a directory."""

    def get_digest_contents(self, digest: Any, /) -> Awaitable[Any]:
        """Files with their contents."""

    def get_digest_entries(self, digest: Any, /) -> Awaitable[Any]:
        """Files with their digests."""

    def path_globs_to_digest(self, globs: Any, /) -> Awaitable[Any]:
        """Take files of the build root; leaves a Snapshot node."""

    def run_id(self) -> Awaitable[Any]:
        """The number of this run."""

    def session_values(self) -> Awaitable[Any]:
        """What the session was started with."""


def is_wrapped(rules: tuple[Any, ...]) -> bool:
    """Whether a scheduler with these rules is one of ours: it can prepare a capture."""
    return any(getattr(rule, "output_type", None) is Capture for rule in rules)


@contextlib.contextmanager
def building(ours: bool) -> Iterator[None]:
    """While a scheduler is built; with the first one of ours, processes begin to be captured."""
    engine: Any = native_engine
    native = engine.execute_process
    if ours and not isinstance(native, functools.partial):
        engine.execute_process = functools.partial(captured_execute, engine, native)
    yield


def new_session(start: Callable[[SessionValues], Any], values: SessionValues) -> Any:
    """Start a session of ours: what capture needs is in its values before a process can ask."""
    run = RunCapture()
    graph_session = start(SessionValues({**values, RunCapture: run}))
    run.read_options(graph_session.scheduler_session)
    return graph_session


async def captured_execute(
    engine: Engine, native: Execute, process: Process, environment: Any
) -> FallibleProcessResult:
    """Run a process below the launcher, and believe its result only with a good record.

    A result from a cache whose record is refused or incomplete is asked for again, as another
    process; so is, once, one whose capture lost something through other programs.
    """
    run = (await engine.session_values()).get(RunCapture)  # another run makes the node again
    if run is None or not run.settings().enabled:
        return await native(process, environment)
    if environment.environment_type == _WORKSPACE:
        return await _in_workspace(engine, native, process, environment)
    daemon = run.ready_daemon()
    capture = Capture(run.settings(), await _launcher(engine, run), daemon, _platform())
    key = process_key(process, platform=capture.platform)
    attempts = Attempts(daemon)
    for salt in attempts.salts():
        fields = wrapped_fields(process, key=key, capture=capture, salt=salt)
        result = await native(Process(**fields), environment)
        record, rest = await _split(engine, result)
        entries = await engine.get_digest_entries(rest)
        outputs = outputs_of(entries, output_prefix(process.working_directory))
        contents = await engine.get_digest_contents(record)
        admission = judge(capture, key, action_text(process), contents, outputs, result.exit_code)
        problem = "" if admission.record else no_record_problem(process, result)
        run_id = int(await engine.run_id())
        decision = attempts.decide(process, result, admission, problem, run_id)
        if decision is Decision.TAKE:
            await _note(engine, evidence_of(process, key, result, admission, problem))
            return dataclasses.replace(result, output_digest=rest)
        if decision is Decision.REFUSE:
            break
    reason = admission.verdict.reason
    raise CaptureFailed(refused_message(process, key, result, admission.record, reason))


async def _in_workspace(
    engine: Engine, native: Execute, process: Process, environment: Any
) -> FallibleProcessResult:
    """Run a process in the build root itself: it has no sandbox to capture, so no record either.

    It is like any other for who asks; only an attestation cannot have it.
    """
    result = await native(process, environment)
    key = process_key(process, platform=_platform())
    none = Admission(Verdict(False, WORKSPACE_PROBLEM), "", 0)
    await _note(engine, evidence_of(process, key, result, none, WORKSPACE_PROBLEM))
    return result


async def _launcher(engine: Engine, run: RunCapture) -> Any:
    """The directory with the launcher, in the engine's store."""
    if run.launcher is None:
        files = launcher_files(LauncherRequest(run.ready_daemon()))
        run.launcher = await engine.create_digest(files)
    return run.launcher


def _platform() -> str:
    return Platform.create_for_localhost().value


async def _split(engine: Engine, result: FallibleProcessResult) -> tuple[Any, Any]:
    """The record's directory, and the output without it."""
    record = await engine.digest_subset_to_digest(DigestSubset(result.output_digest, RECORD_GLOBS))
    rest = await engine.digest_subset_to_digest(DigestSubset(result.output_digest, REST_GLOBS))
    return record, rest


async def _note(engine: Engine, evidence: Evidence) -> None:
    """Leave the evidence in the node graph: the label of a Snapshot node is its glob.

    The glob matches no file; only that the node is there counts.
    """
    await engine.path_globs_to_digest(PathGlobs([f"{NOTE_DIRECTORY}/{evidence.label()}"]))


def rules() -> list[object]:
    """No rules: see above."""
    return []
