"""The two places where Pants is patched: how a scheduler is built, and how its goals are run.

Schedulers without our rules (the one that resolves `plugins=`) are not touched.
"""

from __future__ import annotations

import functools
from typing import Any, Callable

import pants.engine.internals.scheduler as pants_scheduler
from pants.init.engine_initializer import GraphSession

from rootseal_pants.attest import Run, attest_run, make_artifacts_writable, now
from rootseal_pants.wrap_get import captured_execute, engine_process_type

_PATCHED = "_rootseal_patched"
_OURS = "_rootseal_wraps_processes"


def install() -> None:
    """Patch both, once in a process."""
    scheduler: Any = pants_scheduler.Scheduler
    graph_session: Any = GraphSession
    if not getattr(scheduler.__init__, _PATCHED, False):
        scheduler.__init__ = _with_process_type(scheduler.__init__)
        graph_session.run_goal_rules = _with_attestation(graph_session.run_goal_rules)


def _with_process_type(original: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(original)
    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        rules = tuple(kwargs["rules"])
        wrapper: Any = captured_execute
        ours = any(getattr(rule, "func", None) is wrapper.rule.func for rule in rules)
        with engine_process_type(ours):
            original(self, *args, **{**kwargs, "rules": rules})
        setattr(self, _OURS, ours)

    setattr(init, _PATCHED, True)
    return init


def _with_attestation(original: Callable[..., int]) -> Callable[..., int]:
    """After the goals of a run, attest what the package goal built; its failure is the run's."""

    @functools.wraps(original)
    def run_goal_rules(self: Any, **kwargs: Any) -> int:
        started_at = now()
        goals = tuple(kwargs["goals"])
        session = self.scheduler_session
        packages = "package" in goals and getattr(session.scheduler, _OURS, False)
        if packages:
            make_artifacts_writable(session)
        code = original(self, **{**kwargs, "goals": goals})
        if code != 0 or not packages:
            return code
        run_id = f"pants_run_{started_at}"
        return attest_run(Run(session, kwargs["specs"], run_id, started_at))

    return run_goal_rules
