"""Builds what is compiled: the capture core beside the package, the launcher and helper in bin/.

Everything else is in pyproject.toml.
"""

import subprocess

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildPrograms(build_py):
    """`make -C native`, then what build_py does: the programs are package data."""

    def run(self) -> None:
        subprocess.run(["make", "-s", "-C", "native", "all"], check=True)
        super().run()


setup(
    cmdclass={"build_py": BuildPrograms},
    cffi_modules=["pants-plugins/rootseal/_native_build.py:ffibuilder"],
)
