"""The PostgreSQL half of copying one store into another."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Hashable, Iterator, Sequence
from typing import Final

from invites_core.stores.postgresql_connection import Connection
from invites_core.stores.postgresql_database import PostgresqlDatabase
from invites_core.stores.postgresql_errors import Duplicate
from invites_core.stores.postgresql_positions import make_positions
from invites_core.stores.transfer import INVITES, CopyRefused, Row, Table, describe_difference

__all__ = ["PostgresqlTransfer"]

FETCHED_ROWS: Final = 1000

_IDENTITY: Final = (
    "SELECT pg_postmaster_start_time()::text, (SELECT oid FROM pg_database WHERE datname = current_database()),"
    " 'invites'::regclass::oid"
)


class PostgresqlSnapshot:
    """One transaction that reads: all its statements see the state at the first of them (REPEATABLE READ)."""

    def __init__(self, connection: Connection) -> None:
        """Take a connection in such a transaction."""
        self._connection = connection
        self._names = (f"rows_{number}" for number in itertools.count())

    def count(self, table: Table) -> int:
        [(count,)] = self._connection.run(f"SELECT count(*) FROM {table.name}")
        return int(count)

    def rows(self, table: Table) -> Iterator[Row]:
        name = next(self._names)
        columns, order = ", ".join(table.columns), ", ".join(table.order)
        self._connection.run(f"DECLARE {name} NO SCROLL CURSOR FOR SELECT {columns} FROM {table.name} ORDER BY {order}")
        while rows := self._connection.run(f"FETCH {FETCHED_ROWS} FROM {name}"):
            yield from rows
        self._connection.run(f"CLOSE {name}")


class PostgresqlTransfer:
    """The verbs of `Transferable` on a PostgreSQL database."""

    _database: PostgresqlDatabase

    def get_identity(self) -> Hashable:  # noqa: D102
        return ("postgresql", *self._database.read(_IDENTITY, {}))

    @contextlib.contextmanager
    def open_snapshot(self) -> Iterator[PostgresqlSnapshot]:  # noqa: D102
        with self._database.own_connection() as connection:
            connection.run("BEGIN ISOLATION LEVEL REPEATABLE READ, READ ONLY")
            # The snapshot is taken by the first statement, not by BEGIN.
            connection.run("SELECT count(*) FROM invites_schema")
            yield PostgresqlSnapshot(connection)

    def add_rows(self, table: Table, rows: Sequence[Row]) -> None:  # noqa: D102
        columns = table.columns
        values = list(rows)
        if table is INVITES:
            columns = ("position", *columns)
            values = [(position, *row) for position, row in zip(make_positions(len(rows)), rows, strict=True)]
        into = f"{table.name} ({', '.join(columns)})"

        def copy(connection: Connection) -> None:
            with connection.cursor() as cursor, cursor.copy(f"COPY {into} FROM STDIN".encode()) as copying:
                for row in values:
                    copying.write_row(row)

        def add_absent(connection: Connection) -> None:
            places = ", ".join(["%s"] * len(columns))
            with connection.cursor() as cursor:
                cursor.executemany(f"INSERT INTO {into} VALUES ({places}) ON CONFLICT DO NOTHING".encode(), values)
            for row in rows:
                if not _holds(connection, table, row):
                    raise CopyRefused(describe_difference(table, row))

        try:
            self._database.write(copy)
        except Duplicate:
            # Somebody was faster, or an attempt whose outcome was not known has come true.
            self._database.write(add_absent)

    def remove_row(self, table: Table, identity: Row) -> None:  # noqa: D102
        statement = f"DELETE FROM {table.name} WHERE {_where(table)}"
        self._database.change(statement, dict(zip(table.identity, identity, strict=True)))


def _holds(connection: Connection, table: Table, row: Row) -> bool:
    statement = f"SELECT {', '.join(table.columns)} FROM {table.name} WHERE {_where(table)}"
    return connection.run(statement, dict(zip(table.identity, table.get_identity(row), strict=True))) == [row]


def _where(table: Table) -> str:
    return " AND ".join(f"{column} = %({column})s" for column in table.identity)
