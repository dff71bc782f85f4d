"""What does each backend add to real work? Beside them strace, as a yardstick.

A C library from source with make, pip installing ten packages, tar of very many files, and Pants
packaging a generated monorepo of 200 targets. Needs the package index once, to fetch the sources
and wheels; what is measured works offline. Usage: bench/workloads.py [NAME…] [--runs N]
"""

from __future__ import annotations

import argparse
import dataclasses
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path
from typing import Any, Callable, Dict, List, Mapping, Optional, Sequence

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "integration"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "pants-plugins"))

import open_scale
from captured import MAY_LOSE, Costs, Daemon, backends, below_launcher, daemon, lost_in
from harness import Goal, Variant, compare
from pants_repo import PANTS_TOML, PantsRepo, find_executables
from rootseal import diagnostics
from rootseal.capture.ebpf import EbpfTracer

LUA_PACKAGE, LUA_SOURCES = "lupa==2.4", "third-party/lua54"
PACKAGES = (
    "attrs==24.2.0",
    "certifi==2024.8.30",
    "charset-normalizer==3.3.2",
    "click==8.1.7",
    "idna==3.10",
    "jinja2==3.1.4",
    "markupsafe==2.1.5",
    "packaging==24.1",
    "requests==2.32.3",
    "urllib3==2.2.3",
)
GOALS = {
    "compile": (
        Goal("captured by auto (fanotify + eBPF)", 1.05),
        Goal("eBPF alone, no digests", 1.1),
        Goal("captured by eBPF alone, digests known", 1.1),
    )
}
TAR_FILES = 100_000
PANTS_WAYS = {
    "bare": ["--no-rootseal-enabled"],
    "captured by auto": ["--rootseal-enabled"],
    "captured by ptrace": ["--rootseal-enabled", "--rootseal-capture-mode=trace:ptrace"],
}
PANTS_PAIRS = 100  # a shell command and an archive of its output each


@dataclasses.dataclass(frozen=True)
class Workload:
    """A command that can be run again and again.

    Attributes:
        argv: What is run, in `directory`.
        directory: Its root.
        prepare: Called before each run.
    """

    argv: List[str]
    directory: Path
    prepare: Callable[[], None]


def pip(*arguments: str) -> None:
    """Run pip quietly."""
    argv = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments]
    subprocess.run(argv, check=True)


def compile_lua(base: Path) -> Workload:
    """`make -j2` of Lua's library, from the sources that a package ships."""
    pip(
        "download",
        "--no-deps",
        "--no-binary=:all:",
        "--no-build-isolation",
        "-d",
        str(base),
        LUA_PACKAGE,
    )
    (archive,) = base.glob("*.tar.gz")
    with tarfile.open(archive) as file:
        file.extractall(base)
    (directory,) = base.glob(f"*/{LUA_SOURCES}")

    def clean() -> None:
        subprocess.run(["make", "-s", "clean"], cwd=directory, check=True)

    return Workload(["make", "-s", "-j2", "liblua.a"], directory, clean)


def install_packages(base: Path) -> Workload:
    """`pip install --target` of ten wheels that are there already."""
    wheels, root = base / "wheels", base / "root"
    root.mkdir()
    pip("download", "--no-deps", "--only-binary=:all:", "-d", str(wheels), *PACKAGES)
    argv = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "install"]
    argv += ["--no-index", f"--find-links={wheels}", "--no-deps", "--target=target", *PACKAGES]
    return Workload(argv, root, lambda: shutil.rmtree(root / "target", ignore_errors=True))


def tar_files(base: Path) -> Workload:
    """tar of very many small files, into a pipe."""
    open_scale.make_files(base / "files", TAR_FILES)
    (base / "root").mkdir()
    script = f"tar -C {base} -cf - files | cat > /dev/null"
    return Workload(["/bin/sh", "-c", script], base / "root", lambda: None)


COMMANDS: Dict[str, Callable[[Path], Workload]] = {
    "compile": compile_lua,
    "pip": install_packages,
    "tar": tar_files,
}


def run(argv: Sequence[str], directory: Path) -> None:
    """Run to the end; what it prints does not matter."""
    subprocess.run(argv, cwd=directory, check=True, stdout=subprocess.DEVNULL)


class Ways:
    """The ways to run a workload. The daemon runs only for those that need it."""

    def __init__(self, base: Path, work: Workload) -> None:
        """Keep a daemon's files and records in `base`."""
        self.work, self.record = work, base / "record"
        self.daemon = Daemon(base)
        self.facts: Dict[str, object] = {}
        self._costs = Costs(self.daemon, self.facts)
        self.tracer: Optional[EbpfTracer] = None

    def variants(self, status: Mapping[str, Any]) -> List[Variant]:
        """Bare, captured in each way, and under strace where there is one."""
        found = [self._without("bare", self.work.argv)]
        for name, options in backends(status).items():
            may_lose = name == MAY_LOSE
            argv = below_launcher(
                self.daemon.socket, self.record, self.work.argv, options, may_lose=may_lose
            )
            name = f"captured by {name}"
            run_it = self._runner(name, argv)
            prepare = self._prepare_daemon
            if may_lose:
                run_it = self._telling_losses(name, run_it, status)
                prepare = self._prepare_twice(argv)
            found.append(Variant(name, run_it, prepare))
        if status["trace"]["loader"]:
            found.append(Variant("eBPF alone, no digests", self._trace, self._prepare_tracer))
        if shutil.which("strace"):
            strace = ["strace", "-f", "-o", "/dev/null", "-e", "trace=%file"]
            found.append(
                self._without(" ".join(["strace -f", strace[-1]]), strace + self.work.argv)
            )
        return found

    def close(self) -> None:
        """End the daemon and the tracer."""
        self.daemon.stop()
        self._no_tracer()

    def _without(self, name: str, argv: Sequence[str]) -> Variant:
        return Variant(name, self._runner(name, argv), self._prepare_nothing)

    def _runner(self, name: str, argv: Sequence[str]) -> Callable[[], float]:
        return self._costs.of(name, lambda: run(argv, self.work.directory))

    def _telling_losses(
        self, name: str, run_it: Callable[[], float], status: Mapping[str, Any]
    ) -> Callable[[], float]:
        def told() -> float:
            seconds = run_it()
            lost = int(str(self.facts.get(f"{name}: most that was lost", 0)))
            self.facts[f"{name}: most that was lost"] = max(lost, lost_in(self.record, status))
            return seconds

        return told

    def _prepare_nothing(self) -> None:
        self.close()
        self.work.prepare()

    def _prepare_daemon(self) -> None:
        self._no_tracer()
        self.daemon.start()
        self.work.prepare()

    def _prepare_twice(self, argv: Sequence[str]) -> Callable[[], None]:
        """With digests from one action before: eBPF alone keeps them in memory only."""

        def prepare() -> None:
            self._prepare_daemon()
            run(argv, self.work.directory)
            self.work.prepare()

        return prepare

    def _prepare_tracer(self) -> None:
        self.close()
        self.tracer = EbpfTracer()
        self.work.prepare()

    def _no_tracer(self) -> None:
        if self.tracer is not None:
            self.tracer.close()
        self.tracer = None

    def _trace(self) -> None:
        """Followed by eBPF and nothing else: who did what, without the content of files."""
        assert self.tracer is not None
        argv = ["/bin/sh", "-c", 'read go && exec "$@"', "sh", *self.work.argv]
        with subprocess.Popen(
            argv,
            cwd=self.work.directory,
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
        ) as child:
            scope = self.tracer.add_scope(child.pid, root=bytes(self.work.directory))
            child.communicate("go\n")
        lost = diagnostics.losses({**diagnostics.zeros(), **scope.finish().counters})
        if child.returncode or lost:
            raise RuntimeError(f"ended with {child.returncode}, lost: {lost}")


def measure(name: str, runs: int) -> None:
    """One of `COMMANDS`, below a daemon of its own."""
    with tempfile.TemporaryDirectory(prefix="rootseal-bench-") as place:
        base = Path(place)
        (base / "work").mkdir()
        ways = Ways(base, COMMANDS[name](base / "work"))
        try:
            status = ways.daemon.start()
            found = ways.variants(status)
            question = f"{work_name(name)}: each backend, and strace, against bare"
            ways.facts.update({"posture of auto": status["posture"], "lost": 0})
            names = {variant.name for variant in found}
            goals = [goal for goal in GOALS.get(name, ()) if goal.variant in names]
            compare(f"workload_{name}", question, found, runs=runs, facts=ways.facts, goals=goals)
        finally:
            ways.close()


def work_name(name: str) -> str:
    """The first line of what the workload says of itself, without its full stop."""
    return str(COMMANDS[name].__doc__).splitlines()[0].rstrip(".")


class Monorepo:
    """200 targets, packaged with cold caches and pantsd up."""

    def __init__(self, base: Path) -> None:
        """Generate it."""
        self.base, self.number = base, 0
        self.pants, self.rootseal = find_executables()
        self.repo: Optional[PantsRepo] = None

    def renew(self) -> None:
        """Forget every cache, and have a new pantsd ready."""
        self.close()
        self.number += 1
        root, home = self.base / f"repo{self.number}", self.base / f"home{self.number}"
        root.mkdir()
        home.mkdir()
        self.repo = PantsRepo(root, home, self.pants, self.rootseal)
        plugins = Path(__file__).resolve().parents[1] / "pants-plugins"
        toml = PANTS_TOML.format(
            plugins=plugins, executable=self.rootseal, socket=self.base / "run" / "daemon.sock"
        )
        self.repo.write({"pants.toml": toml, **monorepo_files(PANTS_PAIRS)})
        self.repo.run("roots").succeeded()

    def package(self, *options: str) -> Callable[[], float]:
        """Package everything."""

        def timed() -> float:
            assert self.repo is not None
            started = time.perf_counter()
            self.repo.run(*options, "package", "::").succeeded()
            return time.perf_counter() - started

        return timed

    def close(self) -> None:
        """End pantsd."""
        if self.repo is not None:
            self.repo.stop_pantsd()
            shutil.rmtree(self.repo.home)
            shutil.rmtree(self.repo.root)
        self.repo = None


def monorepo_files(pairs: int) -> Dict[str, str]:
    """A directory per pair of targets."""
    files = {}
    for number in range(pairs):
        files[f"p{number}/in.txt"] = f"input {number}\n" * 100
        files[f"p{number}/BUILD"] = (
            'files(name="in", sources=["in.txt"])\n'
            'shell_command(name="sum", command="cksum in.txt > out.txt", tools=["cksum"],\n'
            '    execution_dependencies=[":in"], output_files=["out.txt"])\n'
            f'archive(name="a", format="tar", files=[":sum"], output_path="p{number}.tar")\n'
        )
    return files


def measure_pants(runs: int) -> None:
    """The monorepo with and without capture."""
    with tempfile.TemporaryDirectory(prefix="rootseal-bench-") as place, daemon(Path(place)):
        monorepo = Monorepo(Path(place))
        try:
            compare(
                "workload_pants",
                f"`pants package ::` over {2 * PANTS_PAIRS} targets with cold caches, pantsd up",
                [
                    Variant(name, monorepo.package(*options), monorepo.renew)
                    for name, options in PANTS_WAYS.items()
                ],
                runs=runs,
                warmups=0,
            )
        finally:
            monorepo.close()


def main() -> None:
    """What the command line names, or everything."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args()
    unknown = set(options.names) - {*COMMANDS, "pants"}
    if unknown:
        parser.error(
            f"no workload named {sorted(unknown)}; there are: {', '.join(COMMANDS)}, pants"
        )
    for name in [*COMMANDS, "pants"]:
        if options.names and name not in options.names:
            continue
        if name == "pants":
            measure_pants(max(1, options.runs - 1))
        else:
            measure(name, options.runs)


if __name__ == "__main__":
    main()
