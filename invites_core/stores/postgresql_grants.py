"""Creations in the PostgreSQL store: the key, its quota, the idempotency row and the invites in one statement."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final

from invites_core.errors import InviteExists, KeyUnknown, StorageBusy
from invites_core.invites import Invite
from invites_core.store import Grant, GrantTaken
from invites_core.stores.postgresql_database import PostgresqlDatabase
from invites_core.stores.postgresql_errors import Duplicate
from invites_core.stores.postgresql_invites import ADD_INVITES, UNIQUE_TOKENS, invites_to_json
from invites_core.stores.records import list_to_json, to_seconds
from invites_core.stores.rows import CREATION_COLUMNS, grant_from_row

__all__ = ["PostgresqlGrants"]

ATTEMPTS: Final = 10
"""How often a creation looks again when another node was in between."""

# The lock on the key's row: a deletion waits for the creation, or the creation finds the key gone.
_HELD: Final = "held AS (SELECT id FROM keys WHERE id = %(key)s FOR KEY SHARE)"
_IS_REPEATED: Final = (
    "EXISTS (SELECT 1 FROM creations WHERE key_id = %(key)s AND digest = %(digest)s"
    " AND created_at >= %(expired_before)s)"
)
_TAKEN_BEFORE: Final = "CASE WHEN quotas.window_start < excluded.window_start THEN 0 ELSE quotas.taken END"
# Nodes whose clocks differ may see different windows at the boundary; the later one counts, and never goes back.
_COUNTED: Final = (
    "counted AS (INSERT INTO quotas (key_id, window_start, taken)"
    " SELECT id, %(start)s::bigint, %(count)s::bigint FROM {source}"
    " WHERE %(count)s::bigint <= %(limit)s::bigint{unless_repeated}"
    f" ON CONFLICT (key_id) DO UPDATE SET taken = {_TAKEN_BEFORE} + excluded.taken,"
    " window_start = greatest(quotas.window_start, excluded.window_start)"
    f" WHERE {_TAKEN_BEFORE} + excluded.taken <= %(limit)s::bigint RETURNING key_id AS id)"
)
# Two that come with one digest at the same time: the constraint refuses the second, and with it all that it took.
_NOTED: Final = (
    "noted AS (INSERT INTO creations (key_id, digest, fingerprint, tokens, created_at, done_at)"
    " SELECT id, %(digest)s, %(fingerprint)s, %(tokens)s, %(now)s, %(done_at)s::bigint FROM {source}"
    f" WHERE NOT {_IS_REPEATED} RETURNING key_id AS id)"
)
_DIGEST_CONSTRAINT: Final = "creations_pkey"

_FIND_CREATION: Final = (
    f"SELECT {CREATION_COLUMNS} FROM creations"
    " WHERE key_id = %(key)s AND digest = %(digest)s AND created_at >= %(expired_before)s"
)
_DROP_EXPIRED: Final = (
    "DELETE FROM creations WHERE key_id = %(key)s AND digest = %(digest)s AND created_at < %(expired_before)s"
)
_FINISH: Final = (
    "UPDATE creations SET done_at = %(now)s WHERE key_id = %(key)s AND digest = %(digest)s AND done_at IS NULL"
)
_QUOTA_TAKEN: Final = "SELECT taken FROM quotas WHERE key_id = %(key)s AND window_start >= %(start)s"
PURGED_AT_ONCE: Final = 10_000
_PURGE: Final = (
    "DELETE FROM creations WHERE (key_id, digest) IN (SELECT key_id, digest FROM creations"
    f" WHERE created_at < %(before)s LIMIT {PURGED_AT_ONCE}) RETURNING 1"
)


class PostgresqlGrants:
    """The verbs of `KeyStore` and `Store` that are about creations, on a PostgreSQL database."""

    _database: PostgresqlDatabase

    def take_grant(self, grant: Grant) -> GrantTaken:  # noqa: D102 (the protocol says it, as for all that follow)
        return self._take(grant, None)

    def add_granted(self, grant: Grant, invites: Sequence[Invite]) -> GrantTaken:
        """Take a grant and add the invites of its tokens in one transaction, as the protocol says."""
        return self._take(grant, invites)

    def finish_grant(self, grant: Grant) -> None:  # noqa: D102
        if grant.digest is not None:
            bindings = {"key": grant.key_id, "digest": grant.digest, "now": to_seconds(grant.now)}
            self._database.change(_FINISH, bindings)

    def find_quota_taken(self, key_id: str, window_start: datetime) -> int:  # noqa: D102
        rows = self._database.read(_QUOTA_TAKEN, {"key": key_id, "start": to_seconds(window_start)})
        return int(rows[0][0]) if rows else 0

    def purge_grants(self, *, before: datetime) -> int:  # noqa: D102
        purged = step = len(self._database.change(_PURGE, {"before": to_seconds(before)}))
        while step == PURGED_AT_ONCE:
            step = len(self._database.change(_PURGE, {"before": to_seconds(before)}))
            purged += step
        return purged

    def _take(self, grant: Grant, invites: Sequence[Invite] | None) -> GrantTaken:
        statement = _take_statement(grant.window is not None, grant.digest is not None, invites is not None)
        bindings = _bind(grant, invites)
        for _ in range(ATTEMPTS):
            try:
                [(is_known, is_taken)] = self._database.change(statement, bindings)
            except Duplicate as error:
                if error.constraint == UNIQUE_TOKENS:
                    raise InviteExists from error
                if error.constraint != _DIGEST_CONSTRAINT:
                    raise
                # Another was quicker, or one of long ago stands in the way.
                self._database.change(_DROP_EXPIRED, bindings)
                continue
            if not is_known:
                raise KeyUnknown
            if is_taken:
                return GrantTaken(outcome="taken", tokens=grant.tokens, created_at=grant.now)
            rows = self._database.read(_FIND_CREATION, bindings) if grant.digest is not None else []
            if rows:
                return grant_from_row(rows[0], grant)
            if grant.window is not None:
                return GrantTaken(outcome="spent", created_at=grant.now)
        raise StorageBusy(f"the database {self._database.location} is busy")


@functools.cache
def _take_statement(has_quota: bool, has_digest: bool, has_invites: bool) -> str:
    """Return the statement that takes a grant: each step is made only where the one before it was."""
    steps, source = [_HELD], "held"
    if has_quota:
        unless_repeated = f" AND NOT {_IS_REPEATED}" if has_digest else ""
        steps.append(_COUNTED.format(source=source, unless_repeated=unless_repeated))
        source = "counted"
    if has_digest:
        steps.append(_NOTED.format(source=source))
        source = "noted"
    if has_invites:
        steps.append(f"added AS ({ADD_INVITES} WHERE EXISTS (SELECT 1 FROM {source}) RETURNING 1)")
    return f"WITH {', '.join(steps)} SELECT EXISTS (SELECT 1 FROM held), EXISTS (SELECT 1 FROM {source})"


def _bind(grant: Grant, invites: Sequence[Invite] | None) -> dict[str, Any]:
    now = to_seconds(grant.now)
    return {
        "key": grant.key_id,
        "now": now,
        "count": len(grant.tokens),
        "start": None if grant.window is None else to_seconds(grant.window.start),
        "limit": None if grant.window is None else grant.window.limit,
        "digest": grant.digest,
        "fingerprint": grant.fingerprint,
        "tokens": list_to_json(grant.tokens),
        "expired_before": to_seconds(grant.expired_before),
        "done_at": None if invites is None else now,
        "invites": None if invites is None else invites_to_json(invites),
    }
