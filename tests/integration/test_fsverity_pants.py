"""Real Pants on a filesystem with fs-verity: dist/ is sealed, measured, and can be built again."""

from __future__ import annotations

import json
import os

import pytest
from pants_repo import PantsRepo
from rootseal import fsverity

EXPECTED = "fs-verity" in os.environ.get("ROOTSEAL_LAB_EXPECTS", "").split(",")
ARTIFACTS = ("left.tar", "right.tar")


@pytest.fixture
def verity(repo: PantsRepo) -> PantsRepo:
    """A monorepo whose dist/ can be sealed, and must be."""
    if not fsverity.available(repo.root):
        assert not EXPECTED, "this row of the lab is there for fs-verity"
        pytest.skip("optional: no fs-verity on the filesystem of the temporary files")
    repo.options["PANTS_ROOTSEAL_FSVERITY"] = "on"
    return repo


def check_sealed(repo: PantsRepo) -> None:
    """Every artifact is sealed, counted, and measured again by `verify`."""
    bundle, key = str(repo.dist / "rootseal" / "build.rootseal"), str(repo.signing_key())
    words = [word for name in ARTIFACTS for word in ("--artifact", str(repo.dist / name))]
    done = repo.command("verify", bundle, "--key", key, "--json", *words).succeeded()
    answer = json.loads(done.output)
    assert [item["fsverity"] for item in answer["artifacts"]] == ["measured", "measured"]
    assert answer["summary"]["diagnostics"]["fsVerityFilesSealed"] == len(ARTIFACTS)
    assert answer["summary"]["diagnostics"]["fsVerityAvailable"] >= 1
    for name in ARTIFACTS:
        with pytest.raises(PermissionError):
            (repo.dist / name).open("r+b")


def test_pants_seals_what_it_packages_and_packages_it_again(verity: PantsRepo) -> None:
    verity.run("package", "::").succeeded()
    check_sealed(verity)
    before = (verity.dist / "left.tar").read_bytes()
    verity.write({"left.txt": "another left\n"})
    verity.run("package", "::").succeeded()  # Pants writes dist/ in place
    check_sealed(verity)
    assert (verity.dist / "left.tar").read_bytes() != before


def test_what_an_earlier_run_of_other_targets_sealed_is_packaged_again(verity: PantsRepo) -> None:
    verity.run("package", "::").succeeded()
    verity.run("package", "//:right-archive").succeeded()  # its manifest does not name left.tar
    verity.write({"left.txt": "another left\n"})
    verity.run("package", "//:left-archive").succeeded()
    bundle, key = str(verity.dist / "rootseal" / "build.rootseal"), str(verity.signing_key())
    words = ("--artifact", str(verity.dist / "left.tar"), "--json")
    done = verity.command("verify", bundle, "--key", key, *words).succeeded()
    assert json.loads(done.output)["artifacts"][0]["fsverity"] == "measured"
