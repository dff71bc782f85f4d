"""Targets, files and commands with odd names: attested like any other, under their names."""

from __future__ import annotations

import json
import os

from pants_repo import PantsRepo
from rootseal.canonical import path_text

TARGETS = ("with space", 'quote"s', "paren))", "comma, and ArchiveFieldSet", "é", "[x]")
FILES = (
    "a b.txt",
    'q"u.txt',
    "paren).txt",
    "é.txt",
    "new\nline.txt",
    "back\\nslash.txt",
    "%41.txt",
)


def build_of(name: str, number: int) -> str:
    """A command with an odd description, and the archive of what it and the odd files are."""
    return f"""\
shell_command(
    name={"make " + name!r},
    command="cat odd/* > all.txt",
    tools=["cat"],
    execution_dependencies=[":odd"],
    output_files=["all.txt"],
    log_output=True,
)

archive(name={name!r}, format="tar", files=[{":make " + name!r}], output_path="{number}/a b.tar")
"""


def test_odd_names(repo: PantsRepo) -> None:
    repo.write({f"odd/{name}": f"{number}\n" for number, name in enumerate(FILES)})
    commands = [build_of(name, number) for number, name in enumerate(TARGETS)]
    repo.write({"BUILD": "\n".join(['files(name="odd", sources=["odd/*"])\n', *commands])})
    repo.run("package", "::").succeeded()
    repo.verify()
    targets = {item["address"]: item for item in repo.manifest().document["targets"]}
    assert set(targets) == {f"//:{name}" for name in TARGETS}
    actions = {item["record"]: item["description"] for item in repo.manifest().document["actions"]}
    for number, name in enumerate(TARGETS):
        target = targets[f"//:{name}"]
        assert [item["name"] for item in target["artifacts"]] == [f"{number}/a b.tar"]
        made = [actions[record] for record in target["actions"]]
        commands = [text for text in made if "`//:make" in text]
        assert len(commands) == 1 and f"`//:make {name}`" in commands[0]
    read = {item["path"] for item in repo.manifest().document["engineInputs"]}
    assert {path for path in read if path.startswith("odd/")} == {
        path_text(os.fsencode(f"odd/{name}")) for name in FILES
    }
    bundle = str(repo.dist / "rootseal" / "build.rootseal")
    shown = json.loads(repo.command("show", bundle, "--json").succeeded().output)
    assert {item["address"] for item in shown["build"]["targets"]} == set(targets)
    statements = repo.dist / "rootseal" / "targets"
    assert len(list(statements.glob("*.intoto.json"))) == len(TARGETS)
