"""A result without a good record is never passed on: the error names the action and the remedy."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any, Callable

import pytest
from conftest import daemon_status, wrapping_engine
from pants.engine.fs import EMPTY_DIGEST, Digest, FileDigest
from pants.engine.internals.scheduler import ExecutionError
from pants.engine.process import FallibleProcessResult, Process, ProcessCacheScope
from pants.testutil.rule_runner import RuleRunner
from pants.util.frozendict import FrozenDict
from pants.util.logging import LogLevel
from rootseal import fsverity
from rootseal.errors import CaptureError, ConfigError, Error
from rootseal_pants.attest import restore_records
from rootseal_pants.evidence import Evidence, FileSummary
from rootseal_pants.identity import output_prefix, process_key, wrapped_argv
from rootseal_pants.records import RecordStore
from rootseal_pants.settings import DaemonRequest, make_ready
from rootseal_pants.verdicts import CaptureFailed

ECHO = Process(["/bin/echo", "hi"], description="say hi")


def fake_executable(directory: Path, status: dict[str, Any]) -> str:
    """An executable whose `daemon ensure --json` answers with this status."""
    path = directory / "rootseal"
    path.write_text(f"#!/bin/sh\ncat <<'END'\n{json.dumps(status)}\nEND\n")
    path.chmod(0o755)
    return str(path)


def launcher_that(directory: Path, script: str) -> str:
    """A launcher that does something else than capture, and then runs the action."""
    path = directory / "launcher"
    path.write_text(
        '#!/bin/bash\nwhile [ "$1" != -- ]; do shift; done; shift\n' + script + '\nexec "$@"\n'
    )
    path.chmod(0o755)
    return str(path)


@pytest.fixture
def status(executable: str, daemon_socket: str) -> dict[str, Any]:
    """What the real daemon of these tests says of itself."""
    return daemon_status(executable, daemon_socket)


def refusal(engine: RuleRunner, process: Process = ECHO) -> str:
    """The message of the error with which a process is refused."""
    with pytest.raises(ExecutionError) as caught:
        engine.request(FallibleProcessResult, [process])
    (error,) = caught.value.wrapped_exceptions
    assert isinstance(error, Error)
    return str(error)


def test_a_launcher_that_leaves_no_record(tmp_path: Path, status: dict[str, Any]) -> None:
    status["launcher"] = launcher_that(tmp_path, "true")
    engine = wrapping_engine(fake_executable(tmp_path, status), str(tmp_path / "none"))
    message = refusal(engine)
    assert "(say hi) ended with exit code 0 and left no record" in message
    assert "rootseal doctor" in message


def test_a_launcher_that_forges_a_record(tmp_path: Path, status: dict[str, Any]) -> None:
    status["launcher"] = launcher_that(tmp_path, "echo forged > .rootseal-record")
    engine = wrapping_engine(fake_executable(tmp_path, status), str(tmp_path / "none"))
    message = refusal(engine)
    assert "(say hi) from this run is refused: check" in message
    assert "trusted_capture_keys" in message


def test_a_result_that_ends_otherwise_than_its_record_says(
    tmp_path: Path, status: dict[str, Any]
) -> None:
    real, socket = status["launcher"], status["socket"]
    path = tmp_path / "launcher"
    run = f'/usr/bin/env -i {real} "${{@/#--socket=*/--socket={socket}}}"'
    path.write_text(f"#!/bin/bash\n{run} || exit\nexit 3\n")
    path.chmod(0o755)
    status["launcher"] = str(path)
    engine = wrapping_engine(fake_executable(tmp_path, status), str(tmp_path / "none"))
    assert "the result's exit code is 3, the record says 0" in refusal(engine)


@pytest.mark.parametrize(
    ("variables", "command", "why"),
    [
        ("", "/bin/echo evil", "another command: /bin/echo evil; asked for was /bin/echo hi"),
        (
            "LD_PRELOAD=/evil.so",
            "/bin/echo hi",
            "in another environment: it differs in LD_PRELOAD",
        ),
    ],
)
def test_another_action_under_the_key_of_this_one(
    tmp_path: Path, status: dict[str, Any], variables: str, command: str, why: str
) -> None:
    real, socket = status["launcher"], status["socket"]
    path = tmp_path / "launcher"
    path.write_text(
        f"#!/bin/bash\noptions=()\n"
        f'while [ "$1" != -- ]; do options+=("${{1/#--socket=*/--socket={socket}}}"); shift; done\n'
        f'exec /usr/bin/env -i {variables} {real} "${{options[@]}}" -- {command}\n'
    )
    path.chmod(0o755)
    status["launcher"] = str(path)
    engine = wrapping_engine(fake_executable(tmp_path, status), str(tmp_path / "none"))
    message = refusal(engine)
    assert "the record is of " in message and why in message and "/evil.so" not in message


def test_no_daemon_for_the_launcher(tmp_path: Path, status: dict[str, Any]) -> None:
    engine = wrapping_engine(fake_executable(tmp_path, status), str(tmp_path / "none"))
    message = refusal(engine)
    assert "(say hi) was not captured: " in message
    assert "rootseal daemon ensure" in message


def test_an_executable_that_cannot_start_a_daemon(tmp_path: Path) -> None:
    path = tmp_path / "rootseal"
    path.write_text("#!/bin/sh\necho 'rootseal: no such luck' >&2\nexit 2\n")
    path.chmod(0o755)
    message = refusal(wrapping_engine(str(path), str(tmp_path / "none")))
    assert "failed: rootseal: no such luck" in message
    path.write_text("#!/bin/sh\necho '{}'\n")
    assert "does not say its socket" in refusal(wrapping_engine(str(path), str(tmp_path / "none")))


@pytest.mark.parametrize("name", ["missing", "."])
def test_an_executable_that_is_no_file(tmp_path: Path, name: str) -> None:
    engine = wrapping_engine(str(tmp_path / name), str(tmp_path / "none"))
    assert "is not an executable file" in refusal(engine)


@pytest.fixture
def echo_toolchain(tmp_path: Path, executable: str) -> tuple[str, ...]:
    """Options that require the tools of ECHO, and no others."""
    tools, key, manifest = tmp_path / "tools", tmp_path / "a.key", tmp_path / "a.toolchain"
    tools.mkdir()
    mapped = subprocess.run(["ldd", "/bin/echo"], capture_output=True, text=True, check=True)
    for tool in ("/bin/echo", *re.findall(r"(/\S+) \(0x", mapped.stdout)):
        shutil.copy(tool, tools)
    subprocess.run([executable, "keygen", str(key)], check=True)
    seal = [executable, "toolchain", "seal", str(tools), "--out", str(manifest), "--key", str(key)]
    subprocess.run(seal, check=True, env={**os.environ, "ROOTSEAL_FSVERITY": "off"})
    public = key.with_suffix(".pub")
    return (f"--rootseal-toolchains=['{manifest}']", f"--rootseal-toolchain-keys=['{public}']")


def test_a_tool_that_is_not_in_the_toolchain_fails_its_action(
    executable: str, daemon_socket: str, echo_toolchain: tuple[str, ...], tmp_path: Path
) -> None:
    engine = wrapping_engine(executable, daemon_socket, *echo_toolchain)
    assert engine.request(FallibleProcessResult, [ECHO]).stdout == b"hi\n"
    unknown = tmp_path / "unknown"
    unknown.write_bytes(Path("/bin/echo").read_bytes() + b"patched")
    unknown.chmod(0o755)
    never = ProcessCacheScope.ALWAYS  # even so a failed capture is no result
    message = refusal(engine, Process([str(unknown), "hi"], description="odd", cache_scope=never))
    assert f"(odd) was not captured: the action executed {unknown} (sha256 " in message
    assert "/a.toolchain)" in message


def test_toolchains_without_keys_are_refused(
    executable: str, daemon_socket: str, echo_toolchain: tuple[str, ...]
) -> None:
    engine = wrapping_engine(executable, daemon_socket, echo_toolchain[0])
    assert "[rootseal].toolchain_keys need each other" in refusal(engine)


@pytest.mark.parametrize("by", ["flag", "variable"])
def test_fsverity_that_must_be_and_cannot_is_refused_at_once(
    executable: str, daemon_socket: str, by: str
) -> None:
    engine = wrapping_engine(executable, daemon_socket)
    fixed = [f"--rootseal-executable={executable}", f"--rootseal-daemon-socket={daemon_socket}"]
    said = ["--rootseal-fsverity=on"] if by == "flag" else []
    engine.set_options([*fixed, *said], env={} if said else {"ROOTSEAL_FSVERITY": "1"})
    if fsverity.can_seal(engine.build_root):
        pytest.skip("optional: fs-verity is on the filesystem of the temporary files")
    assert "cannot seal files" in refusal(engine)


def test_a_trusted_key_that_is_not_a_key(
    tmp_path: Path, executable: str, daemon_socket: str
) -> None:
    wrong = tmp_path / "wrong.pem"
    wrong.write_text("not a key")
    engine = wrapping_engine(
        executable, daemon_socket, f"--rootseal-trusted-capture-keys=['{wrong}']"
    )
    assert f"[rootseal].trusted_capture_keys: {wrong} is not a PEM key file" in refusal(engine)


@pytest.fixture
def capture_key(status: dict[str, Any]) -> bytes:
    """A good public key."""
    return Path(status["captureKey"]).read_bytes()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda pem: "# clé de la CI\n".encode() + pem, "is not a PEM key file"),
        (lambda pem: b"# of CI\n" + pem, "is not a PEM key file"),
        (lambda pem: pem + pem, "is not a PEM key file"),
        (lambda pem: pem[:-10], "is not a PEM key file"),
        (lambda pem: pem.replace(b"PUBLIC", b"PRIVATE"), "holds a private key; give the public"),
        (lambda pem: pem.replace(b"PUBLIC KEY", b"CERTIFICATE"), "holds a PEM CERTIFICATE; a PEM"),
        (lambda pem: pem.replace(b"M", "é".encode(), 1), "is not a readable PEM public key: "),
        (lambda pem: pem.replace(b"\nM", "\nName: é\n\nM".encode(), 1), "is not ASCII"),
        (lambda pem: pem.replace(b"M", b"", 1), "is not a readable PEM public key: "),
        (lambda pem: pem + b" " * 4096, "is larger than 4096 bytes"),
        (lambda pem: pem + b" " * 65536, "is too large to be a key file"),
    ],
)
def test_a_trusted_key_in_another_form_is_refused(
    tmp_path: Path,
    status: dict[str, Any],
    executable: str,
    capture_key: bytes,
    change: Callable[[bytes], bytes],
    words: str,
) -> None:
    path = tmp_path / "other.pub"

    def ready() -> tuple[str, ...]:
        request = DaemonRequest(executable, "/", status["socket"], 0, (str(path),), ())
        return make_ready(request).trusted_capture_keys

    path.write_bytes(capture_key)
    assert ready() == (capture_key.decode(),)
    path.write_bytes(change(capture_key))
    with pytest.raises(ConfigError) as caught:
        ready()
    assert str(caught.value).startswith(f"[rootseal].trusted_capture_keys: {path} {words}")


def test_a_trusted_key_that_is_not_there(
    tmp_path: Path, executable: str, daemon_socket: str
) -> None:
    option = f"--rootseal-trusted-capture-keys=['{tmp_path}', '/no/such.pub']"
    assert f"{tmp_path} is not a regular file" in refusal(
        wrapping_engine(executable, daemon_socket, option)
    )
    option = "--rootseal-trusted-capture-keys=['/no/such.pub']"
    message = refusal(wrapping_engine(executable, daemon_socket, option))
    assert "/no/such.pub cannot be read: No such file or directory" in message


def test_a_record_that_is_lost_everywhere(wrapped: RuleRunner, tmp_path: Path) -> None:
    nothing = FileSummary("0" * 64, 0)
    evidence = Evidence("a" * 64, "b" * 64, 7, "ran", False, 1, "say hi", 0, nothing, nothing)
    with pytest.raises(CaptureError, match=r"\(say hi\) is lost: .*build again"):
        restore_records(wrapped.scheduler, RecordStore(str(tmp_path)), [evidence])


def test_a_record_comes_back_from_the_engine(wrapped: RuleRunner, tmp_path: Path) -> None:
    digest = wrapped.make_snapshot({"record": "the record"})
    assert digest
    store = RecordStore(str(tmp_path))
    name = store.put(b"the record")
    store.path(name).unlink()
    nothing = FileSummary("0" * 64, 0)
    evidence = Evidence("a" * 64, name, 10, "ran", False, 1, "say hi", 0, nothing, nothing)
    restore_records(wrapped.scheduler, store, [evidence])
    assert store.path(name).read_bytes() == b"the record"
    assert FileDigest(name, 10)


def test_a_record_that_cannot_be_kept_names_the_place_and_the_remedy(
    executable: str, daemon_socket: str, tmp_path: Path
) -> None:
    directory = tmp_path / "file"
    directory.touch()
    option = f"--rootseal-records-dir={directory}"
    message = refusal(wrapping_engine(executable, daemon_socket, option))
    assert f"cannot be kept in {directory}: Not a directory; " in message
    assert "[rootseal].records_dir" in message


def test_records_are_pruned_oldest_first(tmp_path: Path) -> None:
    store = RecordStore(str(tmp_path))
    assert store.prune(max_bytes=0, keep=set()) == 0
    names = [store.put(bytes([number]) * 100) for number in range(5)]
    for age, name in enumerate(names):
        os.utime(store.path(name), (1000 + age, 1000 + age))
    assert store.prune(max_bytes=250, keep={names[0]}) == 3
    assert [store.path(name).exists() for name in names] == [True, False, False, False, True]
    store.put(bytes([4]) * 100)  # a record that is there is not written again
    assert not list(tmp_path.rglob("*.tmp"))


# --- the key of an action ------------------------------------------------------------------

OTHER: dict[str, Any] = {
    "argv": ("/bin/echo", "ho"),
    "input_digest": Digest("1" * 64, 5),
    "immutable_input_digests": FrozenDict({"x": EMPTY_DIGEST}),
    "use_nailgun": ("x",),
    "working_directory": "w",
    "env": FrozenDict({"A": "1"}),
    "append_only_caches": FrozenDict({"c": "c"}),
    "output_files": ("o",),
    "output_directories": ("o",),
    "timeout_seconds": 1.5,
    "jdk_home": "/jdk",
    "execution_slot_variable": "SLOT",
    "concurrency_available": 3,
    "cache_scope": ProcessCacheScope.PER_SESSION,
}
NOT_IDENTITY: dict[str, Any] = {
    "description": "another",
    "level": LogLevel.DEBUG,
    "remote_cache_speculation_delay_millis": 5,
}


def test_every_field_of_a_process_is_in_its_key_or_known_not_to_be() -> None:
    names = {field.name for field in dataclasses.fields(Process)}
    assert names == {*OTHER, *NOT_IDENTITY}
    keys = {process_key(ECHO, platform="linux_x86_64"), process_key(ECHO, platform="linux_arm64")}
    for name, value in OTHER.items():
        keys.add(process_key(dataclasses.replace(ECHO, **{name: value}), platform="linux_x86_64"))
    assert len(keys) == len(OTHER) + 2
    for name, value in NOT_IDENTITY.items():
        changed = dataclasses.replace(ECHO, **{name: value})
        assert process_key(changed, platform="linux_x86_64") in keys


def test_wrapped_argv() -> None:
    def made(working_directory: str | None, salt: str = "") -> tuple[str, ...]:
        return wrapped_argv(
            ["a", "--", "b"],
            key="k",
            working_directory=working_directory,
            output_files=["f"],
            output_directories=["d"],
            settings=["--s"],
            salt=salt,
        )

    outputs = ("--record=.rootseal-record", "--output-file=f", "--output-dir=d", "--s")
    assert made(None) == (
        *("./.rootseal/exec", "--action=k", "--root=."),
        *(*outputs, "--", "a", "--", "b"),
    )
    assert made("x/y", "z")[:3] == ("../../.rootseal/exec", "--action=k", "--root=../..")
    assert "--option=attempt=z" in made("x/y", "z")
    assert [output_prefix(path) for path in (None, ".", "a", "a//b/")] == ["", "", "a/", "a/b/"]


def test_capture_failures_are_errors_of_rootseal() -> None:
    assert issubclass(CaptureFailed, CaptureError)
