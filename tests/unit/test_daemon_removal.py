"""Where fanotify would hinder an action; that it does so on NFS is shown in the kernel lab."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from rootseal import daemon_removal, files
from rootseal.daemon_peer import Peer

OWN = Peer(os.getpid(), os.getuid(), os.getgid())


def test_on_a_filesystem_of_this_machine_it_does_not(tmp_path: Path) -> None:
    assert daemon_removal.hinders_removal(os.fsencode(tmp_path), OWN) is None


def test_on_nfs_it_does_and_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "filesystem_magic", lambda _: daemon_removal.NFS_SUPER_MAGIC)
    found = daemon_removal.hinders_removal(os.fsencode(tmp_path), OWN)
    assert found is not None
    assert "on NFS" in found.reason and "filesystem of this machine" in found.remedy


def test_a_server_that_does_not_say_what_it_is_ends_no_action(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(_: int) -> int:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(files, "filesystem_magic", refused)
    assert daemon_removal.hinders_removal(os.fsencode(tmp_path), OWN) is None
