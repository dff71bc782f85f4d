"""The action key: which work an action is, whatever machine and sandbox it runs in.

Standard library only, because the Pants plugin computes the same keys.
"""

from __future__ import annotations

import hashlib
from typing import Mapping, Optional, Sequence, Tuple

from rootseal import canonical

_CONTEXT = b"rootseal action key v1\x00"


def action_key(fields: Mapping[str, object]) -> bytes:
    """SHA-256 over the canonical JSON of all fields that make the action what it is.

    Args:
        fields: JSON values only. Text that may hold arbitrary bytes goes through
            `canonical.path_text` first. Unknown future fields belong in here too: an extra field
            can only tell two actions apart, a forgotten one would make them the same.

    Returns:
        The key, 32 bytes.

    Raises:
        EncodingError: A field has no canonical JSON form.
    """
    return hashlib.sha256(_CONTEXT + canonical.encode(dict(fields))).digest()


def command_fields(
    *,
    argv: Sequence[bytes],
    environ: Sequence[Tuple[bytes, bytes]],
    working_directory: Optional[bytes],
    output_files: Sequence[bytes],
    output_directories: Sequence[bytes],
    platform: str,
) -> dict[str, object]:
    """Fields of a plain command (`rootseal run`), for `action_key`.

    Args:
        argv: The command and its arguments.
        environ: Names and values; their order does not matter.
        working_directory: Relative to the action's root, or None for the root itself.
        output_files: Declared output files, relative to the root.
        output_directories: Declared output directories, relative to the root.
        platform: For example `linux_x86_64`.
    """
    text = canonical.path_text
    return {
        "kind": "command",
        "argv": [text(argument) for argument in argv],
        "env": sorted([text(name), text(value)] for name, value in environ),
        "workingDirectory": None if working_directory is None else text(working_directory),
        "outputFiles": sorted(text(path) for path in output_files),
        "outputDirectories": sorted(text(path) for path in output_directories),
        "platform": platform,
    }
