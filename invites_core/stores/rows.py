"""Records as rows of plain columns, the same in every SQL store: times as seconds, policies and lists as JSON."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, Final, Literal

from invites_core.invites import Invite, Redemption
from invites_core.keys import ApiKey, PreviousSecret
from invites_core.store import Grant, GrantTaken
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

__all__ = [
    "CREATION_COLUMNS",
    "INVITE_COLUMNS",
    "KEY_COLUMNS",
    "REDEMPTION_COLUMNS",
    "find_redeem_outcome",
    "grant_from_row",
    "invite_from_row",
    "invite_to_row",
    "key_from_row",
    "key_to_row",
    "redemption_from_row",
]

Row = Sequence[Any]

KEY_COLUMNS: Final = (
    "id, host, name, secret_hash, tag, previous_hash, previous_tag, previous_until,"
    " policy, created_at, expires_at, last_used_at"
)
INVITE_COLUMNS: Final = (
    "token, host, kind, username, registration, created_at, expires_at, max_uses, uses, source, groups, roles, note,"
    " closed_at, revoked_by"
)
REDEMPTION_COLUMNS: Final = "token, redemption_id, redeemer, redeemed_at, released_at"
CREATION_COLUMNS: Final = "fingerprint, tokens, created_at, done_at"


def key_to_row(key: ApiKey) -> tuple[Any, ...]:
    """Return a key as the values of `KEY_COLUMNS`."""
    previous = key.previous
    return (
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


# The same row comes with every request of a key.
@functools.lru_cache(maxsize=1024)
def key_from_row(row: tuple[Any, ...]) -> ApiKey:
    """Return the key whose values of `KEY_COLUMNS` these are.

    Raises:
        CorruptRecord: They cannot be a key's.
    """
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


def invite_to_row(invite: Invite) -> tuple[Any, ...]:
    """Return an invite as the values of `INVITE_COLUMNS`."""
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


def invite_from_row(row: Row) -> Invite:
    """Return the invite whose values of `INVITE_COLUMNS` these are.

    Raises:
        CorruptRecord: They cannot be an invite's.
    """
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


def redemption_from_row(row: Row) -> Redemption:
    """Return the redemption whose values of `REDEMPTION_COLUMNS` these are."""
    return Redemption(
        token=row[0],
        redemption_id=row[1],
        redeemer=row[2],
        redeemed_at=from_seconds_or_none(row[3]),
        released_at=from_seconds_or_none(row[4]),
    )


def grant_from_row(row: Row, grant: Grant) -> GrantTaken:
    """Return what becomes of a grant whose digest has a row already, with these values of `CREATION_COLUMNS`."""
    fingerprint, tokens, created_at, done_at = row
    return GrantTaken(
        outcome="repeated" if fingerprint == grant.fingerprint else "conflict",
        tokens=list_from_json(tokens),
        created_at=from_seconds(created_at),
        done=done_at is not None,
    )


def find_redeem_outcome(redeemer: str | None, row: Row) -> Literal["repeated", "conflict", "released"]:
    """Tell what becomes of a redemption whose identity has a row already, with this redeemer and release time."""
    known_redeemer, released_at = row
    if released_at is not None:
        return "released"
    return "repeated" if known_redeemer == redeemer else "conflict"
