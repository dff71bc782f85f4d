"""The ptrace backend and programs of every kind: what it captures, and what it refuses."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Iterator

import pytest
from coarse_times import ATTEMPTS, await_a_new_second, coarse_filesystem, times
from ptrace_action import (
    REPO,
    SANITIZERS,
    Traced,
    build_driver,
    build_fixture,
    compile_c,
    run_traced,
    sha256_text,
)
from rootseal import leaf_table
from rootseal.capture.ptrace import PtraceScope
from rootseal.capture.ptrace_stream import Loss
from rootseal.capture.scope import CaptureLimits
from rootseal.leaf_table import Domain
from rootseal.observation import Mutation, MutationTime, Observation

NOBODY = 65534
READER = """
#include <fcntl.h>
#include <unistd.h>
int main(void) { char data[64]; int fd = open("in", O_RDONLY); return read(fd, data, 64) <= 0; }
"""

FORKER = """
#include <sys/wait.h>
#include <unistd.h>
int main(void)
{
	for (int i = 0; i < 6; i++)
		if (fork() == 0)
			for (;;) {
				pid_t child = fork();
				if (child == 0) _exit(0);
				waitpid(child, 0, 0);
			}
	for (;;) pause();
}
"""


@pytest.fixture(scope="module")
def tools(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("ptrace")
    build_driver(directory, *SANITIZERS)
    build_fixture(directory)
    return directory


@pytest.fixture
def root(tools: Path) -> Iterator[Path]:
    """A directory below /tmp that other users may enter."""
    base = Path(f"/tmp/rootseal-ptrace-{os.getpid()}")
    shutil.rmtree(base, ignore_errors=True)
    (base / "root").mkdir(parents=True)
    (base / "root" / "in").write_text("input\n")
    shutil.copy(tools / "trace_driver", base)
    shutil.copy(tools / "syscalls", base)
    yield base / "root"
    shutil.rmtree(base, ignore_errors=True)


def traced(root: Path, *argv: str, **options: object) -> Traced:
    return run_traced(root.parent / "trace_driver", root, *argv, **options)  # type: ignore[arg-type]


def assert_reads_in(found: Traced) -> None:
    assert found.code == 0, found.stderr
    assert found.material_digests(b"in") == {sha256_text("input\n")}
    assert found.losses == {}


def has_command(name: str) -> bool:
    return shutil.which(name) is not None


# --- programs of every kind -------------------------------------------------------------------


@pytest.mark.parametrize("flags", [("-static",), ("-static-pie", "-fPIE"), ("-no-pie",), ()])
def test_static_and_dynamic_programs(root: Path, flags: tuple[str, ...]) -> None:
    (root.parent / "reader.c").write_text(READER)
    program = compile_c(root.parent / "reader", root.parent / "reader.c", flags=flags)
    found = traced(root, str(program))
    assert_reads_in(found)
    kinds = {leaf.path: leaf.kind for leaf in found.materials()}
    assert kinds[str(program).encode()] == 1


def test_musl_program(root: Path) -> None:
    if not has_command("musl-gcc"):
        pytest.skip("optional: no musl-gcc; install musl-tools")
    (root.parent / "reader.c").write_text(READER)
    done = subprocess.run(
        ["musl-gcc", "-static", "-o", root.parent / "reader", root.parent / "reader.c"], check=False
    )
    assert done.returncode == 0
    assert_reads_in(traced(root, str(root.parent / "reader")))


def test_program_of_32_bits_is_captured(root: Path) -> None:
    program = root.parent / "open32"
    command = ["gcc", "-m32", "-nostdlib", "-static", "-fno-pie", "-no-pie", "-fno-stack-protector"]
    source = REPO / "tests" / "fixtures" / "open32.c"
    done = subprocess.run([*command, "-o", program, source], capture_output=True, check=False)
    if done.returncode != 0:
        pytest.skip("optional: this compiler builds no 32-bit programs")
    bare = root.parent / "bare"
    shutil.copytree(root, bare)
    if subprocess.run([program], cwd=bare, check=False).returncode != 0:
        pytest.skip("optional: this kernel runs no 32-bit programs")
    found = traced(root, str(program))
    assert_reads_in(found)
    assert found.products()[b"out"].digest.hex() == sha256_text("input\n")


def test_x32_call_ends_the_action(root: Path) -> None:
    """Its number would open a file on a kernel with x32: refused, never missed."""
    driver, records = root.parent / "trace_driver", root.parent / "records"
    done = subprocess.run(
        [driver, records, root.parent / "syscalls", "x32_open", "."],
        cwd=root,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 125
    assert b"Exec format error" in done.stderr


def test_child_that_nobody_follows_is_counted(root: Path) -> None:
    """CLONE_UNTRACED appears in the memory of clone3's caller after it was looked at."""
    found = traced(root, str(root.parent / "syscalls"), "clone3_race", ".")
    assert found.code == 0, found.stderr
    assert found.losses["tracerDetaches"] >= 1


def test_threads_killed_in_an_open_make_no_product_foreign(root: Path) -> None:
    """The kernel ends what they opened, and nobody told the tracer that they had."""
    found = traced(root, str(root.parent / "syscalls"), "exit_in_open", ".")
    assert found.code == 0, found.stderr
    assert set(found.products()) == {b"made0", b"made1", b"made2"}
    assert found.observation.counters["foreignProducts"] == 0


def test_chain_of_scripts(root: Path) -> None:
    """Script → script → program: every one of them is a material with its digest."""
    for name, text in (("one", f"#!{root}/two\n"), ("two", "#!/bin/sh\ncat in\n")):
        (root / name).write_text(text)
        (root / name).chmod(0o755)
    found = traced(root, f"{root}/one")
    assert_reads_in(found)
    assert found.material_digests(b"one") and found.material_digests(b"two")
    first = found.processes[0]
    assert first.program == f"{root}/one".encode()
    assert first.programdigest is not None and first.programdigest != first.exedigest
    assert {leaf.path for leaf in found.materials() if leaf.kind == 1} >= {b"one", b"two"}


def test_loader_is_a_material(root: Path) -> None:
    found = traced(root, "/bin/true")
    loaders = [leaf for leaf in found.materials() if b"/ld-" in leaf.path]
    assert len(loaders) == 1 and loaders[0].kind == 1
    assert found.losses == {}


def test_compiler_run_is_complete(root: Path) -> None:
    (root / "a.c").write_text('#include <stdio.h>\nint main(void) { return puts("x") < 0; }\n')
    found = traced(root, "gcc", "-O1", "-o", "a", "a.c")
    assert found.code == 0 and found.losses == {}
    assert found.material_digests(b"a.c")
    assert any(leaf.path.endswith(b"/stdio.h") for leaf in found.materials())
    assert set(found.products()) == {b"a"}
    comms = [process.comm for process in found.processes]
    assert {b"gcc", b"cc1", b"as"} <= set(comms)
    assert all(process.exitcode == 0 for process in found.processes)


# --- processes --------------------------------------------------------------------------------


def test_process_table(root: Path) -> None:
    found = traced(root, "sh", "-c", "cat in; (exit 3); kill -9 $$")
    assert found.code == 137
    by_comm = {process.comm: process for process in found.processes}
    shell, cat = found.processes[0], by_comm[b"cat"]
    assert shell.cmdline == (b"sh", b"-c", b"cat in; (exit 3); kill -9 $$")
    assert shell.exitcode == 137 and cat.exitcode == 0
    assert cat.parentpid == shell.processid
    assert cat.program.endswith(b"/cat") and cat.programdigest == cat.exedigest
    assert 3 in {process.exitcode for process in found.processes}
    assert b"in" in found.opened_by(found.processes.index(cat))
    assert b"in" not in found.opened_by(0)
    assert cat.trace is not None
    names = {name for name, _ in cat.trace.environ}
    assert b"PATH" in names


def test_values_of_the_environment_stay_secret(root: Path) -> None:
    os.environ["IGNORED"] = ""
    found = run_traced(root.parent / "trace_driver", root, "/bin/true", limits={"SECRET": 424242})
    trace = found.processes[0].trace
    assert trace is not None
    assert dict(trace.environ)[b"SECRET"].hex() == sha256_text("424242")
    assert b"424242" not in (root.parent / "root.records").read_bytes()


def test_set_user_id_program_is_noted(root: Path) -> None:
    program = root.parent / "setuid-true"
    shutil.copy("/bin/true", program)
    program.chmod(0o4755)
    found = traced(root, str(program))
    assert found.code == 0
    trace = found.processes[0].trace
    assert trace is not None
    notes = [event for event in trace.syscall_events if event.syscall == "execve"]
    assert len(notes) == 1


def test_unreadable_program_is_a_loss(root: Path) -> None:
    """The tracer may run it but not read it: said with its path, never passed over."""
    if os.geteuid() != 0:
        pytest.skip("optional: needs root to give a file to another user")
    program = root.parent / "no-read"
    shutil.copy("/bin/true", program)
    program.chmod(0o711)
    os.chown(root.parent, NOBODY, NOBODY)
    found = traced(root, str(program), user=NOBODY)
    assert found.code == 0
    assert found.losses.get("unhashedOpensTotal", 0) >= 1
    assert any(reason == Loss.DENIED for reason, _ in found.examples)


@pytest.mark.parametrize("tool", ["strace", "gdb"])
def test_a_tracer_inside_is_told_no(root: Path, tool: str) -> None:
    """A task has one tracer: the tool fails by itself, and the capture stays complete."""
    if not has_command(tool):
        pytest.skip(f"optional: no {tool}")
    argv = ["strace", "cat", "in"]
    if tool == "gdb":
        argv = ["gdb", "-batch", "-ex", "run", "--args", "/bin/cat", "in"]
    found = traced(root, *argv)
    assert "ermitted" in found.stderr + found.stdout
    assert found.losses == {}
    calls = {
        event.syscall
        for process in found.processes
        if process.trace is not None
        for event in process.trace.syscall_events
    }
    assert "ptrace" in calls


# --- caps and changes -------------------------------------------------------------------------


def test_cap_of_files_is_counted(root: Path) -> None:
    for number in range(20):
        (root / f"f{number}").write_text(str(number))
    found = traced(root, "sh", "-c", "cat f*", limits={"FILES_MAX": 10})
    assert found.code == 0
    assert found.losses["fanotifyDigestsCapHit"] >= 10
    assert len(found.materials()) == 10


def test_cap_of_bytes_is_counted(root: Path) -> None:
    found = traced(root, "cat", "in", limits={"BYTES_MAX": 3})
    assert found.code == 0
    assert found.losses["hashedBytesCapHit"] >= 1


def test_cap_of_processes_is_counted(root: Path) -> None:
    found = traced(root, "sh", "-c", "true & /bin/true & wait", limits={"PROCESSES_MAX": 1})
    assert found.code == 0
    assert len(found.processes) == 1
    assert found.losses["processTableCapHit"] >= 1


def observed(root: Path, records: Path) -> Observation:
    scope = PtraceScope(root=bytes(root), limits=CaptureLimits())
    scope.feed(records.read_bytes())
    return scope.finish(outputs_files=(), outputs_dirs=())


def test_file_changed_by_others_meanwhile(root: Path) -> None:
    """The action has read the file; then another process, not of the action, writes it."""
    os.mkfifo(root / "ready")
    os.mkfifo(root / "go")
    driver, records = root.parent / "trace_driver", root.parent / "root.records"
    command = "cat in; echo > ready; cat go"
    process = subprocess.Popen([driver, records, "sh", "-c", command], cwd=root)
    (root / "ready").read_text()
    with (root / "in").open("r+") as file:
        file.write("INPUT\n")
    (root / "go").write_text("")
    assert process.wait(60) == 0
    seen = observed(root, records)
    assert seen.counters["mutatedAfterOpen"] == 1
    digests = [bytes.fromhex(sha256_text(text)) for text in ("input\n", "INPUT\n")]
    assert seen.mutations.found == (Mutation(b"in", *digests, MutationTime.END),)
    assert seen.mutations.left_out == 0


@pytest.mark.requires("root", "loop")
def test_file_changed_within_a_second_where_times_are_whole_seconds(root: Path) -> None:
    os.mkfifo(root / "ready")
    os.mkfifo(root / "go")
    driver, records = root.parent / "trace_driver", root.parent / "root.records"
    with coarse_filesystem(root.parent) as coarse:
        path = coarse / "in"
        command = f"cat {path} {path}; echo > ready; cat go; cat {path}"
        for _ in range(ATTEMPTS):
            await_a_new_second()
            path.write_text("first\n")
            before = times(path)
            time.sleep(0.1)  # longer than a tick
            process = subprocess.Popen([driver, records, "sh", "-c", command], cwd=root)
            (root / "ready").read_text()
            path.write_text("other\n")
            (root / "go").write_text("")
            assert process.wait(60) == 0
            if times(path) == before:
                break
        else:
            pytest.fail("no attempt was done within a second")
    seen = observed(root, records)
    leaves = leaf_table.iter_leaves(seen.materials.raw, Domain.MATERIAL)
    digests = {leaf.digest.hex() for leaf in leaves if leaf.path == bytes(path)}
    assert digests == {sha256_text("first\n"), sha256_text("other\n")}
    assert seen.counters["mutatedAfterOpen"] == 1


def test_the_tracer_ends_when_nobody_takes_its_records_while_processes_fork(root: Path) -> None:
    """A child that it has not heard of yet is killed too, not waited for."""
    (root / "forker.c").write_text(FORKER)
    forker = compile_c(root / "forker", root / "forker.c")
    for _ in range(20):
        done = subprocess.run(
            [root.parent / "trace_driver", "-", forker],
            env={"SINK_BYTES_MAX": "1000"},
            stderr=subprocess.DEVNULL,
            check=False,
            timeout=30,
        )
        assert done.returncode == 125


def test_two_contents_of_one_path(root: Path) -> None:
    """Read, replaced by the action, read again: the second is an intermediate, the first stays."""
    found = traced(root, "sh", "-c", "cat in; echo new > x; mv x in; cat in")
    assert found.material_digests(b"in") == {sha256_text("input\n")}
    assert found.products()[b"in"].digest.hex() == sha256_text("new\n")
    assert found.losses == {}


def test_names_that_are_hard(root: Path) -> None:
    names = [b"new\nline", b"\xff\xfe", b" (deleted)", b"x (deleted)", b"a" * 255]
    for name in names:
        Path(os.fsdecode(bytes(root) + b"/" + name)).write_bytes(name)
    found = traced(root, "sh", "-c", "cat *")
    assert found.code == 0 and found.losses == {}
    assert {leaf.path for leaf in found.materials()} >= set(names)


def test_path_too_long_to_be_told_is_counted(root: Path) -> None:
    script = (
        "import os\nfor i in range(20):\n    os.mkdir('d' * 250)\n    os.chdir('d' * 250)\n"
        "open('f', 'w').close()\nopen('f').close()\n"
    )
    found = traced(root, "python3", "-c", script)
    assert found.code == 0
    assert found.losses.get("unhashedOpensTotal", 0) >= 1


def test_foreign_namespace_product_is_not_lost_silently(root: Path) -> None:
    script = "mount -t tmpfs none /mnt 2>/dev/null || exit 77; echo x > /mnt/out"
    found = traced(root, "unshare", "-rm", "sh", "-c", script)
    if found.code == 77 or found.code == 1:
        pytest.skip("optional: no user namespaces here")
    assert found.losses.get("namespaceEscapes", 0) == 1


# --- the tracer's end -------------------------------------------------------------------------


def test_action_dies_with_its_tracer(root: Path) -> None:
    driver = root.parent / "trace_driver"
    command = "echo $$ > pid; while :; do read x < fifo; done"
    os.mkfifo(root / "fifo")
    os.mkfifo(root / "pid")
    process = subprocess.Popen([driver, "-", "sh", "-c", command], cwd=root)
    pid = int((root / "pid").read_text())
    process.send_signal(signal.SIGKILL)
    process.wait(60)
    deadline = time.monotonic() + 60
    while Path(f"/proc/{pid}/stat").exists() and time.monotonic() < deadline:
        if " Z " in Path(f"/proc/{pid}/stat").read_text():
            break
        time.sleep(0.01)
    alive = Path(f"/proc/{pid}/stat")
    assert not alive.exists() or " Z " in alive.read_text()


def test_sha256_of_the_launcher(tools: Path) -> None:
    source = REPO / "tests" / "native" / "sha256_test.c"
    sources = sorted((REPO / "native" / "launcher").glob("sha256*.c"))
    program = compile_c(tools / "sha256_test", source, *sources, flags=SANITIZERS)
    done = subprocess.run([program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "sha256_test: ok" in done.stdout


def test_filter_numbers_are_those_of_the_headers(tools: Path) -> None:
    """trace_calls.h against asm/unistd*.h of this machine."""
    source = tools / "numbers.c"
    table = (REPO / "native" / "launcher" / "trace_calls.h").read_text()
    rows = [
        line[len("RS_CALL(") : -1].split(", ")
        for line in table.splitlines()
        if line.startswith("RS_CALL(")
    ]
    column = {"x86_64": 2, "aarch64": 4}.get(os.uname().machine)
    if column is None:
        pytest.skip("optional: not a machine the tracer knows")
    checks = "".join(
        f"#ifdef SYS_{row[0]}\nif (SYS_{row[0]} != {row[column]}) bad++;\n"
        f'#elif {row[column]} != -1\nprintf("unknown {row[0]}\\n");\n#endif\n'
        for row in rows
    )
    source.write_text(
        f"#include <stdio.h>\n#include <sys/syscall.h>\nint main(void){{int bad=0;\n{checks}"
        "return bad;}\n"
    )
    done = subprocess.run([compile_c(tools / "numbers", source)], capture_output=True, check=False)
    assert done.returncode == 0, f"{done.returncode} numbers differ"
    assert len(rows) > 60
