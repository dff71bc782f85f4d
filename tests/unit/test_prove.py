"""Proofs: made from a bundle, verified from the proof and the key alone."""

from __future__ import annotations

import base64
import copy
import dataclasses
import json
from pathlib import Path
from typing import Any, Iterator, List, Optional, Tuple

import core_factory as factory
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rootseal import canonical, digest, keys, leaf_path, leaf_table, prove, verify_proof
from rootseal.bundle import BundleReader
from rootseal.checks import Check
from rootseal.errors import ConfigError, PolicyError, ProofError, VerificationError
from rootseal.leaf_table import Domain
from rootseal.observation import Posture
from rootseal.policy import Policy
from rootseal.verify import ArtifactDigest, VerifiedRoot, verify_root

CAPTURE = keys.generate("ed25519")
SIGNER = keys.generate("ed25519")
KEY = factory.description(2).action_key


class Opened:
    """An open bundle and its verified root."""

    def __init__(self, path: Path) -> None:
        self.bundle = BundleReader(path)
        self.root: VerifiedRoot = verify_root(
            self.bundle.root_envelope, trusted=[SIGNER.public_key], capture_keys=None
        )


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Opened]:
    path = tmp_path_factory.mktemp("prove") / "b"
    materials = [factory.leaf(b"src/%d.c" % n) for n in range(9)]
    records = [factory.signed_record(CAPTURE, 1, observed=factory.observation(materials=[]))]
    for number in (2, 3, 4, 5):
        observed = factory.observation(materials=materials[: number + 4])
        records.append(factory.signed_record(CAPTURE, number, observed=observed))
    factory.seal_to(path, capture=CAPTURE, signer=SIGNER, records=records)
    found = Opened(path)
    yield found
    found.bundle.close()


def check(proof: object, **changes: Any) -> verify_proof.ProvenFact:
    arguments: Any = {
        "trusted": [SIGNER.public_key],
        "capture_keys": None,
        "policy": Policy(),
        **changes,
    }
    return verify_proof.verify_proof(prove.encode_proof(proof), **arguments)  # type: ignore[arg-type]


def all_proofs(opened: Opened) -> List[prove.Json]:
    artifact = ArtifactDigest("app.bin", digest.sha256_hex(factory.ARTIFACT))
    bundle, root = opened.bundle, opened.root
    return [
        prove.prove_artifact(bundle, root, artifact),
        prove.prove_action(bundle, root, KEY),
        prove.prove_leaf(bundle, root, Domain.MATERIAL, b"src/3.c", action_key=KEY),
        prove.prove_leaf(bundle, root, Domain.PRODUCT, b"out/a.o", action_key=None),
        prove.prove_absence(bundle, root, b"/etc/shadow", action_key=KEY),
        prove.prove_absence(bundle, root, b"src/3.d", action_key=KEY),
        prove.prove_absence(bundle, root, b"zzz", action_key=None),
    ]


def test_every_kind_of_proof_verifies_by_itself(opened: Opened) -> None:
    facts = [check(proof) for proof in all_proofs(opened)]
    kinds = ["artifact", "action", "material", "product", "absence", "absence", "absence-in-build"]
    assert [fact.kind for fact in facts] == kinds
    assert facts[2].data["path"] == "src/3.c"
    assert facts[6].claim == (
        "none of the 5 actions of this build read a file recorded as zzz in its root "
        "(paths are recorded after symbolic links were resolved)"
    )


def test_proofs_need_the_right_keys(opened: Opened) -> None:
    other = keys.generate("ed25519").public_key
    for proof in all_proofs(opened):
        with pytest.raises(VerificationError) as caught:
            check(proof, trusted=[other])
        assert caught.value.check == "ROOT_SIGNATURE"
        with pytest.raises(ConfigError):
            check(proof, trusted=[])
        if proof["kind"] != "artifact":
            with pytest.raises(VerificationError) as caught:
                check(proof, capture_keys=[other])
            assert caught.value.check == "RECORD_SIGNATURE"


def test_proofs_obey_the_policy(opened: Opened) -> None:
    for proof in all_proofs(opened):
        with pytest.raises(PolicyError, match="weaker"):
            check(proof, policy=Policy(required_posture=Posture.SEALED))


def mutations(value: Any) -> Iterator[Any]:
    """Every copy of a JSON document with one leaf of it changed or one list shortened."""
    for path in _paths(value):
        changed = copy.deepcopy(value)
        *steps, last = path
        parent = changed
        for step in steps:
            parent = parent[step]
        parent[last] = _other(parent[last])
        yield changed


def _paths(value: Any) -> Iterator[List[Any]]:
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for name, item in items:
        yield [name]
        if isinstance(item, (dict, list)):
            yield from ([name, *rest] for rest in _paths(item))


def _other(value: Any) -> Any:
    if isinstance(value, list):
        return value[:-1] if value else ["00" * 32]
    if isinstance(value, dict):
        return None
    if isinstance(value, int):
        return value + 1
    if isinstance(value, str):
        return ("b" if value[:1] == "a" else "a") + value[1:]
    return {}


def test_every_changed_field_of_every_proof_is_refused(opened: Opened) -> None:
    count = 0
    for proof in all_proofs(opened):
        for changed in mutations(json.loads(prove.encode_proof(proof))):
            if changed.get("path") != proof.get("path"):
                continue  # the gap may show the absence of the other path just as well
            with pytest.raises(VerificationError) as caught:
                check(changed)
            assert caught.value.check is not None
            count += 1
    assert count > 200


def test_absence_of_what_was_read_cannot_be_proved(opened: Opened) -> None:
    with pytest.raises(ProofError, match="did read"):
        prove.prove_absence(opened.bundle, opened.root, b"src/3.c", action_key=KEY)
    with pytest.raises(ProofError, match="did read"):
        prove.prove_absence(opened.bundle, opened.root, b"src/8.c", action_key=None)


def test_a_gap_with_a_leaf_between_is_refused(opened: Opened) -> None:
    """Two genuine leaves around the path, but not next to each other: one was kept back."""
    raw_proofs = [
        prove.prove_absence(opened.bundle, opened.root, path, action_key=KEY)
        for path in (b"src/2.d", b"src/3.d")
    ]
    first: Any = copy.deepcopy(raw_proofs[0])
    second: Any = raw_proofs[1]
    first["path"] = "src/3.c"
    first["gap"]["after"] = second["gap"]["after"]
    with pytest.raises(ProofError, match="not neighbours"):
        check(first)


def test_a_gap_at_the_end_that_hides_the_last_leaf_is_refused(opened: Opened) -> None:
    proof: Any = prove.prove_absence(opened.bundle, opened.root, b"src/4.d", action_key=KEY)
    proof["path"] = "src/5.c"
    proof["gap"]["after"] = None
    with pytest.raises(ProofError, match="not neighbours"):
        check(proof)


def test_a_product_cannot_stand_for_a_material(opened: Opened) -> None:
    proof: Any = prove.prove_leaf(
        opened.bundle, opened.root, Domain.PRODUCT, b"out/a.o", action_key=KEY
    )
    with pytest.raises(ProofError):
        check({**proof, "kind": "material"})


def test_an_action_kept_back_from_absence_in_build_is_refused(opened: Opened) -> None:
    proof: Any = prove.prove_absence(opened.bundle, opened.root, b"zzz", action_key=None)
    with pytest.raises(ProofError, match="covers 4 of 5"):
        check({**proof, "actions": proof["actions"][:-1]})
    with pytest.raises(ProofError, match="not those of the signed tree"):
        check({**proof, "actions": proof["actions"][:-1] + proof["actions"][:1]})


def test_absence_means_nothing_where_reads_are_not_seen(tmp_path: Path) -> None:
    policy = {**factory.manifest([])["policy"], "posture": "walked"}  # type: ignore[dict-item]
    observed = factory.observation(posture=Posture.WALKED)
    factory.seal_to(
        tmp_path / "b",
        capture=CAPTURE,
        signer=SIGNER,
        records=[factory.signed_record(CAPTURE, 1, observed=observed)],
        policy=policy,
    )
    opened = Opened(tmp_path / "b")
    proof = prove.prove_absence(opened.bundle, opened.root, b"zzz", action_key=None)
    with pytest.raises(PolicyError, match="does not see reads"):
        check(proof)


def test_absence_means_nothing_where_something_was_lost(tmp_path: Path) -> None:
    policy = {**factory.manifest([])["policy"], "requireZeroDrops": False}  # type: ignore[dict-item]
    observed = factory.observation(counts=factory.counters(unhashedOpensTotal=1))
    factory.seal_to(
        tmp_path / "b",
        capture=CAPTURE,
        signer=SIGNER,
        records=[factory.signed_record(CAPTURE, 1, observed=observed)],
        policy=policy,
    )
    opened = Opened(tmp_path / "b")
    proof = prove.prove_absence(opened.bundle, opened.root, b"zzz", action_key=None)
    with pytest.raises(VerificationError, match="unhashedOpensTotal 1"):
        check(proof)
    allowing = Policy(require_zero_losses=False)
    with pytest.raises(
        PolicyError, match=r"unhashedOpensTotal.* cannot show that a path"
    ) as caught:
        check(proof, policy=allowing)
    assert caught.value.check == Check.POLICY.name
    of_one = prove.prove_absence(
        opened.bundle, opened.root, b"zzz", action_key=factory.description(1).action_key
    )
    with pytest.raises(PolicyError, match="cannot show"):
        check(of_one, policy=allowing)
    leaf = prove.prove_leaf(
        opened.bundle, opened.root, Domain.MATERIAL, b"src/a.c", action_key=None
    )
    assert check(leaf, policy=allowing).kind == "material"  # what was seen was seen all the same


def artifact_proof(path: Path, change: Any = None, **sealed: Any) -> Any:
    """A proof of the artifact under a root that `change` was put into."""
    if change is not None:
        factory.forged_bundle(path, capture=CAPTURE, signer=SIGNER, change=change)
    else:
        factory.seal_to(path, capture=CAPTURE, signer=SIGNER, **sealed)
    opened = Opened(path)
    held = ArtifactDigest("a", digest.sha256_hex(factory.ARTIFACT))
    return prove.prove_artifact(opened.bundle, opened.root, held)


def test_an_artifact_of_a_build_that_lost_something_is_refused(tmp_path: Path) -> None:
    policy = {**factory.manifest([])["policy"], "requireZeroDrops": False}  # type: ignore[dict-item]
    observed = factory.observation(counts=factory.counters(lateEvents=1))
    records = [factory.signed_record(CAPTURE, 1, observed=observed)]
    proof = artifact_proof(tmp_path / "b", records=records, policy=policy)
    with pytest.raises(VerificationError, match=r"the build: .*lateEvents 1") as caught:
        check(proof)
    assert caught.value.check == Check.RECORD_LOSSES.name
    assert check(proof, policy=Policy(require_zero_losses=False)).kind == "artifact"


@pytest.mark.parametrize(
    ("place", "value", "refused_by"),
    [
        (("diagnostics", "lateEvents"), None, Check.SUMMARY),
        (("diagnostics", "lateEvents"), "0", Check.SUMMARY),
        (("diagnostics", "lateEvents"), 1, Check.SUMMARY),  # not among the losses
        (("losses",), ["lateEvents"], Check.SUMMARY),
        (("posture",), "observed", Check.RECORD_POSTURE),  # `held` is the build's own demand
    ],
)
def test_an_artifact_proof_judges_the_root(
    place: Tuple[str, ...], value: Any, refused_by: Check, tmp_path: Path
) -> None:
    def change(document: Any) -> None:
        where = document["summary"]
        for step in place[:-1]:
            where = where[step]
        where[place[-1]] = value

    with pytest.raises(VerificationError) as caught:
        check(artifact_proof(tmp_path / "b", change), policy=Policy(require_zero_losses=False))
    assert caught.value.check == refused_by.name


@given(st.binary(max_size=300))
def test_any_bytes_are_refused_with_the_one_error(data: bytes) -> None:
    with pytest.raises(VerificationError) as caught:
        verify_proof.verify_proof(
            data, trusted=[SIGNER.public_key], capture_keys=None, policy=Policy()
        )
    assert caught.value.check == "PROOF_FORMAT"


@pytest.mark.parametrize("data", [b"[" * 100_000, b'{"kind":' * 50_000, canonical.encode([1])])
def test_deep_and_odd_json_is_refused(data: bytes) -> None:
    with pytest.raises(ProofError):
        verify_proof.verify_proof(
            data, trusted=[SIGNER.public_key], capture_keys=None, policy=Policy()
        )


AS_NO_LEAF_IS_SPELLED = [
    b"",
    b".",
    b"./src/3.c",
    b"x/../src/3.c",
    b"src//3.c",
    b"src/3.c/",
    b"src/./3.c",
    b"/etc/./ld.so.cache",
    b"/etc//shadow",
    b"/etc/ld.so.cache/",
    b"//etc/shadow",
    b"/",
    b"/etc/../etc/shadow",
    b"a" * 4097,
]


def forged_absence(opened: Opened, path: bytes, *, action_key: Optional[bytes] = None) -> Any:
    """What a prover without scruples would give: the genuine gap where the text would stand."""
    after = path or b"\x00"
    proof: Any = prove.prove_absence(opened.bundle, opened.root, b"zzz", action_key=action_key)
    for item in proof.get("actions", [proof]):
        envelope = item["envelope"] if "envelope" in item else item["action"]["envelope"]
        key = json.loads(base64.b64decode(envelope["payload"]))["predicate"]["actionKey"]
        _, entry = prove.find_action(opened.bundle, bytes.fromhex(key))
        raw = prove._open_table(opened.bundle, opened.root, entry, Domain.MATERIAL)
        below, above = leaf_table.neighbours(raw, Domain.MATERIAL, after)
        item["gap"] = {
            "before": below and prove._leaf(raw, Domain.MATERIAL, *below),
            "after": above and prove._leaf(raw, Domain.MATERIAL, *above),
        }
    return {**proof, "path": canonical.path_text(path)}


@pytest.mark.parametrize("path", AS_NO_LEAF_IS_SPELLED)
@pytest.mark.parametrize("action_key", [None, KEY])
def test_a_spelling_that_no_leaf_has_is_not_proved_absent(
    opened: Opened, path: bytes, action_key: Optional[bytes]
) -> None:
    """`./a` is in no table, whatever was read; neither side may call that an absence."""
    with pytest.raises(ProofError) as caught:
        prove.prove_absence(opened.bundle, opened.root, path, action_key=action_key)
    assert caught.value.check == "PROOF"
    with pytest.raises(ProofError) as caught:
        check(forged_absence(opened, path, action_key=action_key))
    assert caught.value.check == "PROOF"


def test_the_forger_of_these_tests_makes_proofs_that_verify(opened: Opened) -> None:
    assert check(forged_absence(opened, b"src/3.d")).kind == "absence-in-build"
    assert check(forged_absence(opened, b"src/3.d", action_key=KEY)).kind == "absence"


def test_an_absolute_path_in_the_root_is_the_relative_one(opened: Opened) -> None:
    """Files in the root are recorded relative to it: the absolute spelling is in no table."""
    inside = b"/sandbox/2/src/3.c"
    for action_key in (None, KEY):
        with pytest.raises(ProofError, match="did read"):
            prove.prove_absence(opened.bundle, opened.root, inside, action_key=action_key)
        with pytest.raises(ProofError):
            check(forged_absence(opened, inside, action_key=action_key))
        with pytest.raises(ProofError, match="action's root"):
            prove.prove_absence(opened.bundle, opened.root, b"/sandbox/2", action_key=action_key)
    absent = prove.prove_absence(opened.bundle, opened.root, b"/sandbox/2/no.c", action_key=None)
    assert "recorded as /sandbox/2/no.c (paths" in check(absent).claim
    # In the root of action 2 only; the others have it at this path, had they read it.
    other = prove.prove_absence(opened.bundle, opened.root, b"/sandbox/20/src/3.c", action_key=None)
    assert check(other).kind == "absence-in-build"


def test_a_root_of_the_whole_host(tmp_path: Path) -> None:
    described = dataclasses.replace(factory.description(1), root=b"/")
    observed = factory.observation(materials=[factory.leaf(b"etc/shadow")])
    made = [factory.signed_record(CAPTURE, 1, observed=observed, described=described)]
    factory.seal_to(tmp_path / "b", capture=CAPTURE, signer=SIGNER, records=made)
    whole = Opened(tmp_path / "b")
    for path in (b"/etc/shadow", b"etc/shadow"):
        with pytest.raises(ProofError, match="did read"):
            prove.prove_absence(whole.bundle, whole.root, path, action_key=None)
    with pytest.raises(ProofError):
        check(forged_absence(whole, b"/etc/shadow"))
    absent = prove.prove_absence(whole.bundle, whole.root, b"/etc/passwd", action_key=None)
    assert check(absent).data["path"] == "/etc/passwd"


def test_absolute_and_recorded_paths_are_ways_back() -> None:
    for path, root in ((b"a/b", b"/r"), (b"a", b"/"), (b"/x/y", b"/r"), (b"/rx/y", b"/r")):
        assert leaf_path.recorded(leaf_path.absolute(path, root), root) == path
