"""A record counts only for the action that was asked for: each part that may differ is compared."""

from __future__ import annotations

import hashlib
from typing import Any, Dict, Optional

import core_factory as factory
import pytest
from rootseal import action_check, keys, record_check
from rootseal.errors import EncodingError, PolicyError
from rootseal.predicate import ActionPredicate


def predicate(**changed: object) -> ActionPredicate:
    """Of an action with these fields in its document."""
    document: Dict[str, Any] = {
        "cmd": ["cc", "-I/tmp/box-1/inc", "a.c"],
        "environ": [item("PATH", "/bin"), item("HERE", "/tmp/box-1/x")],
        "sandbox": {"root": "/tmp/box-1", "workingDirectory": "src"},
        "declaredOutputs": {"files": ["src/a.o"], "directories": ["src/d"]},
        **changed,
    }
    found = object.__new__(ActionPredicate)
    object.__setattr__(found, "document", document)
    return found


def item(name: str, value: str) -> Dict[str, str]:
    return {"name": name, "valueDigest": hashlib.sha256(value.encode()).hexdigest()}


def asked(**changed: object) -> action_check.ExpectedAction:
    return action_check.read_expected(
        {
            "cmd": ["cc", "-I{chroot}/inc", "a.c"],
            "environ": {"PATH": hashlib.sha256(b"/bin").hexdigest()},
            "templates": {"HERE": "{chroot}/x"},
            "anyValue": [],
            "workingDirectory": "src",
            "outputFiles": ["a.o"],
            "outputDirectories": ["d/"],
            **changed,
        }
    )


def problem(found: ActionPredicate, wanted: Optional[action_check.ExpectedAction] = None) -> str:
    try:
        action_check.check_action(found, wanted or asked())
    except PolicyError as error:
        return str(error)
    return ""


def test_the_action_that_was_asked_for_counts() -> None:
    assert problem(predicate()) == ""


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"cmd": ["sh", "-c", "echo evil > a.o"]}, "another command: sh -c"),
        ({"cmd": ["cc", "-I/tmp/box-1/inc", "a.c", "-g"]}, "another command"),
        ({"cmd": ["cc", "-I/tmp/box-2/inc", "a.c"]}, "another command"),
        ({"environ": [item("HERE", "/tmp/box-1/x")]}, "differs in PATH"),
        ({"environ": [item("PATH", "/evil"), item("HERE", "/tmp/box-1/x")]}, "differs in PATH"),
        (
            {
                "environ": [
                    item("PATH", "/bin"),
                    item("HERE", "/tmp/box-1/x"),
                    item("LD_PRELOAD", "/tmp/evil.so"),
                ]
            },
            "differs in LD_PRELOAD",
        ),
        (
            {
                "environ": [
                    item("PATH", "/evil"),
                    item("PATH", "/bin"),
                    item("HERE", "/tmp/box-1/x"),
                ]
            },
            "twice",
        ),
        ({"sandbox": {"root": "/tmp/box-1", "workingDirectory": "."}}, "a command in ."),
        ({"declaredOutputs": {"files": ["src/b.o"], "directories": ["src/d"]}}, "(files)"),
        ({"declaredOutputs": {"files": ["src/a.o"], "directories": []}}, "(directories)"),
    ],
)
def test_another_action_is_refused(changed: Dict[str, object], why: str) -> None:
    assert why in problem(predicate(**changed))
    assert "/evil" not in problem(predicate(**changed)) or "cmd" in changed


def test_the_sandbox_may_be_named_by_a_symlink_or_stay_a_name_remotely() -> None:
    linked = predicate(
        cmd=["cc", "-I/link/box-1/inc", "a.c"],
        environ=[item("PATH", "/bin"), item("HERE", "/link/box-1/x")],
    )
    assert "another command" in problem(linked)
    assert problem(linked, asked(sandboxes="/link")) == ""
    remote = predicate(
        cmd=["cc", "-I{chroot}/inc", "a.c"],
        environ=[
            item("PATH", "/bin"),
            item("HERE", "{chroot}/x"),
            item("PANTS_CACHE_KEY_TARGET_PLATFORM", "linux_x86_64"),
        ],
    )
    assert problem(remote) == ""
    assert "another" in problem(predicate(cmd=["cc", "-I{chroot}/inc", "a.c"])), "half of each"


def test_the_engine_may_choose_the_concurrency_and_nothing_else() -> None:
    wanted = asked(cmd=["make", "-j{pants_concurrency}"])
    for number in ("-j1", "-j64", "-j{pants_concurrency}"):
        assert problem(predicate(cmd=["make", number]), wanted) == ""
    for other in ("-j", "-jx", "-j1 ", "j1", "-j1;evil", "-j-1"):
        assert "another command" in problem(predicate(cmd=["make", other]), wanted)


def test_what_the_engine_adds_is_known() -> None:
    base = [item("HERE", "/tmp/box-1/x")]
    slot = predicate(environ=[*base, item("PATH", "/bin"), item("SLOT", "3")])
    assert "differs in SLOT" in problem(slot)
    assert problem(slot, asked(anyValue=["SLOT"])) == ""
    assert "differs in PATH, SLOT" in problem(predicate(), asked(environ={"SLOT": "0" * 64}))
    without = asked(environ={})
    assert problem(predicate(environ=[*base, item("PATH", "")]), without) == ""
    assert "differs in PATH" in problem(predicate(environ=[*base, item("PATH", "/e")]), without)


@pytest.mark.parametrize(
    "value",
    [
        None,
        {},
        [],
        {"cmd": []},
        {**{name: [] for name in action_check._FIELDS}, "workingDirectory": "."},
    ],
)
def test_a_malformed_action_is_no_action(value: object) -> None:
    with pytest.raises(EncodingError):
        action_check.read_expected(value)


def test_a_genuine_record_of_another_action_does_not_count() -> None:
    signer = keys.generate("ed25519")
    with pytest.raises(PolicyError, match="record-action-key"):
        record_check.check_record(
            factory.signed_record(signer),
            action_key=factory.description().action_key,
            trusted_public_keys=[signer.public_key],
            declared_outputs=[],
            expected=asked(),
        )
