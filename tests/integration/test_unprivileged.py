"""A user without any privilege: the same job, honestly labelled."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from typing import Iterator

import pytest
from pants_repo import PantsRepo, find_executables, small_repo
from throwaway_user import UnprivilegedUser


@pytest.fixture
def users_repo(unprivileged_user: UnprivilegedUser) -> Iterator[PantsRepo]:
    """A small monorepo of a user without privileges."""
    user = unprivileged_user
    for program in find_executables():
        try:
            subprocess.run(
                [str(program), "--version"],
                user=user.uid,
                group=user.gid,
                extra_groups=[],
                cwd="/",
                env={"PATH": "/usr/bin:/bin", "HOME": str(user.home), "PANTS_PANTSD": "false"},
                capture_output=True,
                check=False,
            )
        except PermissionError:
            pytest.skip(f"{user.name} cannot run {program} (an interpreter that only root reaches)")
    base = user.home / "pants-test"
    base.mkdir()
    base.chmod(0o755)
    made = small_repo(base, (user.uid, user.gid))
    yield made
    made.stop()
    shutil.rmtree(base)


def may_trace(user: UnprivilegedUser) -> bool:
    """Whether this user's processes may be traced here (ptrace(2), PTRACE_TRACEME)."""
    trace_me = "import ctypes, sys; sys.exit(ctypes.CDLL(None).ptrace(0, 0, 0, 0) != 0)"
    return bool(user.run([sys.executable, "-c", trace_me]).returncode == 0)


def attested_by(repo: PantsRepo) -> tuple[str, set[str]]:
    """The posture of the build, and the backends of its actions."""
    bundle = repo.root / "dist" / "rootseal" / "build.rootseal"
    shown = json.loads(repo.command("show", str(bundle), "--expand", "--json").succeeded().output)
    backends = {action["capture"]["backend"] for action in shown["actions"]}
    return shown["build"]["summary"]["posture"], backends


def test_package_and_verify_without_privileges(
    users_repo: PantsRepo, unprivileged_user: UnprivilegedUser
) -> None:
    """Held by ptrace wherever that is permitted; walked where it is not, or where asked for."""
    users_repo.run("package", "::").succeeded()
    users_repo.verify()
    socket = ("--socket", str(users_repo.socket))
    status = json.loads(users_repo.command("daemon", "status", *socket, "--json").output)
    backend, posture = ("ptrace", "held") if may_trace(unprivileged_user) else ("walk", "walked")
    assert (status["backend"], status["posture"]) == (backend, posture)
    assert attested_by(users_repo) == (posture, {backend})

    users_repo.run("--rootseal-capture-mode=walk", "package", "::").succeeded()
    users_repo.verify()
    assert attested_by(users_repo) == ("walked", {"walk"})
