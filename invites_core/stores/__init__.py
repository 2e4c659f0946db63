"""The stores, by URL. A driver is imported only when its store is asked for."""

from __future__ import annotations

import re
from pathlib import Path

from invites_core.errors import InvalidRequest
from invites_core.store import Store

__all__ = ["open_store", "parse_sqlite_path"]


def parse_sqlite_path(url: str) -> Path | None:
    """Return the path in a ``sqlite:`` URL, or None for a URL of another store.

    ``sqlite:///relative.db`` is relative to the current folder, ``sqlite:////absolute.db`` is absolute.

    Raises:
        InvalidRequest: It begins with ``sqlite:`` and holds no path.
    """
    if not url.startswith("sqlite:"):
        return None
    path = url.removeprefix("sqlite:///")
    if path == url or not path or "\0" in path or any("\ud800" <= char <= "\udfff" for char in path):
        raise InvalidRequest("database", "must be sqlite:///relative.db or sqlite:////absolute.db")
    return Path(path)


def open_store(url: str, *, create: bool = True, migrate: bool = True) -> Store:
    """Open a store.

    Args:
        url: ``memory:``, ``sqlite:///relative.db``, ``sqlite:////absolute.db`` or
            ``postgresql://user@host:port/database``.
        create: Whether to make a SQLite file that is not there, private to its owner, or the tables in a PostgreSQL
            database that has none.
        migrate: Whether to bring the tables of an older version up to date.

    Raises:
        InvalidRequest: There is no such kind of store.
        StorageError: It cannot be opened; the message says why, in one line.
    """
    if url == "memory:":
        from invites_core.stores.memory import MemoryStore

        return MemoryStore()
    path = parse_sqlite_path(url)
    if path is not None:
        from invites_core.stores.sqlite import SqliteStore

        return SqliteStore(path, create=create)
    if url.startswith("postgresql://"):
        try:
            from invites_core.stores.postgresql import PostgresqlStore
        except ModuleNotFoundError as error:
            if error.name not in ("psycopg", "psycopg_pool"):
                raise
            needs = "postgresql: needs the extra: pip install 'invites-api[postgresql]'"
            raise InvalidRequest("database", needs) from error

        return PostgresqlStore(url, create=create, migrate=migrate)
    # Only the scheme is shown: the rest of a URL may hold a password.
    scheme = re.match(r"[A-Za-z][A-Za-z0-9+.-]{0,30}:", url)
    raise InvalidRequest("database", f"there is no store {scheme[0] if scheme else 'without a scheme'!r}")
