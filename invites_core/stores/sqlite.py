"""Keys and invites in one SQLite file."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import apsw

from invites_core.errors import InviteExists, KeyExists, KeyUnknown
from invites_core.invites import Invite
from invites_core.keys import ApiKey, PreviousSecret
from invites_core.stores.records import (
    from_seconds,
    from_seconds_or_none,
    list_from_json,
    list_to_json,
    policy_from_json,
    policy_to_json,
    to_seconds,
    to_seconds_or_none,
)
from invites_core.stores.sqlite_database import SqliteDatabase
from invites_core.stores.sqlite_schema import SCHEMA, SCHEMA_VERSION

__all__ = ["SqliteStore"]

_KEY_COLUMNS: Final = (
    "id, host, name, secret_hash, tag, previous_hash, previous_tag, previous_until,"
    " policy, created_at, expires_at, last_used_at"
)
_FIND_KEY: Final = f"SELECT {_KEY_COLUMNS} FROM keys WHERE id = ?"
_LIST_KEYS: Final = f"SELECT {_KEY_COLUMNS} FROM keys ORDER BY created_at, id"
_LIST_HOST_KEYS: Final = f"SELECT {_KEY_COLUMNS} FROM keys WHERE host = ? ORDER BY created_at, id"
# A key whose id was deleted is not added again, so that an import cannot bring it back.
_ADD_KEY: Final = (
    f"INSERT INTO keys ({_KEY_COLUMNS}) SELECT ?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12"
    " WHERE NOT EXISTS (SELECT 1 FROM deleted_keys WHERE id = ?1) ON CONFLICT DO NOTHING RETURNING 1"
)
_DELETE_KEY: Final = "DELETE FROM keys WHERE id = ? AND host = ? RETURNING 1"
_MARK_DELETED: Final = "INSERT INTO deleted_keys (id, deleted_at) VALUES (?, ?)"
_KEY_IS_THERE: Final = "SELECT 1 FROM keys WHERE id = ?"

_INVITE_COLUMNS: Final = (
    "token, host, kind, username, registration, created_at, expires_at, max_uses, uses, source, groups, roles, note,"
    " closed_at, revoked_by"
)
_FIND_INVITE: Final = f"SELECT {_INVITE_COLUMNS} FROM invites WHERE token = ?"
# The position grows by time and never comes back within a second that is over, so that a list's cursor stays right
# when the newest rows are purged.
_ADD_INVITE: Final = (
    f"INSERT INTO invites (position, {_INVITE_COLUMNS})"
    " VALUES (max((SELECT coalesce(max(position), 0) FROM invites) + 1, ?6 << 24),"
    " ?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15) ON CONFLICT DO NOTHING RETURNING 1"
)


class SqliteStore:
    """Keys and invites in one file, for one machine and any number of its processes and threads."""

    features: frozenset[str] = frozenset()

    def __init__(self, path: Path, *, create: bool = True, timeout: float = 5.0) -> None:
        """Open the database.

        Args:
            path: The file.
            create: Whether to make it if it is not there.
            timeout: How long a writer waits for its turn, in seconds.

        Raises:
            StorageError: It cannot be opened; the message says why.
        """
        self._database = SqliteDatabase(path, schema=SCHEMA, version=SCHEMA_VERSION, create=create, timeout=timeout)

    @property
    def location(self) -> str:
        """The path of the file."""
        return str(self._database.path)

    def ping(self) -> None:  # noqa: D102 (the protocol says it, as for all that follow)
        self._database.ping()

    def find_problems(self) -> Sequence[str]:
        """Run SQLite's quick check, which reads the whole file."""
        return self._database.find_problems()

    def close(self) -> None:  # noqa: D102
        self._database.close()

    def add_key(self, key: ApiKey) -> None:  # noqa: D102
        previous = key.previous
        row = (
            key.id,
            key.host,
            key.name,
            key.secret_hash,
            key.tag,
            None if previous is None else previous.secret_hash,
            None if previous is None else previous.tag,
            None if previous is None else to_seconds(previous.valid_until),
            policy_to_json(key.policy),
            to_seconds(key.created_at),
            to_seconds_or_none(key.expires_at),
            to_seconds_or_none(key.last_used_at),
        )

        def change(connection: apsw.Connection) -> None:
            if not connection.execute(_ADD_KEY, row).fetchall():
                raise KeyExists

        self._database.write(change)

    def find_key(self, key_id: str) -> ApiKey | None:  # noqa: D102
        rows = self._database.read(_FIND_KEY, (key_id,))
        return _key_from_row(rows[0]) if rows else None

    def list_keys(self, host: str | None = None) -> Sequence[ApiKey]:  # noqa: D102
        rows = self._database.read(_LIST_KEYS) if host is None else self._database.read(_LIST_HOST_KEYS, (host,))
        return [_key_from_row(row) for row in rows]

    def delete_key(self, key_id: str, *, host: str, now: datetime) -> bool:  # noqa: D102
        def change(connection: apsw.Connection) -> bool:
            if not connection.execute(_DELETE_KEY, (key_id, host)).fetchall():
                return False
            connection.execute(_MARK_DELETED, (key_id, to_seconds(now))).fetchall()
            return True

        return self._database.write(change)

    def add_invites(self, invites: Sequence[Invite], *, key_id: str | None = None) -> None:  # noqa: D102
        rows = [_invite_to_row(invite) for invite in invites]

        def change(connection: apsw.Connection) -> None:
            if key_id is not None and not connection.execute(_KEY_IS_THERE, (key_id,)).fetchall():
                raise KeyUnknown
            for row in rows:
                if not connection.execute(_ADD_INVITE, row).fetchall():
                    raise InviteExists

        self._database.write(change)

    def find_invite(self, token: str) -> Invite | None:  # noqa: D102
        rows = self._database.read(_FIND_INVITE, (token,))
        return _invite_from_row(rows[0]) if rows else None


def _key_from_row(row: tuple[Any, ...]) -> ApiKey:
    previous = None
    if row[7] is not None:
        previous = PreviousSecret(secret_hash=row[5], tag=row[6], valid_until=from_seconds(row[7]))
    return ApiKey(
        id=row[0],
        host=row[1],
        name=row[2],
        secret_hash=row[3],
        tag=row[4],
        previous=previous,
        policy=policy_from_json(row[8]),
        created_at=from_seconds(row[9]),
        expires_at=from_seconds_or_none(row[10]),
        last_used_at=from_seconds_or_none(row[11]),
    )


def _invite_to_row(invite: Invite) -> tuple[Any, ...]:
    return (
        invite.token,
        invite.host,
        invite.kind,
        invite.username,
        int(invite.registration),
        to_seconds(invite.created_at),
        to_seconds_or_none(invite.expires_at),
        invite.max_uses,
        invite.uses,
        invite.source,
        list_to_json(invite.groups),
        list_to_json(invite.roles),
        invite.note,
        to_seconds_or_none(invite.closed_at),
        invite.revoked_by,
    )


def _invite_from_row(row: tuple[Any, ...]) -> Invite:
    return Invite(
        token=row[0],
        host=row[1],
        kind=row[2],
        username=row[3],
        registration=bool(row[4]),
        created_at=from_seconds(row[5]),
        expires_at=from_seconds_or_none(row[6]),
        max_uses=row[7],
        uses=row[8],
        source=row[9],
        groups=list_from_json(row[10]),
        roles=list_from_json(row[11]),
        note=row[12],
        closed_at=from_seconds_or_none(row[13]),
        revoked_by=row[14],
    )
