"""in-toto Statement v1: subjects, predicate type and predicate, as canonical bytes."""

from __future__ import annotations

import dataclasses
from typing import Dict, Mapping, Sequence, Tuple

from rootseal import canonical, schema
from rootseal.errors import EncodingError, StatementError

STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
ACTION_TYPE = "https://rootseal.dev/action/v1"
BUILD_TYPE = "https://rootseal.dev/build/v1"
TARGET_TYPE = "https://rootseal.dev/target/v1"
STATEMENT_BYTES_MAX = 48 * 1024 * 1024
SUBJECT_COUNT_MAX = 1 << 20

_SHAPE = schema.object_of(
    {
        "_type": schema.exactly(STATEMENT_TYPE),
        "subject": schema.list_of(
            schema.object_of(
                {
                    "name": schema.text(8192),
                    "digest": schema.object_of({"sha256": schema.digest_text}),
                }
            ),
            SUBJECT_COUNT_MAX,
        ),
        "predicateType": schema.text(256),
        "predicate": schema.anything,
    }
)


@dataclasses.dataclass(frozen=True, order=True)
class Subject:
    """What a statement is about.

    Attributes:
        name: Artifact name (path text relative to the artifact directory), or `action:<key>`.
        sha256: Its digest, hex.
    """

    name: str
    sha256: str


@dataclasses.dataclass(frozen=True)
class Statement:
    """A parsed statement; its predicate is still only JSON."""

    subjects: Tuple[Subject, ...]
    predicate_type: str
    predicate: object


def encode(
    subjects: Sequence[Subject], predicate_type: str, predicate: Mapping[str, object]
) -> bytes:
    """Encode a statement.

    Raises:
        EncodingError: The predicate has no canonical form, or the statement is too large.
    """
    value: Dict[str, object] = {
        "_type": STATEMENT_TYPE,
        "subject": [{"name": item.name, "digest": {"sha256": item.sha256}} for item in subjects],
        "predicateType": predicate_type,
        "predicate": dict(predicate),
    }
    data = canonical.encode(value)
    if len(data) > STATEMENT_BYTES_MAX:
        raise EncodingError(
            f"the statement has {len(data)} bytes; at most {STATEMENT_BYTES_MAX} fit"
        )
    return data


def parse(data: bytes, *, predicate_type: str) -> Statement:
    """Read a statement of one predicate type.

    Raises:
        StatementError: Not canonical, not a Statement v1, or another (version of the) predicate.
    """
    try:
        value = canonical.parse_canonical(data, bytes_max=STATEMENT_BYTES_MAX)
    except EncodingError as error:
        raise StatementError(f"the statement: {error}") from None
    found = schema.check(value, _SHAPE, "statement")
    if found["predicateType"] != predicate_type:
        raise StatementError(
            f"predicate type is {found['predicateType']}, expected {predicate_type}; "
            "a newer Rootseal may be needed to read it"
        )
    subjects = tuple(_subject(item) for item in schema.as_list(found["subject"]))
    return Statement(subjects, predicate_type, found["predicate"])


def action_subject(action_key: bytes) -> Subject:
    """The subject of an action record."""
    return Subject(f"action:{action_key.hex()}", action_key.hex())


def _subject(value: object) -> Subject:
    item = schema.as_object(value)
    return Subject(str(item["name"]), str(schema.as_object(item["digest"])["sha256"]))
