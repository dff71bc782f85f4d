"""The one place where Pants is patched: how a scheduler is built.

Schedulers without our rules (the one that resolves `plugins=`) are not touched.
"""

from __future__ import annotations

import functools
from typing import Any, Callable

import pants.engine.internals.scheduler as pants_scheduler

from rootseal_pants.wrap_get import captured_execute, engine_process_type

_MARK = "_rootseal_wraps_processes"


def install() -> None:
    """Patch `Scheduler.__init__`, once in a process."""
    scheduler: Any = pants_scheduler.Scheduler
    if getattr(scheduler.__init__, _MARK, False):
        return
    scheduler.__init__ = _with_process_type(scheduler.__init__)


def _with_process_type(original: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(original)
    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        rules = tuple(kwargs["rules"])
        ours = any(getattr(rule, "func", None) is captured_execute.rule.func for rule in rules)
        with engine_process_type(ours):
            original(self, *args, **{**kwargs, "rules": rules})

    setattr(init, _MARK, True)
    return init
