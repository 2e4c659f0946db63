"""The stores, by URL. A driver is imported only when its store is asked for."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from invites_core.errors import InvalidRequest
from invites_core.store import InviteStore, Store

__all__ = ["find_max_rows", "open_invite_store", "open_store", "parse_socket_path", "parse_sqlite_path"]

_SOCKET_SCHEMES: Final = ("agent:", "prosody:")
"""Stores of invites alone, each behind a Unix socket."""
_MAX_ROWS: Final = re.compile(r"\?max_rows=([1-9][0-9]{0,8})\Z", re.ASCII)


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


def parse_socket_path(url: str) -> Path | None:
    """Return the path in an ``agent:`` or ``prosody:`` URL, or None for a URL of another store.

    ``agent:///run/agent.sock`` is absolute, ``agent:agent.sock`` relative to the current folder. What `find_max_rows`
    reads of the URL is no part of the path.

    Raises:
        InvalidRequest: It begins with ``agent:`` or ``prosody:`` and holds no path.
    """
    scheme = next((scheme for scheme in _SOCKET_SCHEMES if url.startswith(scheme)), None)
    if scheme is None:
        return None
    rest = _MAX_ROWS.sub("", url.removeprefix(scheme)) if scheme == "prosody:" else url.removeprefix(scheme)
    path = rest.removeprefix("//")
    is_path = path.startswith("/") if path != rest else rest and not rest.startswith("/")
    if not is_path or not path.strip("/") or "\0" in path or any("\ud800" <= char <= "\udfff" for char in path):
        raise InvalidRequest("database", f"must be {scheme}///absolute.sock or {scheme}relative.sock")
    return Path(path)


def find_max_rows(url: str) -> int | None:
    """Return the number in ``prosody:///path/prosody.sock?max_rows=20000``, or None where there is none."""
    found = _MAX_ROWS.search(url)
    return int(found[1]) if found is not None else None


def open_store(url: str, *, create: bool = True, migrate: bool = True) -> Store:
    """Open a store of keys and invites.

    Args:
        url: ``memory:``, ``sqlite:///relative.db``, ``sqlite:////absolute.db`` or
            ``postgresql://user@host:port/database``.
        create: Whether to make a SQLite file that is not there, private to its owner, or the tables in a PostgreSQL
            database that has none.
        migrate: Whether to bring the tables of an older version up to date.

    Raises:
        InvalidRequest: There is no such kind of store, or it holds no keys.
        StorageError: It cannot be opened; the message says why, in one line.
    """
    if parse_socket_path(url) is not None:
        raise InvalidRequest("database", f"{url.partition(':')[0]}: holds invites only, no keys")
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


def open_invite_store(url: str, *, create: bool = True, migrate: bool = True) -> InviteStore:
    """Open a store of invites, which need not hold keys.

    Args:
        url: One that `open_store` takes, ``agent:///path/agent.sock`` or ``prosody:///path/prosody.sock``, the last
            with ``?max_rows=N`` for the number of rows that a list, a purge or a sweep may read there (5,000).
        create: As for `open_store`; a socket is only connected to.
        migrate: As for `open_store`.

    Raises:
        InvalidRequest: There is no such kind of store.
        StorageError: It cannot be opened; the message says why, in one line.
    """
    path = parse_socket_path(url)
    if path is not None and url.startswith("agent:"):
        from invites_core.stores.agent import AgentStore

        return AgentStore(path)
    if path is not None:
        from invites_core.stores.prosody import ProsodyStore

        max_rows = find_max_rows(url)
        return ProsodyStore(path) if max_rows is None else ProsodyStore(path, max_rows=max_rows)
    return open_store(url, create=create, migrate=migrate)
