"""`pants attest`: package and attest, target by target, with an exit code that can be trusted."""

from __future__ import annotations

import logging
from typing import Any

from pants.engine.internals.scheduler import ExecutionError, SchedulerSession
from pants.engine.internals.selectors import Params
from rootseal.errors import Error

from rootseal_pants.attest import prepare_to_attest, requested_targets
from rootseal_pants.attest_types import AttestedTarget, AttestTarget
from rootseal_pants.compat import bootstrap_environment, goal_class, requested
from rootseal_pants.early_sealer import early_sealer

logger = logging.getLogger(__name__)
_Goal: Any = goal_class()


class AttestGoal(_Goal):  # type: ignore[misc]
    """The goal; it packages through the package goal, which attests by itself."""

    name = "attest"
    help = (
        "Package targets and attest them. Lists every target that cannot be built or captured, "
        "and exits non-zero unless everything is attested."
    )

    def run(self, context: Any = None, **fields: Any) -> int:
        """Build each target, then package and seal all of them.

        Pants 2.17 gives the fields by keyword; later versions give an object that has them.
        """
        given = fields if context is None else vars(context)
        graph_session, specs = given["graph_session"], given["specs"]
        if not given["options"].for_scope("rootseal").enabled:
            logger.error("`attest` needs capture, but [rootseal].enabled is false.")
            return 1
        session = graph_session.scheduler_session
        with early_sealer(session):
            if not prepare_to_attest(session):
                return 1
            code = _build_all(session, specs)
            if code != 0:
                return code
            return int(
                graph_session.run_goal_rules(
                    union_membership=given["union_membership"], goals=("package",), specs=specs
                )
            )


def _build_all(session: SchedulerSession, specs: Any) -> int:
    """Build every target, say which fail, and return the exit code."""
    roots = requested_targets(session, specs)
    if not roots:
        logger.error("There is nothing to attest: no target of these can be packaged.")
        return 1
    failed = _failures(session, roots)
    if not failed:
        return 0
    bad = {address for address, _ in failed}
    good = sorted({root.address.spec for root in roots} - bad)
    for address in good:
        logger.info(f"{address} is good.")
    for address, error in failed:
        logger.error(f"{address} is not attested: {error}")
    alone = f" `pants attest {' '.join(good)}` attests the good ones alone." if good else ""
    logger.error(
        f"{len(bad)} of {len(bad) + len(good)} targets failed; nothing was attested.{alone}"
    )
    return 1


def _failures(session: SchedulerSession, roots: tuple[Any, ...]) -> list[tuple[str, str]]:
    """Build every target, however many fail; address and reason of each that does."""
    environment = bootstrap_environment(session)
    subjects = [Params(AttestTarget(root), environment) for root in roots]
    try:
        requested(session, AttestedTarget, subjects)  # all at once
    except ExecutionError:
        pass  # what could be built is built; now ask for each by itself
    else:
        return []
    failed = []
    for root, subject in zip(roots, subjects):
        try:
            requested(session, AttestedTarget, [subject])
        except ExecutionError as error:
            failed.append((root.address.spec, _reason(error)))
    return sorted(failed)


def _reason(error: ExecutionError) -> str:
    """The error of the rule that failed, without the engine's own words."""
    found = error.wrapped_exceptions[0] if error.wrapped_exceptions else error
    return str(found) if isinstance(found, Error) else repr(found)
