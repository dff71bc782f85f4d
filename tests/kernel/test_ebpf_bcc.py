"""The same programs through BCC: the same observations as through CO-RE."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Iterator

import pytest
from capabilities import probe
from rootseal import _native_trace
from rootseal.capture import ebpf_bcc
from rootseal.capture.ebpf import EbpfTracer
from rootseal.errors import BackendUnavailable, CaptureError
from trace_action import TraceLab, build_trace_fixture

pytestmark = pytest.mark.requires("root", "ebpf")


@pytest.fixture(scope="module", autouse=True)
def _bcc_is_here() -> None:
    """BCC is for hosts without BTF: not every host that runs these tests has it."""
    found = probe("bcc")
    if not found.available:
        pytest.skip(f"optional: no bcc: {found.reason}")


@pytest.fixture(scope="module")
def labs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[TraceLab, TraceLab]]:
    """CO-RE and BCC, at once."""
    fixture = build_trace_fixture(tmp_path_factory.mktemp("bin"))
    core = EbpfTracer(loader="co-re")
    other = EbpfTracer(loader="bcc")
    try:
        yield TraceLab(fixture, core), TraceLab(fixture, other)
    finally:
        other.close()
        core.close()


def test_loader_says_which_and_what(labs: tuple[TraceLab, TraceLab]) -> None:
    core, other = labs
    assert (core.tracer.loader, other.tracer.loader) == ("co-re", "bcc")
    assert all(program.attached for program in other.tracer.programs)


@pytest.mark.parametrize(
    "words",
    [
        ("openat", "a"),
        ("openat2", "a"),
        ("creat", "new"),
        ("open_by_handle_at", "a"),
        ("opath", "a"),
        ("write", "out"),
        ("rename", "a", "b"),
        ("unlink", "a"),
        ("link", "a", "hard"),
        ("chmod", "a"),
        ("truncate", "a"),
        ("memfd_create", "name"),
        ("prctl", "name"),
        ("setsid",),
        ("copy", "a", "c", "sendfile"),
        ("fork", "3", "/bin/true"),
        ("daemon", "a"),
        ("dns", "sendto"),
    ],
    ids=lambda words: words[0],
)
def test_both_loaders_see_the_same(
    labs: tuple[TraceLab, TraceLab], tmp_path: Path, words: tuple[str, ...]
) -> None:
    found = []
    for number, lab in enumerate(labs):
        root = tmp_path / str(number)
        root.mkdir()
        (root / "a").write_bytes(b"x" * 500)
        seen = lab.do(root, *words)
        found.append(
            [
                (
                    process.comm,
                    process.program,
                    process.cmdline,
                    process.exitcode,
                    process.trace and process.trace.environ,
                    process.trace
                    and [
                        [(type(op), getattr(op, "path", None)) for op in ops]
                        for ops in (
                            process.trace.file_ops.writes,
                            process.trace.file_ops.deletes,
                            process.trace.file_ops.perm_changes,
                            process.trace.file_ops.links,
                            process.trace.file_ops.truncations,
                        )
                    ],
                    process.trace and sorted(e.syscall for e in process.trace.syscall_events),
                    process.trace and len(process.trace.network.dns_lookups),
                )
                for process in seen.processes
            ]
        )
        found[-1].append(dict(seen.ledger.excluded))
        assert seen.ledger.unhashed["unresolved"] == 0
    assert found[0] == found[1]


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


def test_headers_of_another_kernel_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without BTF the offsets come from headers: of this kernel, or not at all."""
    monkeypatch.setattr(ebpf_bcc, "field_flags", lambda: ["-DRS_OFFSETS_FROM_HEADERS"])
    release = Path(f"/lib/modules/{os.uname().release}/build/include/generated/utsrelease.h")
    if release.exists() and os.uname().release in release.read_text():
        pytest.skip("optional: the headers are this kernel's")
    with pytest.raises(BackendUnavailable) as caught:
        EbpfTracer(loader="bcc")
    assert "not of this one" in caught.value.reason and "linux-headers" in caught.value.remedy


def test_offsets_come_from_btf() -> None:
    flags = dict(flag[2:].split("=") for flag in _native_trace.field_offsets())
    assert flags["RS_OFFSET_dentry_name_len"] != flags["RS_OFFSET_dentry_name"]
    assert int(flags["RS_OFFSET_mount_mnt"]) > 0
