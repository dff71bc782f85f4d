"""`pants attest`: package and attest, target by target, with an exit code that can be trusted."""

from __future__ import annotations

import logging
from typing import Any

from pants.base.specs import Specs
from pants.build_graph.build_configuration import BuildConfiguration
from pants.core.util_rules.environments import determine_bootstrap_environment
from pants.engine.internals.selectors import Params
from pants.engine.unions import UnionMembership
from pants.goal.builtin_goal import BuiltinGoal
from pants.init.engine_initializer import GraphSession
from pants.option.options import Options
from rootseal.errors import Error

from rootseal_pants.attest import requested_targets
from rootseal_pants.attest_rules import AttestedTarget, AttestTarget

logger = logging.getLogger(__name__)


class AttestGoal(BuiltinGoal):
    """The goal; it packages through the package goal, which attests by itself."""

    name = "attest"
    help = (
        "Package targets and attest them. Lists every target that cannot be built or captured, "
        "and exits non-zero unless everything is attested."
    )

    def run(
        self,
        *,
        build_config: BuildConfiguration,
        graph_session: GraphSession,
        options: Options,
        specs: Specs,
        union_membership: UnionMembership,
    ) -> int:
        """Build each target, then package and seal all of them."""
        if not options.for_scope("rootseal").enabled:
            logger.error("`attest` needs capture, but [rootseal].enabled is false.")
            return 1
        session = graph_session.scheduler_session
        roots = requested_targets(session, specs)
        if not roots:
            logger.error("There is nothing to attest: no target of these can be packaged.")
            return 1
        failed = _failures(session, roots)
        for address, error in failed:
            logger.error(f"{address} is not attested: {error}")
        if failed:
            logger.error(f"{len(failed)} of {len(roots)} targets failed; nothing was attested.")
            return 1
        return graph_session.run_goal_rules(
            union_membership=union_membership, goals=("package",), specs=specs
        )


def _failures(session: Any, roots: tuple[Any, ...]) -> list[tuple[str, str]]:
    """Build every target, however many fail; address and reason of each that does."""
    environment = determine_bootstrap_environment(session)
    requests = [AttestTarget(root) for root in roots]
    request = session.execution_request(
        [(AttestedTarget, Params(item, environment)) for item in requests]
    )
    _, throws = session._execute(request)
    failed = []
    for (_, params), thrown in throws:
        target = next(item for item in params.params if isinstance(item, AttestTarget))
        reason = str(thrown.exc) if isinstance(thrown.exc, Error) else repr(thrown.exc)
        failed.append((target.field_set.address.spec, reason))
    return sorted(failed)
