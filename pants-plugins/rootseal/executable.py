"""Commands of this installation as an error or a remedy names them: to be pasted as they are.

`rootseal` of a virtual environment is on nobody's PATH, least of all on root's, so its absolute
path is given.
"""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from pathlib import Path

NAME = "rootseal"


def rootseal_path() -> str:
    """Absolute path of the `rootseal` of this installation; its bare name if there is none."""
    places = [Path(sys.executable).parent / NAME]
    if sys.argv and Path(sys.argv[0]).name == NAME:
        places.insert(0, Path(sys.argv[0]))
    for place in places:
        if os.access(place, os.X_OK) and place.is_file():
            return str(place.absolute())
    return shutil.which(NAME) or NAME


def rootseal_command(*arguments: str, sudo: bool = False) -> str:
    """A command line with that path, quoted for a shell.

    Args:
        arguments: What follows `rootseal`.
        sudo: Whether it is for root; root itself needs no sudo.
    """
    words = [rootseal_path(), *arguments]
    if sudo and os.getuid() != 0:
        words.insert(0, "sudo")
    return " ".join(map(shlex.quote, words))


def system_daemon_command() -> str:
    """The command with which root has a system daemon serve this user."""
    allow = () if os.getuid() == 0 else ("--allow-uid", str(os.getuid()))
    return rootseal_command("daemon", "ensure", *allow, sudo=True)
