"""Fixtures for real Pants runs."""

from __future__ import annotations

from pathlib import Path
from typing import Iterator

import pytest
from pants_repo import PantsRepo, small_repo
from reapi_server import RemoteCache


@pytest.fixture
def repo(tmp_path: Path) -> Iterator[PantsRepo]:
    """A small monorepo; its daemons end with the test."""
    made = small_repo(tmp_path)
    made.start_daemon("state")
    yield made
    made.stop()


@pytest.fixture(scope="session")
def generated_protos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where compiled protos go."""
    return tmp_path_factory.mktemp("protos")


@pytest.fixture
def remote_cache(generated_protos: Path) -> Iterator[RemoteCache]:
    """A remote cache on the loopback interface."""
    server = RemoteCache(generated_protos)
    yield server
    server.stop()
