"""The stores of this library keep the contract."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from invites_core.store import Store
from invites_core.stores import open_store
from tests.stores.suites import InviteStoreSuite, KeyStoreSuite, StoreSuite


class TestMemoryKeys(KeyStoreSuite):
    """Keys in memory."""

    @pytest.fixture
    def store(self) -> Store:
        """Give an empty store in memory."""
        return open_store("memory:")


class TestMemoryInvites(InviteStoreSuite):
    """Invites in memory."""

    @pytest.fixture
    def store(self) -> Store:
        """Give an empty store in memory."""
        return open_store("memory:")


class TestMemory(StoreSuite):
    """Both in memory."""

    @pytest.fixture
    def store(self) -> Store:
        """Give an empty store in memory."""
        return open_store("memory:")


def open_sqlite(folder: Path) -> Iterator[Store]:
    """Give an empty database in a folder, closed in the end."""
    store = open_store(f"sqlite:///{folder}/invites.db")
    yield store
    store.close()


class TestSqliteKeys(KeyStoreSuite):
    """Keys in SQLite."""

    @pytest.fixture
    def store(self, tmp_path: Path) -> Iterator[Store]:
        """Give an empty database."""
        yield from open_sqlite(tmp_path)


class TestSqliteInvites(InviteStoreSuite):
    """Invites in SQLite."""

    @pytest.fixture
    def store(self, tmp_path: Path) -> Iterator[Store]:
        """Give an empty database."""
        yield from open_sqlite(tmp_path)


class TestSqlite(StoreSuite):
    """Both in SQLite."""

    @pytest.fixture
    def store(self, tmp_path: Path) -> Iterator[Store]:
        """Give an empty database."""
        yield from open_sqlite(tmp_path)
