"""Every process runs below the launcher: the wrap for Pants 2.23 and later.

There the rule for a process is `pants.engine.intrinsics.execute_process`, which has the engine run
it by `native_engine.execute_process`. While a run of ours lasts, that name stands for the function
below: it runs inside the frame of that rule, so what it awaits of the engine are dependencies of
the rule's node, and nothing is added to the rule graph.

    execute_process (rule) -> captured_execute -> native execute_process, launcher + argv
                                               -> native digest calls: record stripped and checked
                                               -> a Snapshot node that notes the evidence

Checked against the source of eight releases from 2.23 to 2.34.0.dev3 (types, and that Pants reads
every rule). No such Pants is on PyPI, so it has not been run; docs/pants.md says so.
"""

from __future__ import annotations

import contextlib
import dataclasses
from typing import Any, Awaitable, Callable, Iterator, Optional

from pants.engine.fs import DigestSubset, PathGlobs
from pants.engine.internals import native_engine
from pants.engine.internals.selectors import Params
from pants.engine.process import FallibleProcessResult, Process

from rootseal_pants.compat import requested
from rootseal_pants.evidence import Evidence
from rootseal_pants.identity import action_text, output_prefix, process_key
from rootseal_pants.manifest import NOTE_DIRECTORY
from rootseal_pants.settings import Capture, CaptureRequest
from rootseal_pants.verdicts import CaptureFailed, no_record_problem, refused_message
from rootseal_pants.wrapping import (
    RECORD_GLOBS,
    REST_GLOBS,
    Attempts,
    Decision,
    evidence_of,
    judge,
    outputs_of,
    wrapped_fields,
)

Execute = Callable[[Process, Any], Awaitable[FallibleProcessResult]]

_engine: Any = native_engine
_native_execute: Execute = _engine.execute_process
_capture: Optional[Capture] = None


def is_wrapped(rules: tuple[Any, ...]) -> bool:
    """Whether a scheduler with these rules is one of ours: it can prepare a capture."""
    return any(getattr(rule, "output_type", None) is Capture for rule in rules)


@contextlib.contextmanager
def building(ours: bool) -> Iterator[None]:
    """While a scheduler is built: nothing to do, the engine looks the function up when it runs."""
    yield


@contextlib.contextmanager
def running(session: Any) -> Iterator[None]:
    """While this is open, processes are captured as the options of this session say."""
    global _capture
    (capture,) = requested(session, Capture, [Params(CaptureRequest())])
    _capture = capture
    _engine.execute_process = captured_execute
    try:
        yield
    finally:
        _capture = None
        _engine.execute_process = _native_execute


async def captured_execute(process: Process, environment: Any) -> FallibleProcessResult:
    """Run a process below the launcher, and believe its result only with a good record.

    A result from a cache whose record is refused or incomplete is asked for again, as another
    process; so is, once, one whose capture lost something through other programs.
    """
    await _engine.session_values()  # the options are in them: other ones make the node again
    capture = _capture
    if capture is None or capture.daemon is None:
        return await _native_execute(process, environment)
    key = process_key(process, platform=capture.platform)
    attempts = Attempts(capture.daemon)
    for salt in attempts.salts():
        fields = wrapped_fields(process, key=key, capture=capture, salt=salt)
        result = await _native_execute(Process(**fields), environment)
        record, rest = await _split(result)
        outputs = outputs_of(
            await _engine.get_digest_entries(rest), output_prefix(process.working_directory)
        )
        contents = await _engine.get_digest_contents(record)
        admission = judge(capture, key, action_text(process), contents, outputs, result.exit_code)
        problem = "" if admission.record else no_record_problem(process, result)
        run_id = None
        if admission.verdict.losses:  # only then, or nothing would be remembered
            run_id = int(await _engine.run_id())
        decision = attempts.decide(process, result, admission, problem, run_id)
        if decision is Decision.TAKE:
            await _note(evidence_of(process, key, result, admission, problem))
            return dataclasses.replace(result, output_digest=rest)
        if decision is Decision.REFUSE:
            break
    reason = admission.verdict.reason
    raise CaptureFailed(refused_message(process, key, result, admission.record, reason))


async def _split(result: FallibleProcessResult) -> tuple[Any, Any]:
    """The record's directory, and the output without it."""
    record = await _engine.digest_subset_to_digest(DigestSubset(result.output_digest, RECORD_GLOBS))
    rest = await _engine.digest_subset_to_digest(DigestSubset(result.output_digest, REST_GLOBS))
    return record, rest


async def _note(evidence: Evidence) -> None:
    """Leave the evidence in the node graph: the label of a Snapshot node is its glob.

    The glob matches no file; only that the node is there counts.
    """
    await _engine.path_globs_to_digest(PathGlobs([f"{NOTE_DIRECTORY}/{evidence.label()}"]))


def rules() -> list[object]:
    """No rules: see above."""
    return []
