"""The state of the git work tree, as the manifest has it."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from rootseal_pants.vcs import VcsQuestion

IDENTITY = ("-c", "user.name=n", "-c", "user.email=e@example.com")


def git(root: Path, *arguments: str) -> str:
    command = ["git", *IDENTITY, "-C", str(root), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A work tree with one commit."""
    root = tmp_path / "tree"
    root.mkdir()
    git(root, "init", "--quiet")
    (root / "file").write_text("one\n", "utf-8")
    git(root, "add", "file")
    git(root, "commit", "--quiet", "--message=one")
    return root


def answer(root: Path) -> dict[str, object] | None:
    with VcsQuestion(str(root)) as question:
        return question.answer()


def test_a_clean_tree_and_its_commit(tree: Path) -> None:
    commit = git(tree, "rev-parse", "HEAD")
    assert answer(tree) == {"system": "git", "commit": commit, "dirty": False}
    git(tree, "branch", "other")
    git(tree, "checkout", "--quiet", "--detach")
    assert answer(tree) == {"system": "git", "commit": commit, "dirty": False}
    git(tree, "config", "status.showStash", "true")
    (tree / "file").write_text("stashed\n", "utf-8")
    git(tree, "stash", "--quiet")
    assert answer(tree) == {"system": "git", "commit": commit, "dirty": False}


@pytest.mark.parametrize("change", ["edited", "removed", "added", "# added"])
def test_a_change_makes_it_dirty(tree: Path, change: str) -> None:
    path = tree / ("file" if change in ("edited", "removed") else change)
    path.unlink() if change == "removed" else path.write_text("two\n", "utf-8")
    found = answer(tree)
    assert found is not None and found["dirty"] is True
    assert found["commit"] == git(tree, "rev-parse", "HEAD")


def test_no_commit_no_tree_and_no_git_are_no_state(
    tmp_path: Path, tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    git(empty, "init", "--quiet")
    assert answer(empty) is None
    bare = tmp_path / "none"
    bare.mkdir()
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    assert answer(bare) is None
    monkeypatch.setitem(os.environ, "PATH", str(bare))
    assert answer(tree) is None


def test_what_git_cannot_compare_counts_as_changed(tree: Path) -> None:
    commit = git(tree, "rev-parse", "HEAD")
    (tree / ".git" / "index").write_bytes(b"no index")
    assert answer(tree) == {"system": "git", "commit": commit, "dirty": True}


def test_a_question_that_nobody_reads_leaves_no_process(tree: Path) -> None:
    with VcsQuestion(str(tree)) as question:
        child = question._asked
    assert child is not None and child.has_ended()
