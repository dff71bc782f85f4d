"""The three places where Pants is patched: how a scheduler is built, a session started, goals run.

Schedulers without our rules (the one that resolves `plugins=`) are not touched.
"""

from __future__ import annotations

import functools
import inspect
from typing import Any, Callable, ContextManager, Protocol

import pants.engine.internals.scheduler as pants_scheduler
from pants.engine.internals.session import SessionValues
from pants.init.engine_initializer import GraphScheduler, GraphSession

from rootseal_pants.attest import Run, attest_run, now, prepare_to_attest
from rootseal_pants.early_sealer import early_sealer

_PATCHED = "_rootseal_patched"
_OURS = "_rootseal_wraps_processes"


class Wrap(Protocol):
    """What wrap_get.py and wrap_byname.py have in common."""

    def is_wrapped(self, rules: tuple[Any, ...]) -> bool:
        """Whether a scheduler with these rules is one of ours."""

    def building(self, ours: bool) -> ContextManager[None]:
        """Open while a scheduler is built."""

    def new_session(self, start: Callable[[SessionValues], Any], values: SessionValues) -> Any:
        """Start a session of a scheduler of ours, with these values or more."""


def install(wrap: Wrap) -> None:
    """Patch all, once in a process."""
    scheduler: Any = pants_scheduler.Scheduler
    graph_scheduler: Any = GraphScheduler
    graph_session: Any = GraphSession
    if not getattr(scheduler.__init__, _PATCHED, False):
        scheduler.__init__ = _with_process_type(scheduler.__init__, wrap)
        graph_scheduler.new_session = _with_values(graph_scheduler.new_session, wrap)
        graph_session.run_goal_rules = _with_attestation(graph_session.run_goal_rules)


def _with_process_type(original: Callable[..., None], wrap: Wrap) -> Callable[..., None]:
    @functools.wraps(original)
    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        rules = tuple(kwargs["rules"])
        ours = wrap.is_wrapped(rules)
        with wrap.building(ours):
            original(self, *args, **{**kwargs, "rules": rules})
        setattr(self, _OURS, ours)

    setattr(init, _PATCHED, True)
    return init


def _with_values(original: Callable[..., Any], wrap: Wrap) -> Callable[..., Any]:
    @functools.wraps(original)
    def new_session(self: Any, *args: Any, **kwargs: Any) -> Any:
        if not getattr(self.scheduler, _OURS, False):
            return original(self, *args, **kwargs)
        given = inspect.signature(original).bind(self, *args, **kwargs).arguments
        values = given.get("session_values") or SessionValues()
        return wrap.new_session(lambda more: original(**{**given, "session_values": more}), values)

    return new_session


def _with_attestation(original: Callable[..., int]) -> Callable[..., int]:
    """After the goals of a run, attest what the package goal built; its failure is the run's."""

    @functools.wraps(original)
    def run_goal_rules(self: Any, **kwargs: Any) -> int:
        session = self.scheduler_session
        if not getattr(session.scheduler, _OURS, False):
            return original(self, **kwargs)
        started_at = now()
        goals = tuple(kwargs["goals"])
        with early_sealer(session):
            if "package" in goals and not prepare_to_attest(session):
                return 1
            code = original(self, **{**kwargs, "goals": goals})
            if code != 0 or "package" not in goals:
                return code
            run_id = f"pants_run_{started_at}"
            return attest_run(Run(session, kwargs["specs"], run_id, started_at))

    return run_goal_rules
