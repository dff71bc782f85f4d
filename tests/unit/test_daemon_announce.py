"""What a launcher announces is read strictly, and what is impossible is refused beforehand."""

from __future__ import annotations

import dataclasses
from typing import List, Optional, Tuple

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rootseal.daemon_announce import Decision, Missing, decide, read_announcement
from rootseal.daemon_backends import find_program
from rootseal.errors import BackendUnavailable, ConfigError, EncodingError
from rootseal.hardening import WEAK_MODES
from rootseal.observation import Posture
from rootseal.predicate import Fallback
from rootseal.wire import Frame, FrameType, Tag

GOOD: Tuple[Tuple[Tag, bytes], ...] = (
    (Tag.ACTION_KEY, bytes(32)),
    (Tag.ARG, b"cc"),
    (Tag.ARG, b"-c"),
    (Tag.ENV, b"PATH=/bin"),
    (Tag.ENV, b"EMPTY="),
    (Tag.ENV, b"odd"),
    (Tag.CWD, b"/sandbox/sub"),
    (Tag.ROOT, b"/sandbox"),
    (Tag.OUTPUT_FILE, b"a/b"),
    (Tag.OUTPUT_DIR, b"."),
    (Tag.OPTION, b"inputs=/usr/include"),
    (Tag.OPTION, b"max-digests=7"),
    (Tag.NAMESPACE, b"direct"),
)


def frame(*changes: Tuple[Tag, Optional[bytes]]) -> Frame:
    """GOOD with tags replaced (or left out: None)."""
    changed = {tag for tag, _ in changes}
    tlvs: List[Tuple[Tag, bytes]] = [item for item in GOOD if item[0] not in changed]
    tlvs += [(tag, value) for tag, value in changes if value is not None]
    return Frame(FrameType.ANNOUNCE, tuple(tlvs))


def test_a_good_announcement_is_read() -> None:
    found = read_announcement(frame())
    assert found.argv == (b"cc", b"-c")
    assert found.environ == ((b"PATH", b"/bin"), (b"EMPTY", b""), (b"odd", b""))
    assert (found.output_files, found.output_dirs) == ((b"a/b",), (b".",))
    assert found.inputs == (b"/usr/include",)
    assert found.limits.max_digests == 7
    assert found.requested.fanotify == "auto"
    assert not found.requested.require_zero_drops


def test_strict_implies_zero_drops() -> None:
    found = read_announcement(frame((Tag.OPTION, b"hardening=strict")))
    assert found.strict
    assert found.requested.require_zero_drops


@pytest.mark.parametrize(
    ("tag", "value"),
    [
        (Tag.ACTION_KEY, b"short"),
        (Tag.ACTION_KEY, None),
        (Tag.ARG, None),
        (Tag.ARG, b"nul\0"),
        (Tag.CWD, b"relative"),
        (Tag.CWD, None),
        (Tag.ROOT, b""),
        (Tag.ROOT, b"/" + b"x" * 4096),
        (Tag.OUTPUT_FILE, b"/etc/passwd"),
        (Tag.OUTPUT_FILE, b"a/../../b"),
        (Tag.OUTPUT_FILE, b""),
        (Tag.OUTPUT_DIR, b".."),
        (Tag.OUTPUT_DIR, b"nul\0"),
        (Tag.OUTPUT_DIR, b"x" * 4097),
    ],
)
def test_what_our_launcher_would_not_send_is_refused(tag: Tag, value: Optional[bytes]) -> None:
    with pytest.raises(EncodingError):
        read_announcement(frame((tag, value)))


@pytest.mark.parametrize(
    "option",
    [
        b"fanotify=maybe",
        b"fanotify",
        b"unknown=1",
        b"capture-mode=magic",
        b"require-zero-drops=yes",
        b"max-digests=",
        b"max-digests=-1",
        b"max-digests=0",
        b"max-digests=99999999999999999999999999",
        "max-digests=²".encode(),
        b"max-record-bytes=99999999999999",
    ],
)
def test_a_wrong_option_is_the_callers_mistake(option: bytes) -> None:
    with pytest.raises(ConfigError):
        read_announcement(frame((Tag.OPTION, option)))


def test_an_option_given_twice_is_refused() -> None:
    with pytest.raises(ConfigError, match="given twice"):
        read_announcement(frame((Tag.OPTION, b"fanotify=on"), (Tag.OPTION, b"fanotify=off")))


def test_the_number_of_inputs_has_a_limit() -> None:
    many = [(Tag.OPTION, b"inputs=/x")] * 4097
    with pytest.raises(ConfigError, match="at most 4096"):
        read_announcement(frame(*many))


@given(st.lists(st.tuples(st.sampled_from(sorted(t for t, _ in GOOD)), st.binary(max_size=20))))
def test_any_tags_give_an_announcement_or_its_error(changes: List[Tuple[Tag, bytes]]) -> None:
    try:
        read_announcement(frame(*changes))
    except (EncodingError, ConfigError):
        return


@pytest.mark.parametrize(
    ("program", "path", "expected"),
    [
        (b"sh", b"/nowhere:/bin", b"/bin/sh"),
        (b"sh", b"/nowhere", b""),
        (b"./tool", b"/bin", b"/sandbox/sub/./tool"),
    ],
)
def test_the_program_is_found_as_execvp_finds_it(
    program: bytes, path: bytes, expected: bytes
) -> None:
    announced = read_announcement(frame((Tag.ARG, program), (Tag.ENV, b"PATH=" + path)))
    assert find_program(announced) == expected


def test_ptrace_beside_fanotify_is_asked_for_by_name() -> None:
    options = [(Tag.OPTION, b"capture-mode=trace:ptrace"), (Tag.OPTION, b"fanotify=on")]
    here = Missing(None, None, None)
    direct = read_announcement(frame(*options, (Tag.NAMESPACE, b"direct")))
    assert decide(direct, here) == Decision("fanotify", Posture.HELD, (), traced="ptrace")
    helped = read_announcement(frame(*options, (Tag.NAMESPACE, b"helper")))
    with pytest.raises(BackendUnavailable, match="enter the namespace itself"):
        decide(helped, here)
    broken = BackendUnavailable("ptrace", "Yama says no", "")
    with pytest.raises(BackendUnavailable, match="Yama"):
        decide(direct, Missing(None, None, broken))


def test_fanotify_beside_ima_is_a_contradiction_and_not_left_away() -> None:
    ima = (Tag.OPTION, b"capture-mode=ima")
    here = Missing(None, None, None)
    assert decide(read_announcement(frame(ima)), here) == Decision("ima", Posture.WALKED, ())
    with pytest.raises(ConfigError, match="fanotify=on contradicts capture-mode=ima"):
        decide(read_announcement(frame(ima, (Tag.OPTION, b"fanotify=on"))), here)


HERE = Missing(None, None, None)
NO_FANOTIFY = Missing(BackendUnavailable("fanotify", "not permitted", ""), None, None)
NO_EBPF = Missing(None, BackendUnavailable("ebpf", "no BTF", ""), None)


def decided(words: str, missing: Missing = HERE) -> Decision:
    """What these options come to."""
    options = [(Tag.OPTION, word.encode()) for word in words.split()]
    return decide(read_announcement(frame(*options)), missing)


@pytest.mark.parametrize(
    ("words", "want"),
    [
        ("hardening=off", Decision("ptrace", Posture.HELD, ())),
        ("hardening=off capture-mode=walk", Decision("walk", Posture.WALKED, ())),
        ("hardening=off capture-mode=trace:auto", Decision("ptrace", Posture.HELD, ())),
        (
            "hardening=off capture-mode=trace:ebpf",
            Decision("fanotify", Posture.HELD, (), traced="ebpf"),
        ),
        ("capture-mode=trace:ebpf fanotify=off", Decision("ebpf", Posture.OBSERVED, ())),
        ("hardening=off fanotify=on", Decision("fanotify", Posture.HELD, (), traced="ebpf")),
        ("hardening=standard", Decision("fanotify", Posture.HELD, (), traced="ebpf")),
        ("hardening=strict", Decision("fanotify", Posture.HELD, (), traced="ebpf")),
    ],
)
def test_what_a_level_takes(words: str, want: Decision) -> None:
    assert decided(words) == want


def test_standard_steps_down_with_a_reason() -> None:
    assert decided("hardening=standard", NO_FANOTIFY).backend == "ptrace"
    assert [step.reason for step in decided("hardening=standard", NO_EBPF).fallbacks] == ["no BTF"]


def test_where_fanotify_would_hinder_the_action_ptrace_is_better() -> None:
    removal = BackendUnavailable("fanotify", "the root is on NFS", "")
    there = dataclasses.replace(HERE, removal=removal)
    step = Fallback("fanotify", "ptrace", "the root is on NFS")
    for words in ("", "capture-mode=trace", "capture-mode=trace:auto"):
        assert decided(words, there) == Decision("ptrace", Posture.HELD, (step,))
    yama = BackendUnavailable("ptrace", "Yama says no", "")
    nobody_else = dataclasses.replace(there, ptrace=yama)
    assert decided("", nobody_else).backend == "fanotify"


@pytest.mark.parametrize(
    "words", ["fanotify=on", "hardening=strict", "capture-mode=trace:ebpf", "capture-mode=walk"]
)
def test_what_was_asked_for_by_name_is_kept(words: str) -> None:
    removal = BackendUnavailable("fanotify", "the root is on NFS", "")
    assert decided(words, dataclasses.replace(HERE, removal=removal)) == decided(words)


def test_ebpf_alone_is_after_ptrace_and_before_the_walk() -> None:
    yama = BackendUnavailable("ptrace", "Yama says no", "")
    for words in ("fanotify=off", "fanotify=off capture-mode=trace"):
        assert decided(words).backend == "ptrace"
        found = decided(words, Missing(None, None, yama))
        assert (found.backend, found.requested_posture) == ("ebpf", Posture.HELD)
        assert found.fallbacks == (Fallback("ptrace", "ebpf", "Yama says no"),)
    nothing = Missing(None, NO_EBPF.ebpf, yama)
    assert decided("fanotify=off", nothing).backend == "walk"
    with pytest.raises(BackendUnavailable, match="Yama"):
        decided("fanotify=off capture-mode=trace", nothing)


def test_ebpf_without_fanotify_steps_down_or_fails() -> None:
    found = decided("capture-mode=trace:ebpf", NO_FANOTIFY)
    assert (found.backend, found.requested_posture) == ("ebpf", Posture.HELD)
    assert found.fallbacks == (Fallback("fanotify+ebpf", "ebpf", "not permitted"),)
    with pytest.raises(BackendUnavailable, match="not permitted"):
        decided("capture-mode=trace:ebpf fanotify=on", NO_FANOTIFY)
    with pytest.raises(BackendUnavailable, match="no BTF"):
        decided("capture-mode=trace:ebpf fanotify=off", NO_EBPF)


@pytest.mark.parametrize(("missing", "match"), [(NO_FANOTIFY, "not permitted"), (NO_EBPF, "BTF")])
def test_strict_steps_down_from_nothing(missing: Missing, match: str) -> None:
    with pytest.raises(BackendUnavailable, match=match):
        decided("hardening=strict", missing)


@pytest.mark.parametrize("more", ["", " fanotify=on"])
@pytest.mark.parametrize("mode", WEAK_MODES)
def test_strict_refuses_modes_without_its_trace(mode: str, more: str) -> None:
    """Also beside fanotify, where the walk and the measurements are no second witness."""
    match = f"strict needs fanotify and a trace: it contradicts capture-mode={mode}"
    with pytest.raises(ConfigError, match=match):
        decided(f"hardening=strict capture-mode={mode}{more}")


def test_strict_refuses_to_be_without_fanotify() -> None:
    with pytest.raises(ConfigError, match="it contradicts fanotify=off"):
        decided("hardening=strict fanotify=off")


def test_at_the_level_off_nothing_is_sealed_unasked() -> None:
    def fsverity(*words: bytes) -> str:
        options = [(Tag.OPTION, word) for word in words]
        return read_announcement(frame(*options)).requested.fsverity

    assert fsverity(b"hardening=off") == "off"
    assert fsverity(b"hardening=off", b"fsverity=on") == "on"
    assert fsverity(b"hardening=standard") == "auto"
