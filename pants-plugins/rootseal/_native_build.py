"""Builds the C cores through cffi in API mode: `rootseal._core` and `rootseal._trace`.

Run by setup.py. `ROOTSEAL_SANITIZE=1` in the environment builds with ASan and UBSan (make asan).
The trace core (native/trace) is an extension of its own, built where libbpf is installed, so that a
host without libbpf loses the eBPF backend and nothing else.
"""

from __future__ import annotations

import os
import pathlib
import shutil
import subprocess
import tempfile
from typing import List, Mapping, Sequence

from cffi import FFI

_ROOT = pathlib.Path(__file__).resolve().parents[2]

_COMPILE_FLAGS = [
    "-std=gnu11",
    "-O2",
    "-g",
    "-Wall",
    "-Wextra",
    "-Werror",
    "-Wno-unused-parameter",
    "-Wno-missing-field-initializers",
    "-fstack-protector-strong",
    "-D_FORTIFY_SOURCE=2",
    "-fno-strict-aliasing",
    "-fPIC",
]
_LINK_FLAGS = ["-Wl,-z,relro", "-Wl,-z,now"]
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


def _declarations(api: pathlib.Path) -> str:
    """api.h without its preprocessor lines, which cffi does not read."""
    lines = api.read_text(encoding="utf-8").splitlines()
    return "\n".join(line for line in lines if not line.startswith("#"))


def _relative(path: pathlib.Path) -> str:
    """A path relative to setup.py, as setuptools wants its sources."""
    return os.path.relpath(path, _ROOT)


def _sources_in(folder: str, *shared: str) -> List[str]:
    return [*(_relative(path) for path in sorted((_ROOT / folder).glob("*.c"))), *shared]


SOURCES: Mapping[str, List[str]] = {
    "native/capture": _sources_in("native/capture"),
    "native/trace": _sources_in(
        "native/trace",
        *(f"native/capture/{name}.c" for name in ("dcache", "filestat", "mem", "sha", "spill")),
    ),
}
"""What each core is compiled from, by its folder; relative to the repository."""


def _builder(
    module: str,
    folder: str,
    libraries: Sequence[str],
    headers: Sequence[str] = (),
) -> FFI:
    """The builder of one extension.

    Args:
        module: Its full name.
        folder: Of its sources and its api.h, relative to the repository.
        libraries: That it is linked with.
        headers: Outside of the folder that its sources include, relative to the repository.
    """
    sources = _ROOT / folder
    sanitizers = _SANITIZERS if os.environ.get("ROOTSEAL_SANITIZE") == "1" else []
    builder = FFI()
    builder.cdef(_declarations(sources / "api.h"))
    builder.set_source(
        module,
        '#include "api.h"',
        py_limited_api=True,
        sources=SOURCES[folder],
        depends=[*(_relative(path) for path in sorted(sources.glob("*.h"))), *headers],
        include_dirs=[folder],
        define_macros=[("_GNU_SOURCE", None)],
        libraries=[*libraries, "pthread"],
        extra_compile_args=[*_COMPILE_FLAGS, *sanitizers],
        extra_link_args=[*_LINK_FLAGS, *sanitizers],
    )
    return builder


core = _builder("rootseal._core", "native/capture", ["crypto"])
trace = _builder(
    "rootseal._trace",
    "native/trace",
    ["bpf", "crypto"],
    ["bpf/event.h", "bpf/fields.h", "native/capture/filestat.h", "native/capture/sha.h"],
)
