"""Builds the trace core (native/trace/*.c) as `rootseal._trace`, through cffi in API mode.

Run by setup.py where libbpf is installed. It is an extension of its own, so that a host without
libbpf loses the eBPF backend and nothing else. `ROOTSEAL_SANITIZE=1` builds with ASan and UBSan.
"""

from __future__ import annotations

import os
import pathlib
import shutil
import subprocess
import tempfile

from cffi import FFI

_ROOT = pathlib.Path(__file__).resolve().parents[2]
_SOURCES = _ROOT / "native" / "trace"
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


def has_libbpf() -> bool:
    """Whether a program with libbpf >= 1.0 compiles and links here."""
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc")
    if not compiler:
        return False
    source = (
        "#include <bpf/libbpf.h>\n"
        "#if LIBBPF_MAJOR_VERSION < 1\n#error old\n#endif\n"
        "int main(void) { return libbpf_major_version() < 1; }\n"
    )
    with tempfile.TemporaryDirectory() as directory:
        path = pathlib.Path(directory) / "probe.c"
        path.write_text(source, encoding="ascii")
        done = subprocess.run(
            [*compiler.split(), str(path), "-o", str(path.with_suffix("")), "-lbpf"],
            capture_output=True,
            check=False,
        )
    return done.returncode == 0


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
    "rootseal._trace",
    '#include "api.h"',
    py_limited_api=True,
    sources=[_relative(path) for path in sorted(_SOURCES.glob("*.c"))],
    depends=[
        _relative(path)
        for path in (
            *sorted(_SOURCES.glob("*.h")),
            _ROOT / "bpf" / "event.h",
            _ROOT / "bpf" / "fields.h",
        )
    ],
    include_dirs=[_relative(_SOURCES)],
    define_macros=[("_GNU_SOURCE", None)],
    libraries=["bpf", "pthread"],
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
