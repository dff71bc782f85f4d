"""Builds what is compiled: the C cores beside the package, all programs in bin/.

Everything else is in pyproject.toml.
"""

import importlib.util
import pathlib
import shutil
import subprocess
from types import ModuleType

from setuptools import setup
from setuptools.command.build_py import build_py

BUILDERS = pathlib.Path("pants-plugins/rootseal/_native_build.py")


class BuildPrograms(build_py):
    """`make` in native/ and bpf/, then what build_py does: the programs are package data."""

    def run(self) -> None:
        subprocess.run(["make", "-s", "-C", "native", "all"], check=True)
        if has_bpf_compiler():
            subprocess.run(["make", "-s", "-C", "bpf", "all"], check=True)
        super().run()


def has_bpf_compiler() -> bool:
    """Trace programs are optional, as the trace core is."""
    return bool(shutil.which("clang")) and pathlib.Path("/usr/include/bpf/bpf_helpers.h").is_file()


def native_build() -> ModuleType:
    """The builders of the extensions; the package itself cannot be imported yet."""
    spec = importlib.util.spec_from_file_location("_native_build", BUILDERS)
    if spec is None or spec.loader is None:
        raise ImportError(str(BUILDERS))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# The trace core is optional; `rootseal doctor` says how to get it.
extensions = ["core", *(["trace"] if native_build().has_libbpf() else [])]

setup(
    cmdclass={"build_py": BuildPrograms},
    cffi_modules=[f"{BUILDERS}:{extension}" for extension in extensions],
)
