"""The test machinery itself: needs of a group, MUST_RUN, throw-away users, the result table."""

from __future__ import annotations

import json
import os
import pwd
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parent.parent
REPO = TESTS.parent


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A checkout of nothing but the test machinery."""
    (tmp_path / "tests").mkdir()
    for name in ("conftest.py", "capabilities.py", "throwaway_user.py"):
        shutil.copy(TESTS / name, tmp_path / "tests")
    (tmp_path / "pyproject.toml").write_text(
        '[tool.pytest.ini_options]\npythonpath = ["tests"]\naddopts = "-ra --strict-markers"\n'
    )
    return tmp_path


def run(tree: Path, must_run: str, **groups: str) -> tuple[int, str, dict[str, object]]:
    """Run one test file per group; exit code, output, and what the result file says."""
    for group, text in groups.items():
        (tree / "tests" / group).mkdir()
        (tree / "tests" / group / f"test_{group}_group.py").write_text(text)
    result = tree / "result.json"
    environment = {**os.environ, "MUST_RUN": must_run, "ROOTSEAL_TEST_RESULTS": str(result)}
    environment["ROOTSEAL_PANTS_VENV"] = str(tree / "nothing")
    argv = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "tests"]
    done = subprocess.run(argv, cwd=tree, env=environment, capture_output=True, text=True)
    document = json.loads(result.read_text()) if result.exists() else {}
    return done.returncode, done.stdout + done.stderr, document


PASSES = "def test_it(): pass\n"


def test_missing_need_skips_with_its_reason(tree: Path) -> None:
    code, out, document = run(tree, "", integration=PASSES)
    assert code == 0, out
    assert document["counts"] == {"skipped": 1}
    (reason,) = document["reasons"]  # type: ignore[misc]
    assert reason.startswith("no pants: ") and "make setup" in reason


@pytest.mark.parametrize("must_run", ["integration", "pants", "all", "unit, integration"])
def test_must_run_makes_the_skip_a_failure(tree: Path, must_run: str) -> None:
    code, out, document = run(tree, must_run, integration=PASSES)
    assert code == 1
    assert document["counts"] == {"failed": 1}
    assert "forbids this skip: no pants" in out


def test_must_run_of_another_group_changes_nothing(tree: Path) -> None:
    code, _, document = run(tree, "kernel", integration=PASSES, unit=PASSES)
    assert code == 0
    assert document["counts"] == {"skipped": 1, "passed": 1}


def test_must_run_catches_a_module_that_skips_itself(tree: Path) -> None:
    text = "import pytest\npytest.skip('not today', allow_module_level=True)\n"
    assert run(tree, "", unit=text)[2]["counts"] == {"skipped": 1}
    shutil.rmtree(tree / "tests" / "unit")
    code, out, document = run(tree, "unit", unit=text)
    assert code != 0 and document["counts"] == {"failed": 1}, out


def test_optional_skips_stay_skips(tree: Path) -> None:
    text = "import pytest\ndef test_it(): pytest.skip('optional: no aarch64 emulator')\n"
    code, _, document = run(tree, "unit", unit=text)
    assert code == 0
    assert document["reasons"] == {"optional: no aarch64 emulator": 1}


def test_expected_failures_are_not_skips(tree: Path) -> None:
    text = "import pytest\n@pytest.mark.xfail(reason='known')\ndef test_it(): assert False\n"
    code, _, document = run(tree, "unit", unit=text)
    assert code == 0 and document["counts"] == {"xfailed": 1}


def test_unknown_group_in_must_run_is_refused(tree: Path) -> None:
    code, out, _ = run(tree, "kernle", unit=PASSES)
    assert code == 4 and "kernle" in out and "kernel" in out


def test_unknown_capability_is_an_error(tree: Path) -> None:
    text = "import pytest\n@pytest.mark.requires('roote')\ndef test_it(): pass\n"
    code, out, _ = run(tree, "", unit=text)
    assert code != 0 and "'roote'" in out


def test_requires_replaces_the_needs_of_the_group(tree: Path) -> None:
    text = "import pytest\n@pytest.mark.requires('gcc')\ndef test_it(): pass\n"
    code, _, document = run(tree, "integration", integration=text)
    assert code == 0 and document["counts"] == {"passed": 1}


def test_failures_in_teardown_are_counted(tree: Path) -> None:
    text = "import pytest\n@pytest.fixture\ndef f():\n    yield\n    1/0\ndef test_it(f): pass\n"
    code, _, document = run(tree, "", unit=text)
    assert code == 1 and document["counts"] == {"passed": 1, "failed": 1}


def test_runner_refuses_an_unknown_group() -> None:
    argv = [sys.executable, "scripts/test.py", "kernle"]
    done = subprocess.run(argv, cwd=REPO, capture_output=True, text=True)
    assert done.returncode == 1 and "kernle" in done.stderr


@pytest.mark.requires("root", "users")
def test_throwaway_user_has_no_privilege_and_is_gone_afterwards() -> None:
    from throwaway_user import throwaway_user

    with throwaway_user() as user:
        done = user.run(
            ["/bin/sh", "-c", "id -u; id -G; grep CapEff /proc/self/status; pwd; echo $HOME"]
        )
        uid, groups, capabilities, cwd, home = done.stdout.splitlines()
        assert int(uid) == user.uid != 0
        assert groups == str(user.gid)
        assert capabilities.split()[1] == "0" * 16
        assert cwd == home == str(user.home)
    assert not user.home.exists()
    with pytest.raises(KeyError):
        pwd.getpwnam(user.name)
