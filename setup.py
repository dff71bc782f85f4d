"""Builds what is compiled: the C cores beside the package, the launcher and helper in bin/.

Everything else is in pyproject.toml.
"""

import importlib.util
import pathlib
import subprocess

from setuptools import setup
from setuptools.command.build_py import build_py

BUILDERS = pathlib.Path("pants-plugins/rootseal")


class BuildPrograms(build_py):
    """`make -C native`, then what build_py does: the programs are package data."""

    def run(self) -> None:
        subprocess.run(["make", "-s", "-C", "native", "all"], check=True)
        super().run()


def has_libbpf() -> bool:
    """Whether the trace core can be built: it is optional, `rootseal doctor` says how to get it."""
    path = BUILDERS / "_native_trace_build.py"
    spec = importlib.util.spec_from_file_location("_native_trace_build", path)
    if spec is None or spec.loader is None:
        raise ImportError(str(path))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return bool(module.has_libbpf())


setup(
    cmdclass={"build_py": BuildPrograms},
    cffi_modules=[
        f"{BUILDERS}/_native_build.py:ffibuilder",
        *([f"{BUILDERS}/_native_trace_build.py:ffibuilder"] if has_libbpf() else []),
    ],
)
