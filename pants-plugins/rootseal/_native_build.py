"""Builds the capture core (native/capture/*.c) as `rootseal._core`, through cffi in API mode.

Run by setup.py. `ROOTSEAL_SANITIZE=1` in the environment builds with ASan and UBSan (make asan).
"""

from __future__ import annotations

import os
import pathlib

from cffi import FFI

_ROOT = pathlib.Path(__file__).resolve().parents[2]
_SOURCES = _ROOT / "native" / "capture"
_API = _SOURCES / "api.h"

_WARNINGS = [
    "-Wall",
    "-Wextra",
    "-Werror",
    "-Wno-unused-parameter",
    "-Wno-missing-field-initializers",
]
_HARDENING = ["-fstack-protector-strong", "-D_FORTIFY_SOURCE=2", "-fno-strict-aliasing", "-fPIC"]
_LINK_HARDENING = ["-Wl,-z,relro", "-Wl,-z,now"]
_SANITIZERS = [
    "-fsanitize=address,undefined",
    "-fno-omit-frame-pointer",
    "-fno-sanitize-recover=all",
]


def _declarations() -> str:
    """api.h without its preprocessor lines, which cffi does not read."""
    lines = _API.read_text(encoding="utf-8").splitlines()
    return "\n".join(line for line in lines if not line.startswith("#"))


def _relative(path: pathlib.Path) -> str:
    """A path relative to setup.py, as setuptools wants its sources."""
    return os.path.relpath(path, _ROOT)


_sanitize = os.environ.get("ROOTSEAL_SANITIZE") == "1"

ffibuilder = FFI()
ffibuilder.cdef(_declarations())
ffibuilder.set_source(
    "rootseal._core",
    '#include "api.h"',
    py_limited_api=True,
    sources=[_relative(path) for path in sorted(_SOURCES.glob("*.c"))],
    depends=[_relative(path) for path in sorted(_SOURCES.glob("*.h"))],
    include_dirs=[_relative(_SOURCES)],
    define_macros=[("_GNU_SOURCE", None)],
    libraries=["crypto", "pthread"],
    extra_compile_args=[
        "-std=gnu11",
        "-O2",
        "-g",
        *_WARNINGS,
        *_HARDENING,
        *(_SANITIZERS if _sanitize else []),
    ],
    extra_link_args=[*_LINK_HARDENING, *(_SANITIZERS if _sanitize else [])],
)

if __name__ == "__main__":
    ffibuilder.compile(verbose=True)
