"""A user without any privilege: the same job, honestly labelled."""

from __future__ import annotations

import json
import shutil
import subprocess
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


def test_package_and_verify_without_privileges(users_repo: PantsRepo) -> None:
    users_repo.run("package", "::").succeeded()
    users_repo.verify()
    bundle = users_repo.root / "dist" / "rootseal" / "build.rootseal"
    shown = json.loads(users_repo.command("show", str(bundle), "--json").succeeded().output)
    posture = shown["build"]["summary"]["posture"]
    assert posture in ("walked", "observed", "held")
    status = json.loads(
        users_repo.command("daemon", "status", "--socket", str(users_repo.socket), "--json").output
    )
    assert posture == status["posture"]
