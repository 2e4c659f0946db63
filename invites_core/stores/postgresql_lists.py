"""Lists of invites, and changes over many of them, in the PostgreSQL store."""

from __future__ import annotations

import uuid
from datetime import datetime
from typing import Any, Final

from invites_core.invites import InviteState
from invites_core.store import InvitePage, Sweep
from invites_core.stores.postgresql_connection import Connection
from invites_core.stores.postgresql_database import PostgresqlDatabase
from invites_core.stores.postgresql_invites import NOT_EXPIRED
from invites_core.stores.postgresql_positions import FIRST, LAST, format_position, parse_position
from invites_core.stores.records import to_seconds
from invites_core.stores.rows import INVITE_COLUMNS, invite_from_row

__all__ = ["PostgresqlLists"]

SCANNED_ROWS: Final = 10_000
"""How many open invites one page looks at for those that are pending, or that have expired."""

CLOSED_REVOKED: Final = 2

_OVER_BEFORE: Final = "(closed_at < %(before)s OR (closed_at IS NULL AND expires_at < %(before)s))"
# A used one is marked as well: it would be pending again if its use were given back.
_REVOCABLE: Final = f"((closed = 0 AND {NOT_EXPIRED}) OR closed = 1) AND revoked_by IS NULL"
_OF_SOURCE: Final = (
    "SELECT position, token FROM invites WHERE source = %(source)s AND host = %(host)s AND position > %(after)s::uuid"
)
_IN_STEP: Final = "AND position <= %(end)s::uuid"
_REVOCABLE_OF_SOURCE: Final = (
    f"(({_OF_SOURCE} AND closed = 0 {_IN_STEP} AND {NOT_EXPIRED} ORDER BY position LIMIT %(limit)s) UNION ALL"
    f" ({_OF_SOURCE} AND closed = 1 {_IN_STEP} AND revoked_by IS NULL ORDER BY position LIMIT %(limit)s))"
    " ORDER BY position LIMIT %(limit)s"
)
# Neither whether an open invite has expired nor whether a used one was marked is part of the index, so a step ends
# after so many rows of either.
_SWEEP_END: Final = (
    f"SELECT min(position::text) FROM ((SELECT position FROM ({_OF_SOURCE} AND closed = 0 ORDER BY position"
    f" LIMIT 1 OFFSET {SCANNED_ROWS - 1}) AS open) UNION ALL (SELECT position FROM ({_OF_SOURCE} AND closed = 1"
    f" ORDER BY position LIMIT 1 OFFSET {SCANNED_ROWS - 1}) AS used)) AS ends"
)
_REVOKE_TOKENS: Final = (
    "UPDATE invites SET revoked_by = %(by)s, closed_at = CASE WHEN closed = 0 THEN %(now)s ELSE closed_at END"
    f" WHERE token = ANY(%(tokens)s::text[]) AND {_REVOCABLE} RETURNING closed"
)
_STEP_END: Final = (
    "SELECT token FROM invites WHERE token > %(after)s ORDER BY token LIMIT 1 OFFSET %(limit)s::bigint - 1"
)
_PURGE: Final = (
    # Two statements: one with "no end, or before the end" in it is planned for the worse of the two.
    f"DELETE FROM invites WHERE token > %(after)s AND token <= %(end)s AND {_OVER_BEFORE} RETURNING token"
)
_PURGE_LAST: Final = f"DELETE FROM invites WHERE token > %(after)s AND {_OVER_BEFORE} RETURNING token"
_PURGE_REDEMPTIONS: Final = "DELETE FROM redemptions WHERE token = ANY(%(tokens)s::text[])"


class PostgresqlLists:
    """The verbs of `InviteStore` that are about many invites, on a PostgreSQL database."""

    _database: PostgresqlDatabase

    def list_invites(  # noqa: D102 (the protocol says it, as for all that follow)
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
            "before": LAST if cursor is None else parse_position(cursor),
            "floor": None,
            "limit": limit + 1,
        }
        where = "host = %(host)s" if source is None else "source = %(source)s AND host = %(host)s"
        floor = None
        if state in ("pending", "expired"):
            # Whether an open invite has expired is no part of the index, so the page ends after so many rows.
            statement = (
                f"SELECT position FROM invites WHERE {where} AND closed = 0 AND position < %(before)s::uuid"
                f" ORDER BY position DESC LIMIT 1 OFFSET {SCANNED_ROWS - 1}"
            )
            for (floor,) in self._database.read(statement, bindings):
                bindings["floor"] = floor
        rows = self._database.read(_list_statement(where, state, has_floor=floor is not None), bindings)
        invites = tuple(invite_from_row(row[1:]) for row in rows[:limit])
        if len(rows) > limit:
            return InvitePage(invites=invites, next=format_position(rows[limit - 1][0]))
        return InvitePage(invites=invites, next=None if floor is None else format_position(floor))

    def revoke_invites_from(  # noqa: D102
        self, source: str, *, by: str, host: str, now: datetime, limit: int, cursor: str | None = None
    ) -> Sweep:
        bindings: dict[str, Any] = {
            "source": source,
            "by": by,
            "host": host,
            "now": to_seconds(now),
            "after": FIRST if cursor is None else parse_position(cursor),
            "limit": limit,
        }
        # Looked for without locks, so that a long search keeps nobody waiting; the guard decides again.
        [(end,)] = self._database.read(_SWEEP_END, bindings)
        bindings["end"] = LAST if end is None else end
        found = self._database.read(_REVOCABLE_OF_SOURCE, bindings)
        following = None if end is None else format_position(uuid.UUID(end))
        if not found:
            return Sweep(changed=0, next=following)
        bindings["tokens"] = [token for _, token in found]
        marked = self._database.change(_REVOKE_TOKENS, bindings)
        revoked = sum(closed == CLOSED_REVOKED for (closed,) in marked)
        return Sweep(changed=revoked, next=format_position(found[-1][0]) if len(found) == limit else following)

    def purge_invites(self, *, before: datetime, limit: int, cursor: str | None = None) -> Sweep:
        """Walk in the order of the tokens: the primary key is the one index over all hosts."""
        bindings: dict[str, Any] = {"before": to_seconds(before), "after": cursor or "", "limit": limit}
        ends = self._database.read(_STEP_END, bindings)
        bindings["end"] = ends[0][0] if ends else None

        def change(connection: Connection) -> int:
            tokens = [token for (token,) in connection.run(_PURGE if ends else _PURGE_LAST, bindings)]
            if tokens:
                # After the invites: their rows are locked now, and no redemption comes to them any more.
                connection.run(_PURGE_REDEMPTIONS, {"tokens": tokens})
            return len(tokens)

        return Sweep(changed=self._database.write(change), next=bindings["end"])


def _list_statement(where: str, state: InviteState | None, *, has_floor: bool) -> str:
    """Return the statement for a list in one state, or in all: a range of the index for each value of ``closed``."""
    floor = " AND position >= %(floor)s::uuid" if has_floor else ""
    parts = {
        "pending": [f"closed = 0{floor} AND {NOT_EXPIRED}"],
        "expired": [f"closed = 0{floor} AND expires_at < %(now)s"],
        "used": ["closed = 1"],
        "revoked": ["closed = 2"],
        None: ["closed = 0", "closed = 1", "closed = 2"],
    }[state]
    selects = [
        f"(SELECT position, {INVITE_COLUMNS} FROM invites WHERE {where} AND position < %(before)s::uuid AND {part}"
        " ORDER BY position DESC LIMIT %(limit)s)"
        for part in parts
    ]
    return f"SELECT * FROM ({' UNION ALL '.join(selects)}) AS listed ORDER BY position DESC LIMIT %(limit)s"
