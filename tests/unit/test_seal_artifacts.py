"""What sealing with fs-verity does to a build where the filesystem cannot seal, and what verify
makes of a predicate's `fsverity` that contradicts itself. Real seals: tests/kernel."""

from __future__ import annotations

import dataclasses
import hashlib
import tempfile
from pathlib import Path
from typing import Iterator

import core_factory
import pytest
from rootseal import build_predicate, fsverity, keys, seal, seal_artifacts, verify
from rootseal.build_predicate import Artifact
from rootseal.bundle import BundleReader
from rootseal.errors import BackendUnavailable, ConfigError, IncompleteError, StatementError
from rootseal.manifest import read_manifest
from rootseal.observation import Posture


@pytest.fixture
def no_verity() -> Iterator[Path]:
    """A directory on a filesystem without fs-verity."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as name:
        if fsverity.available(name):
            pytest.skip("optional: /dev/shm can seal here")
        yield Path(name)


def artifact(directory: Path, content: bytes = b"built") -> Artifact:
    (directory / "app.bin").write_bytes(content)
    return Artifact("app.bin", hashlib.sha256(content).hexdigest(), len(content))


def test_auto_seals_nothing_where_nothing_can_be_sealed(no_verity: Path) -> None:
    found = seal_artifacts.seal_artifacts(no_verity, [artifact(no_verity)], mode="auto")
    assert found.document == {
        "available": False,
        "filesSealed": 0,
        "sealFailures": 0,
        "files": [],
    }


def test_on_refuses_where_nothing_can_be_sealed(no_verity: Path) -> None:
    with pytest.raises(BackendUnavailable, match="--fsverity auto"):
        seal_artifacts.seal_artifacts(no_verity, [artifact(no_verity)], mode="on")


def test_on_needs_the_directory() -> None:
    with pytest.raises(ConfigError, match="--artifacts DIR"):
        seal_artifacts.seal_artifacts(None, [], mode="on")


def test_missing_artifact_is_refused_in_every_mode_that_looks(tmp_path: Path) -> None:
    for mode in ("auto", "on"):
        with pytest.raises(IncompleteError, match="is not in"):
            seal_artifacts.seal_artifacts(tmp_path, [Artifact("app.bin", "0" * 64, 1)], mode=mode)


def test_an_artifact_that_is_a_loop_of_links_is_missing(tmp_path: Path) -> None:
    (tmp_path / "app.bin").symlink_to("app.bin")
    with pytest.raises(IncompleteError, match="is not in"):
        seal_artifacts.seal_artifacts(tmp_path, [Artifact("app.bin", "0" * 64, 1)], mode="auto")


def test_symlink_to_another_artifact_is_no_failure(no_verity: Path) -> None:
    one = artifact(no_verity)
    (no_verity / "latest").symlink_to("app.bin")
    both = [one, Artifact("latest", one.sha256, one.size)]
    found = seal_artifacts.seal_artifacts(no_verity, both, mode="auto")
    assert (found.available, found.failures) == (False, 0)


def test_unknown_mode_is_refused() -> None:
    with pytest.raises(ConfigError, match="off, auto, on"):
        seal_artifacts.seal_artifacts(None, [], mode="maybe")


def test_off_touches_nothing(tmp_path: Path) -> None:
    missing = [Artifact("missing", "0" * 64, 1)]
    assert not seal_artifacts.seal_artifacts(tmp_path, missing, mode="off").available


@pytest.mark.parametrize(
    ("value", "mode"), [("0", "off"), ("1", "on"), ("auto", "auto"), ("ON", "on"), ("", "auto")]
)
def test_environment_switch(value: str, mode: str) -> None:
    assert seal_artifacts.environment_mode({"ROOTSEAL_FSVERITY": value}, "auto") == mode


def test_environment_switch_refuses_other_words() -> None:
    with pytest.raises(ConfigError, match="use 0, off, auto, 1 or on"):
        seal_artifacts.environment_mode({"ROOTSEAL_FSVERITY": "yes"}, "auto")


# --- what verification makes of it ----------------------------------------------------------


@pytest.fixture
def document(tmp_path: Path) -> dict[str, object]:
    """The root predicate of a genuine bundle."""
    capture, signer = keys.generate("ed25519"), keys.generate("ed25519")
    path = tmp_path / "build.rootseal"
    core_factory.seal_to(path, capture=capture, signer=signer)
    with BundleReader(path) as bundle:
        root = verify.verify_root(
            bundle.root_envelope, trusted=[signer.public_key], capture_keys=None
        )
    return dict(root.predicate.document)


def sealed(**changes: object) -> dict[str, object]:
    one = {"name": "app.bin", "fsverity": "0" * 64}
    return {"available": True, "filesSealed": 1, "sealFailures": 0, "files": [one], **changes}


@pytest.mark.parametrize(
    "bad",
    [
        sealed(filesSealed=2),
        sealed(available=False),
        sealed(files=[], filesSealed=0, sealFailures=1, available=False),
        sealed(files=[*sealed()["files"]] * 2, filesSealed=2),  # type: ignore[misc]
        {"available": True, "filesSealed": 0, "sealFailures": 0},
        None,
    ],
)
def test_predicate_that_contradicts_itself_is_refused(
    document: dict[str, object], bad: object
) -> None:
    build_predicate.read_build_predicate({**document, "fsverity": sealed()})
    with pytest.raises(StatementError, match="fsverity"):
        build_predicate.read_build_predicate({**document, "fsverity": bad})


def test_predicate_without_the_field_is_refused(document: dict[str, object]) -> None:
    with pytest.raises(StatementError, match="lacks the field fsverity"):
        build_predicate.read_build_predicate(
            {name: value for name, value in document.items() if name != "fsverity"}
        )


def check(document: dict[str, object], **changes: object) -> None:
    predicate = build_predicate.read_build_predicate({**document, **changes})
    subjects = build_predicate.build_subjects(
        predicate.targets, run_id=predicate.run_id, tree_root=predicate.tree_root
    )
    verify.check_targets(verify.VerifiedRoot(predicate, subjects, "", predicate.capture_keys))


def test_sealed_file_that_is_no_artifact_is_refused(document: dict[str, object]) -> None:
    check(document, fsverity=sealed())
    other = {"name": "other.bin", "fsverity": "0" * 64}
    with pytest.raises(StatementError, match="targets") as caught:
        check(document, fsverity=sealed(files=[other]))
    assert "'other.bin' is sealed, but is not an artifact" in str(caught.value)


def test_artifact_that_is_not_sealed_is_refused_if_the_policy_demands_it(
    document: dict[str, object],
) -> None:
    policy = {**document["policy"], "fsverity": "on"}  # type: ignore[dict-item]
    with pytest.raises(StatementError, match="is not sealed, though"):
        check(document, fsverity=sealed(), policy=policy)


def test_nothing_is_signed_if_sealing_is_demanded_and_impossible(
    tmp_path: Path, no_verity: Path
) -> None:
    capture, signer = keys.generate("ed25519"), keys.generate("ed25519")
    record = core_factory.signed_record(capture)
    manifest = read_manifest(core_factory.manifest([record]))
    out = tmp_path / "build.rootseal"
    (no_verity / "app.bin").write_bytes(core_factory.ARTIFACT)
    with pytest.raises(BackendUnavailable):
        seal.seal(
            dataclasses.replace(manifest, fsverity="on"),
            records=seal.RecordsInMemory({manifest.actions[0].record: record}),
            trusted=[capture.public_key],
            signer=signer,
            out=out,
            targets_dir=None,
            artifacts_dir=no_verity,
        )
    assert not out.exists()


def test_seals_of_artifacts_are_in_the_counters_of_the_root_and_counted_once() -> None:
    seals = build_predicate.ArtifactSeals(True, 2, (("a", "0" * 64), ("b", "1" * 64)))
    for by_actions, total in ((0, 2), (2, 2), (3, 3)):
        totals = build_predicate.Totals()
        names = ("fsVerityFilesSealed", "fsVeritySealFailures")
        totals.diagnostics.update(dict.fromkeys(names, by_actions))
        totals.add_seals(seals)
        assert [totals.diagnostics[name] for name in names] == [total, total]
        assert totals.diagnostics["fsVerityAvailable"] == 1


def test_seals_that_the_summary_does_not_count_are_refused(document: dict[str, object]) -> None:
    genuine = build_predicate.read_build_predicate(document)
    claimed = build_predicate.read_build_predicate({**document, "fsverity": sealed()})
    summary = dict(genuine.summary)
    fields = ("actions", "materials", "products", "processes", "diagnostics")
    totals = build_predicate.Totals(**{name: summary[name] for name in fields})  # type: ignore[arg-type]
    totals.diagnostics = dict(totals.diagnostics)
    totals.posture = Posture(summary["posture"])
    totals.fanotify_only_digests = int(str(summary["fanotifyOnlyDigests"]))
    totals.add_seals(genuine.seals)
    verify.check_summary(genuine, totals)
    totals.add_seals(claimed.seals)
    with pytest.raises(IncompleteError, match="diagnostics is not what the actions give"):
        verify.check_summary(claimed, totals)
