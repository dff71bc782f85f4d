"""A monorepo in a temporary directory, and real Pants runs in it.

Everything that Pants keeps (store, caches, work directory, daemon) is below the temporary
directory, and so is Rootseal's daemon. One Pants runs at a time; `stop` ends what was started.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Mapping, Sequence

REPO = Path(__file__).resolve().parents[2]
RUN_TIMEOUT_SECONDS = 900
PANTSD_START_ATTEMPTS = 4

PANTS_TOML = """\
[GLOBAL]
pants_version = "2.17.1"
pythonpath = ["{plugins}"]
backend_packages = ["pants.backend.shell", "rootseal_pants"]

[anonymous-telemetry]
enabled = false

[rootseal]
executable = "{executable}"
daemon_socket = "{socket}"
"""

BUILD = """\
files(name="shared-text", sources=["shared.txt"])

files(name="left-text", sources=["left.txt"])

files(name="right-text", sources=["right.txt"])

shell_command(
    name="shared",
    command="cat shared.txt shared.txt > twice.txt",
    tools=["cat"],
    execution_dependencies=[":shared-text"],
    output_files=["twice.txt"],
)

shell_command(
    name="left",
    command="cat twice.txt left.txt > left.out; mkdir -p more/empty; echo x > more/x",
    tools=["cat", "mkdir"],
    execution_dependencies=[":left-text", ":shared"],
    output_files=["left.out"],
    output_directories=["more"],
)

shell_command(
    name="right",
    command="cat twice.txt right.txt > right.out",
    tools=["cat"],
    execution_dependencies=[":right-text", ":shared"],
    output_files=["right.out"],
)

archive(name="left-archive", format="tar", files=[":left"], output_path="left.tar")

archive(name="right-archive", format="tar", files=[":right"], output_path="right.tar")
"""

SOURCES = {"shared.txt": "shared\n", "left.txt": "left\n", "right.txt": "right\n"}


@dataclass(frozen=True)
class PantsResult:
    """A run of Pants that ended."""

    code: int
    output: str

    def succeeded(self) -> PantsResult:
        """This result; fails the test if the run failed."""
        assert self.code == 0, self.output
        return self

    def failed(self) -> PantsResult:
        """This result; fails the test if the run succeeded."""
        assert self.code != 0, self.output
        return self


@dataclass
class PantsRepo:
    """A monorepo with its own Pants directories.

    Attributes:
        root: The build root.
        home: HOME of everything that is run, and the parent of Pants' directories.
        pants: The `pants` executable.
        rootseal: The `rootseal` executable.
        run_as: uid and gid of the user that runs everything, or None for this one.
        options: Environment variables for every run.
        dist: Pants' distribution directory; below the build root.
    """

    root: Path
    home: Path
    pants: Path
    rootseal: Path
    run_as: tuple[int, int] | None = None
    options: dict[str, str] = field(default_factory=dict)
    dist: Path = Path()

    def __post_init__(self) -> None:
        if self.dist == Path():
            self.dist = self.root / "dist"

    @property
    def socket(self) -> Path:
        """Socket of the Rootseal daemon that serves this repository."""
        return self.home / "run" / "daemon.sock"

    @property
    def records(self) -> Path:
        """The plugin's directory of records."""
        return self.home / "workdir" / "rootseal" / "records"

    def write(self, files: Mapping[str, str]) -> None:
        """Write files below the build root."""
        for name, text in files.items():
            path = self.root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, "utf-8")
            if self.run_as:
                os.chown(path, *self.run_as)

    def environment(self) -> dict[str, str]:
        """The environment of every run: nothing of the tester's own but what reaches packages."""
        kept = ("LANG", "SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "PIP_INDEX_URL")
        local = REPO / "build" / "pants-local.toml"
        return {
            **{name: os.environ[name] for name in kept if name in os.environ},
            "PATH": "/usr/local/bin:/usr/bin:/bin",
            "HOME": str(self.home),
            "PANTS_CONFIG_FILES": str(local) if local.exists() else "[]",
            "PANTS_WORKDIR": str(self.home / "workdir"),
            "PANTS_SUBPROCESSDIR": str(self.home / "pids"),
            "PANTS_LOCAL_STORE_DIR": str(self.home / "store"),
            "PANTS_NAMED_CACHES_DIR": str(self.home / "named"),
            "PANTS_LOCAL_EXECUTION_ROOT_DIR": str(self.home / "sandboxes"),
            "PANTS_DISTDIR": str(self.dist),
            "PANTS_DYNAMIC_UI": "false",
            **self.options,
        }

    def run(self, *arguments: str, env: Mapping[str, str] | None = None) -> PantsResult:
        """Run Pants to its end."""
        (self.home / "sandboxes").mkdir(exist_ok=True)
        if self.run_as:
            os.chown(self.home / "sandboxes", *self.run_as)
        command, environment = [str(self.pants), *arguments], {**self.environment(), **(env or {})}
        for _ in range(PANTSD_START_ATTEMPTS):
            result = self._execute(command, environment)
            if "while waiting for pantsd to start" not in result.output:
                break  # else the machine is so busy that Pants gave up on its own daemon
        return result

    def command(self, *arguments: str) -> PantsResult:
        """Run the `rootseal` executable to its end."""
        return self._execute([str(self.rootseal), *arguments], self.environment())

    def _execute(self, command: Sequence[str], env: Mapping[str, str]) -> PantsResult:
        identity: dict[str, Any] = {}
        if self.run_as:
            identity = {"user": self.run_as[0], "group": self.run_as[1], "extra_groups": []}
        done = subprocess.run(
            command,
            cwd=self.root,
            env=dict(env),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=RUN_TIMEOUT_SECONDS,
            **identity,
        )
        return PantsResult(done.returncode, done.stdout.decode(errors="replace"))

    def start_daemon(self, state: str) -> None:
        """Start Rootseal's daemon (again) with a state directory below `home`."""
        place = ("--socket", str(self.socket))
        self.command("daemon", "stop", *place).succeeded()
        state_dir = str(self.home / state)
        self.command("daemon", "ensure", *place, "--state-dir", state_dir).succeeded()

    def manifest(self) -> Manifest:
        """The manifest that the last run left."""
        text = (self.dist / "rootseal" / "manifest.json").read_text("utf-8")
        return Manifest(json.loads(text))

    def verify(self, *options: str) -> None:
        """Verify the bundle with every artifact; fails the test if it is refused."""
        artifacts = [
            word
            for path in sorted(self.dist.rglob("*"))
            if path.is_file() and "rootseal" not in path.relative_to(self.dist).parts
            for word in ("--artifact", str(path))
        ]
        assert artifacts
        key = self.home / "public.pem"
        if not key.exists():
            shutil.copy(self.signing_key(), key)
        bundle = self.dist / "rootseal" / "build.rootseal"
        self.command("verify", str(bundle), "--key", str(key), *artifacts, *options).succeeded()

    def signing_key(self) -> Path:
        """The public key of the user's signing key."""
        found = self.command("keygen", "--default", "--json").succeeded()
        return Path(json.loads(found.output)["publicKey"])

    def stop(self) -> None:
        """End pantsd and the Rootseal daemon of this repository, by their process ids."""
        self.stop_pantsd()
        self.command("daemon", "stop", "--socket", str(self.socket)).succeeded()

    def stop_pantsd(self) -> None:
        """End pantsd, if it runs."""
        for path in (self.home / "pids").rglob("pid"):
            with contextlib.suppress(ValueError, ProcessLookupError):
                end_process(int(path.read_text("utf-8")))
        shutil.rmtree(self.home / "pids", ignore_errors=True)


@dataclass(frozen=True)
class Manifest:
    """A run manifest."""

    document: Mapping[str, Any]

    @property
    def sources(self) -> list[str]:
        """Where the result of each action came from, sorted."""
        return sorted(action["source"] for action in self.document["actions"])

    def keys(self) -> set[str]:
        """The action keys."""
        return {action["actionKey"] for action in self.document["actions"]}

    def records_of(self, address: str) -> set[str]:
        """The records of one target."""
        (target,) = (item for item in self.document["targets"] if item["address"] == address)
        return set(target["actions"])

    def records(self, description: str) -> dict[str, str]:
        """Record by description of the actions whose description has a text in it."""
        return {
            action["description"]: action["record"]
            for action in self.document["actions"]
            if description in action["description"]
        }


def short_key(repo: PantsRepo) -> Path:
    """A signing key that only sealing can tell from a good one: an Ed25519 key of 31 bytes."""
    path = repo.home / "short.key"
    der = bytes.fromhex("302d020100300506032b65700421041f") + bytes(31)
    body = base64.b64encode(der).decode()
    path.touch(0o600)
    path.write_text(f"-----BEGIN PRIVATE KEY-----\n{body}\n-----END PRIVATE KEY-----\n", "utf-8")
    return path


def end_process(pid: int) -> None:
    """Ask a process to end and wait until it has; kill it if it does not."""
    os.kill(pid, signal.SIGTERM)
    for _ in range(200):
        if not Path(f"/proc/{pid}").exists():
            return
        time.sleep(0.05)
    os.kill(pid, signal.SIGKILL)


def find_executables() -> tuple[Path, Path]:
    """The `pants` and the `rootseal` executable of this checkout."""
    venv = Path(os.environ.get("ROOTSEAL_PANTS_VENV", str(REPO / ".venv-pants")))
    rootseal = os.environ.get("ROOTSEAL_EXECUTABLE", str(Path(sys.executable).parent / "rootseal"))
    return venv / "bin" / "pants", Path(rootseal)


def small_repo(base: Path, run_as: tuple[int, int] | None = None) -> PantsRepo:
    """A repository of two archives that share an action; needs nothing from the network."""
    pants, rootseal = find_executables()
    repo = PantsRepo(base / "repo", base / "home", pants, rootseal, run_as)
    for directory in (repo.root, repo.home):
        directory.mkdir(parents=True)
        if run_as:
            os.chown(directory, *run_as)
    repo.write(
        {
            "pants.toml": PANTS_TOML.format(
                plugins=REPO / "pants-plugins", executable=rootseal, socket=repo.socket
            ),
            "BUILD": BUILD,
            **SOURCES,
        }
    )
    return repo
