"""Every way in which Pants comes by a result gives a complete attestation."""

from __future__ import annotations

import shutil

from attested import check_complete
from pants_repo import PantsRepo, short_key

LEFT, RIGHT = "//:left-archive", "//:right-archive"
NO_PANTSD = "--no-pantsd"


def test_cold_memoized_edited_and_restarted(repo: PantsRepo) -> None:
    """One pantsd, many runs: each attests all actions of both targets."""
    repo.run("package", "::").succeeded()
    check_complete(repo)
    cold = repo.manifest()
    assert set(cold.sources) == {"ran"}
    targets = {item["address"]: item for item in cold.document["targets"]}
    assert [item["name"] for item in targets[LEFT]["artifacts"]] == ["left.tar"]
    shared = cold.records("`//:shared`")
    assert len(shared) == 1
    assert set(shared.values()) <= cold.records_of(LEFT) & cold.records_of(RIGHT)
    assert not set(cold.records("`//:left`").values()) & cold.records_of(RIGHT)
    inputs = {item["path"] for item in cold.document["engineInputs"]}
    assert {"BUILD", "shared.txt", "left.txt", "right.txt"} <= inputs
    statements = {path.name for path in (repo.root / "dist/rootseal/targets").iterdir()}
    assert len(statements) == 2

    repo.run("package", "::").succeeded()  # nothing changed: all from pantsd's memory
    check_complete(repo)
    memoized = repo.manifest()
    assert set(memoized.sources) == {"memoized"}
    assert memoized.records_of(LEFT) == cold.records_of(LEFT)

    shutil.rmtree(repo.records)  # the plugin's own directory is only a cache
    repo.run("package", "::").succeeded()
    check_complete(repo)
    assert repo.manifest().keys() == cold.keys()

    repo.write({"left.txt": "another left\n"})
    repo.run("package", "::").succeeded()
    check_complete(repo)
    edited = repo.manifest()
    assert edited.records_of(RIGHT) == cold.records_of(RIGHT)
    assert edited.records("`//:shared`") == shared
    assert edited.records("`//:left`") != cold.records("`//:left`")
    assert edited.sources.count("ran") == 2  # the command and its archive

    # Another option of capture is another capture: nothing that is memoized counts, or is cached.
    repo.run("--rootseal-max-digests=5000", "package", "::").succeeded()
    check_complete(repo)
    other = repo.manifest()
    assert other.keys() == edited.keys()
    assert set(other.sources) == {"ran"}

    # Another option of the engine makes pantsd build a new scheduler.
    repo.run("package", "::", env={"PANTS_PANTS_IGNORE": "+['/unused/']"}).succeeded()
    check_complete(repo)
    assert repo.manifest().keys() == edited.keys()
    assert "local-cache" in repo.manifest().sources


def test_what_is_memoized_is_made_anew_for_another_capture_key(repo: PantsRepo) -> None:
    """Another daemon signs, while pantsd still has the results of the one before."""
    repo.run("package", "::").succeeded()
    before = repo.manifest()
    repo.start_daemon("other-state")
    repo.run("package", "::").succeeded()
    check_complete(repo)
    anew = repo.manifest()
    assert anew.keys() == before.keys()
    assert set(anew.sources) == {"ran"}
    assert not anew.records_of(LEFT) & before.records_of(LEFT)

    repo.run("package", "::").succeeded()
    check_complete(repo)
    assert repo.manifest().records_of(LEFT) == anew.records_of(LEFT)


def test_local_cache_without_pantsd(repo: PantsRepo) -> None:
    repo.run(NO_PANTSD, "package", "::").succeeded()
    check_complete(repo)
    cold = repo.manifest()

    shutil.rmtree(repo.records)
    repo.run(NO_PANTSD, "package", "::").succeeded()
    check_complete(repo)
    warm = repo.manifest()
    assert warm.keys() == cold.keys()
    assert warm.records("`//:") == cold.records("`//:")
    assert warm.sources.count("local-cache") >= 5

    # An action whose record was lost from every cache is simply run again.
    shutil.rmtree(repo.records)
    shutil.rmtree(repo.home / "store")
    (repo.dist / "left.tar").unlink()
    repo.run(NO_PANTSD, "package", "//:right-archive").succeeded()
    assert set(repo.manifest().sources) == {"ran"}
    check_complete(repo, "right")


def test_the_attest_goal_lists_what_fails_and_exits_non_zero(repo: PantsRepo) -> None:
    build = (repo.root / "BUILD").read_text("utf-8")
    broken = build.replace("cat twice.txt right.txt", "false; cat twice.txt no-such.txt")
    repo.write({"BUILD": broken})
    failed = repo.run("attest", "::").failed()
    assert f"{RIGHT} is not attested" in failed.output
    assert f"{LEFT} is not attested" not in failed.output
    assert not (repo.root / "dist" / "rootseal").exists()

    repo.write({"BUILD": build})
    repo.run("attest", "::").succeeded()
    check_complete(repo)
    nothing = repo.run("attest", "//:left-text").failed()
    assert "nothing to attest" in nothing.output


def test_the_loss_of_one_action_fails_its_own_targets_only(repo: PantsRepo) -> None:
    """The right command reads more files than the cap allows; what depends on it is refused."""
    repo.run("attest", "::").succeeded()
    build = (repo.root / "BUILD").read_text("utf-8")
    repo.write({f"many/{number}": "x" for number in range(200)})
    build = build.replace('sources=["right.txt"]', 'sources=["right.txt", "many/*"]')
    repo.write({"BUILD": build.replace("cat twice.txt right.txt", "cat many/* right.txt")})
    gated = ("--rootseal-max-digests=100", "--rootseal-require-zero-drops", "attest")
    failed = repo.run(*gated, "::").failed()
    assert f"{LEFT} is good" in failed.output
    assert f"{RIGHT} is not attested" in failed.output
    assert "fanotifyDigestsCapHit" in failed.output
    assert f"`pants attest {LEFT}` attests the good ones alone" in failed.output
    attestation = repo.root / "dist" / "rootseal"
    left_behind = [*attestation.glob("*.rootseal"), *attestation.glob("targets/*")]
    assert left_behind == []  # not even of the run before
    (repo.dist / "right.tar").unlink()

    repo.run(*gated, LEFT).succeeded()
    check_complete(repo, "left")
    (target,) = repo.manifest().document["targets"]
    assert target["address"] == LEFT
    repo.run(*gated, RIGHT).failed()  # the refused result is in no cache
    repo.run(*gated[:-1], "package", "::").failed()
    assert not (attestation / "build.rootseal").exists()


def test_a_key_uri_signs_with_its_public_key(repo: PantsRepo) -> None:
    """The road of a KMS key, with a key file at its end."""
    private = repo.home / "uri.key"
    repo.command("keygen", str(private)).succeeded()
    key = f"--rootseal-key=file2:{private}"
    refused = repo.run(key, "package", "::").failed()
    assert "[rootseal].public_key" in refused.output
    public = private.with_suffix(".pub")
    repo.run(key, f"--rootseal-public-key={public}", "package", "::").succeeded()
    bundle = str(repo.dist / "rootseal" / "build.rootseal")
    repo.command("verify", bundle, "--key", str(public)).succeeded()
    repo.command("verify", bundle, "--key", str(repo.signing_key())).failed()


def test_package_itself_fails_when_nothing_can_be_sealed(repo: PantsRepo) -> None:
    repo.run("package", "::").succeeded()
    check_complete(repo)
    short = short_key(repo)
    failed = repo.run(f"--rootseal-key={short}", "package", "::").failed()
    assert "Nothing was attested: `rootseal seal` refused this build: " in failed.output
    assert f"{short} is not a readable PEM private key: wrong length" in failed.output
    assert not (repo.root / "dist" / "rootseal" / "build.rootseal").exists()

    repo.run("--no-rootseal-enabled", "package", "::").succeeded()
    assert not (repo.root / "dist" / "rootseal" / "build.rootseal").exists()

    repo.run("package", "::").succeeded()
    wrong = repo.run("--rootseal-executable=no/such/rootseal", "package", "::").failed()
    assert "is not an executable file" in wrong.output
    left = [path for path in (repo.root / "dist" / "rootseal").rglob("*") if path.is_file()]
    assert [path.name for path in left] == ["manifest.json"]  # nothing of the run before


def test_a_signing_key_that_cannot_sign_is_refused_before_the_build(repo: PantsRepo) -> None:
    """By the goals that sign, and by no other."""
    repo.run("package", "::").succeeded()
    (repo.dist / "left.tar").unlink()
    open_to_all = repo.home / "open.key"
    repo.command("keygen", str(open_to_all)).succeeded()
    open_to_all.chmod(0o644)
    public = f"file2:{open_to_all}", f"--rootseal-public-key={open_to_all}"
    cases = {
        ("no-such.key",): f"the signing key {repo.root}/no-such.key cannot be read",
        (str(open_to_all),): f"(mode 0644); run `chmod 600 {open_to_all}`",
        public: f"[rootseal].public_key: {open_to_all} holds a private key",
    }
    for (key, *more), words in cases.items():
        for goal in ("package", "attest"):
            failed = repo.run(f"--rootseal-key={key}", *more, goal, "::").failed()
            assert words in failed.output
            assert not (repo.dist / "left.tar").exists()
            assert not (repo.dist / "rootseal" / "build.rootseal").exists()
    assert "rootseal keygen" in repo.run("--rootseal-key=none.key", "package", "::").output
    repo.run("--rootseal-key=no-such.key", "dependencies", "::").succeeded()
