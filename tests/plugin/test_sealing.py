"""What the plugin hands to `rootseal seal`: keys by URI, and the policy of the manifest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pants.engine.internals.scheduler import ExecutionError
from pants.testutil.rule_runner import QueryRule, RuleRunner
from rootseal.errors import ConfigError
from rootseal_pants import hook, sealing, setup_rules, wrap_get
from rootseal_pants.runtime import DaemonInfo
from rootseal_pants.settings import ReadyDaemon, Settings


def settings_with(*options: str) -> Settings:
    """The settings that these options give."""
    hook.install(wrap_get)
    rules: list[Any] = [*setup_rules.rules(), *wrap_get.rules(), QueryRule(Settings, [])]
    runner = RuleRunner(rules=rules)
    runner.set_options(options)
    return runner.request(Settings, [])


def test_the_public_key_of_a_key_uri_is_passed_on() -> None:
    settings = settings_with("--rootseal-key=awskms:alias/x", "--rootseal-public-key=keys/x.pub")
    info = DaemonInfo("/s", "1", "/l", "held", "fanotify", "/c.pub")
    daemon = ReadyDaemon(info, "/bin/rootseal", "0" * 64, "", (), ())
    words = sealing._seal_arguments(settings, daemon, Path("/m"), Path("/b"))
    assert words[words.index("--key") + 1] == "awskms:alias/x"
    assert words[words.index("--public-key") + 1] == f"{settings.build_root}/keys/x.pub"


def test_a_key_uri_without_its_public_key_is_refused_before_anything_runs() -> None:
    with pytest.raises(ExecutionError) as caught:
        settings_with("--rootseal-key=awskms:alias/x")
    (error,) = caught.value.wrapped_exceptions
    assert isinstance(error, ConfigError) and "[rootseal].public_key" in str(error)


@pytest.mark.parametrize(
    ("options", "posture"),
    [
        ((), "walked"),
        (("--rootseal-fanotify=on",), "held"),
        (("--rootseal-hardening=strict",), "held"),
        (("--rootseal-hardening=off",), "walked"),
    ],
)
def test_the_policy_demands_held_where_fanotify_is_on(
    options: tuple[str, ...], posture: str
) -> None:
    assert sealing.policy_of(settings_with(*options))["posture"] == posture
