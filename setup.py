"""Builds the C cores beside the package; everything else is in pyproject.toml."""

import importlib.util
import pathlib

from setuptools import setup

BUILDERS = pathlib.Path("pants-plugins/rootseal")


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
    cffi_modules=[
        f"{BUILDERS}/_native_build.py:ffibuilder",
        *([f"{BUILDERS}/_native_trace_build.py:ffibuilder"] if has_libbpf() else []),
    ]
)
