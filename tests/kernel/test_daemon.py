"""The daemon under loads, losses and clients of every kind; each test talks to a real one."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, List, Tuple

import pytest
from rootseal import canonical, keys, wire
from rootseal.observation import DigestSource, LeafKind
from rootseal.wire import Frame, FrameType, Tag
from running_daemon import (
    GIVE_UP_SECONDS,
    KEY,
    Done,
    RunningDaemon,
    command,
    is_alive,
    one_line,
    rootseal,
    running_daemon,
    until,
)
from threads_at_rest import wait_for_rest

pytestmark = pytest.mark.requires("root", "fanotify", "launcher", "core")
HELD = "--option=fanotify=on"
TRACED = "--option=capture-mode=trace:ptrace"
WALKED = "--option=capture-mode=walk"


def shell(text: str) -> List[str]:
    return ["/bin/sh", "-c", text]


# --- the daemon ends while actions run ------------------------------------------------------


@pytest.mark.parametrize("option", [HELD, TRACED, WALKED], ids=["fanotify", "ptrace", "walk"])
@pytest.mark.parametrize("how", ["kill", "terminate"])
def test_an_action_does_not_outlive_its_daemon(
    tmp_path: Path, sandbox: Path, how: str, option: str
) -> None:
    with running_daemon(tmp_path) as daemon:
        script = "setsid sleep 9999 & echo $! > far; echo $$; exec sleep 9999"
        process = daemon.start(sandbox, shell(script), option)
        action = int(process.stdout.readline())
        getattr(daemon, how)()
        done = daemon.end(process, sandbox / "the-record")
    assert done.returncode == 125
    text = one_line(done.stderr)
    assert ("went away" if how == "kill" else "was stopped") in text
    assert not is_alive(action)
    assert not is_alive(int((sandbox / "far").read_text()))
    assert not done.record.exists()


def test_a_stale_socket_is_replaced_and_a_second_daemon_refused(
    tmp_path: Path, sandbox: Path
) -> None:
    with running_daemon(tmp_path) as first:
        first.kill()
        assert first.socket.exists()
        with running_daemon(tmp_path) as second:
            place = ("--socket", str(second.socket), "--state-dir", str(second.state))
            third = rootseal("daemon", "run", *place)
            assert third.returncode == 2
            assert "a daemon runs already" in third.stderr
            assert second.run(sandbox, ["true"], HELD).returncode == 0
            assert second.terminate() == 0
        assert not second.socket.exists()


def test_the_capture_key_stays_and_only_its_public_half_is_readable(tmp_path: Path) -> None:
    identities = []
    for _ in range(2):
        with running_daemon(tmp_path) as daemon:
            identities.append(daemon.status()["captureKeyId"])
    assert identities[0] == identities[1] == daemon.capture_key.keyid
    assert (daemon.state / "capture.key").stat().st_mode & 0o777 == 0o600
    assert (daemon.state / "capture.pub").stat().st_mode & 0o777 == 0o644


# --- many actions ---------------------------------------------------------------------------


def test_two_hundred_actions_sixteen_at_a_time(daemon: RunningDaemon, tmp_path: Path) -> None:
    def one(number: int) -> None:
        place = tmp_path / str(number)
        place.mkdir()
        (place / "in").write_text(f"in {number}")
        done = daemon.run(place, shell(f"cat in > out; exit {number % 100}"), HELD)
        assert done.returncode == number % 100
        assert done.verified().losses == {}
        assert set(done.products()) == {b"out"}
        inside = {path for path in done.materials() if not path.startswith(b"/")}
        assert inside == {b"in"}
        assert not any(b"/sandbox" in path for path in done.materials())

    before = daemon.counts()["recorded"]
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(one, range(200)))
    assert daemon.counts()["recorded"] == before + 200


def test_actions_beyond_the_limit_wait_and_none_runs_uncaptured(
    tmp_path: Path, sandbox: Path
) -> None:
    with running_daemon(tmp_path, "--slots", "1") as daemon:
        first = daemon.start(sandbox, shell("echo ready; read line"), HELD)
        first.stdout.readline()
        second = daemon.start(sandbox, ["touch", "ran"], HELD, record=sandbox / "second")
        until(lambda: daemon.status()["actions"]["queued"] == 1, "the second waits")
        assert not (sandbox / "ran").exists()
        assert daemon.end(first, sandbox / "the-record", b"\n").returncode == 0
        done = daemon.end(second, sandbox / "second")
    assert done.returncode == 0
    assert b"ran" in done.products()


def test_many_actions_wait_for_few_places(tmp_path: Path) -> None:
    with running_daemon(tmp_path, "--slots", "2") as daemon:

        def one(number: int) -> int:
            place = tmp_path / f"s{number}"
            place.mkdir()
            done = daemon.run(place, shell("echo x > out"), HELD)
            assert set(done.products()) == {b"out"}
            return done.returncode

        with ThreadPoolExecutor(12) as pool:
            assert list(pool.map(one, range(24))) == [0] * 24


# --- clients of every kind ------------------------------------------------------------------


def connect(daemon: RunningDaemon) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.settimeout(GIVE_UP_SECONDS)
    sock.connect(str(daemon.socket))
    return sock


def reply(sock: socket.socket) -> Frame:
    frame = wire.read_frame(sock, payload_bytes_max=wire.PAYLOAD_BYTES_MAX)
    sock.settimeout(GIVE_UP_SECONDS)
    return frame


def is_closed(sock: socket.socket) -> bool:
    """Whether the daemon closed (with a reset, if it had not read everything)."""
    try:
        return sock.recv(1) == b""
    except ConnectionResetError:
        return True


def announce(sandbox: Path, *options: bytes, namespace: bytes = b"direct") -> Frame:
    root = os.fsencode(sandbox)
    tlvs: List[Tuple[Tag, bytes]] = [
        (Tag.ACTION_KEY, KEY),
        (Tag.ARG, b"true"),
        (Tag.CWD, root),
        (Tag.ROOT, root),
        *((Tag.OPTION, option) for option in options),
        (Tag.NAMESPACE, namespace),
    ]
    return Frame(FrameType.ANNOUNCE, tuple(tlvs))


GARBAGE = {
    "http": b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    "unknown type": bytes((0, 0, 0, 0, 99, 1, 0, 0)),
    "other version": bytes((0, 0, 0, 0, 18, 2, 0, 0)),
    "huge": bytes((255, 255, 255, 255, 1, 1, 0, 0)),
    "unknown tag": bytes((0, 0, 0, 8, 1, 1, 0, 0)) + bytes((0, 77, 0, 0, 0, 0, 0, 0)),
    "tag of another frame": bytes((0, 0, 0, 8, 1, 1, 0, 0)) + bytes((0, 13, 0, 0, 0, 0, 0, 0)),
    "longer than the frame": bytes((0, 0, 0, 8, 1, 1, 0, 0)) + bytes((0, 2, 0, 0, 0, 0, 9, 9)),
    "empty announce": bytes((0, 0, 0, 0, 1, 1, 0, 0)),
    "begins with READY": bytes((0, 0, 0, 0, 3, 1, 0, 0)),
    "begins with EXITED": bytes((0, 0, 0, 0, 5, 1, 0, 0)),
}


@pytest.mark.parametrize("data", GARBAGE.values(), ids=GARBAGE.keys())
def test_garbage_is_answered_and_disturbs_nobody(
    daemon: RunningDaemon, sandbox: Path, data: bytes
) -> None:
    before = daemon.counts()["garbage"]
    with connect(daemon) as sock:
        sock.sendall(data)
        answer = reply(sock)
        assert (answer.type, answer.text(Tag.CODE)) == (FrameType.ERROR, "ProtocolError")
        assert is_closed(sock)
    assert daemon.counts()["garbage"] == before + 1
    assert daemon.run(sandbox, ["true"], HELD).returncode == 0


@pytest.mark.parametrize("length", [0, 1, 7, 8, 12])
def test_half_a_frame_then_nothing_disturbs_nobody(
    daemon: RunningDaemon, sandbox: Path, length: int
) -> None:
    with connect(daemon) as stalled, connect(daemon) as closed:
        data = wire.encode(announce(sandbox))[:length]
        stalled.sendall(data)
        closed.sendall(data)
        closed.close()
        assert daemon.run(sandbox, ["true"], HELD).returncode == 0


def test_a_stalled_client_is_given_up(daemon: RunningDaemon, sandbox: Path) -> None:
    """The daemon's own limit (10 s) ends it; this test only waits for that."""
    with connect(daemon) as silent, connect(daemon) as unready:
        silent.sendall(b"\0\0\0")
        unready.sendall(wire.encode(announce(sandbox)))
        assert reply(unready).type == FrameType.PREPARED
        for sock in (silent, unready):
            answer = reply(sock)
            assert answer.text(Tag.CODE) == "ProtocolError"
            assert "too slow" in answer.text(Tag.MESSAGE)


def test_a_launcher_that_vanishes_leaves_nothing(daemon: RunningDaemon, sandbox: Path) -> None:
    before = daemon.counts()["aborted"]
    with connect(daemon) as sock:
        sock.sendall(wire.encode(announce(sandbox)))
        assert reply(sock).type == FrameType.PREPARED
    until(lambda: daemon.counts()["aborted"] == before + 1, "the daemon notices")


def test_ready_must_come_from_a_child_in_a_private_namespace(
    daemon: RunningDaemon, sandbox: Path
) -> None:
    """Else a client could have another process captured, or the whole host marked."""
    ready = wire.encode(Frame(FrameType.READY))
    with connect(daemon) as own:
        own.sendall(wire.encode(announce(sandbox)))
        assert reply(own).type == FrameType.PREPARED
        own.sendall(ready)
        answer = reply(own)
        assert answer.text(Tag.CODE) == "CaptureError"
        assert "is not a child of the launcher" in answer.text(Tag.MESSAGE)
    with connect(daemon) as sock:
        sock.sendall(wire.encode(announce(sandbox)))
        assert reply(sock).type == FrameType.PREPARED
        child = os.fork()
        if child == 0:
            sock.sendall(ready)
            signal.pause()
        try:
            answer = reply(sock)
        finally:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        assert "not in a private mount namespace" in answer.text(Tag.MESSAGE)


def test_more_clients_than_the_limit_are_told(tmp_path: Path, sandbox: Path) -> None:
    with running_daemon(tmp_path, "--clients", "3") as daemon:
        wait_for_rest(daemon.process.pid)
        silent = [connect(daemon) for _ in range(4)]
        told = select.select(silent, [], [], GIVE_UP_SECONDS)[0]
        assert [reply(sock).text(Tag.CODE) for sock in told] == ["Busy"]
        for sock in silent:
            sock.close()
        until(lambda: daemon.run(sandbox, ["true"], HELD).returncode == 0, "it serves again")


# --- what is asked for and impossible -------------------------------------------------------


def test_without_fanotify_the_action_says_what_was_used_and_why(
    tmp_path: Path, sandbox: Path
) -> None:
    (sandbox / "in").write_text("in")
    with running_daemon(tmp_path, "--no-fanotify") as daemon:
        best = daemon.status()["posture"]
        done = daemon.run(sandbox, shell("cat in > out"), "--output-file=out")
        refused = [
            daemon.run(sandbox, ["touch", "ran"], HELD),
            daemon.run(sandbox, ["touch", "ran"], "--option=hardening=strict"),
        ]
    assert done.returncode == 0
    capture = done.field("capture")
    assert capture["posture"] == {"requested": "held", "achieved": best}
    first, *further = capture["fallbacks"]
    assert first["from"] == "fanotify"
    assert "--no-fanotify" in first["reason"]
    assert (further[-1] if further else first)["to"] == capture["backend"].split("+")[0]
    assert set(done.products()) == {b"out"}
    assert b"in" in done.materials()
    for end in refused:
        assert end.returncode == 125
        assert "fanotify is not available" in one_line(end.stderr)
    assert not (sandbox / "ran").exists()


def test_the_walk_backend_is_labelled_honestly(daemon: RunningDaemon, sandbox: Path) -> None:
    (sandbox / "in").write_text("in")
    (sandbox / "link").symlink_to("in")
    tool = sandbox.parent / "tool"
    tool.write_text("#!/bin/sh\ncat in > out; rm link")
    tool.chmod(0o755)
    done = daemon.run(sandbox, [str(tool)], WALKED, "--output-file=in")
    assert done.returncode == 0
    assert done.field("capture", "posture") == {"requested": "walked", "achieved": "walked"}
    materials, products = done.materials(), done.products()
    assert set(materials) == {b"in", b"link", os.fsencode(tool)}
    assert materials[os.fsencode(tool)].kind == LeafKind.EXECUTABLE
    assert materials[b"link"].kind == LeafKind.SYMLINK
    assert set(products) == {b"out", b"in"}  # a declared output, though it did not change
    assert {leaf.source for leaf in materials.values()} == {DigestSource.WALK}


@pytest.mark.parametrize("option", ["require-zero-drops=1", "hardening=strict"])
def test_a_loss_fails_the_action_and_nothing_is_signed(
    daemon: RunningDaemon, sandbox: Path, option: str
) -> None:
    before = daemon.counts()
    done = daemon.run(sandbox, ["true"], f"--option={option}", "--option=max-digests=1")
    assert done.returncode == 125
    assert "fanotifyDigestsCapHit" in one_line(done.stderr)
    assert "--max-digests" in done.stderr
    assert not done.record.exists()
    after = daemon.counts()
    assert (after["lost"], after["recorded"]) == (before["lost"] + 1, before["recorded"])
    lenient = daemon.run(sandbox, ["true"], "--option=max-digests=1")
    assert lenient.returncode == 0
    assert "fanotifyDigestsCapHit" in lenient.verified().losses


# --- CHECK ----------------------------------------------------------------------------------


@pytest.mark.parametrize("who", ["the daemon that made it", "a daemon that was started later"])
def test_check_accepts_what_the_record_explains_and_nothing_else(
    tmp_path: Path, sandbox: Path, who: str
) -> None:
    script = shell("echo one > out; ln -s out link; mkdir d; echo two > d/file")
    with contextlib.ExitStack() as running:
        daemon = running.enter_context(running_daemon(tmp_path))
        done = daemon.run(sandbox, script, HELD, "--output-file=out", "--output-dir=d")
        if who != "the daemon that made it":
            running.close()
            daemon = running.enter_context(running_daemon(tmp_path))
        check_what_check_accepts(daemon, done)


def check_what_check_accepts(daemon: RunningDaemon, done: Any) -> None:
    record = done.record.read_bytes()
    outputs = []
    for path, leaf in done.products().items():
        name = canonical.path_text(path)
        if path == b"link":
            outputs.append({"path": name, "target": "out"})
        else:
            outputs.append({"path": name, "sha256": leaf.digest.hex(), "size": leaf.size})
    assert len(outputs) == 3

    def ask(**changed: object) -> dict[str, object]:
        request = {
            "action_key": KEY,
            "record": record,
            "outputs": outputs,
            "action": done.asked(),
            **changed,
        }
        return wire.check(str(daemon.socket), **request)  # type: ignore[arg-type]

    good = ask()
    assert (good["accepted"], good["posture"]) == (True, "held")
    assert good["keyid"] == done.capture_key.keyid
    wrong = [{**outputs[0], "sha256": "0" * 64}] if "sha256" in outputs[0] else []
    assert ask(outputs=[*wrong, {"path": "other", "sha256": "0" * 64}])["accepted"] is False
    assert ask(action_key=bytes(32))["accepted"] is False
    assert ask(record=record[:-1])["accepted"] is False
    assert ask(record=b"")["accepted"] is False
    assert ask(exit_code=0)["accepted"] is True
    other = ask(exit_code=1)
    assert other["accepted"] is False
    assert "exit code is 1, the record says 0" in str(other["reason"])
    with pytest.raises(wire.DaemonError, match="exit code"):
        ask(exit_code=256)


def test_check_compares_the_signal_that_ended_an_action(
    daemon: RunningDaemon, sandbox: Path
) -> None:
    done = daemon.run(sandbox, shell("kill -TERM $$"), HELD)
    record, action = done.record.read_bytes(), done.asked()

    def accepted(exit_code: int) -> object:
        path = str(daemon.socket)
        request = {"record": record, "outputs": [], "action": action, "exit_code": exit_code}
        return wire.check(path, action_key=KEY, **request)["accepted"]  # type: ignore[arg-type]

    codes = (128 + signal.SIGTERM, -signal.SIGTERM, -signal.SIGKILL, signal.SIGTERM, 0)
    assert [accepted(code) for code in codes] == [True, True, False, False, False]


def test_a_record_of_another_machine_needs_its_key(
    daemon: RunningDaemon, tmp_path: Path, sandbox: Path
) -> None:
    with running_daemon(tmp_path) as other:
        done = other.run(sandbox, ["true"], HELD)
        request = {"record": done.record.read_bytes(), "outputs": [], "action": done.asked()}
        pem = other.capture_key.pem
    path = str(daemon.socket)

    def ask(*trusted: str) -> dict[str, object]:
        keys_of = {"trusted_capture_keys": trusted}
        return wire.check(path, action_key=KEY, **request, **keys_of)  # type: ignore[arg-type]

    refused, trusted = ask(), ask(pem)
    assert (refused["accepted"], trusted["accepted"]) == (False, True)
    assert "not trusted" in str(refused["reason"])
    with pytest.raises(wire.DaemonError, match="trusted key 0"):
        ask("no key")


# --- the command line -----------------------------------------------------------------------


def place_options(directory: Path) -> tuple[str, ...]:
    socket_path, state = directory / "run" / "d.sock", directory / "state"
    return ("--socket", str(socket_path), "--state-dir", str(state))


def test_ensure_starts_one_daemon_however_many_ask(tmp_path: Path) -> None:
    options = place_options(tmp_path)
    asking = [
        subprocess.Popen(command("daemon", "ensure", "--json", *options), stdout=subprocess.PIPE)
        for _ in range(3)
    ]
    answers = [canonical.parse(p.communicate()[0], bytes_max=1 << 20) for p in asking]
    try:
        assert len({answer["pid"] for answer in answers}) == 1  # type: ignore[index, call-overload]
        again = rootseal("daemon", "ensure", *options)
        assert (again.returncode, again.stderr) == (0, "")
        assert "posture held" in again.stdout
        status = rootseal("daemon", "status", "--json", "--socket", options[1])
        assert '"backend": "fanotify"' in status.stdout
    finally:
        stopped = rootseal("daemon", "stop", "--socket", options[1])
    assert "stopped the daemon" in stopped.stdout
    assert "no daemon runs" in rootseal("daemon", "stop", "--socket", options[1]).stdout
    status = rootseal("daemon", "status", "--socket", options[1])
    assert (status.returncode, status.stdout) == (2, "")
    assert "rootseal daemon ensure" in status.stderr


def test_daemons_at_several_sockets_may_share_a_state_directory(
    tmp_path: Path, sandbox: Path
) -> None:
    """They start at once, so they make one key; each keeps the digest cache in its turn."""
    state = tmp_path / "state"
    sockets = [tmp_path / name / "d.sock" for name in ("one", "two")]
    asking = [
        subprocess.Popen(
            command("daemon", "ensure", "--socket", str(at), "--state-dir", str(state)),
            stdout=subprocess.DEVNULL,
        )
        for at in sockets
    ]
    assert [process.wait(GIVE_UP_SECONDS) for process in asking] == [0, 0]
    found = [RunningDaemon(asking[0], at, state, state / "daemon.log") for at in sockets]
    try:
        assert len({daemon.status()["pid"] for daemon in found}) == 2
        with ThreadPoolExecutor(2) as pool:
            done = list(pool.map(lambda daemon: run_in(daemon, sandbox), found))
        assert [action.verified().losses for action in done] == [{}, {}]  # by the one key
        for daemon in found:
            assert daemon.status()["captureKeyId"] == found[0].capture_key.keyid
    finally:
        for at in sockets:
            rootseal("daemon", "stop", "--socket", str(at))
    kept = {path.name for path in state.iterdir()} - {"digest-cache"}
    assert kept == {"capture.key", "capture.pub", "daemon.log"}
    if (state / "digest-cache").exists():  # not where no filesystem is cached
        with running_daemon(tmp_path) as third:
            assert third.status()["digestCache"]["reason"] == ""


def run_in(daemon: RunningDaemon, sandbox: Path) -> Done:
    place = sandbox / daemon.socket.parent.name
    place.mkdir()
    return daemon.run(place, shell("cat /etc/passwd > out; exit 3"), HELD, "--output-file=out")


def test_an_idle_daemon_ends_by_itself(tmp_path: Path) -> None:
    with running_daemon(tmp_path, "--idle-exit", "1") as daemon:
        assert daemon.process.wait(GIVE_UP_SECONDS) == 0
        assert not daemon.socket.exists()


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (("--allow-uid", "no-such-user"), "no-such-user"),
        (("--socket", "/" + "x" * 200), "cannot"),
        (("--state-dir", "/proc/nothing"), "cannot create"),
    ],
)
def test_a_daemon_that_cannot_start_says_why_in_one_line(
    tmp_path: Path, options: tuple[str, ...], text: str
) -> None:
    done = rootseal("daemon", "run", *place_options(tmp_path), *options)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert text in done.stderr


def test_directories_that_others_could_write_are_refused(tmp_path: Path) -> None:
    state = tmp_path / "state"
    state.mkdir()
    state.chmod(0o777)
    done = rootseal("daemon", "run", *place_options(tmp_path))
    assert done.returncode == 2
    assert "chmod go-w" in done.stderr


@pytest.fixture
def key(tmp_path: Path) -> Path:
    path = tmp_path / "key"
    keys.create_key_files(path, "ed25519")
    return path


def test_run_seals_a_bundle_that_verifies(
    daemon: RunningDaemon, sandbox: Path, tmp_path: Path, key: Path
) -> None:
    bundle = tmp_path / "bundle"
    common = ("run", "--socket", str(daemon.socket), "--key", str(key), "--out", str(bundle))
    script = "mkdir -p dist; echo artifact > dist/a; echo said; exit 0"
    done = rootseal(*common, "--output", "dist/", "--", "sh", "-c", script, cwd=sandbox)
    assert (done.returncode, done.stdout) == (0, "said\n")
    assert "posture held" in done.stderr
    verify = ("verify", str(bundle), "--key", str(key.with_suffix(".pub")))
    good = rootseal(*verify, "--artifact", str(sandbox / "dist/a"), "--require-posture", "held")
    assert good.returncode == 0, good.stderr
    (sandbox / "dist/a").write_text("tampered")
    assert rootseal(*verify, "--artifact", str(sandbox / "dist/a")).returncode == 1
    missing = rootseal(*common, "--output", "never", "--", "true", cwd=sandbox)
    assert missing.returncode == 1
    assert "did not leave its output never" in missing.stderr


@pytest.mark.parametrize(("script", "code"), [("exit 9", 9), ("kill -TERM $$", 143)])
def test_run_ends_as_the_command_ends(
    daemon: RunningDaemon, sandbox: Path, script: str, code: int
) -> None:
    done = rootseal("run", "--socket", str(daemon.socket), "--", "sh", "-c", script, cwd=sandbox)
    assert done.returncode == code


def test_run_passes_a_signal_on(daemon: RunningDaemon, sandbox: Path) -> None:
    script = 'trap "exit 7" TERM; echo ready; while :; do sleep 0.1; done'
    process = subprocess.Popen(
        command("run", "--socket", str(daemon.socket), "--", "sh", "-c", script),
        cwd=sandbox,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=GIVE_UP_SECONDS)
    assert process.returncode == 7


def test_run_fails_with_one_line_when_the_gate_refuses(
    daemon: RunningDaemon, sandbox: Path, tmp_path: Path, key: Path
) -> None:
    bundle = tmp_path / "bundle"
    options = ("--require-zero-drops", "--max-digests", "1", "--out", str(bundle))
    common = ("run", "--socket", str(daemon.socket), "--key", str(key))
    done = rootseal(*common, *options, "--", "true", cwd=sandbox)
    assert done.returncode == 1
    assert "fanotifyDigestsCapHit" in one_line(done.stderr)
    assert not bundle.exists()


def test_run_tells_machines_why_the_gate_refused(
    daemon: RunningDaemon, sandbox: Path, tmp_path: Path, key: Path
) -> None:
    """Counter, value, meaning and remedy; and no bundle or record, not even an older run's."""
    bundle, record = tmp_path / "bundle", tmp_path / "record"
    places = ("--key", str(key), "--out", str(bundle), "--record", str(record))
    common = ("run", "--json", "--socket", str(daemon.socket), *places)
    good = rootseal(*common, "--", "echo", "said", cwd=sandbox)
    assert good.returncode == 0, good.stderr
    first, last = good.stdout.splitlines()
    found = json.loads(last)
    assert (first, found["ok"], found["losses"], found["posture"]) == ("said", True, {}, "held")
    assert bundle.exists() and record.exists()
    options = ("--require-zero-drops", "--max-digests", "1")
    done = rootseal(*common, *options, "--", "true", cwd=sandbox)
    assert done.returncode == 1
    error = json.loads(done.stdout)["error"]
    assert error["type"] == "ZeroDropsError"
    loss = error["data"]["fanotifyDigestsCapHit"]
    assert loss["value"] > 0 and "cap" in loss["meaning"] and "--max-digests" in loss["remedy"]
    assert not bundle.exists() and not record.exists()
    again = rootseal(*common, "--fanotify=on", "--", "true", cwd=sandbox)
    assert again.returncode == 0, again.stderr


@pytest.mark.parametrize(
    ("environ", "text"),
    [({"ROOTSEAL_FANOTIFY": "maybe"}, "ROOTSEAL_FANOTIFY must be one of"), ({}, "a command")],
)
def test_run_refuses_wrong_usage(
    daemon: RunningDaemon, sandbox: Path, environ: dict[str, str], text: str
) -> None:
    words = ["--", "true"] if environ else []
    done = rootseal(
        "run", "--socket", str(daemon.socket), *words, cwd=sandbox, env={**os.environ, **environ}
    )
    assert done.returncode == 2
    assert text in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_doctor_speaks_for_machines() -> None:
    done = rootseal("doctor", "--json")
    found = canonical.parse(done.stdout.encode(), bytes_max=1 << 20)
    assert isinstance(found, dict)
    names = {finding["name"] for finding in found["findings"]}
    assert {"kernel", "launcher", "privileges", "fanotify", "helper", "systemDaemon"} <= names
    assert found["posture"] == "held"
    assert found["postures"]["held"] is True
