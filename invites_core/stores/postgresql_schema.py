"""The tables of the PostgreSQL store, as a numbered list of migrations.

This is a stored format. Until 0.1.0 is released the first migration may change in place; after that every change is a
new one at the end of the list, and none that was released changes.

Times are whole seconds since 1970, lists and policies are JSON as ``records`` writes it. Texts are compared by their
bytes (collation ``C``), so that the order of an index is the same on every machine.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import psycopg

__all__ = ["MIGRATIONS", "find_version", "migrate"]

Connection = psycopg.Connection[tuple[Any, ...]]

_FIRST: Final = """
CREATE TABLE keys (
    id text COLLATE "C" CONSTRAINT keys_pkey PRIMARY KEY,
    host text COLLATE "C" NOT NULL,
    name text,
    secret_hash text NOT NULL,
    tag bytea NOT NULL,
    previous_hash text,
    previous_tag bytea,
    previous_until bigint,
    policy text NOT NULL,
    created_at bigint NOT NULL,
    expires_at bigint,
    last_used_at bigint,
    CHECK ((previous_hash IS NULL) = (previous_until IS NULL) AND (previous_tag IS NULL) = (previous_until IS NULL))
);

-- The mark of a deleted key: its id is never given or imported again.
CREATE TABLE deleted_keys (
    id text COLLATE "C" CONSTRAINT deleted_keys_pkey PRIMARY KEY,
    deleted_at bigint NOT NULL
);

-- How much of its quota a key has taken in the window that begins at window_start.
CREATE TABLE quotas (
    key_id text COLLATE "C" CONSTRAINT quotas_pkey PRIMARY KEY,
    window_start bigint NOT NULL,
    taken bigint NOT NULL CHECK (taken >= 0)
);

-- Idempotent creations: (key, SHA-256 of the idempotency key) to the tokens that were chosen for it.
CREATE TABLE creations (
    key_id text COLLATE "C" NOT NULL,
    digest bytea NOT NULL,
    fingerprint bytea NOT NULL,
    tokens text NOT NULL,
    created_at bigint NOT NULL,
    done_at bigint,
    CONSTRAINT creations_pkey PRIMARY KEY (key_id, digest)
);

-- position is the place in lists, a UUID of version 7 made by the node that adds the row.
-- closed is 0 while open, 1 when used up, 2 when revoked: what the lists need of the state without a clock.
CREATE TABLE invites (
    token text COLLATE "C" CONSTRAINT invites_pkey PRIMARY KEY,
    position uuid NOT NULL,
    host text COLLATE "C" NOT NULL,
    kind text COLLATE "C" NOT NULL CHECK (kind IN ('register', 'roster', 'reset')),
    username text COLLATE "C",
    registration smallint NOT NULL CHECK (registration IN (0, 1)),
    created_at bigint NOT NULL,
    expires_at bigint,
    max_uses bigint CHECK (max_uses >= 1),
    uses bigint NOT NULL CHECK (uses >= 0 AND (max_uses IS NULL OR uses <= max_uses)),
    source text COLLATE "C" NOT NULL,
    groups text NOT NULL,
    roles text NOT NULL,
    note text,
    closed_at bigint,
    revoked_by text,
    closed smallint NOT NULL GENERATED ALWAYS AS (
        CASE WHEN max_uses IS NOT NULL AND uses >= max_uses THEN 1 WHEN revoked_by IS NOT NULL THEN 2 ELSE 0 END
    ) STORED
);
CREATE INDEX invites_by_host ON invites (host, closed, position);
CREATE INDEX invites_by_source ON invites (source, host, closed, position);

-- Who redeemed what. released_at is set when the use was given back; a release may come before its redemption.
CREATE TABLE redemptions (
    token text COLLATE "C" NOT NULL,
    redemption_id text COLLATE "C" NOT NULL,
    redeemer text,
    redeemed_at bigint,
    released_at bigint,
    CONSTRAINT redemptions_pkey PRIMARY KEY (token, redemption_id),
    CHECK (redeemed_at IS NOT NULL OR released_at IS NOT NULL)
);
"""

MIGRATIONS: Final[tuple[str, ...]] = (_FIRST,)
"""The statements that lead from each version to the next; the first leads from an empty database to version 1."""

_MAKE_VERSIONS: Final = (
    "CREATE TABLE IF NOT EXISTS invites_schema (only_row smallint PRIMARY KEY CHECK (only_row = 1),"
    " version integer NOT NULL)"
)
_FIND_TABLE: Final = "SELECT to_regclass('invites_schema') IS NOT NULL"
_FIND_VERSION: Final = "SELECT version FROM invites_schema"
_ADD_VERSION: Final = "INSERT INTO invites_schema (only_row, version) VALUES (1, 0) ON CONFLICT DO NOTHING"
_LOCK_VERSION: Final = "SELECT version FROM invites_schema FOR UPDATE"
_SET_VERSION: Final = "UPDATE invites_schema SET version = %s"


def find_version(connection: Connection) -> int | None:
    """Return the version of the tables, or None where there are none of ours."""
    if connection.execute(_FIND_TABLE).fetchall() != [(True,)]:
        return None
    rows = connection.execute(_FIND_VERSION).fetchall()
    return int(rows[0][0]) if rows and rows[0][0] else None


def migrate(
    connection: Connection, migrations: Sequence[str] = MIGRATIONS, *, tell: Callable[[int], object] = lambda _: None
) -> None:
    """Bring the tables to the last version. Several nodes may do so at the same time: each step is made once.

    Args:
        connection: A connection in autocommit mode, without a time limit on statements.
        migrations: The list.
        tell: Called with each version that this very call has brought about.
    """
    # Two that make a table of one name at the same time: one gets an error of the catalogue, whichever it comes to
    # first, and finds it made.
    for _ in range(3):
        try:
            connection.execute(_MAKE_VERSIONS)
            break
        except (psycopg.errors.UniqueViolation, psycopg.errors.DuplicateTable, psycopg.errors.DuplicateObject):
            continue
    connection.execute(_ADD_VERSION)
    for version, statements in enumerate(migrations, start=1):
        with connection.transaction():
            # The lock on the row makes the nodes go one after the other, a step each.
            [(present,)] = connection.execute(_LOCK_VERSION).fetchall()
            if present != version - 1:
                continue
            for statement in statements.split(";\n"):
                if statement.strip():
                    connection.execute(statement.encode())
            connection.execute(_SET_VERSION, (version,))
        tell(version)
