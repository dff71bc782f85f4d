"""A private daemon and launcher runs against it, for the tests of this directory."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Mapping, Optional, Sequence

from rootseal import keys, leaf_table, wire
from rootseal.leaf_table import Domain, Leaf
from rootseal.record_check import VerifiedRecord, verify_record

REPO = Path(__file__).resolve().parents[2]
BIN = REPO / "pants-plugins" / "rootseal" / "bin"
LAUNCHER = BIN / "rootseal-exec"
KEY = bytes(range(32))
# Only a broken program needs that long, on an emulated machine beside others too.
GIVE_UP_SECONDS = 900.0 if os.environ.get("ROOTSEAL_LAB_EMULATED") else 120.0
PROGRAM = (
    f"import sys; sys.path.insert(0, {str(REPO / 'pants-plugins')!r}); "
    "from rootseal.cli import main; sys.exit(main())"
)


def command(*arguments: str) -> List[str]:
    """The `rootseal` command line with this interpreter and this checkout."""
    return [sys.executable, "-c", PROGRAM, *arguments]


def rootseal(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run the command line to its end."""
    return subprocess.run(
        command(*arguments), capture_output=True, text=True, timeout=GIVE_UP_SECONDS, **options
    )


def is_observed_and_not_held(place: Path, sandbox: Path, *words: str) -> None:
    """`rootseal run` of these words is only observed: who requires held refuses its bundle.

    Args:
        place: An empty directory for key and bundle.
        sandbox: Where it runs.
        words: Options and the command.
    """
    key, out = place / "sign.key", str(place / "out.rootseal")
    keys.create_key_files(key, "ed25519")
    done = rootseal("run", "--key", str(key), "--out", out, *words, cwd=sandbox)
    assert done.returncode == 0 and "posture observed" in done.stderr, done.stderr
    verify = ("verify", out, "--key", str(key.with_suffix(".pub")))
    assert rootseal(*verify).returncode == 0
    refused = rootseal(*verify, "--require-posture", "held", "--json")
    assert refused.returncode == 1
    error = json.loads(refused.stdout)["error"]
    assert error["check"] == "POLICY" and "observed" in error["message"]


def until(condition: Callable[[], Any], what: str) -> Any:
    """Wait for something that must happen; the value that made it true."""
    deadline = time.monotonic() + GIVE_UP_SECONDS
    while time.monotonic() < deadline:
        value = condition()
        if value:
            return value
        time.sleep(0.01)
    raise AssertionError(f"never happened: {what}")


def is_alive(pid: int) -> bool:
    """Whether a process exists and is not a zombie."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in "ZX"


@dataclasses.dataclass
class Done:
    """A launcher that has ended."""

    returncode: int
    stdout: bytes
    stderr: str
    record: Path
    capture_key: keys.PublicKey

    def verified(self) -> VerifiedRecord:
        """Its record, checked as any verifier would."""
        return verify_record(
            self.record.read_bytes(),
            action_key=KEY,
            envelope_sha256=None,
            trusted=(self.capture_key,),
        )

    def field(self, *path: str) -> Any:
        """A field of the predicate."""
        value: Any = self.verified().predicate.document
        for name in path:
            value = value[name]
        return value

    def asked(self, **changed: object) -> Dict[str, object]:
        """What a build tool would say in CHECK that it asked for."""
        document = self.verified().predicate.document
        environ = {item["name"]: item["valueDigest"] for item in document["environ"]}  # type: ignore[attr-defined]
        return {
            "cmd": document["cmd"],
            "environ": environ,
            "templates": {},
            "anyValue": [],
            "workingDirectory": document["sandbox"]["workingDirectory"],  # type: ignore[index]
            "outputFiles": document["declaredOutputs"]["files"],  # type: ignore[index]
            "outputDirectories": document["declaredOutputs"]["directories"],  # type: ignore[index]
            **changed,
        }

    def leaves(self, domain: Domain) -> Dict[bytes, Leaf]:
        """Leaves by path."""
        tables = self.verified().record.tables
        stored = tables.materials if domain == Domain.MATERIAL else tables.products
        raw = leaf_table.decompress(stored)
        return {leaf.path: leaf for leaf in leaf_table.iter_leaves(raw, domain)}

    def products(self) -> Dict[bytes, Leaf]:
        """Products by path."""
        return self.leaves(Domain.PRODUCT)

    def materials(self) -> Dict[bytes, Leaf]:
        """Materials by path."""
        return self.leaves(Domain.MATERIAL)


@dataclasses.dataclass
class RunningDaemon:
    """A daemon that answers."""

    process: subprocess.Popen[bytes]
    socket: Path
    state: Path
    log: Path

    @property
    def capture_key(self) -> keys.PublicKey:
        """The key that its records are signed with."""
        return keys.load_public_key(self.state / "capture.pub")

    def status(self) -> Dict[str, Any]:
        """What it says of itself."""
        return wire.status(str(self.socket), timeout_seconds=GIVE_UP_SECONDS)

    def counts(self, running: int = 0) -> Dict[str, int]:
        """Its counters, as soon as so many actions run: what has ended is counted then."""

        def settled() -> Optional[Dict[str, Any]]:
            status = self.status()
            return status if status["actions"]["running"] == running else None

        found: Dict[str, int] = until(settled, f"{running} actions run")["counts"]
        return found

    def argv(
        self, record: Path, argv: Sequence[str], options: Sequence[str] = (), root: str = "."
    ) -> List[str]:
        """The launcher's command line."""
        fixed = [f"--action={KEY.hex()}", f"--root={root}", f"--record={record}"]
        return [str(LAUNCHER), *fixed, f"--socket={self.socket}", *options, "--", *argv]

    def start(
        self,
        sandbox: Path,
        argv: Sequence[str],
        *options: str,
        record: Optional[Path] = None,
        popen: Callable[..., Any] = subprocess.Popen,
        **popen_options: Any,
    ) -> Any:
        """Start an action; its standard streams are pipes."""
        for name in ("stdin", "stdout", "stderr"):
            popen_options.setdefault(name, subprocess.PIPE)
        place = record or sandbox / "the-record"
        return popen(self.argv(place, argv, options), cwd=str(sandbox), **popen_options)

    def end(self, process: Any, record: Path, data: bytes = b"") -> Done:
        """Wait for an action."""
        out, err = process.communicate(data, timeout=GIVE_UP_SECONDS)
        text = (err or b"").decode(errors="replace")
        return Done(process.returncode, out or b"", text, record, self.capture_key)

    def run(self, sandbox: Path, argv: Sequence[str], *options: str, **more: Any) -> Done:
        """Run an action to its end."""
        data = more.pop("input", b"")
        record = more.get("record") or sandbox / "the-record"
        return self.end(self.start(sandbox, argv, *options, **more), record, data)

    def kill(self) -> None:
        """End it without a chance to clean up."""
        self.process.kill()
        self.process.wait(GIVE_UP_SECONDS)

    def terminate(self) -> int:
        """End it as an init system would; its exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(GIVE_UP_SECONDS)


@contextlib.contextmanager
def place_of_users() -> Iterator[Path]:
    """A directory that every user may enter, with a launcher that every user may run."""
    with tempfile.TemporaryDirectory(prefix="rootseal-users-") as name:
        path = Path(name)
        path.chmod(0o755)
        shutil.copy(LAUNCHER, path / "rootseal-exec")
        yield path


@contextlib.contextmanager
def running_daemon(
    directory: Path,
    *options: str,
    environ: Optional[Mapping[str, str]] = None,
    prefix: Sequence[str] = (),
    wrapped: Callable[..., List[str]] = lambda *argv: list(argv),
) -> Iterator[RunningDaemon]:
    """A daemon with its socket, state and log below a directory that every user may enter.

    Args:
        directory: Exists.
        options: Of `rootseal daemon run`.
        environ: Variables beside those of this process.
        prefix: A program that starts it, such as `prlimit`.
        wrapped: Gives the command line that in the end executes the daemon's.
    """
    socket, state, log = directory / "run" / "d.sock", directory / "state", directory / "log"
    (directory / "run").mkdir(exist_ok=True)
    place = ("--socket", str(socket), "--state-dir", str(state))
    with log.open("wb") as stream:
        process = subprocess.Popen(
            wrapped(*prefix, *command("daemon", "run", *place, *options)),
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=stream,
            env=None if environ is None else {**os.environ, **environ},
        )
    daemon = RunningDaemon(process, socket, state, log)
    try:
        until(lambda: answers(daemon), f"the daemon answers; its log: {log.read_text()}")
        yield daemon
    finally:
        if process.poll() is None:
            process.terminate()
        process.wait(GIVE_UP_SECONDS)


def answers(daemon: RunningDaemon) -> bool:
    """Whether a daemon answers; fails at once if it has ended."""
    assert daemon.process.poll() is None, daemon.log.read_text()
    return wire.find_daemon((str(daemon.socket),)) is not None


def one_line(text: str) -> str:
    """The one line that the launcher said."""
    lines = text.splitlines()
    assert len(lines) == 1 and lines[0].startswith("rootseal-exec: "), text
    return lines[0]
