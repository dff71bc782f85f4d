"""Every process runs below the launcher: the wrap for Pants 2.17 to 2.21.

The engine's own rule `FallibleProcessResult <- Process` is keyed by the types that the scheduler
gives it. While a scheduler with our rules is built, `building` puts a subclass of the result there,
so that the only rule for a `FallibleProcessResult` is the one below:

    Process -> captured_execute -> launcher + argv -> Process -> engine
    FallibleProcessResult <- record stripped, checked, noted  <- NativeResult with the record

Owns no state. What solving the rule graph costs at the start of pantsd decides its form: the engine
solves what is below `captured_execute` again for each set of parameters that a caller has. Were the
type of the result the same, it would weigh two rules wherever a process is asked for (four seconds
more); a parameter that depends on an environment takes minutes. So the process alone is asked for
in the ordinary way; the rest goes through unions, which are queries of their own, solved once.
"""

from __future__ import annotations

import contextlib
import dataclasses
from dataclasses import dataclass
from typing import Any, Callable, Iterator

import pants.engine.internals.scheduler as pants_scheduler
from pants.engine.engine_aware import EngineAwareParameter
from pants.engine.fs import Digest, DigestContents, DigestEntries, DigestSubset
from pants.engine.internals.session import RunId, SessionValues
from pants.engine.process import FallibleProcessResult, Process
from pants.engine.rules import Get, MultiGet, collect_rules, rule
from pants.engine.unions import UnionRule, union
from pants.util.logging import LogLevel

from rootseal_pants.evidence import Evidence
from rootseal_pants.identity import action_text, output_prefix, process_key
from rootseal_pants.settings import Capture, CaptureRequest
from rootseal_pants.verdicts import CaptureFailed, no_record_problem, refused_message
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


class NativeResult(FallibleProcessResult):
    """What the engine itself answers: the result of a process as it was run."""

    def seen_by_caller(self, output_digest: Digest) -> FallibleProcessResult:
        """The same result, with these outputs, as the type that was asked for."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return FallibleProcessResult(**{**fields, "output_digest": output_digest})


def is_wrapped(rules: tuple[Any, ...]) -> bool:
    """Whether a scheduler with these rules is one of ours."""
    wrapper: Any = captured_execute
    return any(getattr(rule, "func", None) is wrapper.rule.func for rule in rules)


@contextlib.contextmanager
def building(ours: bool) -> Iterator[None]:
    """While this is open, a scheduler that is built answers `NativeResult` if it has our rules."""
    scheduler: Any = pants_scheduler
    scheduler.FallibleProcessResult = NativeResult if ours else FallibleProcessResult
    try:
        yield
    finally:
        scheduler.FallibleProcessResult = FallibleProcessResult


def new_session(start: Callable[[SessionValues], Any], values: SessionValues) -> Any:
    """Start a session of ours: nothing to add, the rules are part of the scheduler."""
    return start(values)


@union
class Captures:
    """What `CaptureRequest` is asked for as; so are the requests below, for the same reason."""


@union
class Settles:
    """What `SettleRequest` is asked for as."""


@union
class Notes:
    """What `ActionNode` is asked for as."""


@union
class RunQuestions:
    """What `ThisRunRequest` is asked for as."""


@dataclass(frozen=True)
class ThisRun:
    """The engine's number of this run."""

    run_id: int


@dataclass(frozen=True)
class SettleRequest:
    """Asks to take the record out of a result, and whether it is to be believed.

    Attributes:
        capture: How was captured.
        action_key: Of the process.
        action: What it stands for.
        digest: Output directory of the wrapped process.
        exit_code: Its exit code.
        prefix: What makes an output's path relative to the sandbox.
    """

    capture: Capture
    action_key: str
    action: str
    digest: Digest
    exit_code: int
    prefix: str


@dataclass(frozen=True)
class Settled:
    """What the caller of the process sees, and the judgement of its record."""

    rest: Digest
    admission: Admission


@rule
async def settle_result(request: SettleRequest) -> Settled:
    """Take the record and the launcher's directory out of the output; have the record checked."""
    record, rest = await MultiGet(
        Get(Digest, DigestSubset(request.digest, RECORD_GLOBS)),
        Get(Digest, DigestSubset(request.digest, REST_GLOBS)),
    )
    contents = await Get(DigestContents, Digest, record)
    entries = await Get(DigestEntries, Digest, rest)
    outputs = outputs_of(entries, request.prefix)
    admission = judge(
        request.capture,
        request.action_key,
        request.action,
        contents,
        outputs,
        request.exit_code,
    )
    return Settled(rest, admission)


@dataclass(frozen=True)
class ActionNode(EngineAwareParameter):
    """Leaves the evidence of an action in the node graph, where `graph.py` finds it."""

    evidence: Evidence

    def debug_hint(self) -> str:
        """The label of the node."""
        return self.evidence.label()


@dataclass(frozen=True)
class ActionNoted:
    """The evidence is in the graph."""


@rule
async def note_action(_: ActionNode) -> ActionNoted:
    """Nothing to do: that the node is there is the point."""
    return ActionNoted()


@dataclass(frozen=True)
class ThisRunRequest:
    """Asks which run this is."""


@rule
async def which_run(_: ThisRunRequest, run_id: RunId) -> ThisRun:
    """The run that asks: it is never remembered, and neither is what depends on it."""
    return ThisRun(int(run_id))


@rule(desc="Captured process", level=LogLevel.TRACE)
async def captured_execute(process: Process) -> FallibleProcessResult:
    """Run a process below the launcher, and believe its result only with a good record.

    A result from a cache whose record is refused or incomplete is asked for again, as another
    process; so is, once, one whose capture lost something through other programs.
    """
    capture = await Get(Capture, Captures, CaptureRequest())
    if capture.daemon is None:
        bare = await Get(NativeResult, Process, process)
        return bare.seen_by_caller(bare.output_digest)
    key, action = process_key(process, platform=capture.platform), action_text(process)
    attempts = Attempts(capture.daemon)
    for salt in attempts.salts():
        fields = wrapped_fields(process, key=key, capture=capture, salt=salt)
        result = await Get(NativeResult, Process, Process(**fields))
        settled = await Get(
            Settled,
            Settles,
            SettleRequest(
                capture,
                key,
                action,
                result.output_digest,
                result.exit_code,
                output_prefix(process.working_directory),
            ),
        )
        admission = settled.admission
        problem = "" if admission.record else no_record_problem(process, result)
        verdict, run_id = admission.verdict, None
        if verdict.losses or not (verdict.accepted or problem):  # else all would be forgotten
            run_id = (await Get(ThisRun, RunQuestions, ThisRunRequest())).run_id
        decision = attempts.decide(process, result, admission, problem, run_id)
        if decision is Decision.TAKE:
            evidence = evidence_of(process, key, result, admission, problem)
            await Get(ActionNoted, Notes, ActionNode(evidence))
            return result.seen_by_caller(settled.rest)
        if decision is Decision.REFUSE:
            break
    reason = admission.verdict.reason
    raise CaptureFailed(refused_message(process, key, result, admission.record, reason))


def rules() -> list[object]:
    """The rules of this module."""
    return [
        *collect_rules(),
        UnionRule(Captures, CaptureRequest),
        UnionRule(Settles, SettleRequest),
        UnionRule(Notes, ActionNode),
        UnionRule(RunQuestions, ThisRunRequest),
    ]
