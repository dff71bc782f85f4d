"""What has another place or shape in other versions of Pants: one import for all of them."""

from __future__ import annotations

from typing import Any, Sequence

from pants.version import PANTS_SEMVER

VERSION: tuple[int, int] = (PANTS_SEMVER.release[0], PANTS_SEMVER.release[1])
BY_NAME = VERSION >= (2, 23)  # rules are called by name, and native_engine runs processes by name


def bootstrap_environment(session: Any) -> Any:
    """The environment of requests that are made from outside the engine."""
    if VERSION >= (2, 28):
        from pants.core.environments.rules import determine_bootstrap_environment
    else:
        from pants.core.util_rules.environments import determine_bootstrap_environment
    return determine_bootstrap_environment(session)


def requested(session: Any, product: type, subjects: Sequence[Any]) -> list[Any]:
    """The product for each of the subjects, asked for all at once.

    `product_request` takes one subject from 2.31 on; what it is made of has stayed the same.
    """
    request = session.execution_request([(product, subject) for subject in subjects])
    return list(session.execute(request))


def goal_class() -> Any:
    """The base of goals that are run outside the engine."""
    if BY_NAME:
        from pants.goal.auxiliary_goal import AuxiliaryGoal

        return AuxiliaryGoal
    from pants.goal.builtin_goal import BuiltinGoal

    return BuiltinGoal


def wrap_module() -> Any:
    """The module that wraps processes: `wrap_get` or `wrap_byname`."""
    if BY_NAME:
        from rootseal_pants import wrap_byname

        return wrap_byname
    from rootseal_pants import wrap_get

    return wrap_get
