"""What Pants runs before its goals, to find the targets, is captured like the rest."""

from __future__ import annotations

import subprocess

from pants_repo import PantsRepo

INFERRING = """\
from dataclasses import dataclass

from pants.core.target_types import FileSourceField
from pants.engine.process import Process, ProcessResult
from pants.engine.rules import Get, collect_rules, rule
from pants.engine.target import FieldSet, InferDependenciesRequest, InferredDependencies
from pants.engine.unions import UnionRule


@dataclass(frozen=True)
class Files(FieldSet):
    required_fields = (FileSourceField,)
    source: FileSourceField


class InferRequest(InferDependenciesRequest):
    infer_from = Files


@rule
async def infer(request: InferRequest) -> InferredDependencies:
    name = request.field_set.address.spec
    await Get(ProcessResult, Process(["/bin/echo", name], description=f"infer {name}"))
    return InferredDependencies([])


def rules():
    return [*collect_rules(), UnionRule(InferDependenciesRequest, InferRequest)]
"""


def git(repo: PantsRepo, *arguments: str) -> None:
    who = ("-c", "user.name=tests", "-c", "user.email=tests@localhost")
    subprocess.run(["git", *who, *arguments], cwd=repo.root, check=True, capture_output=True)


def test_dependencies_of_changed_files_are_inferred_by_captured_actions(repo: PantsRepo) -> None:
    config = (repo.root / "pants.toml").read_text("utf-8")
    config = config.replace('pythonpath = ["', 'pythonpath = ["%(buildroot)s/plugin", "')
    config = config.replace('"rootseal_pants"]', '"rootseal_pants", "inferring"]')
    repo.write(
        {
            "pants.toml": config,
            "plugin/inferring/register.py": INFERRING,
            ".gitignore": "/dist\n/plugin\n",
        }
    )
    git(repo, "init")
    git(repo, "add", ".")
    git(repo, "commit", "-m", "all")
    repo.write({"left.txt": "changed\n"})
    changed = ("--changed-since=HEAD", "--changed-dependents=transitive")
    repo.run(*changed, "package").succeeded()
    repo.verify()
    assert repo.manifest().records("infer //left.txt:left-text")
