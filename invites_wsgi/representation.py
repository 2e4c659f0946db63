"""Records as JSON, the same in the API's answers and in what the command prints."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

from invites_core import NEVER, ApiKey, Invite, KeyPolicy, Redemption
from invites_core.durations import format_duration

__all__ = [
    "format_time",
    "format_time_or_none",
    "invite_details_to_json",
    "invite_to_json",
    "key_to_json",
    "landing_to_json",
    "policy_to_json",
]


def format_time(time: datetime) -> str:
    """Return a time as RFC 3339 in UTC, in whole seconds."""
    return time.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def format_time_or_none(time: datetime | None) -> str | None:
    """Return a time as RFC 3339 in UTC, None for None."""
    return None if time is None else format_time(time)


def invite_to_json(invite: Invite, now: datetime) -> dict[str, Any]:
    """Return an invite as JSON, with the state that it is in at a time."""
    return {
        "token": invite.token,
        "kind": invite.kind,
        "host": invite.host,
        "jid": invite.jid,
        "username": invite.username,
        "registration": invite.registration,
        "uri": invite.uri,
        "landing_page": invite.landing_page,
        "created_at": format_time(invite.created_at),
        "expires_at": format_time_or_none(invite.expires_at),
        "max_uses": invite.max_uses,
        "uses": invite.uses,
        "state": invite.state_at(now),
        "source": invite.source,
        "groups": list(invite.groups),
        "roles": list(invite.roles),
        "note": invite.note,
    }


def landing_to_json(invite: Invite, uri: str) -> dict[str, Any]:
    """Return what anybody with the link of an invite may know of it, and no more.

    Args:
        invite: The invite, pending.
        uri: What opens it.
    """
    is_roster = invite.kind == "roster"
    return {
        "kind": invite.kind,
        "host": invite.host,
        "username": None if is_roster else invite.username,
        "inviter": invite.jid if is_roster else None,
        "uri": uri,
        "expires_at": format_time_or_none(invite.expires_at),
    }


def invite_details_to_json(invite: Invite, redemptions: Iterable[Redemption], now: datetime) -> dict[str, Any]:
    """Return an invite as JSON with all that an admin may know: since when, by whom, and every use of it."""
    return {
        **invite_to_json(invite, now),
        "state_since": format_time(invite.state_since(now)),
        "revoked_by": invite.revoked_by,
        "redemptions": [
            {
                "redemption_id": redemption.redemption_id,
                "redeemer": redemption.redeemer,
                "redeemed_at": format_time_or_none(redemption.redeemed_at),
                "released_at": format_time_or_none(redemption.released_at),
            }
            for redemption in redemptions
        ],
    }


def policy_to_json(policy: KeyPolicy) -> dict[str, Any]:
    """Return a policy as JSON; durations as people write them."""
    expiry = policy.max_expiry
    return {
        "scopes": sorted(policy.scopes),
        "kinds": sorted(policy.kinds),
        "groups": sorted(policy.groups),
        "roles": sorted(policy.roles),
        "allow_username": policy.allow_username,
        "max_expiry": None if expiry is None else "never" if expiry == NEVER else format_duration(expiry),
        "max_uses": policy.max_uses,
        "quota": None if policy.quota is None else str(policy.quota),
        "all_invites": policy.all_invites,
        "header_only": policy.header_only,
    }


def key_to_json(key: ApiKey) -> dict[str, Any]:
    """Return a key as JSON; nothing of its secret is in it."""
    return {
        "id": key.id,
        "host": key.host,
        "name": key.name,
        "created_at": format_time(key.created_at),
        "expires_at": format_time_or_none(key.expires_at),
        "last_used_at": format_time_or_none(key.last_used_at),
        "policy": policy_to_json(key.policy),
    }
