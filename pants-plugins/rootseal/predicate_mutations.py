"""Materials that others changed after they were hashed (docs/predicate.md, `mutations`). Pure."""

from __future__ import annotations

from typing import Dict, List, Mapping

from rootseal import canonical, schema
from rootseal.errors import StatementError
from rootseal.observation import MUTATIONS_MAX, Mutation, Mutations, MutationTime

COUNTER = "mutatedAfterOpen"
MUTATIONS_SHAPE = schema.list_of(
    schema.object_of(
        {
            "path": schema.path_text,
            "digestAtOpen": schema.digest_text,
            "digestLater": schema.nullable(schema.digest_text),
            "when": schema.one_of(tuple(item.text for item in MutationTime)),
        }
    ),
    MUTATIONS_MAX,
)
LEFT_OUT_SHAPE = schema.integer()


def mutations_document(mutations: Mutations) -> List[Dict[str, object]]:
    """The list, in the order in which the backend told it."""
    return [_document(item) for item in mutations.found]


def _document(item: Mutation) -> Dict[str, object]:
    return {
        "path": canonical.path_text(item.path),
        "digestAtOpen": item.digest_at_open.hex(),
        "digestLater": None if item.digest_later is None else item.digest_later.hex(),
        "when": item.when.text,
    }


def check(document: Mapping[str, object], counters: Mapping[str, object]) -> None:
    """Check that each mutation is counted and each that was counted is told or left out.

    A counter that is missing or malformed is refused elsewhere, with all the others.

    Raises:
        StatementError: The list and its counter differ, or an entry changed nothing.
    """
    found = [schema.as_object(item) for item in schema.as_list(document["mutations"])]
    for item in found:
        if item["digestAtOpen"] == item["digestLater"]:
            raise StatementError(f"predicate.mutations: {item['path']} has the same digest twice")
    total = len(found) + schema.as_integer(document["mutationsLeftOut"])
    counted = counters.get(COUNTER)
    if type(counted) is int and 0 <= counted != total:
        raise StatementError(f"{COUNTER} is {counted}, but predicate.mutations has {total}")
