"""The SQLite half of copying one store into another."""

from __future__ import annotations

import contextlib
from collections.abc import Hashable, Iterator, Sequence
from typing import Any

import apsw

from invites_core.errors import StorageError
from invites_core.stores.sqlite_database import SqliteDatabase
from invites_core.stores.sqlite_file import explain_os_error
from invites_core.stores.sqlite_invites import ADD_INVITE
from invites_core.stores.transfer import INVITES, CopyRefused, Row, Table, describe_difference

__all__ = ["SqliteTransfer"]


class SqliteSnapshot:
    """One read transaction: in WAL mode it sees the file as it was at its beginning, and nobody waits for it."""

    def __init__(self, connection: apsw.Connection) -> None:
        """Take a connection in a read transaction."""
        self._connection = connection

    def count(self, table: Table) -> int:
        row: Any
        [row] = self._connection.execute(f"SELECT count(*) FROM {table.name}").fetchall()
        return int(row[0])

    def rows(self, table: Table) -> Iterator[Row]:
        columns, order = ", ".join(table.columns), ", ".join(table.order)
        # The cursor steps through the rows, and holds one of them at a time.
        yield from self._connection.execute(f"SELECT {columns} FROM {table.name} ORDER BY {order}")


class SqliteTransfer:
    """The verbs of `Transferable` on a SQLite database."""

    _database: SqliteDatabase

    def get_identity(self) -> Hashable:  # noqa: D102
        try:
            status = self._database.path.stat()
        except OSError as error:
            raise StorageError(f"cannot open the database {self._database.path}: {explain_os_error(error)}") from error
        return ("sqlite", status.st_dev, status.st_ino)

    @contextlib.contextmanager
    def open_snapshot(self) -> Iterator[SqliteSnapshot]:  # noqa: D102
        with self._database.open_apart() as connection:
            # The transaction begins to see at its first reading, not at BEGIN.
            connection.execute("BEGIN; SELECT count(*) FROM sqlite_schema").fetchall()
            yield SqliteSnapshot(connection)

    def add_rows(self, table: Table, rows: Sequence[Row]) -> None:  # noqa: D102
        columns, places = ", ".join(table.columns), ", ".join("?" * len(table.columns))
        add = f"INSERT INTO {table.name} ({columns}) VALUES ({places}) ON CONFLICT DO NOTHING RETURNING 1"
        if table is INVITES:
            # It assigns the position, which decides where in a list an invite is.
            add = ADD_INVITE

        def change(connection: apsw.Connection) -> None:
            for row in rows:
                if not connection.execute(add, row).fetchall() and not _holds(connection, table, row):
                    raise CopyRefused(describe_difference(table, row))

        self._database.write(change)

    def remove_row(self, table: Table, identity: Row) -> None:  # noqa: D102
        statement = f"DELETE FROM {table.name} WHERE {_where(table)}"
        self._database.write(lambda connection: connection.execute(statement, identity).fetchall())


def _holds(connection: apsw.Connection, table: Table, row: Row) -> bool:
    statement = f"SELECT {', '.join(table.columns)} FROM {table.name} WHERE {_where(table)}"
    return connection.execute(statement, table.get_identity(row)).fetchall() == [row]


def _where(table: Table) -> str:
    return " AND ".join(f"{column} = ?" for column in table.identity)
