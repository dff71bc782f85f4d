"""Fixtures with Pants' RuleRunner: a real engine, the real launcher, a real daemon."""

from __future__ import annotations

from typing import Any, Iterator

import pytest
from pants.engine.fs import Digest, DigestEntries
from pants.engine.process import FallibleProcessResult, Process
from pants.testutil.rule_runner import QueryRule, RuleRunner
from rootseal_pants import register


@pytest.fixture(scope="module")
def wrapped() -> Iterator[RuleRunner]:
    rules: list[Any] = [
        *register.rules(),
        QueryRule(FallibleProcessResult, [Process]),
        QueryRule(DigestEntries, [Digest]),
    ]
    runner = RuleRunner(rules=rules)
    runner.set_options(["--rootseal-executable=/tmp/lab/pants-standin/rootseal"])
    yield runner
