"""The keys' half of the SQLite store: keys, marks of deleted ones, quotas, idempotent creations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Final

import apsw

from invites_core.errors import KeyExists, KeyUnknown
from invites_core.keys import ApiKey
from invites_core.store import Grant, GrantTaken
from invites_core.stores.records import (
    from_seconds,
    list_to_json,
    policy_to_json,
    to_seconds,
    to_seconds_or_none,
)
from invites_core.stores.rows import CREATION_COLUMNS, KEY_COLUMNS, grant_from_row, key_from_row, key_to_row
from invites_core.stores.sqlite_database import SqliteDatabase

__all__ = ["SqliteKeys", "finish_grant", "take_grant"]

_FIND: Final = f"SELECT {KEY_COLUMNS} FROM keys WHERE id = ?"
_LIST: Final = f"SELECT {KEY_COLUMNS} FROM keys WHERE ?1 IS NULL OR host = ?1 ORDER BY created_at, id"
# A key whose id was deleted is not added again, so that an import cannot bring it back.
_ADD: Final = (
    f"INSERT INTO keys ({KEY_COLUMNS}) SELECT ?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12"
    " WHERE NOT EXISTS (SELECT 1 FROM deleted_keys WHERE id = ?1) ON CONFLICT DO NOTHING RETURNING 1"
)
_UPDATE: Final = "UPDATE keys SET name = ?2, policy = ?3, expires_at = ?4 WHERE id = ?1"
_ROTATE: Final = (
    "UPDATE keys SET secret_hash = :hash, tag = :tag,"
    " previous_hash = CASE WHEN :until IS NULL THEN NULL ELSE secret_hash END,"
    " previous_tag = CASE WHEN :until IS NULL THEN NULL ELSE tag END, previous_until = :until"
    f" WHERE id = :id AND host = :host AND secret_hash <> :hash RETURNING {KEY_COLUMNS}"
)
_FIND_ROTATED: Final = f"SELECT {KEY_COLUMNS} FROM keys WHERE id = :id AND host = :host AND secret_hash = :hash"
_RECORD_USE: Final = "UPDATE keys SET last_used_at = ?2 WHERE id = ?1 AND coalesce(last_used_at, 0) < ?2"
_DELETE: Final = "DELETE FROM keys WHERE id = ? AND host = ? RETURNING 1"
_MARK_DELETED: Final = "INSERT INTO deleted_keys (id, deleted_at) VALUES (?, ?)"
_FIND_DELETION: Final = "SELECT deleted_at FROM deleted_keys WHERE id = ?"
_IS_THERE: Final = "SELECT 1 FROM keys WHERE id = ?"

# Nodes whose clocks differ may see different windows at the boundary; the later one counts, and never goes back.
_TAKE_QUOTA: Final = (
    "INSERT INTO quotas (key_id, window_start, taken) SELECT :key, :start, :count WHERE :count <= :limit"
    " ON CONFLICT (key_id) DO UPDATE SET"
    " taken = CASE WHEN window_start < :start THEN 0 ELSE taken END + :count,"
    " window_start = max(window_start, :start)"
    " WHERE CASE WHEN window_start < :start THEN 0 ELSE taken END + :count <= :limit RETURNING 1"
)
_QUOTA_TAKEN: Final = "SELECT taken FROM quotas WHERE key_id = ? AND window_start >= ?"

_FIND_CREATION: Final = f"SELECT {CREATION_COLUMNS} FROM creations WHERE key_id = ? AND digest = ? AND created_at >= ?"
_ADD_CREATION: Final = (
    "INSERT OR REPLACE INTO creations (key_id, digest, fingerprint, tokens, created_at, done_at)"
    " VALUES (?, ?, ?, ?, ?, NULL)"
)
_FINISH_CREATION: Final = "UPDATE creations SET done_at = ?3 WHERE key_id = ?1 AND digest = ?2 AND done_at IS NULL"
PURGED_AT_ONCE: Final = 1000
_PURGE_CREATIONS: Final = (
    "DELETE FROM creations WHERE (key_id, digest) IN (SELECT key_id, digest FROM creations"
    f" WHERE created_at < ? LIMIT {PURGED_AT_ONCE}) RETURNING 1"
)


class SqliteKeys:
    """The verbs of `KeyStore` on a SQLite database."""

    _database: SqliteDatabase

    def add_key(self, key: ApiKey) -> None:  # noqa: D102 (the protocol says it, as for all that follow)
        row = key_to_row(key)

        def change(connection: apsw.Connection) -> None:
            if not connection.execute(_ADD, row).fetchall():
                raise KeyExists

        self._database.write(change)

    def find_key(self, key_id: str) -> ApiKey | None:  # noqa: D102
        rows = self._database.read(_FIND, (key_id,))
        return key_from_row(rows[0]) if rows else None

    def list_keys(self, host: str | None = None) -> Sequence[ApiKey]:  # noqa: D102
        return [key_from_row(row) for row in self._database.read(_LIST, (host,))]

    def update_key(self, old: ApiKey, new: ApiKey) -> bool:  # noqa: D102
        row = (old.id, new.name, policy_to_json(new.policy), to_seconds_or_none(new.expires_at))

        def change(connection: apsw.Connection) -> bool:
            # Compared as records, under the write lock: the same policy may be written otherwise in a row, where a
            # field was left out that has had its default since.
            for key in map(key_from_row, connection.execute(_FIND, (old.id,)).fetchall()):
                if (key.name, key.policy, key.expires_at) == (old.name, old.policy, old.expires_at):
                    connection.execute(_UPDATE, row).fetchall()
                    return True
            return False

        return self._database.write(change)

    def rotate_key(  # noqa: D102
        self, key_id: str, *, host: str, secret_hash: str, tag: bytes, previous_until: datetime | None
    ) -> ApiKey | None:
        bindings = {
            "id": key_id,
            "host": host,
            "hash": secret_hash,
            "tag": tag,
            "until": to_seconds_or_none(previous_until),
        }

        def change(connection: apsw.Connection) -> ApiKey | None:
            rotated = connection.execute(_ROTATE, bindings).fetchall()
            rows = rotated or connection.execute(_FIND_ROTATED, bindings).fetchall()
            return key_from_row(rows[0]) if rows else None

        return self._database.write(change)

    def record_key_uses(self, uses: Mapping[str, datetime]) -> None:  # noqa: D102
        rows = [(key_id, to_seconds(used_at)) for key_id, used_at in uses.items()]
        self._database.write(lambda connection: connection.executemany(_RECORD_USE, rows).fetchall())

    def delete_key(self, key_id: str, *, host: str, now: datetime) -> bool:  # noqa: D102
        def change(connection: apsw.Connection) -> bool:
            if not connection.execute(_DELETE, (key_id, host)).fetchall():
                return False
            connection.execute(_MARK_DELETED, (key_id, to_seconds(now))).fetchall()
            connection.execute("DELETE FROM quotas WHERE key_id = ?", (key_id,)).fetchall()
            connection.execute("DELETE FROM creations WHERE key_id = ?", (key_id,)).fetchall()
            return True

        return self._database.write(change)

    def find_deletion(self, key_id: str) -> datetime | None:  # noqa: D102
        rows = self._database.read(_FIND_DELETION, (key_id,))
        return from_seconds(rows[0][0]) if rows else None

    def take_grant(self, grant: Grant) -> GrantTaken:  # noqa: D102
        return self._database.write(lambda connection: take_grant(connection, grant))

    def finish_grant(self, grant: Grant) -> None:  # noqa: D102
        self._database.write(lambda connection: finish_grant(connection, grant))

    def find_quota_taken(self, key_id: str, window_start: datetime) -> int:  # noqa: D102
        rows = self._database.read(_QUOTA_TAKEN, (key_id, to_seconds(window_start)))
        return int(rows[0][0]) if rows else 0

    def purge_grants(self, *, before: datetime) -> int:  # noqa: D102
        bindings = (to_seconds(before),)

        def change(connection: apsw.Connection) -> int:
            return len(connection.execute(_PURGE_CREATIONS, bindings).fetchall())

        # A step at a time, so that many rows do not keep the other writers waiting.
        purged = step = self._database.write(change)
        while step == PURGED_AT_ONCE:
            step = self._database.write(change)
            purged += step
        return purged


def take_grant(connection: apsw.Connection, grant: Grant) -> GrantTaken:
    """Take a grant inside a transaction that holds the write lock.

    Raises:
        KeyUnknown: There is no such key.
    """
    if not connection.execute(_IS_THERE, (grant.key_id,)).fetchall():
        raise KeyUnknown
    if grant.digest is not None:
        bindings = (grant.key_id, grant.digest, to_seconds(grant.expired_before))
        for found in connection.execute(_FIND_CREATION, bindings).fetchall():
            return grant_from_row(found, grant)
    if grant.window is not None:
        quota = {
            "key": grant.key_id,
            "start": to_seconds(grant.window.start),
            "count": len(grant.tokens),
            "limit": grant.window.limit,
        }
        if not connection.execute(_TAKE_QUOTA, quota).fetchall():
            return GrantTaken(outcome="spent", created_at=grant.now)
    if grant.digest is not None:
        row = (grant.key_id, grant.digest, grant.fingerprint, list_to_json(grant.tokens), to_seconds(grant.now))
        connection.execute(_ADD_CREATION, row).fetchall()
    return GrantTaken(outcome="taken", tokens=grant.tokens, created_at=grant.now)


def finish_grant(connection: apsw.Connection, grant: Grant) -> None:
    """Mark a grant's row as done inside a transaction that holds the write lock."""
    if grant.digest is not None:
        connection.execute(_FINISH_CREATION, (grant.key_id, grant.digest, to_seconds(grant.now))).fetchall()
