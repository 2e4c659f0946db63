"""Databases for the tests of the SQLite store: made, looked at, changed behind their back.

No test opens a file of the store by other means than SQLite's own while this process has it open: closing such a file
would drop the locks that the store holds on it.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Final

import apsw

from invites_core.keys import ApiKey
from invites_core.stores.sqlite import SqliteStore
from invites_core.stores.sqlite_database import SqliteDatabase
from invites_core.stores.sqlite_schema import SCHEMA, SCHEMA_VERSION
from tests.helpers import make_key

FILES: Final = {"invites.db", "invites.db-lock"}
"""What is there while nobody has the database open: the file that writers queue at stays."""

FILES_WHILE_OPEN: Final = {*FILES, "invites.db-wal", "invites.db-shm"}


def open_database(path: Path, *, create: bool = False, timeout: float = 5.0) -> SqliteDatabase:
    return SqliteDatabase(path, schema=SCHEMA, version=SCHEMA_VERSION, create=create, timeout=timeout)


def make_database(path: Path, *, keys: int = 3) -> list[ApiKey]:
    """Make a database with some keys in it, and leave it closed."""
    store = SqliteStore(path)
    made = [make_key() for _ in range(keys)]
    for key in made:
        store.add_key(key)
    store.close()
    return made


def list_soundly(path: Path) -> list[ApiKey]:
    """Return the keys of a database that is closed here, after SQLite has found it sound."""
    database, store = open_database(path), SqliteStore(path, create=False)
    assert database.read("PRAGMA integrity_check") == [("ok",)]
    keys = list(store.list_keys())
    store.close()
    database.close()
    return keys


def list_names(folder: Path) -> set[str]:
    return {entry.name for entry in folder.iterdir()}


def get_mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def add_mark(database: SqliteDatabase, key_id: str) -> None:
    """Write something short."""
    statement = "INSERT INTO deleted_keys VALUES (?, 1)"
    database.write(lambda connection: connection.execute(statement, (key_id,)).fetchall())


def use_and_close(path: Path, key: ApiKey, *, create: bool = False) -> None:
    """Open a database, read it, write a key, and close it whatever happens."""
    store = SqliteStore(path, create=create)
    try:
        store.list_keys()
        store.add_key(key)
    finally:
        store.close()


def run_sql(path: Path, statements: str) -> None:
    connection = apsw.Connection(str(path))
    connection.execute(statements).fetchall()
    connection.close()


def change_database(path: Path, statement: str, *, cut_to: int | None = None) -> None:
    """Make a database of ours and change it behind its back."""
    make_database(path)
    run_sql(path, statement)
    if cut_to is not None:
        os.truncate(path, cut_to)
