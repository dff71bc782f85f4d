"""Goals that attest nothing end as in plain Pants; `attest` and `package` of nothing say so."""

from __future__ import annotations

import pytest
from attested import check_complete
from pants_repo import PantsRepo

MORE = """
experimental_test_shell_command(
    name="good",
    command="cat twice.txt",
    tools=["cat"],
    execution_dependencies=[":shared"],
)

experimental_test_shell_command(name="bad", command="cat none", tools=["cat"])

run_shell_command(name="hello", command="echo hello; exit 7")
"""
GOALS = (
    (("test", "//:good"), 0, "//:good succeeded"),
    (("test", "//:bad"), 1, "//:bad failed"),
    (("run", "//:hello"), 7, "hello"),
    (("lint", "::"), 0, ""),
    (("dependencies", "//:left-archive"), 0, "//:left"),
)


@pytest.fixture
def more(repo: PantsRepo) -> PantsRepo:
    repo.write({"BUILD": (repo.root / "BUILD").read_text("utf-8") + MORE})
    return repo


def test_goals_that_attest_nothing_are_those_of_plain_pants(more: PantsRepo) -> None:
    for goal, code, word in GOALS:
        for switch in ("--rootseal-enabled", "--no-rootseal-enabled"):
            done = more.run(switch, *goal)
            assert (done.code, word in done.output) == (code, True), (switch, done.output)
    assert not (more.dist / "rootseal").exists()
    more.run("package", "::").succeeded()
    check_complete(more)
    more.run("test", "//:good").succeeded()
    check_complete(more)  # other goals leave it alone


def test_a_selection_of_nothing_attests_nothing_and_says_so(repo: PantsRepo) -> None:
    repo.run("package", "::").succeeded()
    empty = repo.run("package", "//:left-text").succeeded()
    assert "Attested" not in empty.output
    left = [path.name for path in (repo.dist / "rootseal").rglob("*") if path.is_file()]
    assert left == ["manifest.json"]  # what is there was not built by this run
    repo.run("package").succeeded()
    for specs in ([], ["//:left-text"]):
        nothing = repo.run("attest", *specs).failed()
        assert "There is nothing to attest" in nothing.output
    unknown = repo.run("attest", "//:no-such-target").failed()
    assert "no-such-target" in unknown.output
    off = repo.run("--no-rootseal-enabled", "attest", "::").failed()
    assert "`attest` needs capture, but [rootseal].enabled is false." in off.output
    repo.run("attest", "//:left-archive", "//:right-archive").succeeded()
    check_complete(repo)
