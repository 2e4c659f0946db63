"""The keys' half of the PostgreSQL store: keys, and marks of deleted ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Final

from invites_core.errors import KeyExists
from invites_core.keys import ApiKey
from invites_core.stores.postgresql_connection import Connection
from invites_core.stores.postgresql_database import PostgresqlDatabase
from invites_core.stores.records import from_seconds, policy_to_json, to_seconds, to_seconds_or_none
from invites_core.stores.rows import KEY_COLUMNS, key_from_row, key_to_row

__all__ = ["PostgresqlKeys"]

_NAMES: Final = tuple(KEY_COLUMNS.split(", "))

_FIND: Final = f"SELECT {KEY_COLUMNS} FROM keys WHERE id = %(id)s"
_LIST: Final = (
    f"SELECT {KEY_COLUMNS} FROM keys WHERE %(host)s::text IS NULL OR host = %(host)s::text ORDER BY created_at, id"
)
# A key whose id was deleted is not added again, so that an import cannot bring it back.
_ADD: Final = (
    f"INSERT INTO keys ({KEY_COLUMNS}) VALUES ({', '.join(f'%({name})s' for name in _NAMES)})"
    " ON CONFLICT DO NOTHING RETURNING 1"
)
_UPDATE: Final = "UPDATE keys SET name = %(name)s, policy = %(policy)s, expires_at = %(expires_at)s WHERE id = %(id)s"
_ROTATE: Final = (
    "UPDATE keys SET secret_hash = %(hash)s, tag = %(tag)s,"
    " previous_hash = CASE WHEN %(until)s::bigint IS NULL THEN NULL ELSE secret_hash END,"
    " previous_tag = CASE WHEN %(until)s::bigint IS NULL THEN NULL ELSE tag END, previous_until = %(until)s::bigint"
    f" WHERE id = %(id)s AND host = %(host)s AND secret_hash <> %(hash)s RETURNING {KEY_COLUMNS}"
)
_FIND_ROTATED: Final = (
    f"SELECT {KEY_COLUMNS} FROM keys WHERE id = %(id)s AND host = %(host)s AND secret_hash = %(hash)s"
)
# In the order of the ids, so that two that record the same keys do not lock them crosswise.
_RECORD_USES: Final = (
    "WITH used AS (SELECT keys.id, new.used_at FROM keys"
    " JOIN unnest(%(ids)s::text[], %(times)s::bigint[]) AS new (id, used_at) ON keys.id = new.id"
    " WHERE coalesce(keys.last_used_at, 0) < new.used_at ORDER BY keys.id FOR NO KEY UPDATE OF keys)"
    " UPDATE keys SET last_used_at = used.used_at FROM used"
    " WHERE keys.id = used.id AND coalesce(keys.last_used_at, 0) < used.used_at"
)
_DELETE: Final = "DELETE FROM keys WHERE id = %(id)s AND host = %(host)s RETURNING 1"
_AFTER_DELETION: Final = (
    "INSERT INTO deleted_keys (id, deleted_at) VALUES (%(id)s, %(now)s) ON CONFLICT DO NOTHING",
    "DELETE FROM quotas WHERE key_id = %(id)s",
    "DELETE FROM creations WHERE key_id = %(id)s",
)
_FIND_DELETION: Final = "SELECT deleted_at FROM deleted_keys WHERE id = %(id)s"


class PostgresqlKeys:
    """The verbs of `KeyStore` that are about keys alone, on a PostgreSQL database."""

    _database: PostgresqlDatabase

    def add_key(self, key: ApiKey) -> None:  # noqa: D102 (the protocol says it, as for all that follow)
        bindings = dict(zip(_NAMES, key_to_row(key), strict=True))

        def change(connection: Connection) -> None:
            # The mark is looked for after the row is in: a deletion that this waited for has left it by then.
            if not connection.run(_ADD, bindings) or connection.run(_FIND_DELETION, bindings):
                raise KeyExists

        self._database.write(change)

    def find_key(self, key_id: str) -> ApiKey | None:  # noqa: D102
        rows = self._database.read(_FIND, {"id": key_id})
        return key_from_row(rows[0]) if rows else None

    def list_keys(self, host: str | None = None) -> Sequence[ApiKey]:  # noqa: D102
        return [key_from_row(row) for row in self._database.read(_LIST, {"host": host})]

    def update_key(self, old: ApiKey, new: ApiKey) -> bool:  # noqa: D102
        bindings = {
            "id": old.id,
            "name": new.name,
            "policy": policy_to_json(new.policy),
            "expires_at": to_seconds_or_none(new.expires_at),
        }

        def change(connection: Connection) -> bool:
            # Compared as records, under the row's lock: the same policy may be written otherwise in a row, where a
            # field was left out that has had its default since.
            for key in map(key_from_row, connection.run(f"{_FIND} FOR NO KEY UPDATE", bindings)):
                if (key.name, key.policy, key.expires_at) == (old.name, old.policy, old.expires_at):
                    connection.run(_UPDATE, bindings)
                    return True
            return False

        return self._database.write(change)

    def rotate_key(  # noqa: D102
        self, key_id: str, *, host: str, secret_hash: str, tag: bytes, previous_until: datetime | None
    ) -> ApiKey | None:
        until = to_seconds_or_none(previous_until)
        bindings = {"id": key_id, "host": host, "hash": secret_hash, "tag": tag, "until": until}
        rows = self._database.change(_ROTATE, bindings) or self._database.read(_FIND_ROTATED, bindings)
        return key_from_row(rows[0]) if rows else None

    def record_key_uses(self, uses: Mapping[str, datetime]) -> None:  # noqa: D102
        times = [to_seconds(used_at) for used_at in uses.values()]
        self._database.change(_RECORD_USES, {"ids": list(uses), "times": times})

    def delete_key(self, key_id: str, *, host: str, now: datetime) -> bool:  # noqa: D102
        bindings = {"id": key_id, "host": host, "now": to_seconds(now)}

        def change(connection: Connection) -> bool:
            # Waits for the creations that hold the key's row; the statements after it see what they have left.
            if not connection.run(_DELETE, bindings):
                return False
            for statement in _AFTER_DELETION:
                connection.run(statement, bindings)
            return True

        return self._database.write(change)

    def find_deletion(self, key_id: str) -> datetime | None:  # noqa: D102
        rows = self._database.read(_FIND_DELETION, {"id": key_id})
        return from_seconds(rows[0][0]) if rows else None
