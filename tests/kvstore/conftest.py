from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from kvstore.store import Store
from tests.kvstore.replicas import LocalServer


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store(str(tmp_path / "state"))
    yield store
    store.close()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[LocalServer]:
    server = LocalServer(str(tmp_path / "state"))
    yield server
    server.stop()
