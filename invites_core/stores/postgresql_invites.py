"""The invites' half of the PostgreSQL store: invites and their redemptions."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime
from typing import Final

from invites_core.errors import InviteExists, StorageBusy
from invites_core.invites import Invite, Redemption
from invites_core.store import RedeemResult
from invites_core.stores.postgresql_connection import Connection
from invites_core.stores.postgresql_database import PostgresqlDatabase
from invites_core.stores.postgresql_errors import Duplicate
from invites_core.stores.postgresql_positions import make_positions
from invites_core.stores.records import to_seconds
from invites_core.stores.rows import (
    INVITE_COLUMNS,
    REDEMPTION_COLUMNS,
    find_redeem_outcome,
    invite_from_row,
    invite_to_row,
    redemption_from_row,
)

__all__ = ["ADD_INVITES", "NOT_EXPIRED", "UNIQUE_TOKENS", "PostgresqlInvites", "invites_to_json"]

ATTEMPTS: Final = 10
"""How often a change looks again when another was in between."""

UNIQUE_TOKENS: Final = "invites_pkey"

_NAMES: Final = ("position", *INVITE_COLUMNS.split(", "))
_TYPES: Final = {
    **dict.fromkeys(_NAMES, "text"),
    "position": "uuid",
    "registration": "smallint",
    **dict.fromkeys(("created_at", "expires_at", "max_uses", "uses", "closed_at"), "bigint"),
}
ADD_INVITES: Final = (
    f"INSERT INTO invites ({', '.join(_NAMES)}) SELECT {', '.join(_NAMES)} FROM json_to_recordset(%(invites)s::json)"
    f" AS new ({', '.join(f'{name} {kind}' for name, kind in _TYPES.items())})"
)
"""Adds what `invites_to_json` wrote; `UNIQUE_TOKENS` refuses tokens that are there."""

NOT_EXPIRED: Final = "(expires_at IS NULL OR expires_at >= %(now)s)"
_OF_HOST: Final = "token = %(token)s AND (%(host)s::text IS NULL OR host = %(host)s::text)"
_ADMITS: Final = (
    f"((max_uses IS NULL OR uses < max_uses) AND revoked_by IS NULL AND {NOT_EXPIRED}"
    " AND (username IS NULL OR kind = 'roster' OR username = %(username)s::text) IS TRUE)"
)
_IS_PENDING: Final = f"(closed = 0 AND {NOT_EXPIRED})"

_FIND: Final = f"SELECT {INVITE_COLUMNS} FROM invites WHERE token = %(token)s"
_LOCK: Final = f"SELECT {INVITE_COLUMNS} FROM invites WHERE {_OF_HOST} FOR NO KEY UPDATE"
# The guard is on the invite's own row: who waited for its lock has it looked at again. The constraint on redemptions
# refuses an identity that another call has used meanwhile, and with it the whole statement.
_REDEEM: Final = (
    "WITH used AS (UPDATE invites SET uses = uses + 1,"
    " closed_at = CASE WHEN uses + 1 = max_uses THEN %(now)s::bigint ELSE closed_at END"
    f" WHERE {_OF_HOST} AND {_ADMITS}"
    " AND NOT EXISTS (SELECT 1 FROM redemptions WHERE token = %(token)s AND redemption_id = %(id)s)"
    f" RETURNING {INVITE_COLUMNS}), kept AS (INSERT INTO redemptions (token, redemption_id, redeemer, redeemed_at)"
    " SELECT token, %(id)s, %(redeemer)s::text, %(now)s::bigint FROM used)"
    f" SELECT {INVITE_COLUMNS} FROM used"
)
_WHY_NOT: Final = (
    f"SELECT {INVITE_COLUMNS}, {_ADMITS}, is_known, redeemer, released_at FROM invites LEFT JOIN"
    " (SELECT true AS is_known, redeemer, released_at FROM redemptions"
    f" WHERE token = %(token)s AND redemption_id = %(id)s) AS known ON true WHERE {_OF_HOST}"
)
_LIST_REDEMPTIONS: Final = (
    f"SELECT {REDEMPTION_COLUMNS} FROM redemptions WHERE token = %(token)s"
    ' ORDER BY coalesce(redeemed_at, released_at), redemption_id COLLATE "C"'
)
_RELEASE: Final = (
    "UPDATE redemptions SET released_at = %(now)s"
    " WHERE token = %(token)s AND redemption_id = %(id)s AND released_at IS NULL RETURNING 1"
)
_GIVE_BACK: Final = (
    "UPDATE invites SET uses = uses - 1, closed_at = CASE WHEN revoked_by IS NULL THEN NULL ELSE closed_at END"
    f" WHERE token = %(token)s RETURNING {INVITE_COLUMNS}"
)
_ADD_RELEASED: Final = (
    "INSERT INTO redemptions (token, redemption_id, released_at) VALUES (%(token)s, %(id)s, %(now)s)"
    " ON CONFLICT DO NOTHING"
)
_REVOKE: Final = (
    "UPDATE invites SET revoked_by = %(by)s, closed_at = %(now)s"
    f" WHERE {_OF_HOST} AND {_IS_PENDING} RETURNING {INVITE_COLUMNS}"
)
_WHY_NOT_REVOKED: Final = f"SELECT {INVITE_COLUMNS}, {_IS_PENDING} FROM invites WHERE {_OF_HOST}"


class PostgresqlInvites:
    """The verbs of `InviteStore` that are about single invites, on a PostgreSQL database."""

    _database: PostgresqlDatabase

    def add_invites(self, invites: Sequence[Invite], *, if_absent: bool = False) -> None:  # noqa: D102
        conflict = " ON CONFLICT (token) DO NOTHING" if if_absent else ""
        try:
            self._database.change(ADD_INVITES + conflict, {"invites": invites_to_json(invites)})
        except Duplicate as error:
            raise InviteExists from error

    def find_invite(self, token: str) -> Invite | None:  # noqa: D102 (the protocol says it, as for all here)
        rows = self._database.read(_FIND, {"token": token})
        return invite_from_row(rows[0]) if rows else None

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
        for _ in range(ATTEMPTS):
            try:
                used = self._database.change(_REDEEM, bindings)
            except Duplicate:
                used = []
            if used:
                return RedeemResult(outcome="redeemed", invite=invite_from_row(used[0]))
            rows = self._database.read(_WHY_NOT, bindings)
            if not rows:
                return RedeemResult(outcome="refused", invite=None)
            *row, admits, is_known, known_redeemer, released_at = rows[0]
            invite = invite_from_row(row)
            if is_known:
                outcome = find_redeem_outcome(redeemer, (known_redeemer, released_at))
                return RedeemResult(outcome=outcome, invite=invite)
            if not admits:
                return RedeemResult(outcome="refused", invite=invite)
        raise StorageBusy(f"the database {self._database.location} is busy")

    def release_redemption(  # noqa: D102
        self, token: str, *, redemption_id: str, host: str | None, now: datetime
    ) -> Invite | None:
        bindings = {"token": token, "id": redemption_id, "host": host, "now": to_seconds(now)}

        def change(connection: Connection) -> Invite | None:
            # Locked first, as a redemption does: what follows sees all that those before have done.
            rows = connection.run(_LOCK, bindings)
            if rows and connection.run(_RELEASE, bindings):
                rows = connection.run(_GIVE_BACK, bindings)
            elif rows:
                connection.run(_ADD_RELEASED, bindings)
            return invite_from_row(rows[0]) if rows else None

        return self._database.write(change)

    def list_redemptions(self, token: str) -> Sequence[Redemption]:  # noqa: D102
        return [redemption_from_row(row) for row in self._database.read(_LIST_REDEMPTIONS, {"token": token})]

    def revoke_invite(  # noqa: D102
        self, token: str, *, by: str, host: str | None, now: datetime
    ) -> tuple[bool, Invite | None]:
        bindings = {"token": token, "by": by, "host": host, "now": to_seconds(now)}
        for _ in range(ATTEMPTS):
            revoked = self._database.change(_REVOKE, bindings)
            if revoked:
                return True, invite_from_row(revoked[0])
            rows = self._database.read(_WHY_NOT_REVOKED, bindings)
            if not rows:
                return False, None
            *row, is_pending = rows[0]
            if not is_pending:
                return False, invite_from_row(row)
        raise StorageBusy(f"the database {self._database.location} is busy")


def invites_to_json(invites: Sequence[Invite]) -> str:
    """Return invites as `ADD_INVITES` takes them, each with a new place in lists."""
    positions = make_positions(len(invites))
    rows = [(str(position), *invite_to_row(invite)) for position, invite in zip(positions, invites, strict=True)]
    return json.dumps([dict(zip(_NAMES, row, strict=True)) for row in rows], ensure_ascii=False)
