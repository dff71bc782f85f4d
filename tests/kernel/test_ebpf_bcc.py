"""The same programs through BCC: the same observations as through CO-RE, and hosts without BTF.

The whole table (tests/syscall_table.py) under eBPF alone and, through a daemon, with fanotify. What
BCC needs of the host, and a kernel without BTF, are in mount namespaces of their own (bcc_host.py).
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Iterator

import pytest
from bcc_host import headers_are_of_this_kernel, inside, kernel_headers, python_inside
from programs import KINDS, build_program, check_copy
from rootseal import _native_trace
from rootseal.capture import ebpf_bcc
from rootseal.capture.ebpf import EbpfTracer
from rootseal.errors import CaptureError, ConfigError
from running_daemon import RunningDaemon, rootseal, running_daemon
from syscall_table import BCC, BOTH, EBPF, TABLE, check, wanted
from table_runs import (
    make_root,
    run_daemon,
    seen_in,
    sha256_text,
    wanted_here,
)
from trace_action import TraceLab, build_syscalls, build_trace_fixture

pytestmark = pytest.mark.requires("root", "fanotify", "ebpf", "bcc", "launcher", "core", "gcc")
WITH_BCC = {"ROOTSEAL_TRACE_LOADER": "bcc"}
TRACED = "--option=capture-mode=trace:ebpf"
NO_BTF = "the kernel has no BTF"


def with_headers(*argv: str) -> list[str]:
    """The command where BCC finds headers."""
    return inside(*argv, headers=kernel_headers())


def without_btf(*argv: str) -> list[str]:
    """The same, and the kernel has no BTF."""
    return inside(*argv, headers=kernel_headers(), btf=False)


def without_anything(*argv: str) -> list[str]:
    """Neither headers nor BTF."""
    return inside(*argv, btf=False)


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_syscalls(tmp_path_factory.mktemp("syscalls"))


@pytest.fixture(scope="module")
def bcc_python(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Tracers of this process find their headers."""
    with pytest.MonkeyPatch.context() as patch:
        place = python_inside(tmp_path_factory.mktemp("python"))
        patch.setattr(ebpf_bcc, "SYSTEM_PYTHON", place)
        yield


@pytest.fixture(scope="module")
def labs(
    tmp_path_factory: pytest.TempPathFactory, bcc_python: None
) -> Iterator[tuple[TraceLab, TraceLab]]:
    """CO-RE and BCC, at once."""
    fixture = build_trace_fixture(tmp_path_factory.mktemp("bin"))
    core = EbpfTracer(loader="co-re")
    other = EbpfTracer(loader="bcc")
    try:
        yield TraceLab(fixture, core), TraceLab(fixture, other)
    finally:
        other.close()
        core.close()


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningDaemon]:
    """A daemon that loads with BCC, on the host's own kernel."""
    place = tmp_path_factory.mktemp("daemon")
    with running_daemon(place, environ=WITH_BCC, wrapped=with_headers) as found:
        yield found


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return make_root(tmp_path)


def test_loader_says_which_and_what(labs: tuple[TraceLab, TraceLab]) -> None:
    core, other = labs
    assert (core.tracer.loader, other.tracer.loader) == ("co-re", "bcc")
    assert all(program.attached for program in other.tracer.programs)


# --- the table -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(TABLE))
def test_call_is_seen_by_ebpf_alone(
    daemon: RunningDaemon, program: Path, root: Path, name: str
) -> None:
    row = wanted_here(name, EBPF, BCC)
    done = run_daemon(daemon, EBPF, root, str(program), name, ".")
    check(seen_in(done), row, str(program), sha256_text)
    assert done.field("capture", "ebpf", "loader") == "bcc"


@pytest.mark.parametrize("name", sorted(TABLE))
def test_call_is_seen_beside_fanotify(
    daemon: RunningDaemon, program: Path, root: Path, name: str
) -> None:
    row = wanted_here(name, BOTH, BCC)
    done = run_daemon(daemon, BOTH, root, str(program), name, ".")
    check(seen_in(done), row, str(program), sha256_text)
    assert done.field("capture", "ebpf", "loader") == "bcc"


@pytest.mark.heavy
def test_burst_is_complete_every_time(daemon: RunningDaemon, program: Path, root: Path) -> None:
    """As of each backend that claims `held` (test_backends.py), 100 times."""
    row = wanted("burst", BOTH, BCC)
    for _ in range(100):
        done = run_daemon(daemon, BOTH, root, str(program), "burst", ".")
        assert done.field("capture", "posture", "achieved") == "held"
        check(seen_in(done), row, str(program), sha256_text)
        done.record.unlink()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("backend", [EBPF, BOTH])
def test_program_is_captured(
    daemon: RunningDaemon, tmp_path: Path, backend: str, kind: str
) -> None:
    program = build_program(tmp_path, kind)
    done = run_daemon(daemon, backend, make_root(tmp_path), str(program))
    check_copy(done, program, kind)


def test_a_dead_helper_is_an_error_not_an_empty_trace(
    labs: tuple[TraceLab, TraceLab], tmp_path: Path
) -> None:
    tracer = EbpfTracer(loader="bcc")
    try:
        action = TraceLab(labs[0].fixture, tracer).start(tmp_path, ["/bin/sleep", "0.2"])
        loader = tracer._bcc
        assert loader is not None
        os.kill(loader._process.pid, 9)
        loader._process.wait()
        action.process.wait()
        with pytest.raises(CaptureError, match="helper has ended"):
            action.scope.finish()
        with pytest.raises(CaptureError, match="helper has ended"):
            tracer.add_scope(os.getpid())
    finally:
        tracer.close()


def test_offsets_come_from_btf() -> None:
    flags = dict(flag[2:].split("=") for flag in _native_trace.field_offsets())
    assert flags["RS_OFFSET_dentry_name_len"] != flags["RS_OFFSET_dentry_name"]
    assert int(flags["RS_OFFSET_mount_mnt"]) > 0


def test_calls_of_an_unknown_abi_are_counted(
    labs: tuple[TraceLab, TraceLab], program: Path, root: Path
) -> None:
    """x32: kernels without it refuse the call, whose number alone is what the trace sees."""
    if os.uname().machine != "x86_64":
        pytest.skip("optional: x32 is of x86-64")
    for lab in labs:
        losses = lab.run(root, [str(program), "x32_open", "."]).losses()
        assert losses == {"tracerDetaches": 1}, (lab.tracer.loader, losses)


# --- which loader, and why -------------------------------------------------------------------


def test_loader_by_environment_is_told(daemon: RunningDaemon) -> None:
    trace = daemon.status()["trace"]
    assert (trace["loader"], trace["reason"]) == ("bcc", "bcc was asked for")
    assert trace["programs"] and all(item["attached"] for item in trace["programs"])


def test_a_loader_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    place = ("--socket", str(tmp_path / "s"), "--state-dir", str(tmp_path / "state"))
    environ = {**os.environ, "ROOTSEAL_TRACE_LOADER": "libbpf"}
    done = rootseal("daemon", "run", *place, env=environ)
    assert done.returncode == 2 and "ROOTSEAL_TRACE_LOADER" in done.stderr, done.stderr
    with pytest.raises(ConfigError, match="auto, co-re, bcc"):
        EbpfTracer(loader="libbpf")


def test_without_btf_auto_is_bcc_with_the_headers_offsets(
    tmp_path: Path, root: Path, program: Path
) -> None:
    if not headers_are_of_this_kernel():
        pytest.skip("optional: no headers of this kernel")
    with running_daemon(tmp_path, wrapped=without_btf) as daemon:
        trace = daemon.status()["trace"]
        assert (trace["loader"], trace["reason"]) == ("bcc", NO_BTF)
        for name in ("openat", "rename", "fork", "connect", "sendfile", "chmod", "link"):
            done = run_daemon(daemon, BOTH, root, str(program), name, ".")
            check(seen_in(done), wanted(name, BOTH, BCC), str(program), sha256_text)
            for made in ("out", "tmp"):
                (root / made).unlink(missing_ok=True)
        assert done.field("capture", "ebpf", "loader") == "bcc"


@pytest.mark.parametrize("wrapped", [without_btf, without_anything], ids=["other", "none"])
def test_without_btf_and_its_own_headers_no_offsets_are_guessed(
    tmp_path: Path, sandbox: Path, wrapped: object
) -> None:
    """`auto` steps down and says so, `trace:ebpf` fails before the action begins."""
    if wrapped is without_btf and headers_are_of_this_kernel():
        pytest.skip("optional: the headers are this kernel's")
    assert callable(wrapped)
    reason = "not of this one" if wrapped is without_btf else "of no kernel"
    with running_daemon(tmp_path, wrapped=wrapped) as daemon:
        trace = daemon.status()["trace"]
        assert trace["loader"] is None and "linux-headers" in trace["remedy"]
        assert trace["reason"].startswith(f"{NO_BTF}; ") and reason in trace["reason"]
        done = daemon.run(sandbox, ["/bin/true"])
        assert done.returncode == 0 and done.field("capture", "backend") == "fanotify"
        (fallback,) = done.field("capture", "fallbacks")
        assert NO_BTF in fallback["reason"]
        refused = daemon.run(sandbox, ["touch", "ran"], TRACED)
        assert refused.returncode == 125 and NO_BTF in refused.stderr
        assert not (sandbox / "ran").exists()
