"""What both ways of wrapping a process share: the process to run, and the judgement of its result.

    Process -> launcher + argv -> engine -> result + record -> judged by the daemon -> Evidence

No rules and no engine calls here: wrap_get.py and wrap_byname.py do those, each in its rule API.
"""

from __future__ import annotations

import dataclasses
import enum
import hashlib
import json
import logging
import os
import uuid
from dataclasses import dataclass
from typing import Any, Iterator, Optional, Tuple

from pants.engine.fs import DigestContents, DigestEntries, FileEntry, PathGlobs, SymlinkEntry
from pants.engine.process import FallibleProcessResult, Process
from rootseal import diagnostics
from rootseal.canonical import path_text

from rootseal_pants.evidence import DESCRIPTION_CHARACTERS_MAX, Evidence, FileSummary
from rootseal_pants.identity import LAUNCHER_DIRECTORY, RECORD_FILE, wrapped_argv
from rootseal_pants.records import RecordStore
from rootseal_pants.runtime import Verdict, check_record
from rootseal_pants.settings import Capture, ReadyDaemon
from rootseal_pants.verdicts import CaptureFailed, is_loss, launcher_line

logger = logging.getLogger(__name__)

RECORD_GLOBS = PathGlobs([RECORD_FILE])
REST_GLOBS = PathGlobs(
    ["**", f"!{RECORD_FILE}", f"!{LAUNCHER_DIRECTORY}", f"!{LAUNCHER_DIRECTORY}/**"]
)
OWN_SALTS = 8  # builds that lose something leave two results each
Output = Tuple[str, str, int]  # path, SHA-256 or a symlink's target, size or -1 for a symlink


@dataclass(frozen=True)
class Admission:
    """The daemon's verdict; `record` is the record's name, or empty if there is none."""

    verdict: Verdict
    record: str
    size: int


class Decision(enum.Enum):
    """What becomes of a result."""

    TAKE = "take"
    AGAIN = "again"
    REFUSE = "refuse"


class Attempts:
    """The attempts to get a result that can be believed, and whose capture lost nothing.

    Each has another salt. None at first; then this machine's own, so that its good result is cached
    for the next time, more of them because incomplete results are cached too; then one that no
    cache can hold.
    """

    def __init__(self, daemon: ReadyDaemon) -> None:
        own = hashlib.sha256(daemon.capture_key.encode()).hexdigest()[:16]
        more = [f"{own}-{number}" for number in range(2, OWN_SALTS + 1)]
        self._salts = ["", own, *more, f"{own}-{uuid.uuid4().hex}"]
        self._ran = False

    def salts(self) -> Iterator[str]:
        """The salt of each attempt."""
        while self._salts:
            yield self._salts.pop(0)

    def decide(
        self,
        process: Process,
        result: FallibleProcessResult,
        admission: Admission,
        problem: str,
        run_id: Optional[int],
    ) -> Decision:
        """Whether this result counts.

        What is incomplete is never taken from a cache while it can be had anew; and what lost
        something through other programs, in this run, gets one more chance.

        Args:
            process: As the caller asked for it.
            result: Of this attempt.
            admission: Of its record.
            problem: Why a genuine result has no record, or empty.
            run_id: The engine's number of this run, if it is known: a result of another run is
                one from pantsd's memory.
        """
        here = run_id in (None, int(result.metadata.source_run_id))
        ran, ran_before = here and result.metadata._source == "ran", self._ran
        self._ran = ran_before or ran
        if not (admission.verdict.accepted or problem):
            if ran and (ran_before or not is_loss(result)):
                return Decision.REFUSE
            losses = "" if not ran else launcher_line(result.stderr).rstrip(".")
        elif not admission.verdict.losses:
            return Decision.TAKE
        else:
            names = set(admission.verdict.losses)
            if ran and (ran_before or not names <= diagnostics.BY_OTHERS):
                return Decision.TAKE
            counts = sorted(admission.verdict.losses.items())
            losses = f"{diagnostics.LOST}: " + ", ".join(f"{name} {n}" for name, n in counts)
        if not self._salts:
            return Decision.TAKE if admission.verdict.accepted else Decision.REFUSE
        if losses:
            origin = "" if ran else " when it ran that time"
            logger.warning("%s: %s%s. It is run again.", process.description, losses, origin)
        return Decision.AGAIN


def wrapped_fields(process: Process, *, key: str, capture: Capture, salt: str) -> dict[str, Any]:
    """The fields of the process that has the launcher run `process`."""
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
    return fields


def outputs_of(entries: DigestEntries, prefix: str) -> tuple[Output, ...]:
    """Every file and symlink of a result.

    Args:
        entries: The result, without the record.
        prefix: What makes a path relative to the sandbox (`identity.output_prefix`).
    """
    outputs = []
    for entry in entries:
        if isinstance(entry, FileEntry):
            digest = entry.file_digest
            size = digest.serialized_bytes_length
            outputs.append((prefix + entry.path, digest.fingerprint, size))
        elif isinstance(entry, SymlinkEntry):
            outputs.append((prefix + entry.path, entry.target, -1))
    return tuple(outputs)


def judge(
    capture: Capture,
    key: str,
    action: str,
    contents: DigestContents,
    outputs: tuple[Output, ...],
    exit_code: int,
) -> Admission:
    """Have the daemon check the record of a result, and keep it if it is good.

    Args:
        capture: How is captured.
        key: Action key.
        action: What it stands for (`identity.action_text`).
        contents: The record's file, or nothing.
        outputs: Every file and symlink of the result.
        exit_code: Of the result.
    """
    if not contents:
        return Admission(Verdict(False, "it came without a record"), "", 0)
    if capture.daemon is None:
        raise CaptureFailed("a record was to be checked while capture is off")
    record = contents[0].content
    verdict = check_record(
        capture.daemon.info.socket,
        action_key=key,
        record=record,
        outputs=[_output_json(*output) for output in outputs],
        action={**json.loads(action), "sandboxes": _text(capture.settings.sandboxes)},
        exit_code=exit_code,
        trusted_capture_keys=capture.daemon.trusted_capture_keys,
    )
    if verdict.accepted:
        RecordStore(capture.settings.records_dir).put(record)
    return Admission(verdict, hashlib.sha256(record).hexdigest(), len(record))


def _text(path: str) -> str:
    return path_text(os.fsencode(path))


def _output_json(path: str, content: str, size: int) -> dict[str, object]:
    text = path_text(os.fsencode(path))
    if size < 0:
        return {"path": text, "target": path_text(os.fsencode(content))}
    return {"path": text, "sha256": content, "size": size}


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
