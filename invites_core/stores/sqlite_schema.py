"""The tables of the SQLite store.

This is a stored format. Until 0.1.0 is released it stays version 1 and may change in place; after that every change
is a new version with a migration from the one before.

Times are whole seconds since 1970, lists and policies are JSON as ``records`` writes it. Tables are STRICT, so that a
wrong type is an error when it is written, not a riddle when it is read.
"""

from __future__ import annotations

from typing import Final

__all__ = ["SCHEMA", "SCHEMA_VERSION"]

SCHEMA_VERSION: Final = 1

SCHEMA: Final = """
CREATE TABLE keys (
    id TEXT PRIMARY KEY,
    host TEXT NOT NULL,
    name TEXT,
    secret_hash TEXT NOT NULL,
    tag BLOB NOT NULL,
    previous_hash TEXT,
    previous_tag BLOB,
    previous_until INTEGER,
    policy TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    expires_at INTEGER,
    last_used_at INTEGER,
    CHECK ((previous_hash IS NULL) = (previous_until IS NULL) AND (previous_tag IS NULL) = (previous_until IS NULL))
) STRICT, WITHOUT ROWID;

-- The mark of a deleted key: its id is never given or imported again.
CREATE TABLE deleted_keys (
    id TEXT PRIMARY KEY,
    deleted_at INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- How much of its quota a key has taken in the window that begins at window_start.
CREATE TABLE quotas (
    key_id TEXT PRIMARY KEY,
    window_start INTEGER NOT NULL,
    taken INTEGER NOT NULL CHECK (taken >= 0)
) STRICT, WITHOUT ROWID;

-- Idempotent creations: (key, SHA-256 of the idempotency key) to the tokens that were chosen for it.
CREATE TABLE creations (
    key_id TEXT NOT NULL,
    digest BLOB NOT NULL,
    fingerprint BLOB NOT NULL,
    tokens TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    done_at INTEGER,
    PRIMARY KEY (key_id, digest)
) STRICT, WITHOUT ROWID;

-- closed is 0 while open, 1 when used up, 2 when revoked: what the lists need of the state without a clock.
CREATE TABLE invites (
    position INTEGER PRIMARY KEY,
    token TEXT NOT NULL UNIQUE,
    host TEXT NOT NULL,
    kind TEXT NOT NULL CHECK (kind IN ('register', 'roster', 'reset')),
    username TEXT,
    registration INTEGER NOT NULL CHECK (registration IN (0, 1)),
    created_at INTEGER NOT NULL,
    expires_at INTEGER,
    max_uses INTEGER CHECK (max_uses >= 1),
    uses INTEGER NOT NULL CHECK (uses >= 0 AND (max_uses IS NULL OR uses <= max_uses)),
    source TEXT NOT NULL,
    groups TEXT NOT NULL,
    roles TEXT NOT NULL,
    note TEXT,
    closed_at INTEGER,
    revoked_by TEXT,
    closed INTEGER GENERATED ALWAYS AS (
        CASE WHEN max_uses IS NOT NULL AND uses >= max_uses THEN 1 WHEN revoked_by IS NOT NULL THEN 2 ELSE 0 END
    ) VIRTUAL
) STRICT;
CREATE INDEX invites_by_host ON invites (host, closed, position);
CREATE INDEX invites_by_source ON invites (source, host, closed, position);

-- Who redeemed what. released_at is set when the use was given back; a release may come before its redemption.
CREATE TABLE redemptions (
    token TEXT NOT NULL,
    redemption_id TEXT NOT NULL,
    redeemer TEXT,
    redeemed_at INTEGER,
    released_at INTEGER,
    PRIMARY KEY (token, redemption_id),
    CHECK (redeemed_at IS NOT NULL OR released_at IS NOT NULL)
) STRICT, WITHOUT ROWID
"""
