"""A system user that exists as long as a test session, and commands run as that user."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pwd
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any, Iterator, Mapping, Sequence

COMMAND_TIMEOUT_SECONDS = 300


@dataclasses.dataclass(frozen=True)
class UnprivilegedUser:
    """A user without privileges.

    Attributes:
        name: Login name.
        uid: User id, never 0.
        gid: Primary group; the user is in no other group.
        home: A directory that the user owns and may fill.
    """

    name: str
    uid: int
    gid: int
    home: Path

    def environment(self, extra: Mapping[str, str] | None = None) -> dict[str, str]:
        """A login-like environment: nothing of root's leaks into it but pip and TLS settings."""
        kept = {
            name: value
            for name, value in os.environ.items()
            if name.startswith(("PIP_", "SSL_")) or name in ("LANG", "LC_ALL", "CI")
        }
        base = {
            "HOME": str(self.home),
            "USER": self.name,
            "LOGNAME": self.name,
            "PATH": "/usr/local/bin:/usr/bin:/bin",
            "TMPDIR": str(self.home / "tmp"),
        }
        return {**kept, **base, **(extra or {})}

    def popen(self, argv: Sequence[str | os.PathLike[str]], **options: Any) -> Any:
        """`subprocess.Popen` as this user; options as there, `env` is added to `environment()`."""
        options.setdefault("cwd", str(self.home))
        options["env"] = self.environment(options.get("env"))
        if os.geteuid() == 0:
            options.update(user=self.uid, group=self.gid, extra_groups=[])
        return subprocess.Popen(argv, **options)

    def run(
        self, argv: Sequence[str | os.PathLike[str]], **options: Any
    ) -> subprocess.CompletedProcess[str]:
        """Run a command to its end as this user, output captured as text."""
        timeout = options.pop("timeout", COMMAND_TIMEOUT_SECONDS)
        options.setdefault("stdin", subprocess.DEVNULL)
        with self.popen(
            argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options
        ) as process:
            try:
                out, err = process.communicate(timeout=timeout)
            except BaseException:
                process.kill()
                raise
        return subprocess.CompletedProcess(argv, process.returncode, out, err)


@contextlib.contextmanager
def throwaway_user() -> Iterator[UnprivilegedUser]:
    """Create a system user with a home of its own; both are gone afterwards. Needs root."""
    name = f"rootseal-t{os.getpid()}"
    home = Path(tempfile.mkdtemp(prefix="rootseal-home-"))
    subprocess.run(
        ["useradd", "--system", "--user-group", "--no-create-home", "--home-dir", str(home)]
        + ["--shell", "/bin/sh", name],
        check=True,
        capture_output=True,
    )
    try:
        entry = pwd.getpwnam(name)
        (home / "tmp").mkdir()
        for path in (home, home / "tmp"):
            os.chown(path, entry.pw_uid, entry.pw_gid)
            path.chmod(0o755)
        yield UnprivilegedUser(name, entry.pw_uid, entry.pw_gid, home)
    finally:
        subprocess.run(["userdel", name], check=True, capture_output=True)
        shutil.rmtree(home, ignore_errors=True)
