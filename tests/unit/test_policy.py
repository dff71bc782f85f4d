"""Policies in TOML: what they demand of a whole build, and what they cannot be."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Callable

import core_factory as factory
import pytest
from rootseal import cli_verify, keys
from rootseal.checks import Check
from rootseal.errors import ConfigError, PolicyError
from rootseal.observation import Posture
from rootseal.policy import parse_policy
from rootseal.process_trace import Connection, Network, ProcessTrace, SyscallEvent
from rootseal.verify import VerifiedBuild, verify_bundle

SIGNER, CAPTURE = keys.generate("ed25519"), keys.generate("ed25519")
RECOMMENDED = Path(__file__).resolve().parents[2] / "examples" / "policy" / "recommended.toml"
Verify = Callable[..., VerifiedBuild]


@pytest.fixture
def verify(tmp_path: Path) -> Verify:
    """Seal two actions, the second as given (both, if traced), and verify under a policy."""

    def run(
        text: str, observed: Any = None, described: Any = None, **changes: object
    ) -> VerifiedBuild:
        is_traced = observed is not None and any(item.trace for item in observed.processes)
        records = [
            factory.signed_record(CAPTURE, 1, observed=observed if is_traced else None),
            factory.signed_record(CAPTURE, 2, observed=observed, described=described),
        ]
        path = tmp_path / "bundle"
        factory.seal_to(path, capture=CAPTURE, signer=SIGNER, records=records, **changes)
        with cli_verify.open_bundle(str(path)) as bundle:
            return verify_bundle(
                bundle,
                trusted=[SIGNER.public_key],
                capture_keys=None,
                artifacts=(),
                policy=parse_policy(text, where="it"),
            )

    return run


def refused(verify: Verify, text: str, match: str, observed: Any = None, **changes: Any) -> None:
    with pytest.raises(PolicyError, match=match) as caught:
        verify(text, observed, **changes)
    assert caught.value.check == Check.POLICY.name


def walked_policy() -> dict[str, object]:
    policy = dict(factory.manifest([])["policy"])  # type: ignore[call-overload]
    return {**policy, "posture": "walked", "requireZeroDrops": False}


def lossy_policy() -> dict[str, object]:
    return {**walked_policy(), "posture": "held"}


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
        ('forbidden_materials = ["/sandbox/?/src/*"]', "'/sandbox/./src/a.c'"),
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
        "allowed_exit_codes = [1, 0]",
    ],
)
def test_what_is_demanded_and_there_is_accepted(verify: Verify, text: str) -> None:
    verify(text)


@pytest.mark.parametrize(
    ("root", "path", "glob"),
    [
        (b"/home/user", b".ssh/id_rsa", "*/.ssh/*"),
        (b"/", b"etc/shadow", "/etc/shadow"),
        (b"/etc", b"shadow", "/etc/shadow"),
        (b"/home/100%", b".aws/credentials", "/home/100%25/.aws/*"),
    ],
)
def test_a_root_hides_no_forbidden_material(
    verify: Verify, root: bytes, path: bytes, glob: str
) -> None:
    """In the table it is relative to the root; a policy names the file itself."""
    seen = {
        "observed": factory.observation(materials=[factory.leaf(path)]),
        "described": factory.description(2, root=root),
    }
    refused(verify, f'forbidden_materials = ["{glob}"]', "read the forbidden material", **seen)
    verify('forbidden_materials = ["/home/user/.ssh", "shadow?", "/etc/shadow/*"]', **seen)


def test_what_was_lost_may_have_been_forbidden(verify: Verify) -> None:
    """Also where the policy accepts losses: it demands what such a capture cannot show."""
    lossy = factory.observation(counts=factory.counters(unhashedOpensTotal=1))
    allowing, changes = "require_zero_losses = false\n", {"policy": lossy_policy()}
    assert verify(allowing, lossy, **changes).losses == {"unhashedOpensTotal": 1}
    match = "unhashedOpensTotal.*cannot show that no forbidden material was read"
    refused(verify, f'{allowing}forbidden_materials = ["none"]', match, lossy, **changes)
    seen = dataclasses.replace(traced(("AF_INET", "10.0.0.1", "", 0)), counters=lossy.counters)
    verify(allowing, seen, **changes)
    refused(verify, f"{allowing}{HOSTS}", "cannot show that it met nobody else", seen, **changes)


def test_a_failed_action_is_named_and_can_be_refused(verify: Verify) -> None:
    failed = factory.description(2, exit_code=3)
    codes = {1: 0, 2: 3}
    made = [
        factory.signed_record(CAPTURE, 1),
        factory.signed_record(CAPTURE, 2, described=failed),
    ]
    actions = [
        factory.manifest_action(record, number, exitCode=codes[number])
        for number, record in enumerate(made, 1)
    ]
    seen = {"described": failed, "actions": actions}
    (found,) = verify("", **seen).failed
    assert found == (failed.action_key.hex(), 3)
    assert len(verify("allowed_exit_codes = [3, 0]", **seen).failed) == 1
    refused(
        verify, "allowed_exit_codes = [0, 1]", "exit code 3, allowed_exit_codes has 0, 1", **seen
    )
    refused(verify, RECOMMENDED.read_text(), "ended with exit code 3", **seen)
    assert parse_policy("allowed_exit_codes = [0]", where="it").needs_whole_build


OTHER = keys.generate("ed25519").public_key.keyid
OWN, CAPTURED = SIGNER.public_key.keyid, CAPTURE.public_key.keyid


def test_only_trusted_keys_count(verify: Verify) -> None:
    verify(f'trusted_signing_keys = ["{OTHER}", "{OWN}"]\ntrusted_capture_keys = ["{CAPTURED}"]')
    refused(verify, f'trusted_signing_keys = ["{OTHER}"]', f"signed by the key {OWN}")
    refused(verify, f'trusted_capture_keys = ["{OWN}"]', f"captured by the key {CAPTURED}")


def traced(*connections: tuple[str, str, str, int], calls: tuple[SyscallEvent, ...] = ()) -> Any:
    """An observation whose one process made these connections (family, address, name, result)."""
    made = tuple(
        Connection("connect", family, address, 443, 3, result, 1, name)
        for family, address, name, result in connections
    )
    trace = ProcessTrace(network=Network(connections=made), syscall_events=calls)
    seen = factory.observation()
    processes = tuple(dataclasses.replace(item, trace=trace) for item in seen.processes)
    return dataclasses.replace(seen, processes=processes)


HOSTS = 'allowed_hosts = ["10.0.0.0/8", "::1", "*.example.com", "unix:/run/*"]'


def test_allowed_hosts_may_be_met(verify: Verify) -> None:
    seen = traced(
        ("AF_INET", "10.9.8.7", "", 0),
        ("AF_INET6", "::1", "", 0),
        ("AF_INET6", "::ffff:10.1.2.3", "", -115),
        ("AF_INET", "93.184.216.34", "Files.Example.com", 0),
        ("AF_UNIX", "/run/daemon.sock", "", 0),
        ("AF_UNIX", "/var/run/nscd/socket", "", -2),  # reached nobody
        ("AF_UNSPEC", "", "", 0),
    )
    verify(HOSTS, seen)


@pytest.mark.parametrize(
    ("connection", "match"),
    [
        (("AF_INET", "11.0.0.1", "", 0), "11.0.0.1 by AF_INET"),
        (("AF_INET", "11.0.0.1", "", -115), "11.0.0.1"),  # still on its way
        (("AF_INET", "11.0.0.1", "example.com.evil.org", 0), "evil.org"),
        (("AF_INET6", "::ffff:11.0.0.1", "", 0), "11.0.0.1"),
        (("AF_UNIX", "/var/run/docker.sock", "", 0), "unix:/var/run/docker.sock"),
        (("AF_UNIX", "@hidden", "", 0), "unix:@hidden"),
        (("AF_VSOCK", "", "", 0), "AF_VSOCK"),
    ],
)
def test_other_hosts_are_refused(verify: Verify, connection: Any, match: str) -> None:
    refused(verify, HOSTS, match, traced(connection))


def test_where_nobody_watched_connections_nothing_is_allowed(verify: Verify) -> None:
    refused(verify, HOSTS, "no trace watched its connections")
    ring = SyscallEvent("io_uring_setup", 3, (("entries", 4),), 1)
    refused(verify, "allowed_hosts = []", "io_uring", traced(calls=(ring,)))


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ('trusted_signing_keys = ["ab"]', "no key id"),
        ("trusted_capture_keys = []", "trusts nobody"),
        ('allowed_hosts = ["10.0.0.1/8"]', "host bits set"),
        ('allowed_hosts = ["10.0.0.0/33"]', "allowed_hosts"),
        ('allowed_hosts = ["*"]', "use an address"),
        ('allowed_hosts = ["https://example.com"]', "use an address"),
        ('allowed_hosts = "10.0.0.0/8"', "list of texts"),
        ("required_targets = 1", "list of texts for required_targets"),
        ('forbidden_materials = ["", "a"]', "list of texts for forbidden_materials"),
        ("forbidden_materials = [1]", "list of texts"),
        (f"required_targets = {['a'] * 1001}", "more than 1000"),
        ("counters_max = 0", "table of counters"),
        ("counters_max = { fanotifyTimeout = 0 }", "unknown counter 'fanotifyTimeout'"),
        ("counters_max = { lateEvents = true }", "must be an integer"),
        ("counters_min = { lateEvents = -1 }", "must be an integer"),
        ("allowed_exit_codes = 0", "list of at least one number"),
        ("allowed_exit_codes = []", "list of at least one number"),
        ("allowed_exit_codes = [true]", "has True"),
        ("allowed_exit_codes = [256]", "use 0 to 255"),
        ("allowed_exit_codes = [0.0]", "has 0.0"),
        ('allowed_exit_codes = ["0"]', "has '0'"),
        ("forbidden_material = []", "unknown key 'forbidden_material'"),
    ],
)
def test_a_policy_that_would_not_mean_what_it_says_is_refused(text: str, match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        parse_policy(text, where="it")


def test_a_proof_cannot_meet_what_only_the_whole_build_can_show() -> None:
    assert parse_policy('required_targets = ["//a:a"]', where="it").needs_whole_build
    assert not parse_policy('required_posture = "held"', where="it").needs_whole_build
