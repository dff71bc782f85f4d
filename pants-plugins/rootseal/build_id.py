"""Which build of this package runs: one digest over its files.

A daemon lives longer than an installation: after an update it still runs the code that it was
started with. Standard library only, because the Pants plugin asks too.
"""

from __future__ import annotations

import functools
import hashlib
import os
from pathlib import Path
from typing import Iterator

_PACKAGE = Path(__file__).resolve().parent
_LEFT_OUT = ("__pycache__",)


@functools.lru_cache(maxsize=1)
def build_digest() -> str:
    """SHA-256 in hex over name and content of every file of the package, as they were at first.

    Hidden files (an editor's, a build's that is not complete) do not count.
    """
    total = hashlib.sha256()
    for path in sorted(_files(_PACKAGE)):
        name = os.fsencode(path.relative_to(_PACKAGE))
        total.update(b"%d:%b" % (len(name), name))
        total.update(hashlib.sha256(path.read_bytes()).digest())
    return total.hexdigest()


def _files(directory: Path) -> Iterator[Path]:
    for place, directories, names in os.walk(directory):
        directories[:] = [name for name in directories if name not in _LEFT_OUT]
        yield from (Path(place, name) for name in names if not name.startswith("."))
