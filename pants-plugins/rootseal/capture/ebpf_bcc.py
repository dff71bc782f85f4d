"""The other loader of the trace programs: BCC, for hosts whose kernel has no BTF.

The maps are made here and inherited by a helper process under the system's Python
(bin/bpf/bcc_loader.py), which compiles, attaches, and lives as long as its standard input is open.
"""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import subprocess
from typing import IO, List, Mapping, Sequence, Tuple

from rootseal import _native_trace
from rootseal._native_trace import Program
from rootseal.errors import BackendUnavailable, NativeError
from rootseal.executable import system_daemon_command

SYSTEM_PYTHON = pathlib.Path("/usr/bin/python3")
START_LINES_MAX = 64
REMEDY = (
    "Install BCC and this kernel's headers: apt-get install python3-bpfcc linux-headers-$(uname -r)"
)
_LOADER = pathlib.Path(__file__).resolve().parent.parent / "bin" / "bpf" / "bcc_loader.py"
_MAPS = ("RING", "MEMBERS", "LOSSES", "WRITES", "CALLS", "CONNS", "SCRATCHES")
_ADOPTED = 5  # the maps that user space reads and writes


class BccLoader:
    """The helper process and what it attached."""

    def __init__(self, ring_bytes: int) -> None:
        """Compile and attach.

        Args:
            ring_bytes: Size of the ring buffer.

        Raises:
            BackendUnavailable: BCC, the headers or a program is missing; says which.
        """
        if not (SYSTEM_PYTHON.exists() and _LOADER.exists()):
            raise BackendUnavailable(
                "ebpf", f"{SYSTEM_PYTHON} or {_LOADER.name} is missing", REMEDY
            )
        maps = _make_maps(ring_bytes)
        try:
            self._process = _start(maps)
            try:
                self.programs = _read_report(self._process)
                self.tracer = _native_trace.Tracer.adopt(maps[:_ADOPTED], ring_bytes)
            except BaseException:
                self.close()
                raise
        finally:
            for descriptor in maps:
                os.close(descriptor)

    def alive(self) -> bool:
        """Whether the programs are still attached."""
        return self._process.poll() is None

    def close(self) -> None:
        """Detach: the helper ends when its standard input does."""
        if self._process.stdin is not None:
            with contextlib.suppress(OSError):
                self._process.stdin.close()
        self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()


def _make_maps(ring_bytes: int) -> Tuple[int, ...]:
    try:
        return _native_trace.make_maps(ring_bytes)
    except NativeError as error:
        raise BackendUnavailable(
            "ebpf",
            str(error),
            f"Run the system daemon as root: {system_daemon_command()}",
        ) from error


def field_flags() -> List[str]:
    """Where the kernel's fields are: from its BTF if it has one, else from its headers."""
    try:
        return _native_trace.field_offsets()
    except NativeError:
        return ["-DRS_OFFSETS_FROM_HEADERS"]


def _start(maps: Sequence[int]) -> subprocess.Popen[bytes]:
    flags = [f"-DRS_FD_{name}={number}" for name, number in zip(_MAPS, maps)]
    return subprocess.Popen(
        [str(SYSTEM_PYTHON), "-I", str(_LOADER), *flags, *field_flags()],
        pass_fds=tuple(maps),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={"PATH": "/usr/bin:/bin", "LC_ALL": "C"},
        start_new_session=True,
    )


def _read_report(process: subprocess.Popen[bytes]) -> Tuple[Program, ...]:
    """What the helper says until it is ready.

    Raises:
        BackendUnavailable: It failed, ended early, or could not attach a program.
    """
    if process.stdout is None:
        raise BackendUnavailable("ebpf", "the BCC helper has no output", REMEDY)
    programs: List[Program] = []
    for line in _lines(process.stdout):
        if line.get("ready"):
            break
        if "failed" in line:
            raise BackendUnavailable("ebpf", f"the BCC loader: {line['failed']}", REMEDY)
        name = str(line.get("attached") or line.get("refused"))
        reason = str(line.get("reason", ""))
        # Each is a part of what one needed program does for the other loader: all are needed.
        programs.append(Program(name, "attached" in line, True, reason))
    else:
        raise BackendUnavailable("ebpf", "the BCC helper ended before it was ready", REMEDY)
    missing = [item for item in programs if not item.attached]
    if missing:
        text = "; ".join(f"{item.name}: {item.reason}" for item in missing)
        raise BackendUnavailable("ebpf", f"the kernel refused {text}", REMEDY)
    return tuple(programs)


def _lines(stream: IO[bytes]) -> List[Mapping[str, object]]:
    found: List[Mapping[str, object]] = []
    for _ in range(START_LINES_MAX):
        raw = stream.readline()
        if not raw:
            break
        try:
            value = json.loads(raw)
        except ValueError:
            continue  # a compiler's own words
        if isinstance(value, dict):
            found.append(value)
            if value.get("ready") or "failed" in value:
                break
    return found
