"""Action predicates and keys: what is said of an action, and what cannot be said."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import core_factory as factory
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rootseal import (
    action,
    canonical,
    diagnostics,
    digest,
    leaf_table,
    opens_table,
    predicate,
    statement,
)
from rootseal.errors import ConfigError, EncodingError, StatementError
from rootseal.leaf_table import Domain
from rootseal.observation import (
    MUTATIONS_MAX,
    DigestSource,
    LeafTable,
    Ledger,
    Mutation,
    Mutations,
    MutationTime,
    Observation,
    Posture,
)
from rootseal.policy import Policy, parse_policy
from rootseal.predicate import ActionDescription
from rootseal.process_trace import Environ, ProcessTrace


def build(observed: Observation, described: ActionDescription) -> Any:
    tables = predicate.store_tables(observed)
    document = predicate.build_action_predicate(observed, described, tables).document
    return json.loads(canonical.encode(document))


def test_what_is_built_reads_back_with_every_counter() -> None:
    document = build(factory.observation(), factory.description())
    found = predicate.read_action_predicate(document)
    assert found.action_key == factory.description().action_key
    assert found.posture is Posture.HELD
    assert set(document["summary"]["diagnostics"]) == set(diagnostics.NAMES)
    assert document["summary"]["losses"] == []
    assert list(document) == sorted(document)


def test_the_summary_comes_first() -> None:
    observed = factory.observation()
    tables = predicate.store_tables(observed)
    document = predicate.build_action_predicate(observed, factory.description(), tables).document
    assert next(iter(document)) == "summary"


def test_bytes_of_any_kind_survive() -> None:
    described = factory.description(
        cmd=(b"sh", b"-c", b"\xff\n%"),
        environ=((b"\xfe", bytes(32)),),
        root=b"/sand\nbox",
        output_files=(b"out/\x80",),
    )
    document = build(factory.observation(), described)
    assert [canonical.path_bytes(word) for word in document["cmd"]] == list(described.cmd)
    assert canonical.path_bytes(document["environ"][0]["name"]) == b"\xfe"
    assert canonical.path_bytes(document["sandbox"]["root"]) == b"/sand\nbox"


def test_losses_are_named_and_gate() -> None:
    counts = factory.counters(lateEvents=1, fanotifyQueueOverflows=2, digestCacheHits=7)
    document = build(factory.observation(counts=counts), factory.description())
    assert document["summary"]["losses"] == ["fanotifyQueueOverflows", "lateEvents"]


def test_killed_descendants_are_said_twice_and_agree() -> None:
    document = build(factory.observation(), factory.description(descendants_killed=3))
    assert document["descendantsKilled"] == 3
    assert document["summary"]["diagnostics"]["descendantsKilled"] == 3


def test_fanotify_only_counts_where_a_second_witness_watched() -> None:
    materials = [
        factory.leaf(b"a", source=DigestSource.FANOTIFY_ONLY),
        factory.leaf(b"b", source=DigestSource.FANOTIFY_OPEN_TIME),
    ]
    observed = factory.observation(materials=materials)
    document = build(observed, factory.description())
    assert document["summary"]["fanotifyOnlyDigests"] == 0
    both = dataclasses.replace(observed, backend="fanotify+ebpf", fanotify_only=1)
    assert build(both, factory.description())["summary"]["fanotifyOnlyDigests"] == 1


@pytest.mark.parametrize(
    "described",
    [
        factory.description(exit_code=256),
        factory.description(exit_code=1, signal=9),
        factory.description(started_at="yesterday"),
        factory.description(requested_posture=Posture.SEALED, fallbacks=()),
        factory.description(environ=((b"A", b"short"),)),
        factory.description(descendants_killed=-1),
    ],
)
def test_contradictions_are_not_signed(described: ActionDescription) -> None:
    with pytest.raises(EncodingError):
        build(factory.observation(), described)


def test_a_missing_counter_is_not_signed() -> None:
    counts = factory.counters()
    del counts["lateEvents"]
    with pytest.raises(EncodingError, match="lateEvents"):
        build(factory.observation(counts=counts), factory.description())


@pytest.mark.parametrize("size", [-1, 2**24 + 1])
def test_tree_sizes_out_of_range_are_not_signed(size: int) -> None:
    table = leaf_table.encode(Domain.MATERIAL, [])
    observed = dataclasses.replace(
        factory.observation(), materials=LeafTable(table.raw, table.tree_root, size)
    )
    with pytest.raises(EncodingError):
        build(observed, factory.description())


def _places(value: Any, path: tuple[object, ...] = ()) -> list[tuple[object, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value)
    found: list[tuple[object, ...]] = []
    for name, item in items:
        found.append((*path, name))
        if isinstance(item, (dict, list)):
            found += _places(item, (*path, name))
    return found


DOCUMENT = build(factory.observation(), factory.description())
FIELDS = [place for place in _places(DOCUMENT) if isinstance(place[-1], str)]
JUDGED_BY_ITS_OWN_CHECK = ("summary", "diagnostics")


@pytest.mark.parametrize("place", FIELDS, ids=lambda place: ".".join(str(step) for step in place))
def test_every_field_is_needed_and_typed(place: tuple[object, ...]) -> None:
    if place[:2] == JUDGED_BY_ITS_OWN_CHECK and len(place) == 3:
        counters = {k: v for k, v in DOCUMENT["summary"]["diagnostics"].items() if k != place[2]}
        with pytest.raises(EncodingError):
            diagnostics.diagnostics_from_json(counters)
        return
    *steps, last = place
    for change in ("drop", "retype"):
        document = json.loads(json.dumps(DOCUMENT))
        parent = document
        for step in steps:
            parent = parent[step]
        if change == "drop":
            del parent[last]
        else:
            parent[last] = 1.5
        with pytest.raises(StatementError):
            predicate.read_action_predicate(document)


@given(st.integers(0, 0xFFFF))
def test_wait_statuses(status: int) -> None:
    signal, code = status & 0x7F, status >> 8
    if signal == 0x7F:
        with pytest.raises(EncodingError):
            predicate.exit_of_wait_status(status)
    elif signal:
        assert predicate.exit_of_wait_status(status) == (128 + signal, signal)
    else:
        assert predicate.exit_of_wait_status(status) == (code, None)


@pytest.mark.parametrize(
    "data",
    [b"", b"{}", b"[" * 100_000, b'{"_type":"https://in-toto.io/Statement/v0.1"}', b"\xff", b"1"],
)
def test_statements_that_are_none_are_refused(data: bytes) -> None:
    with pytest.raises(StatementError):
        statement.parse(data, predicate_type=statement.ACTION_TYPE)


def test_a_huge_statement_is_neither_written_nor_read() -> None:
    huge = {"x": "a" * statement.STATEMENT_BYTES_MAX}
    with pytest.raises(EncodingError, match="at most"):
        statement.encode([], statement.ACTION_TYPE, huge)
    with pytest.raises(StatementError, match="at most"):
        statement.parse(
            b" " * (statement.STATEMENT_BYTES_MAX + 1), predicate_type=statement.ACTION_TYPE
        )


FIELDS_OF_A_COMMAND: Any = {
    "argv": (b"cc", b"a.c"),
    "environ": ((b"A", b"1"), (b"B", b"2")),
    "working_directory": None,
    "output_files": (b"a.o",),
    "output_directories": (),
    "platform": "linux_x86_64",
}


def test_action_keys_are_stable_and_tell_every_field_apart() -> None:
    def key(**changes: object) -> bytes:
        return action.action_key(action.command_fields(**{**FIELDS_OF_A_COMMAND, **changes}))

    first = key()
    assert first.hex() == "d3d174c16a93f32888b5f9f162122821412897076d53ece99dd5fd39f2379019"
    assert key(environ=((b"B", b"2"), (b"A", b"1"))) == first
    others = [
        key(argv=(b"cc", b"b.c")),
        key(argv=(b"cc a.c",)),
        key(environ=((b"A", b"2"), (b"B", b"2"))),
        key(environ=((b"A", b"1\nB=2"),)),
        key(working_directory=b"."),
        key(output_files=()),
        key(output_files=(), output_directories=(b"a.o",)),
        key(platform="linux_arm64"),
    ]
    assert len({first, *others}) == len(others) + 1
    assert action.action_key({**FIELDS_OF_JSON, "future": 1}) != action.action_key(FIELDS_OF_JSON)


FIELDS_OF_JSON: Any = action.command_fields(**FIELDS_OF_A_COMMAND)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", Policy()),
        ('required_posture = "held"', Policy(Posture.HELD)),
        ("require_zero_losses = false", Policy(require_zero_losses=False)),
    ],
)
def test_policies(text: str, expected: Policy) -> None:
    assert parse_policy(text, where="policy") == expected


@pytest.mark.parametrize(
    "text",
    ["=", "x = 1", "required_posture = 1", "require_zero_losses = 1", 'required_posture = "x"'],
)
def test_policies_that_are_wrong_are_one_clear_error(text: str) -> None:
    with pytest.raises(ConfigError):
        parse_policy(text, where="policy")


def mutated(*found: Mutation, left_out: int = 0, counted: int) -> Observation:
    observed = factory.observation(counts=factory.counters(mutatedAfterOpen=counted))
    return dataclasses.replace(observed, mutations=Mutations(found, left_out))


CHANGED = Mutation(b"src/a.c", b"\1" * 32, b"\2" * 32, MutationTime.ACCESS)
UNREAD = Mutation(b"/etc/\xff", b"\1" * 32, None, MutationTime.END)


def test_mutations_have_both_digests() -> None:
    document = build(mutated(CHANGED, UNREAD, left_out=1, counted=3), factory.description())
    assert document["mutationsLeftOut"] == 1
    assert document["mutations"] == [
        {
            "path": "src/a.c",
            "digestAtOpen": "01" * 32,
            "digestLater": "02" * 32,
            "when": "access",
        },
        {"path": "/etc/%FF", "digestAtOpen": "01" * 32, "digestLater": None, "when": "end"},
    ]


@pytest.mark.parametrize("counted", [0, 1, 3])
def test_mutations_and_their_counter_must_agree(counted: int) -> None:
    with pytest.raises(EncodingError, match=f"mutatedAfterOpen is {counted}"):
        build(mutated(CHANGED, UNREAD, counted=counted), factory.description())


def test_a_mutation_changes_something() -> None:
    same = dataclasses.replace(CHANGED, digest_later=CHANGED.digest_at_open)
    with pytest.raises(EncodingError, match="same digest"):
        build(mutated(same, counted=1), factory.description())


def test_two_witnesses_tell_their_mutations_together_and_bounded() -> None:
    many = Mutations((CHANGED,) * (MUTATIONS_MAX - 1), 2)
    both = many + Mutations((UNREAD, UNREAD), 1)
    assert both.found == (*many.found, UNREAD)
    assert both.left_out == 4


def test_ledger_must_add_up() -> None:
    ledger = Ledger(files=5, hashed=2, excluded={"created": 1}, unhashed={"noDigest": 2})
    observed = dataclasses.replace(factory.observation(), ledger=ledger)
    document = build(observed, factory.description())
    assert document["ledger"] == {
        "files": 5,
        "hashed": 2,
        "excluded": {"created": 1},
        "unhashed": {"noDigest": 2},
    }
    with pytest.raises(EncodingError, match="its parts are 5"):
        wrong = dataclasses.replace(ledger, files=6)
        build(dataclasses.replace(observed, ledger=wrong), factory.description())
    assert build(factory.observation(), factory.description())["ledger"] is None


def traced(*environs: Environ) -> Any:
    """A document whose processes have these environments."""
    seen = factory.observation()
    (process,) = seen.processes
    made = [
        dataclasses.replace(process, processid=number, trace=ProcessTrace(environ=environ))
        for number, environ in enumerate(environs, 1)
    ]
    opens = opens_table.encode([[] for _ in made])
    return build(
        dataclasses.replace(seen, processes=tuple(made), opens=opens), factory.description()
    )


def test_equal_environments_are_there_once() -> None:
    path, home = (b"PATH", digest.sha256(b"/bin")), (b"HOME", digest.sha256(b"/root"))
    document = traced((path,), (path, home), (), (path,), ())
    assert [process["environ"] for process in document["processes"]] == [0, 1, 2, 0, 2]
    names = [[item["name"] for item in environ] for environ in document["environments"]]
    assert names == [["PATH"], ["PATH", "HOME"], []]
    assert document["environments"][0][0]["valueDigest"] == path[1].hex()
    predicate.read_action_predicate(document)


@pytest.mark.parametrize("number", [1, 2**53])
def test_an_environment_that_is_not_there_is_refused(number: int) -> None:
    document = traced(((b"PATH", bytes(32)),))
    document["processes"][0]["environ"] = number
    with pytest.raises(StatementError, match="environ"):
        predicate.read_action_predicate(document)


def test_an_environment_of_no_process_is_refused() -> None:
    document = traced(((b"PATH", bytes(32)),))
    document["environments"].append([])
    with pytest.raises(StatementError, match="environments"):
        predicate.read_action_predicate(document)
