"""Groups, host capabilities and MUST_RUN, for every test of this repository.

A test's group is the directory it is in (a marker of the same name is added). Each group needs
some capabilities of the host; `@pytest.mark.requires(...)` on a test or module replaces them. What
is missing skips the test with its reason; `MUST_RUN=kernel,plugin` (or `pants` for plugin and
integration) turns the skips of those groups into failures. A skip whose reason starts with
`optional:` stays a skip. Runs under pytest 7 (Pants' interpreter) and newer.
"""

from __future__ import annotations

import collections
import json
import os
import pwd
import subprocess
import sys
from pathlib import Path
from typing import Any, Generator, Iterator, Sequence

import pytest
from capabilities import PROBES, REPO, probe
from throwaway_user import UnprivilegedUser, throwaway_user

TESTS = Path(__file__).resolve().parent
GROUP_NEEDS: dict[str, tuple[str, ...]] = {
    "tidy": (),
    "unit": (),
    "native": ("gcc",),
    "kernel": ("root", "fanotify"),
    "lab": (),  # judges results; the machines ran before (make lab)
    "plugin": ("pants-import",),
    "integration": ("pants", "launcher"),
    "adversarial": ("root", "fanotify", "launcher", "core"),
}
ALIASES = {"pants": ("plugin", "integration"), "all": tuple(GROUP_NEEDS)}
OPTIONAL = "optional:"


def group_of(path: Path) -> str:
    """The group a test file belongs to: its directory below tests/, else `tidy`."""
    parts = path.resolve().relative_to(TESTS).parts
    return parts[0] if len(parts) > 1 else "tidy"


def must_run() -> frozenset[str]:
    """The groups whose skips are failures, from the environment variable MUST_RUN."""
    names: set[str] = set()
    for name in filter(None, os.environ.get("MUST_RUN", "").replace(" ", "").split(",")):
        names.update(ALIASES.get(name, (name,)))
    unknown = names - set(GROUP_NEEDS)
    if unknown:
        known = ", ".join([*GROUP_NEEDS, *ALIASES])
        raise pytest.UsageError(f"MUST_RUN has unknown groups {sorted(unknown)}; known: {known}")
    return frozenset(names)


def pytest_configure(config: pytest.Config) -> None:
    must_run()
    config.addinivalue_line("markers", "requires(*names): capabilities this test needs instead")
    config.addinivalue_line("markers", "heavy: takes minutes on the emulated machines of the lab")
    for name in GROUP_NEEDS:
        config.addinivalue_line("markers", f"{name}: test group, from the directory")


def pytest_report_header(config: pytest.Config) -> list[str]:
    if os.environ.get("ROOTSEAL_LAB_EMULATED"):
        return [
            "host: asked when a test needs it (all at once would take an emulated machine long)"
        ]
    lines = ["host:"]
    for name in PROBES:
        found = probe(name)
        lines.append(f"  {'yes' if found.available else 'no ':3} {name:13} {found.reason}")
    return lines


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Plugin tests import pants at their top: left out where the interpreter has none."""
    inside = (TESTS / "plugin") in (collection_path, *collection_path.parents)
    if inside and "plugin" not in must_run() and not probe("pants-import").available:
        return True
    return None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        item.add_marker(getattr(pytest.mark, group_of(Path(str(item.fspath)))))


def pytest_runtest_setup(item: pytest.Item) -> None:
    marker = item.get_closest_marker("requires")
    needs = marker.args if marker else GROUP_NEEDS[group_of(Path(str(item.fspath)))]
    if item.get_closest_marker("heavy") and os.environ.get("ROOTSEAL_LAB_EMULATED"):
        pytest.skip(f"{OPTIONAL} too heavy for an emulated machine; runs on the host's kernel")
    for name in needs:
        if name not in PROBES:
            raise pytest.UsageError(f"{item.nodeid} requires the unknown capability {name!r}")
        found = probe(name)
        if not found.available:
            pytest.skip(f"no {name}: {found.reason}")


# --- MUST_RUN and the result file -----------------------------------------------------------


class Results:
    """Counts outcomes and keeps the reasons of skips, for the table of scripts/test.py."""

    def __init__(self) -> None:
        self.counts: collections.Counter[str] = collections.Counter()
        self.reasons: collections.Counter[str] = collections.Counter()
        self.failures: list[str] = []

    def add(self, report: Any) -> None:
        if report.outcome == "failed":
            self.counts["failed"] += 1
            self.failures.append(report.nodeid)
        elif report.outcome == "skipped":
            self.counts["xfailed" if hasattr(report, "wasxfail") else "skipped"] += 1
            self.reasons[skip_reason(report)] += 1
        elif getattr(report, "when", "") == "call":
            self.counts["passed"] += 1

    def write(self, path: Path) -> None:
        document = {
            "counts": dict(self.counts),
            "reasons": dict(self.reasons),
            "failures": self.failures,
        }
        path.write_text(json.dumps(document, indent=1), "utf-8")


RESULTS = Results()


def skip_reason(report: Any) -> str:
    """The reason of a skipped report, without file and line."""
    if hasattr(report, "wasxfail"):
        return f"xfail: {report.wasxfail}"
    if isinstance(report.longrepr, tuple):
        return str(report.longrepr[2]).replace("Skipped: ", "", 1)
    return str(report.longrepr)


def fail_if_it_must_run(report: Any, path: Path) -> None:
    """Turn a skip into a failure if MUST_RUN names the test's group."""
    if report.outcome != "skipped" or hasattr(report, "wasxfail"):
        return
    reason = skip_reason(report)
    if group_of(path) in must_run() and not reason.startswith(OPTIONAL):
        report.outcome = "failed"
        report.longrepr = f"MUST_RUN={os.environ['MUST_RUN']} forbids this skip: {reason}"


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, Any, None]:
    outcome = yield
    report = outcome.get_result()
    fail_if_it_must_run(report, Path(str(item.fspath)))
    RESULTS.add(report)


@pytest.hookimpl(hookwrapper=True)
def pytest_make_collect_report(collector: pytest.Collector) -> Generator[None, Any, None]:
    outcome = yield
    report = outcome.get_result()
    if isinstance(collector, pytest.Module):
        fail_if_it_must_run(report, Path(str(collector.fspath)))
        if report.outcome != "passed":
            RESULTS.add(report)


def pytest_sessionfinish(session: pytest.Session) -> None:
    target = os.environ.get("ROOTSEAL_TEST_RESULTS")
    if target:
        RESULTS.write(Path(target))


# --- fixtures -------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def repo() -> Path:
    """The root of the checkout."""
    return REPO


@pytest.fixture(scope="session")
def unprivileged_user() -> Iterator[UnprivilegedUser]:
    """A user without any privilege: a throw-away one if we are root, else ourselves."""
    found = probe("users")
    if not found.available:
        pytest.skip(f"no users: {found.reason}")
    if os.geteuid() != 0:
        entry = pwd.getpwuid(os.geteuid())
        yield UnprivilegedUser(entry.pw_name, entry.pw_uid, entry.pw_gid, Path(entry.pw_dir))
        return
    with throwaway_user() as user:
        yield user


@pytest.fixture(scope="session")
def rootseal_command() -> Sequence[str]:
    """How to start the `rootseal` command line with the interpreter of the tests."""
    code = "import sys; from rootseal.cli import main; sys.exit(main())"
    subprocess.run([sys.executable, "-c", "import rootseal.cli"], check=True)
    return (sys.executable, "-c", code)
