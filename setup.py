"""Builds the capture core beside the package; everything else is in pyproject.toml."""

from setuptools import setup

setup(cffi_modules=["pants-plugins/rootseal/_native_build.py:ffibuilder"])
