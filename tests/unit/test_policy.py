"""Policies in TOML: what they demand of a whole build, and what they cannot be."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Callable

import core_factory as factory
import pytest
from rootseal import cli_verify, keys
from rootseal.checks import Check
from rootseal.errors import ConfigError, PolicyError
from rootseal.observation import Posture
from rootseal.policy import parse_policy
from rootseal.verify import verify_bundle

SIGNER, CAPTURE = keys.generate("ed25519"), keys.generate("ed25519")
RECOMMENDED = Path(__file__).resolve().parents[2] / "examples" / "policy" / "recommended.toml"
Verify = Callable[..., None]


@pytest.fixture
def verify(tmp_path: Path) -> Verify:
    """Seal two actions, the second as given, and verify the bundle under a policy."""

    def run(text: str, observed: Any = None, **changes: object) -> None:
        records = [
            factory.signed_record(CAPTURE, 1),
            factory.signed_record(CAPTURE, 2, observed=observed),
        ]
        path = tmp_path / "bundle"
        factory.seal_to(path, capture=CAPTURE, signer=SIGNER, records=records, **changes)
        with cli_verify.open_bundle(str(path)) as bundle:
            verify_bundle(
                bundle,
                trusted=[SIGNER.public_key],
                capture_keys=None,
                artifacts=(),
                policy=parse_policy(text, where="it"),
            )

    return run


def refused(verify: Verify, text: str, match: str, observed: Any = None, **changes: object) -> None:
    with pytest.raises(PolicyError, match=match) as caught:
        verify(text, observed, **changes)
    assert caught.value.check == Check.POLICY.name


def walked_policy() -> dict[str, object]:
    policy = dict(factory.manifest([])["policy"])  # type: ignore[call-overload]
    return {**policy, "posture": "walked", "requireZeroDrops": False}


def test_the_recommended_policy_accepts_a_good_build(verify: Verify) -> None:
    verify(RECOMMENDED.read_text())


def test_the_recommended_policy_refuses_what_fails_open_elsewhere(verify: Verify) -> None:
    text = RECOMMENDED.read_text()
    counts = factory.counters(fanotifyAvailable=0)
    refused(verify, text, "fanotifyAvailable is 0", factory.observation(counts=counts))
    secret = factory.observation(materials=[factory.leaf(b"/home/me/.ssh/deep/id")])
    refused(verify, text, "/home/me/.ssh/deep/id", secret)
    walked = factory.observation(posture=Posture.WALKED)
    refused(verify, text, "does not see reads", walked, policy=walked_policy())


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ('required_targets = ["//app:app", "//gone:gone"]', "'//gone:gone' is not in this build"),
        ("counters_min = { fanotifyAvailable = 2 }", "fanotifyAvailable is 1, at least 2"),
        ("counters_max = { fanotifyAvailable = 0 }", "fanotifyAvailable is 1, at most 0"),
        ('forbidden_materials = ["src/*"]', "'src/a.c'"),
        ('forbidden_materials = ["nothing", "/usr/*/c?"]', "'/usr/bin/cc'"),
    ],
)
def test_what_is_demanded_and_not_there_is_refused(verify: Verify, text: str, match: str) -> None:
    refused(verify, text, match)


@pytest.mark.parametrize(
    "text",
    [
        "",
        'required_targets = ["//app:app"]',
        "counters_min = { fanotifyAvailable = 1 }\ncounters_max = { fanotifyAvailable = 1 }",
        'forbidden_materials = ["a.c", "src", "SRC/*"]',
    ],
)
def test_what_is_demanded_and_there_is_accepted(verify: Verify, text: str) -> None:
    verify(text)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("required_targets = 1", "list of texts for required_targets"),
        ('forbidden_materials = ["", "a"]', "list of texts for forbidden_materials"),
        ("forbidden_materials = [1]", "list of texts"),
        (f"required_targets = {['a'] * 1001}", "more than 1000"),
        ("counters_max = 0", "table of counters"),
        ("counters_max = { fanotifyTimeout = 0 }", "unknown counter 'fanotifyTimeout'"),
        ("counters_max = { lateEvents = true }", "must be an integer"),
        ("counters_min = { lateEvents = -1 }", "must be an integer"),
        ("forbidden_material = []", "unknown key 'forbidden_material'"),
    ],
)
def test_a_policy_that_would_not_mean_what_it_says_is_refused(text: str, match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        parse_policy(text, where="it")


def test_a_proof_cannot_meet_what_only_the_whole_build_can_show() -> None:
    assert parse_policy('required_targets = ["//a:a"]', where="it").needs_whole_build
    assert not parse_policy('required_posture = "held"', where="it").needs_whole_build
