"""Every process runs below the launcher: the wrap for Pants 2.17 to 2.21.

The engine's own rule `FallibleProcessResult <- Process` is keyed by the type that the scheduler
gives it. While a scheduler with our rules is built, `engine_process_type` puts a subclass there, so
that the rule for `Process` is the one below, and the subclass is what really runs:

    Process -> captured_execute -> launcher + argv -> NativeProcess -> engine
    result  <- record stripped, checked, noted in the node graph    <- record as one more output

Owns no state. The rule takes no parameter that depends on an environment: rule-graph solving would
take a minute longer.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import uuid
from dataclasses import dataclass
from typing import Any, Iterator

import pants.engine.internals.scheduler as pants_scheduler
from pants.engine.engine_aware import EngineAwareParameter
from pants.engine.fs import (
    Digest,
    DigestContents,
    DigestEntries,
    DigestSubset,
    FileEntry,
    PathGlobs,
    SymlinkEntry,
)
from pants.engine.process import FallibleProcessResult, Process
from pants.engine.rules import Get, MultiGet, collect_rules, rule
from pants.util.logging import LogLevel
from rootseal.canonical import path_text

from rootseal_pants.evidence import DESCRIPTION_CHARACTERS_MAX, Evidence, FileSummary
from rootseal_pants.identity import (
    LAUNCHER_DIRECTORY,
    RECORD_FILE,
    output_prefix,
    process_key,
    wrapped_argv,
)
from rootseal_pants.records import RecordStore
from rootseal_pants.runtime import Verdict, check_record
from rootseal_pants.setup_rules import Capture
from rootseal_pants.verdicts import CaptureFailed, no_record_problem, refused_message


class NativeProcess(Process):
    """What the engine itself runs: a process that is wrapped already, or need not be."""


@contextlib.contextmanager
def engine_process_type(ours: bool) -> Iterator[None]:
    """While this is open, a scheduler that is built runs `NativeProcess` if it has our rules."""
    scheduler: Any = pants_scheduler
    scheduler.Process = NativeProcess if ours else Process
    try:
        yield
    finally:
        scheduler.Process = Process


@dataclass(frozen=True)
class SplitRequest:
    """Asks to take the record out of a result.

    Attributes:
        digest: Output directory of the wrapped process.
        prefix: What makes an output's path relative to the sandbox.
    """

    digest: Digest
    prefix: str


@dataclass(frozen=True)
class SplitOutput:
    """A result without its record, and the record.

    Attributes:
        rest: What the caller of the process sees.
        record: The engine's directory with just the record, or with nothing.
        outputs: Every file and symlink of `rest`, as the daemon's CHECK wants them.
    """

    rest: Digest
    record: Digest
    outputs: tuple[tuple[str, str, int], ...]


@rule
async def split_output(request: SplitRequest) -> SplitOutput:
    """Take the record and the launcher's directory out of the output."""
    hidden = (f"!{RECORD_FILE}", f"!{LAUNCHER_DIRECTORY}", f"!{LAUNCHER_DIRECTORY}/**")
    record, rest = await MultiGet(
        Get(Digest, DigestSubset(request.digest, PathGlobs([RECORD_FILE]))),
        Get(Digest, DigestSubset(request.digest, PathGlobs(["**", *hidden]))),
    )
    entries = await Get(DigestEntries, Digest, rest)
    outputs = []
    for entry in entries:
        if isinstance(entry, FileEntry):
            digest = entry.file_digest
            outputs.append(
                (request.prefix + entry.path, digest.fingerprint, digest.serialized_bytes_length)
            )
        elif isinstance(entry, SymlinkEntry):
            outputs.append((request.prefix + entry.path, entry.target, -1))
    return SplitOutput(rest, record, tuple(outputs))


@dataclass(frozen=True)
class AdmissionRequest:
    """Asks whether the record that came with a result is to be believed."""

    capture: Capture
    action_key: str
    record: Digest
    outputs: tuple[tuple[str, str, int], ...]


@dataclass(frozen=True)
class Admission:
    """The daemon's verdict; `record` is the record's name, or empty if there is none."""

    verdict: Verdict
    record: str
    size: int


@rule
async def admit_record(request: AdmissionRequest) -> Admission:
    """Have the daemon check a record, and keep it if it is good."""
    contents = await Get(DigestContents, Digest, request.record)
    if not contents:
        return Admission(Verdict(False, "it came without a record"), "", 0)
    record = contents[0].content
    daemon, settings = request.capture.daemon, request.capture.settings
    if daemon is None:
        raise CaptureFailed("a record was to be checked while capture is off")
    verdict = check_record(
        daemon.info.socket,
        action_key=request.action_key,
        record=record,
        outputs=[_output_json(*output) for output in request.outputs],
        trusted_capture_keys=daemon.trusted_capture_keys,
    )
    if verdict.accepted:
        RecordStore(settings.records_dir).put(record)
    return Admission(verdict, hashlib.sha256(record).hexdigest(), len(record))


def _output_json(path: str, content: str, size: int) -> dict[str, object]:
    text = path_text(os.fsencode(path))
    if size < 0:
        return {"path": text, "target": path_text(os.fsencode(content))}
    return {"path": text, "sha256": content, "size": size}


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


@rule(desc="Captured process", level=LogLevel.TRACE)
async def captured_execute(process: Process, capture: Capture) -> FallibleProcessResult:
    """Run a process below the launcher, and believe its result only with a good record.

    A result from a cache whose record is refused is asked for again with a salt that makes it
    another process for every cache: first this machine's own (so that its good result is cached),
    then one that no cache can hold.
    """
    fields = {field.name: getattr(process, field.name) for field in dataclasses.fields(Process)}
    if capture.daemon is None or capture.launcher is None:
        return await Get(FallibleProcessResult, NativeProcess, NativeProcess(**fields))
    key = process_key(process, platform=capture.platform)
    refusal = ""
    own = hashlib.sha256(capture.daemon.capture_key.encode()).hexdigest()[:16]
    for salt in ("", own, f"{own}-{uuid.uuid4().hex}"):
        wrapped = wrap_process(process, key=key, capture=capture, salt=salt)
        result = await Get(FallibleProcessResult, NativeProcess, wrapped)
        split = await Get(
            SplitOutput,
            SplitRequest(result.output_digest, output_prefix(process.working_directory)),
        )
        admission = await Get(
            Admission, AdmissionRequest(capture, key, split.record, split.outputs)
        )
        problem = "" if admission.record else no_record_problem(process, result)
        if admission.verdict.accepted or problem:
            await Get(
                ActionNoted,
                ActionNode(evidence_of(process, key, result, admission, problem)),
            )
            return dataclasses.replace(result, output_digest=split.rest)
        refusal = admission.verdict.reason
        if result.metadata._source == "ran":
            break
    raise CaptureFailed(refused_message(process, key, result, admission.record, refusal))


def wrap_process(process: Process, *, key: str, capture: Capture, salt: str) -> NativeProcess:
    """The process that has the launcher run `process`."""
    fields = {field.name: getattr(process, field.name) for field in dataclasses.fields(Process)}
    fields["argv"] = wrapped_argv(
        process.argv,
        key=key,
        working_directory=process.working_directory,
        output_files=process.output_files,
        output_directories=process.output_directories,
        settings=capture.settings.launcher_arguments,
        salt=salt,
    )
    fields["immutable_input_digests"] = {
        **process.immutable_input_digests,
        LAUNCHER_DIRECTORY: capture.launcher,
    }
    fields["output_files"] = (*process.output_files, RECORD_FILE)
    fields["use_nailgun"] = ()  # the launcher would wrap the nailgun server, not the action
    return NativeProcess(**fields)


def evidence_of(
    process: Process,
    key: str,
    result: FallibleProcessResult,
    admission: Admission,
    problem: str,
) -> Evidence:
    """What is noted of an action."""
    metadata = result.metadata
    return Evidence(
        action_key=key,
        record=admission.record,
        record_size=admission.size,
        source=metadata._source,
        remote=metadata.execution_environment.remote_execution,
        run_id=int(metadata.source_run_id),
        description=process.description[:DESCRIPTION_CHARACTERS_MAX],
        exit_code=result.exit_code,
        stdout=_summary(result.stdout_digest),
        stderr=_summary(result.stderr_digest),
        problem=problem,
    )


def _summary(digest: Any) -> FileSummary:
    """Of a Digest or a FileDigest."""
    return FileSummary(digest.fingerprint, digest.serialized_bytes_length)


def rules() -> list[object]:
    """The rules of this module."""
    return list(collect_rules())
