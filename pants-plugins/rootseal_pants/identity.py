"""The identity of an action: its key, and the argv that has the launcher run it."""

from __future__ import annotations

import dataclasses
import enum
import hashlib
import json
import os
from typing import Any, Mapping, Sequence

from rootseal.action import action_key
from rootseal.canonical import path_text
from rootseal.errors import EncodingError

LAUNCHER_DIRECTORY = ".rootseal"
RECORD_FILE = ".rootseal-record"
_CHROOT = b"{chroot}"  # the engine puts the path of the sandbox there

# Fields of a Process that do not say what is run: the first two are presentation, and the third is
# how long to wait for a remote cache.
_NOT_IDENTITY = ("description", "level", "remote_cache_speculation_delay_millis")


def process_key(process: Any, *, platform: str) -> str:
    """The action key (64 hex digits) of a Pants `Process`.

    Every field of the dataclass goes in, also those that a later Pants adds.

    Args:
        process: The process as its requester made it, not wrapped.
        platform: The platform of this host as Pants names it.
    """
    fields = {
        field.name: _plain(getattr(process, field.name))
        for field in dataclasses.fields(process)
        if field.name not in _NOT_IDENTITY
    }
    return action_key({**fields, "platform": platform}).hex()


def _plain(value: Any) -> Any:
    """A value of a Process field as JSON without floats."""
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return {"float": repr(value)}
    if isinstance(value, enum.Enum):
        return value.name
    if hasattr(value, "fingerprint") and hasattr(value, "serialized_bytes_length"):
        return {"sha256": value.fingerprint, "size": value.serialized_bytes_length}
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {
            field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)
        }
    if isinstance(value, (tuple, list)):
        return [_plain(item) for item in value]
    if isinstance(value, (set, frozenset)):
        return sorted((_plain(item) for item in value), key=repr)
    raise EncodingError(
        f"a process has a field of the type {type(value).__name__}, which this version of Rootseal "
        "cannot put into an action key; please report it with your version of Pants"
    )


def action_text(process: Any) -> str:
    """What the key of a Pants `Process` stands for and a record can show, as JSON.

    Values of the environment are digests, but for those that name the sandbox, whose path is known
    to the engine only (docs/protocol.md, CHECK).
    """
    values = {name: value.encode("utf-8", "surrogateescape") for name, value in process.env.items()}
    document = {
        "cmd": [_text(argument) for argument in process.argv],
        "environ": {
            _text(name): hashlib.sha256(value).hexdigest()
            for name, value in values.items()
            if _CHROOT not in value
        },
        "templates": {
            _text(name): path_text(value) for name, value in values.items() if _CHROOT in value
        },
        "anyValue": [_text(name) for name in [process.execution_slot_variable] if name],
        "workingDirectory": _text(process.working_directory or "."),
        "outputFiles": [_text(path) for path in process.output_files],
        "outputDirectories": [_text(path) for path in process.output_directories],
    }
    return json.dumps(document, sort_keys=True)


def _text(value: str) -> str:
    return path_text(value.encode("utf-8", "surrogateescape"))


def wrapped_argv(
    argv: Sequence[str],
    *,
    key: str,
    working_directory: str | None,
    output_files: Sequence[str],
    output_directories: Sequence[str],
    settings: Sequence[str],
    salt: str,
) -> tuple[str, ...]:
    """The argv that has the launcher run `argv` (docs/protocol.md, Launcher).

    Args:
        argv: The original one.
        key: Action key.
        working_directory: Relative to the sandbox, or None.
        output_files: Declared outputs, relative to the working directory.
        output_directories: Same.
        settings: Arguments of the launcher that are the same for all actions.
        salt: Empty, or text that makes caches see another process.
    """
    here = working_directory or "."
    launcher = os.path.relpath(f"{LAUNCHER_DIRECTORY}/exec", here)
    return (
        launcher if launcher.startswith("..") else f"./{launcher}",
        f"--action={key}",
        f"--root={os.path.relpath('.', here)}",
        f"--record={RECORD_FILE}",
        *(f"--output-file={path}" for path in output_files),
        *(f"--output-dir={path}" for path in output_directories),
        *settings,
        *((f"--option=attempt={salt}",) if salt else ()),
        "--",
        *argv,
    )


def output_prefix(working_directory: str | None) -> str:
    """What makes a path relative to the working directory relative to the sandbox."""
    prefix = os.path.normpath(working_directory or ".")
    return "" if prefix == "." else f"{prefix}/"
