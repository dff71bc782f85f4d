"""What makes the start of pantsd slow is kept out of the rule that every process goes through."""

from __future__ import annotations

from typing import Any

from pants.engine.process import Process
from pants.engine.unions import is_union
from rootseal_pants import wrap_get


def test_only_the_process_is_solved_with_the_parameters_of_its_callers() -> None:
    """Everything else is asked for through a union; one that is not costs half a second."""
    wrapper: Any = wrap_get.captured_execute
    assert wrapper.rule.input_selectors == (Process,)
    ordinary = [
        get.output_type
        for get in wrapper.rule.input_gets
        if not any(is_union(given) for given in get.input_types)
    ]
    assert set(ordinary) == {wrap_get.NativeResult}
    assert len(wrapper.rule.input_gets) > len(ordinary)
