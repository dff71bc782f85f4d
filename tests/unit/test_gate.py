"""The gate: each gating counter refuses, by itself, before signing and again at verification."""

from __future__ import annotations

import json

import pytest
from core_factory import counters, description, observation, signed_record
from rootseal import daemon, daemon_action, diagnostics, keys
from rootseal.daemon_action import Exited, with_guard_counts
from rootseal.daemon_announce import Announcement, read_announcement
from rootseal.daemon_tools import judge_tools
from rootseal.errors import IncompleteError, PostureError, ToolchainError, ZeroDropsError
from rootseal.observation import Posture
from rootseal.record_check import refuse_losses, verify_record
from rootseal.toolchain import ToolScope, TrustedTools
from rootseal.wire import Tag
from test_daemon_announce import frame

GATING = [counter.name for counter in diagnostics.COUNTERS if counter.gating]
HARMLESS = [counter.name for counter in diagnostics.COUNTERS if not counter.gating]
SIGNER = keys.generate("ed25519")
DEMANDS = ["require-zero-drops=1", "hardening=strict"]


def announced(option: str) -> Announcement:
    return read_announcement(frame((Tag.OPTION, option.encode())))


@pytest.mark.parametrize("option", DEMANDS)
@pytest.mark.parametrize("name", GATING)
def test_a_loss_is_refused_before_it_is_signed(name: str, option: str) -> None:
    lossy = observation(counts=counters(**{name: 3}))
    with pytest.raises(ZeroDropsError) as caught:
        daemon_action.gate(announced(option), lossy)
    assert caught.value.counters == {name: 3}
    assert f"{name} 3" in str(caught.value)
    code, data = daemon._error_frame(caught.value)
    known = diagnostics.BY_NAME[name]
    assert code == "ZeroDropsError"
    assert json.loads(json.dumps(data)) == {
        name: {"value": 3, "meaning": known.meaning, "remedy": known.remedy}
    }


def test_an_unknown_tool_is_refused_with_its_data_before_it_is_signed() -> None:
    tools = TrustedTools(frozenset(), ToolScope.EXECUTED, ("a.toolchain",), {}, ())
    judge_tools(observation(), None, b"/root")
    with pytest.raises(ToolchainError) as caught:
        judge_tools(observation(), tools, b"/root")
    code, data = daemon._error_frame(caught.value)
    assert code == "ToolchainError" and data is not None
    assert (data["used"], data["manifests"]) == ("executed", ["a.toolchain"])
    assert json.loads(json.dumps(data)) == data
    with pytest.raises(PostureError, match="does not see"):
        judge_tools(observation(posture=Posture.WALKED), tools, b"/root")


@pytest.mark.parametrize("name", GATING)
def test_a_loss_that_was_signed_is_refused_by_the_verifier(name: str) -> None:
    lossy = observation(counts=counters(**{name: 1}))
    data = signed_record(SIGNER, observed=lossy)
    found = verify_record(
        data,
        action_key=description().action_key,
        envelope_sha256=None,
        trusted=(SIGNER.public_key,),
    )
    assert found.losses == {name: 1}
    with pytest.raises(IncompleteError, match=f"{name} 1"):
        refuse_losses(found.predicate, found.losses, allow=False, about="it")
    refuse_losses(found.predicate, found.losses, allow=True, about="it")  # as the policy says


@pytest.mark.parametrize("name", HARMLESS)
def test_what_is_no_loss_is_never_refused(name: str) -> None:
    daemon_action.gate(announced(DEMANDS[1]), observation(counts=counters(**{name: 3})))
    assert diagnostics.losses(counters(**{name: 3})) == {}


def test_partial_reads_never_gate() -> None:
    assert "partialReadFallbacks" in HARMLESS


def test_without_the_demand_losses_are_reported_and_not_refused() -> None:
    daemon_action.gate(announced("hardening=standard"), observation(counts=counters(lateEvents=1)))


@pytest.mark.parametrize("option", ["hardening=strict", "fanotify=on"])
@pytest.mark.parametrize("posture", [Posture.WALKED, Posture.OBSERVED])
def test_a_weaker_posture_than_held_is_refused(option: str, posture: Posture) -> None:
    with pytest.raises(PostureError, match=posture.value):
        daemon_action.gate(announced(option), observation(posture=posture))


def test_what_the_launcher_counted_is_added() -> None:
    seen = observation(counts=counters(namespaceEscapes=1, unhashedOpensTotal=2))
    counted = with_guard_counts(seen, Exited(0, 0, escapes=2, mounts=3, unseen=4)).counters
    assert diagnostics.losses(counted) == {
        "namespaceEscapes": 3,
        "unmarkedMounts": 3,
        "unhashedOpensTotal": 6,
    }
