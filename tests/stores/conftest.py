"""Fixtures for the tests of stores."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from invites_core.stores.sqlite import SqliteStore
from invites_core.stores.sqlite_database import SqliteDatabase
from tests.helpers import PATIENCE


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the database is, or will be."""
    return tmp_path / "invites.db"


@pytest.fixture
def store(path: Path) -> Iterator[SqliteStore]:
    """An empty SQLite store."""
    opened = SqliteStore(path, timeout=PATIENCE)
    yield opened
    opened.close()


@pytest.fixture
def database(store: SqliteStore) -> SqliteDatabase:
    """The database under the store."""
    return store._database
