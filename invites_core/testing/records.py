"""Plain records, with some fields set."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any, Final

from invites_core.invites import Invite, generate_token
from invites_core.keys import ApiKey, KeyPolicy, Quota, generate_key_id
from invites_core.store import Grant, QuotaWindow
from invites_core.testing.clock import NOON

__all__ = ["FULL_POLICY", "SECOND", "make_grant", "make_invite", "make_key"]

SECOND: Final = timedelta(seconds=1)

FULL_POLICY: Final = KeyPolicy(
    scopes=frozenset({"create", "read", "revoke", "redeem"}),
    kinds=frozenset({"register", "roster", "reset"}),
    groups=frozenset({"staff", "Gäste"}),
    roles=frozenset({"prosody:admin"}),
    allow_username=True,
    max_expiry=timedelta(days=30),
    max_uses=10,
    quota=Quota(100, timedelta(days=1)),
    all_invites=True,
    header_only=True,
)
"""A policy in which no field has its default."""


def make_key(**fields: Any) -> ApiKey:
    """Return a plain key with an id of its own, with some fields set. No secret opens it."""
    plain = ApiKey(
        id=generate_key_id(),
        host="example.com",
        name="My test key",
        secret_hash="$argon2id$v=19$m=8,t=1,p=1$c29tZXNhbHQ$not-a-real-hash",
        tag=b"\x00\xff8bytes",
        created_at=NOON,
    )
    return replace(plain, **fields)


def make_invite(**fields: Any) -> Invite:
    """Return a plain invite with a token of its own, with some fields set."""
    plain = Invite(
        token=generate_token(),
        host="example.com",
        created_at=NOON,
        expires_at=NOON + timedelta(days=7),
        source="command",
    )
    return replace(plain, **fields)


def make_grant(
    key: ApiKey, *, count: int = 1, limit: int | None = None, name: str | None = None, **fields: Any
) -> Grant:
    """Return what a creation takes.

    Args:
        key: The key that makes invites.
        count: How many invites.
        limit: The quota of the window that began at noon; None: no quota.
        name: What the digest and the fingerprint are made of; None: no idempotency row.
        fields: Other fields.
    """
    plain = Grant(
        key_id=key.id,
        now=NOON,
        tokens=tuple(generate_token() for _ in range(count)),
        window=None if limit is None else QuotaWindow(start=NOON, limit=limit),
        digest=None if name is None else name.encode().ljust(32, b"."),
        fingerprint=None if name is None else b"f" * 32,
        expired_before=NOON - timedelta(days=7),
    )
    return replace(plain, **fields)
