"""The invites' half of the SQLite store: invites, their lists, and their redemptions."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final

import apsw

from invites_core.errors import InviteExists
from invites_core.invites import Invite, InviteState, Redemption
from invites_core.store import InvitePage, RedeemResult, Sweep
from invites_core.stores.cursors import parse_position
from invites_core.stores.records import to_seconds
from invites_core.stores.rows import (
    INVITE_COLUMNS,
    REDEMPTION_COLUMNS,
    find_redeem_outcome,
    invite_from_row,
    invite_to_row,
    redemption_from_row,
)
from invites_core.stores.sqlite_database import SqliteDatabase

__all__ = ["ADD_INVITE", "SqliteInvites", "add_invites"]

SCANNED_ROWS: Final = 10_000
"""How many open invites one page looks at for those that are pending, or that have expired."""

NEWEST: Final = 2**63 - 1
CLOSED_REVOKED: Final = 2

_FIND: Final = f"SELECT {INVITE_COLUMNS} FROM invites WHERE token = ?"
_FIND_OF_HOST: Final = f"SELECT {INVITE_COLUMNS} FROM invites WHERE token = :token AND (:host IS NULL OR host = :host)"
# The position grows by time and never comes back within a second that is over, so that a list's cursor stays right
# when the newest rows are purged.
ADD_INVITE: Final = (
    f"INSERT INTO invites (position, {INVITE_COLUMNS})"
    " VALUES (max((SELECT coalesce(max(position), 0) FROM invites) + 1, ?6 << 24),"
    " ?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15) ON CONFLICT DO NOTHING RETURNING 1"
)

_NOT_EXPIRED: Final = "(expires_at IS NULL OR expires_at >= :now)"
_OVER_BEFORE: Final = "(closed_at < :before OR (closed_at IS NULL AND expires_at < :before))"

_REDEEM: Final = (
    "UPDATE invites SET uses = uses + 1,"
    " closed_at = CASE WHEN uses + 1 = max_uses THEN :now ELSE closed_at END"
    " WHERE token = :token AND (:host IS NULL OR host = :host)"
    f" AND (max_uses IS NULL OR uses < max_uses) AND revoked_by IS NULL AND {_NOT_EXPIRED}"
    " AND (username IS NULL OR kind = 'roster' OR username = :username)"
    " AND NOT EXISTS (SELECT 1 FROM redemptions WHERE token = :token AND redemption_id = :id)"
    f" RETURNING {INVITE_COLUMNS}"
)
_ADD_REDEMPTION: Final = (
    "INSERT INTO redemptions (token, redemption_id, redeemer, redeemed_at) VALUES (:token, :id, :redeemer, :now)"
)
_FIND_REDEMPTION: Final = "SELECT redeemer, released_at FROM redemptions WHERE token = :token AND redemption_id = :id"
_LIST_REDEMPTIONS: Final = (
    f"SELECT {REDEMPTION_COLUMNS} FROM redemptions WHERE token = ?"
    " ORDER BY coalesce(redeemed_at, released_at), redemption_id"
)
_RELEASE: Final = (
    "UPDATE redemptions SET released_at = :now"
    " WHERE token = :token AND redemption_id = :id AND released_at IS NULL RETURNING 1"
)
_GIVE_BACK: Final = (
    "UPDATE invites SET uses = uses - 1, closed_at = CASE WHEN revoked_by IS NULL THEN NULL ELSE closed_at END"
    f" WHERE token = :token RETURNING {INVITE_COLUMNS}"
)
_ADD_RELEASED: Final = (
    "INSERT INTO redemptions (token, redemption_id, released_at) VALUES (:token, :id, :now) ON CONFLICT DO NOTHING"
)
_REVOKE: Final = (
    "UPDATE invites SET revoked_by = :by, closed_at = :now"
    " WHERE token = :token AND (:host IS NULL OR host = :host)"
    f" AND closed = 0 AND {_NOT_EXPIRED} RETURNING {INVITE_COLUMNS}"
)
_OF_SOURCE: Final = "SELECT position FROM invites INDEXED BY invites_by_source WHERE source = :source AND host = :host"
# A used one is marked as well: it would be pending again if its use were given back.
_REVOCABLE: Final = f"((closed = 0 AND {_NOT_EXPIRED}) OR closed = 1) AND revoked_by IS NULL"
_REVOCABLE_OF_SOURCE: Final = (
    f"SELECT * FROM ({_OF_SOURCE} AND closed = 0 AND {_NOT_EXPIRED} AND position > :after"
    " ORDER BY position LIMIT :limit) UNION ALL"
    f" SELECT * FROM ({_OF_SOURCE} AND closed = 1 AND revoked_by IS NULL AND position > :after"
    " ORDER BY position LIMIT :limit) ORDER BY position LIMIT :limit"
)
_REVOKE_POSITIONS: Final = (
    "UPDATE invites SET revoked_by = :by, closed_at = CASE WHEN closed = 0 THEN :now ELSE closed_at END"
    f" WHERE position IN (SELECT value FROM json_each(:positions)) AND {_REVOCABLE} RETURNING closed"
)
_STEP_END: Final = "SELECT position FROM invites WHERE position > ? ORDER BY position LIMIT 1 OFFSET ?"
_IS_OVER: Final = f"position > :after AND position <= :end AND {_OVER_BEFORE}"
_ANY_OVER: Final = f"SELECT 1 FROM invites WHERE {_IS_OVER} LIMIT 1"
_PURGE: Final = f"DELETE FROM invites WHERE {_IS_OVER} RETURNING token"
_PURGE_REDEMPTIONS: Final = "DELETE FROM redemptions WHERE token = ?"


class SqliteInvites:
    """The verbs of `InviteStore` on a SQLite database."""

    _database: SqliteDatabase

    def add_invites(self, invites: Sequence[Invite], *, if_absent: bool = False) -> None:  # noqa: D102
        self._database.write(lambda connection: add_invites(connection, invites, if_absent=if_absent))

    def find_invite(self, token: str) -> Invite | None:  # noqa: D102 (the protocol says it, as for all here)
        rows = self._database.read(_FIND, (token,))
        return invite_from_row(rows[0]) if rows else None

    def list_invites(  # noqa: D102
        self,
        host: str,
        *,
        now: datetime,
        state: InviteState | None = None,
        source: str | None = None,
        limit: int,
        cursor: str | None = None,
    ) -> InvitePage:
        bindings: dict[str, Any] = {
            "host": host,
            "source": source,
            "now": to_seconds(now),
            "before": NEWEST if cursor is None else parse_position(cursor),
            "floor": 0,
            "limit": limit + 1,
        }
        index, where = "invites_by_host", "host = :host"
        if source is not None:
            index, where = "invites_by_source", "source = :source AND host = :host"
        floor = None
        if state in ("pending", "expired"):
            # Whether an open invite has expired is no part of the index, so the page ends after so many rows.
            statement = (
                f"SELECT position FROM invites INDEXED BY {index} WHERE {where} AND closed = 0"
                f" AND position < :before ORDER BY position DESC LIMIT 1 OFFSET {SCANNED_ROWS - 1}"
            )
            for (floor,) in self._database.read(statement, bindings):
                bindings["floor"] = floor
        rows = self._database.read(_list_statement(index, where, state), bindings)
        invites = tuple(invite_from_row(row[1:]) for row in rows[:limit])
        if len(rows) > limit:
            return InvitePage(invites=invites, next=str(rows[limit - 1][0]))
        return InvitePage(invites=invites, next=None if floor is None else str(floor))

    def redeem_invite(  # noqa: D102
        self,
        token: str,
        *,
        redemption_id: str,
        redeemer: str | None,
        username: str | None,
        host: str | None,
        now: datetime,
    ) -> RedeemResult:
        bindings = {
            "token": token,
            "id": redemption_id,
            "redeemer": redeemer,
            "username": username,
            "host": host,
            "now": to_seconds(now),
        }

        def change(connection: apsw.Connection) -> RedeemResult:
            used = connection.execute(_REDEEM, bindings).fetchall()
            if used:
                connection.execute(_ADD_REDEMPTION, bindings).fetchall()
                return RedeemResult(outcome="redeemed", invite=invite_from_row(used[0]))
            rows = connection.execute(_FIND_OF_HOST, bindings).fetchall()
            invite = invite_from_row(rows[0]) if rows else None
            known = connection.execute(_FIND_REDEMPTION, bindings).fetchall() if rows else []
            if not known:
                return RedeemResult(outcome="refused", invite=invite)
            return RedeemResult(outcome=find_redeem_outcome(redeemer, known[0]), invite=invite)

        return self._database.write(change)

    def release_redemption(  # noqa: D102
        self, token: str, *, redemption_id: str, host: str | None, now: datetime
    ) -> Invite | None:
        bindings = {"token": token, "id": redemption_id, "host": host, "now": to_seconds(now)}

        def change(connection: apsw.Connection) -> Invite | None:
            rows = connection.execute(_FIND_OF_HOST, bindings).fetchall()
            if rows and connection.execute(_RELEASE, bindings).fetchall():
                rows = connection.execute(_GIVE_BACK, bindings).fetchall()
            elif rows:
                connection.execute(_ADD_RELEASED, bindings).fetchall()
            return invite_from_row(rows[0]) if rows else None

        return self._database.write(change)

    def list_redemptions(self, token: str) -> Sequence[Redemption]:  # noqa: D102
        return [redemption_from_row(row) for row in self._database.read(_LIST_REDEMPTIONS, (token,))]

    def revoke_invite(  # noqa: D102
        self, token: str, *, by: str, host: str | None, now: datetime
    ) -> tuple[bool, Invite | None]:
        bindings = {"token": token, "by": by, "host": host, "now": to_seconds(now)}

        def change(connection: apsw.Connection) -> tuple[bool, Invite | None]:
            revoked = connection.execute(_REVOKE, bindings).fetchall()
            rows = revoked or connection.execute(_FIND_OF_HOST, bindings).fetchall()
            return bool(revoked), invite_from_row(rows[0]) if rows else None

        return self._database.write(change)

    def revoke_invites_from(  # noqa: D102
        self, source: str, *, by: str, host: str, now: datetime, limit: int, cursor: str | None = None
    ) -> Sweep:
        bindings = {
            "source": source,
            "by": by,
            "host": host,
            "now": to_seconds(now),
            "after": 0 if cursor is None else parse_position(cursor),
            "limit": limit,
        }
        # Looked for without the write lock, so that a long search keeps nobody waiting; the guard decides again.
        positions = [row[0] for row in self._database.read(_REVOCABLE_OF_SOURCE, bindings)]
        if not positions:
            return Sweep(changed=0, next=None)
        bindings["positions"] = json.dumps(positions)
        marked = self._database.write(lambda connection: connection.execute(_REVOKE_POSITIONS, bindings).fetchall())
        revoked = sum(closed == CLOSED_REVOKED for (closed,) in marked)
        return Sweep(changed=revoked, next=str(positions[-1]) if len(positions) == limit else None)

    def purge_invites(self, *, before: datetime, limit: int, cursor: str | None = None) -> Sweep:  # noqa: D102
        after = 0 if cursor is None else parse_position(cursor)
        end = [row[0] for row in self._database.read(_STEP_END, (after, limit - 1))]
        bindings = {"before": to_seconds(before), "after": after, "end": end[0] if end else NEWEST}
        following = str(end[0]) if end else None
        if not self._database.read(_ANY_OVER, bindings):
            return Sweep(changed=0, next=following)

        def change(connection: apsw.Connection) -> int:
            tokens = connection.execute(_PURGE, bindings).fetchall()
            connection.executemany(_PURGE_REDEMPTIONS, tokens).fetchall()
            return len(tokens)

        return Sweep(changed=self._database.write(change), next=following)


def add_invites(connection: apsw.Connection, invites: Sequence[Invite], *, if_absent: bool = False) -> None:
    """Add invites inside a transaction that holds the write lock.

    Raises:
        InviteExists: There is an invite of one of these tokens, and ``if_absent`` is false.
    """
    for invite in invites:
        if not connection.execute(ADD_INVITE, invite_to_row(invite)).fetchall() and not if_absent:
            raise InviteExists


def _list_statement(index: str, where: str, state: InviteState | None) -> str:
    """Return the statement for a list in one state, or in all: a range of the index for each value of ``closed``."""
    parts = {
        "pending": [f"closed = 0 AND position >= :floor AND {_NOT_EXPIRED}"],
        "expired": ["closed = 0 AND position >= :floor AND expires_at < :now"],
        "used": ["closed = 1"],
        "revoked": ["closed = 2"],
        None: ["closed = 0", "closed = 1", "closed = 2"],
    }[state]
    selects = [
        f"SELECT * FROM (SELECT position, {INVITE_COLUMNS} FROM invites INDEXED BY {index}"
        f" WHERE {where} AND position < :before AND {part} ORDER BY position DESC LIMIT :limit)"
        for part in parts
    ]
    return " UNION ALL ".join(selects) + " ORDER BY position DESC LIMIT :limit"
