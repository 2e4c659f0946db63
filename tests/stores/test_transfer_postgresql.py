"""Copies into PostgreSQL and out of it, on a server of the tests' own."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

pytest.importorskip("psycopg", reason="install psycopg (pip install 'invites-api[postgresql]')")

from invites_core.stores.postgresql import PostgresqlStore
from invites_core.stores.sqlite import SqliteStore
from invites_core.stores.transfer import copy_store
from tests.postgresql import PostgresqlServer, find_programs, new_database
from tests.stores.transfers import CopiedStore, TransferTests, dump, fill, list_tokens

pytestmark = pytest.mark.real_server


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresqlServer]:
    """A running PostgreSQL."""
    if find_programs() is None:
        missing = pytest.fail if "INVITES_TEST_POSTGRESQL" in os.environ else pytest.skip
        missing("PostgreSQL is not installed (Debian: apt install postgresql)")
    with PostgresqlServer() as running:
        yield running


@pytest.fixture
def new_postgresql(server: PostgresqlServer) -> Iterator[Callable[[], CopiedStore]]:
    """Makes empty PostgreSQL stores, each in a database of its own."""
    with contextlib.ExitStack() as stack:

        def make() -> CopiedStore:
            store = PostgresqlStore(stack.enter_context(new_database(server.url)))
            stack.callback(store.close)
            return store

        yield make


@pytest.fixture
def new_sqlite(tmp_path: Path) -> Iterator[Callable[[], CopiedStore]]:
    """Makes empty SQLite stores."""
    with contextlib.ExitStack() as stack:

        def make() -> CopiedStore:
            store = SqliteStore(tmp_path / f"store-{len(list(tmp_path.iterdir()))}.db")
            stack.callback(store.close)
            return store

        yield make


class TestSqliteToPostgresql(TransferTests):
    """From a file into a server."""

    @pytest.fixture
    def source(self, new_sqlite: Callable[[], CopiedStore]) -> CopiedStore:
        """The store that is copied, empty."""
        return new_sqlite()

    @pytest.fixture
    def new_store(self, new_postgresql: Callable[[], CopiedStore]) -> Callable[[], CopiedStore]:
        """Makes empty stores to copy into."""
        return new_postgresql


class TestPostgresqlToSqlite(TransferTests):
    """From a server into a file."""

    @pytest.fixture
    def source(self, new_postgresql: Callable[[], CopiedStore]) -> CopiedStore:
        """The store that is copied, empty."""
        return new_postgresql()

    @pytest.fixture
    def new_store(self, new_sqlite: Callable[[], CopiedStore]) -> Callable[[], CopiedStore]:
        """Makes empty stores to copy into."""
        return new_sqlite


def test_there_and_back_is_the_same(
    new_sqlite: Callable[[], CopiedStore], new_postgresql: Callable[[], CopiedStore]
) -> None:
    """A copy of a copy, through the other kind of store, is equal to the first, in the same order."""
    first, between, last = new_sqlite(), new_postgresql(), new_sqlite()
    fill(first, invites=200)
    copy_store(first, between)
    copy_store(between, last)
    assert dump(last) == dump(first)
    assert list_tokens(last) == list_tokens(first)


def test_a_database_is_not_copied_into_itself_by_another_address(server: PostgresqlServer) -> None:
    """The same database, by its socket and by its port, is one."""
    with new_database(server.url) as url:
        name = url.rpartition("/")[2]
        one = PostgresqlStore(url)
        two = PostgresqlStore(f"postgresql://postgres@/{name}?host={server.socket_folder}&port={server.port}")
        try:
            assert one.get_identity() == two.get_identity()
        finally:
            one.close()
            two.close()
