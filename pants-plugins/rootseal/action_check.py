"""Is the action of a record the one that was asked for? Its command, environment, outputs, place.

An action key is only a name to the daemon: whoever may run an action on a trusted machine can have
any command recorded under any key. So what the key stands for is compared with what ran.

Pure. In the command and the environment `{chroot}` stands for the sandbox, as in Pants, and in the
command `{pants_concurrency}` for a number that the engine chooses.
"""

from __future__ import annotations

import dataclasses
import os
import re
from typing import Dict, FrozenSet, List, Mapping, Sequence, Tuple

from rootseal import canonical, digest, schema
from rootseal.errors import EncodingError, PolicyError
from rootseal.predicate import ActionPredicate

CHROOT = b"{chroot}"
CONCURRENCY = b"{pants_concurrency}"
_NUMBER = rb"(?:[0-9]{1,6}|\{pants_concurrency\})"
ADDED_BY_REMOTE = b"PANTS_CACHE_KEY_"  # what Pants adds for remote workers; nobody else may
EMPTY_PATH = (b"PATH", digest.sha256(b""))  # what it has locally where a process has no PATH
ITEMS_MAX = 1 << 20
NAMES_SHOWN = 10
_FIELDS = frozenset(
    (
        *("cmd", "environ", "templates", "anyValue"),
        *("workingDirectory", "outputFiles", "outputDirectories"),
    )
)


@dataclasses.dataclass(frozen=True)
class ExpectedAction:
    """What an action key stands for.

    Attributes:
        cmd: The command as it was asked for, before any launcher.
        environ: SHA-256 of the value of each variable whose value does not name the sandbox.
        templates: The value of each other variable.
        any_value: Variables that the engine sets, to what nobody else knows.
        working_directory: Relative to the root, normalized; `.` is the root.
        output_files: Declared outputs, relative to the root, normalized.
        output_directories: Same.
        sandboxes: The directory that sandboxes are made in, as the build tool writes it, if known.
    """

    cmd: Tuple[bytes, ...]
    environ: Mapping[bytes, bytes]
    templates: Mapping[bytes, bytes]
    any_value: FrozenSet[bytes]
    working_directory: bytes
    output_files: FrozenSet[bytes]
    output_directories: FrozenSet[bytes]
    sandboxes: bytes = b""


def read_expected(value: object) -> ExpectedAction:
    """Read the `action` of a CHECK frame (docs/protocol.md).

    Raises:
        EncodingError: It is not one, or not there.
    """
    if not isinstance(value, dict) or set(value) - {"sandboxes"} != _FIELDS:
        raise EncodingError(f"action is not an object of {', '.join(sorted(_FIELDS))}")
    environ, templates = _texts(value["environ"]), _texts(value["templates"])
    directory = _one(value["workingDirectory"])
    if set(environ) & set(templates):
        raise EncodingError("a variable of the action is there twice")
    return ExpectedAction(
        cmd=tuple(_list(value["cmd"])),
        environ={name: digest.digest_from_hex(text) for name, text in environ.items()},
        templates={name: canonical.path_bytes(text) for name, text in templates.items()},
        any_value=frozenset(_list(value["anyValue"])),
        working_directory=os.path.normpath(directory),
        output_files=_paths(directory, value["outputFiles"]),
        output_directories=_paths(directory, value["outputDirectories"]),
        sandboxes=_one(value.get("sandboxes", "")),
    )


def check_action(predicate: ActionPredicate, expected: ExpectedAction) -> None:
    """Compare the action of a genuine record with the one that was asked for.

    Raises:
        PolicyError: Names what differs; never a value of the environment.
    """
    document = predicate.document
    sandbox = schema.as_object(document["sandbox"])
    root = canonical.path_bytes(str(sandbox["root"]))
    if os.path.normpath(canonical.path_bytes(str(sandbox["workingDirectory"]))) != (
        expected.working_directory
    ):
        raise PolicyError(
            f"the record is of a command in {sandbox['workingDirectory']}, asked for was "
            f"{canonical.path_text(expected.working_directory)}"
        )
    _check_outputs(schema.as_object(document["declaredOutputs"]), expected)
    recorded = tuple(canonical.path_bytes(str(text)) for text in _items(document["cmd"]))
    entries = [schema.as_object(item) for item in _items(document["environ"])]
    environ = {
        canonical.path_bytes(str(item["name"])): bytes.fromhex(str(item["valueDigest"]))
        for item in entries
    }
    if len(environ) != len(entries):  # which of two values a program takes is up to the program
        raise PolicyError("the record is of a command with a variable twice in its environment")
    chroots = _chroots(root, expected)
    problems = [_difference(recorded, environ, expected, chroot) for chroot in chroots]
    if all(problems):
        raise PolicyError(problems[0])


def _chroots(root: bytes, expected: ExpectedAction) -> List[bytes]:
    """What `{chroot}` may have become: the root, the root by a symlink, or (remotely) nothing."""
    found = [root]
    if expected.sandboxes:
        found.append(expected.sandboxes + b"/" + root.rpartition(b"/")[2])
    return [*found, CHROOT]


def _difference(
    cmd: Tuple[bytes, ...],
    environ: Mapping[bytes, bytes],
    expected: ExpectedAction,
    chroot: bytes,
) -> str:
    """How an action differs from the expected one in this sandbox; empty if it does not."""
    wanted = tuple(argument.replace(CHROOT, chroot) for argument in expected.cmd)
    if len(cmd) != len(wanted) or not all(map(_is_argument, cmd, wanted)):
        return f"the record is of another command: {_shown(cmd)}; asked for was {_shown(wanted)}"
    values = dict(expected.environ)
    for name, template in expected.templates.items():
        values[name] = digest.sha256(template.replace(CHROOT, chroot))
    names = [
        name
        for name in sorted(values.keys() | environ.keys())
        if values.get(name) != environ.get(name)
        and not (name in environ and name in expected.any_value)
        and not (name not in values and _is_engines(name, environ[name]))
    ]
    if not names:
        return ""
    shown = ", ".join(canonical.path_text(name) for name in names[:NAMES_SHOWN])
    return f"the record is of the command in another environment: it differs in {shown}"


def _is_argument(found: bytes, wanted: bytes) -> bool:
    """Whether an argument is the wanted one, with any number where the engine puts one."""
    if CONCURRENCY not in wanted:
        return found == wanted
    return re.fullmatch(_NUMBER.join(map(re.escape, wanted.split(CONCURRENCY))), found) is not None


def _is_engines(name: bytes, value_digest: bytes) -> bool:
    """Whether Pants itself adds this variable to those of a process."""
    return name.startswith(ADDED_BY_REMOTE) or (name, value_digest) == EMPTY_PATH


def _shown(cmd: Sequence[bytes]) -> str:
    text = " ".join(canonical.path_text(argument) for argument in cmd)
    return text if len(text) <= 200 else text[:200] + "…"


def _check_outputs(declared: Mapping[str, object], expected: ExpectedAction) -> None:
    for name, wanted in (
        ("files", expected.output_files),
        ("directories", expected.output_directories),
    ):
        found = {
            os.path.normpath(canonical.path_bytes(str(text))) for text in _items(declared[name])
        }
        if found != wanted:
            other = sorted(found ^ wanted)[0]
            raise PolicyError(
                f"the record is of an action with other declared outputs ({name}): "
                f"{canonical.path_text(other)}"
            )


def _items(value: object) -> List[object]:
    return value if isinstance(value, list) else []


def _paths(directory: bytes, value: object) -> FrozenSet[bytes]:
    return frozenset(os.path.normpath(directory + b"/" + path) for path in _list(value))


def _list(value: object) -> List[bytes]:
    if not isinstance(value, list) or len(value) > ITEMS_MAX:
        raise EncodingError(f"a part of the action is not a list of at most {ITEMS_MAX}")
    return [_one(item) for item in value]


def _one(value: object) -> bytes:
    if not isinstance(value, str):
        raise EncodingError("a part of the action is not text")
    return canonical.path_bytes(value)


def _texts(value: object) -> Dict[bytes, str]:
    if not isinstance(value, dict) or len(value) > ITEMS_MAX:
        raise EncodingError("the environment of the action is not an object")
    if not all(isinstance(text, str) for text in value.values()):
        raise EncodingError("a variable of the action is not text")
    return {canonical.path_bytes(name): text for name, text in value.items()}
