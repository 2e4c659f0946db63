"""Fixtures for the tests of several nodes on one PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from invites_core import Store, open_store
from tests.proofs.nodes import serving_nodes
from tests.servers import Gunicorn


@pytest.fixture
def store(postgresql_url: str) -> Iterator[Store]:
    """A store with its tables, for what a test does beside the nodes."""
    opened = open_store(postgresql_url)
    yield opened
    opened.close()


@pytest.fixture
def nodes(postgresql_url: str, store: Store, tmp_path: Path) -> Iterator[list[Gunicorn]]:
    """Two nodes of two workers each."""
    with serving_nodes(tmp_path, postgresql_url, nodes=2, workers=2) as servers:
        yield servers
