"""Builds what is compiled: the C cores beside the package, the launcher and helper in bin/.

Everything else is in pyproject.toml.
"""

import importlib.util
import pathlib
import subprocess
from types import ModuleType

from setuptools import setup
from setuptools.command.build_py import build_py

BUILDERS = pathlib.Path("pants-plugins/rootseal/_native_build.py")


class BuildPrograms(build_py):
    """`make -C native`, then what build_py does: the programs are package data."""

    def run(self) -> None:
        subprocess.run(["make", "-s", "-C", "native", "all"], check=True)
        super().run()


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
