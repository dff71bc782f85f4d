"""Rego policies: accepted only if allow is true and nothing objects."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Dict

import pytest
from rootseal.errors import ConfigError, PolicyError
from rootseal.rego import check_rego

STATEMENT = b'{"predicate": {"posture": "held", "timeouts": 0}}'
RECOMMENDED = Path(__file__).resolve().parents[2] / "examples" / "policy" / "recommended.rego"
needs_engine = pytest.mark.skipif(
    importlib.util.find_spec("regopy") is None, reason="optional: regopy is not installed"
)
NEW = "package p\nimport rego.v1\n"
HELD = 'input.predicate.posture == "held"'


@needs_engine
@pytest.mark.parametrize(
    "text",
    [
        f"{NEW}default allow := false\nallow if {HELD}\n",
        f"package p\ndefault allow = false\nallow {{ {HELD} }}\n",
        f"package a.b.c\nimport rego.v1\nallow if {HELD}\ndeny contains m if "
        '{ input.predicate.timeouts > 0; m := "late" }\n',
        f"package p\nallow {{ {HELD} }}\ndeny[m] "
        '{ input.predicate.timeouts > 0; m := "late" }\nwarn { false }\n',
        f"{NEW}allow if {HELD}\ndeny_late if input.predicate.timeouts > 0\ndenyable := 1\n",
    ],
    ids=["v1", "v0", "deny is empty", "v0, deny is empty", "deny_late is not there"],
)
def test_accepted(text: str) -> None:
    check_rego(text, STATEMENT, where="p.rego")


@needs_engine
@pytest.mark.parametrize(
    ("text", "match"),
    [
        (f"{NEW}allow if not {HELD}\nx := 1\n", "does not say that allow is true"),
        (f'{NEW}allow := "true"\n', "does not say"),
        (f"{NEW}allow := 1\n", "does not say"),
        (f'{NEW}allow := true\ndeny contains "always"\n', "always"),
        (f'{NEW}allow := true\nviolation contains {{"msg": "v"}}\n', "objects"),
        (f'{NEW}allow := true\nviolations := ["w"]\n', "objects"),
        (f"{NEW}allow := true\ndeny := true\n", "objects"),
        (f"{NEW}allow := true\ndeny := 0\n", "objects"),
        (f'{NEW}allow := true\ndeny := ""\n', "objects"),
        (f'{NEW}allow := true\nwarnings contains "w"\n', "objects"),
        (f'{NEW}allow := true\ndeny_network contains "n"\n', "deny_network"),
        (f'{NEW}allow := true\nviolation_a_b contains {{"msg": "v"}}\n', "violation_a_b"),
        (f'{NEW}allow := true\nwarn_late contains "w"\n', "warn_late"),
        (f'{NEW}allow := true\ndeny.nested contains "n"\n', "nested"),
        ('package p\nallow = true\ndeny[msg] { msg := "v0" }\n', "v0"),
        ('package p\nallow = true\nviolation[{"msg": m}] { m := "v0" }\n', "v0"),
        ('package p\nallow = true\nwarn[msg] { msg := "v0" }\n', "v0"),
        ("package p\nallow = true\ndeny { input.predicate.timeouts == 0 }\n", "objects"),
        ("package p\ndefault allow = false\nallow { input.predicate.timeouts > 0 }\n", "not say"),
        ("package p\nallow { input.predicate.missing == 0 }\nx = 1\n", "not say"),
        (f'{NEW}allow := true\nwarn contains "a warning is an error"\n', "a warning"),
        (f"{NEW}allow if input.predicate.missing == 0\nx := 1\n", "does not say"),
    ],
)
def test_refused(text: str, match: str) -> None:
    with pytest.raises(PolicyError, match=match) as caught:
        check_rego(text, STATEMENT, where="p.rego")
    assert caught.value.check == "POLICY"


@needs_engine
@pytest.mark.parametrize(
    "text",
    [
        "",
        "allow := true",
        "package p\nallow {",
        "package p\nallow { nosuch(1) }",
        "package p\n",
        f"{NEW}allow := true\ndeny contains m if m := 1 / 0\n",
        f'{NEW}allow := true\ndeny contains m if m := to_number("x")\n',
        f"{NEW}allow := true\nallow := false\n",
        "package p\nallow = true\ndeny[m] { m := 1 / 0 }\n",
    ],
)
def test_a_policy_that_cannot_be_evaluated_accepts_nothing(text: str) -> None:
    with pytest.raises((ConfigError, PolicyError)):
        check_rego(text, STATEMENT, where="p.rego")


@needs_engine
@pytest.mark.parametrize("text", ["package p\nallow {", "package p\nallow { nosuch(1) }"])
def test_a_broken_policy_prints_nothing_to_stdout(text: str) -> None:
    """The engine does, from C++: so this looks at the descriptor, in a process of its own."""
    program = (
        "import sys\nfrom rootseal.errors import ConfigError, PolicyError\n"
        "from rootseal.rego import check_rego\n"
        f"try: check_rego({text!r}, {STATEMENT!r}, where='p.rego')\n"
        "except (ConfigError, PolicyError) as error: print(len(str(error).splitlines()))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "1\n"), done


@needs_engine
@pytest.mark.parametrize(
    ("change", "accepted"),
    [
        ({}, True),
        ({"fanotifyTimeouts": 1}, False),
        ({"ringbufReadTapDrops": 1}, False),
        ({"fanotifyAvailable": 0}, False),
        ({"fanotifyAvailable": 2}, False),  # a sum above zero, but not of every action
        ({"fanotifyAvailable": "3"}, False),
        ({"fanotifyAvailable": True}, False),
        ({"fanotifyAvailable": None}, False),
        ({"fanotifyTimeouts": "0"}, False),
        ({"fanotifyTimeouts": False}, False),
        ({"fanotifyTimeouts": -1}, False),
        ({"ringbufReadTapDrops": None}, False),
        ({"actions": 0, "fanotifyAvailable": 0}, False),
        ({"actions": None, "fanotifyAvailable": None}, False),
        ({"fanotifyTimeouts": None}, False),  # absent: elsewhere this fails open
        ({"posture": "walked"}, False),
        ({"posture": None}, False),
        ({"posture": "sealed"}, True),
        ({"posture": "observed"}, False),
    ],
)
def test_the_recommended_policy(change: Dict[str, object], accepted: bool) -> None:
    counters = {"fanotifyAvailable": 3, "fanotifyTimeouts": 0, "ringbufReadTapDrops": 0}
    given: Dict[str, object] = {"posture": "held", "actions": 3, **counters, **change}
    there = {name: value for name, value in given.items() if value is not None}
    summary = {name: there.pop(name) for name in ("posture", "actions") if name in there}
    summary["diagnostics"] = there
    document = json.dumps({"predicate": {"summary": summary}}).encode()
    if accepted:
        check_rego(RECOMMENDED.read_text(), document, where="it")
        return
    with pytest.raises(PolicyError):
        check_rego(RECOMMENDED.read_text(), document, where="it")


@pytest.mark.skipif(importlib.util.find_spec("regopy") is not None, reason="optional: it is here")
def test_without_the_engine_it_says_what_to_install() -> None:
    with pytest.raises(ConfigError, match=r"rootseal\[rego\]"):
        check_rego("package p", STATEMENT, where="p.rego")
