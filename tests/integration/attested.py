"""What an attestation of the small monorepo must hold: every action, with what is there now."""

from __future__ import annotations

import base64
import hashlib
import json
from dataclasses import dataclass
from typing import Any, Iterator, Mapping

from pants_repo import PantsRepo
from rootseal import leaf_table
from rootseal.bundle import BundleReader
from rootseal.leaf_table import Domain
from rootseal.record import parse_record

Files = Mapping[str, str]  # path, relative to the sandbox or absolute: SHA-256


@dataclass(frozen=True)
class Action:
    """An action of a bundle, with what it read and left."""

    key: str
    materials: Files
    products: Files


def check_complete(repo: PantsRepo, *names: str, or_more: bool = False) -> None:
    """The bundle verifies, and holds every action that made these archives (both, if not named).

    Fails the test unless each action has what it was made of now, by content, and each archive
    a statement of its own that names its actions and this bundle's root.

    Args:
        repo: The small monorepo, after a run that succeeded.
        names: `left`, `right`.
        or_more: Actions of earlier runs that did the same may be there, too.
    """
    repo.verify()
    actions, root = actions_of(repo), root_of(repo)
    listed = repo.manifest().keys()
    assert {action.key for action in actions} == listed
    for name in names or ("left", "right"):
        found = [_made_of(actions, *files) for files in _wanted(repo, name)]
        assert all(found) if or_more else [len(same) for same in found] == [1] * len(found)
        subject, statement = _statement(repo, f"//:{name}-archive")
        assert subject == {f"{name}.tar": sha256((repo.dist / f"{name}.tar").read_bytes())}
        assert statement["build"]["rootEnvelope"]["sha256"] == root
        of_target = {item["actionKey"] for item in statement["actions"]}
        assert {action.key for same in found for action in same} <= of_target <= listed


def actions_of(repo: PantsRepo) -> list[Action]:
    """Every action of the bundle."""
    with BundleReader(repo.dist / "rootseal" / "build.rootseal") as bundle:
        return list(_actions(bundle))


def root_of(repo: PantsRepo) -> str:
    """SHA-256 of the bundle's root envelope."""
    with BundleReader(repo.dist / "rootseal" / "build.rootseal") as bundle:
        return hashlib.sha256(bundle.root_envelope).hexdigest()


def _wanted(repo: PantsRepo, name: str) -> Iterator[tuple[Files, Files]]:
    """Materials and products of each action of an archive, from the sources as they are now."""
    shared, own = ((repo.root / f"{item}.txt").read_bytes() for item in ("shared", name))
    twice, out = sha256(shared * 2), sha256(shared * 2 + own)
    archive = sha256((repo.dist / f"{name}.tar").read_bytes())
    yield {"shared.txt": sha256(shared)}, {"twice.txt": twice}
    yield {"twice.txt": twice, f"{name}.txt": sha256(own)}, {f"{name}.out": out}
    yield {f"{name}.out": out}, {f"{name}.tar": archive}


def _made_of(actions: list[Action], materials: Files, products: Files) -> list[Action]:
    """The actions with these files among theirs, by path and digest."""
    return [
        action
        for action in actions
        if materials.items() <= action.materials.items()
        and products.items() <= action.products.items()
    ]


def _actions(bundle: BundleReader) -> Iterator[Action]:
    for entry in bundle.entries():
        tables = parse_record(bundle.read_record(entry)).tables
        yield Action(
            entry.action_key.hex(),
            _files(tables.materials, Domain.MATERIAL),
            _files(tables.products, Domain.PRODUCT),
        )


def _files(stored: bytes, domain: Domain) -> Files:
    leaves = leaf_table.iter_leaves(leaf_table.decompress(stored), domain)
    return {leaf.path.decode(): leaf.digest.hex() for leaf in leaves}


def _statement(repo: PantsRepo, address: str) -> tuple[Files, Any]:
    """Subjects and predicate of the one statement of a target."""
    found = []
    for path in (repo.dist / "rootseal" / "targets").glob("*.intoto.json"):
        payload = json.loads(base64.b64decode(json.loads(path.read_bytes())["payload"]))
        if payload["predicate"]["address"] == address:
            found.append(payload)
    (statement,) = found
    subjects = {item["name"]: item["digest"]["sha256"] for item in statement["subject"]}
    return subjects, statement["predicate"]


def sha256(data: bytes) -> str:
    """In hexadecimal."""
    return hashlib.sha256(data).hexdigest()
