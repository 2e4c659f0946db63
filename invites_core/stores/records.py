"""How records are written where a store has plain columns: times as seconds, policies and lists as JSON.

These are stored formats. A field may be added with a default for rows that lack it; none changes its meaning.
"""

from __future__ import annotations

import functools
import json
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from invites_core.errors import CorruptRecord
from invites_core.keys import DEFAULT_POLICY, NEVER, KeyPolicy, Quota

__all__ = [
    "from_seconds",
    "from_seconds_or_none",
    "list_from_json",
    "list_to_json",
    "policy_from_json",
    "policy_to_json",
    "to_seconds",
    "to_seconds_or_none",
]

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


def to_seconds(time: datetime) -> int:
    """Return a time as whole seconds since 1970."""
    return int(time.timestamp())


def to_seconds_or_none(time: datetime | None) -> int | None:
    """Return a time as whole seconds since 1970, None for None."""
    return None if time is None else int(time.timestamp())


def from_seconds(seconds: int) -> datetime:
    """Return whole seconds since 1970 as an aware UTC datetime.

    Raises:
        CorruptRecord: No calendar has that time.
    """
    try:
        return _EPOCH + timedelta(seconds=seconds)
    except (OverflowError, TypeError) as error:
        raise CorruptRecord("a stored time cannot be read") from error


def from_seconds_or_none(seconds: int | None) -> datetime | None:
    """Return whole seconds since 1970 as an aware UTC datetime, None for None."""
    return None if seconds is None else from_seconds(seconds)


def _dump(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), sort_keys=True)


def list_to_json(values: tuple[str, ...]) -> str:
    """Return a list of texts as JSON, in its order."""
    return _dump(list(values))


@functools.lru_cache(maxsize=1024)
def list_from_json(text: str) -> tuple[str, ...]:
    """Read what `list_to_json` wrote.

    Raises:
        CorruptRecord: It is something else.
    """
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CorruptRecord("a stored list cannot be read") from error
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise CorruptRecord("a stored list cannot be read")
    return tuple(values)


def policy_to_json(policy: KeyPolicy) -> str:
    """Return a policy as JSON: every field, durations in seconds, ``"never"`` for a lifetime without bound."""
    expiry: object = None
    if policy.max_expiry is not None:
        expiry = "never" if policy.max_expiry == NEVER else int(policy.max_expiry.total_seconds())
    return _dump(
        {
            "scopes": sorted(policy.scopes),
            "kinds": sorted(policy.kinds),
            "groups": sorted(policy.groups),
            "roles": sorted(policy.roles),
            "allow_username": policy.allow_username,
            "max_expiry": expiry,
            "max_uses": policy.max_uses,
            "quota": None if policy.quota is None else [policy.quota.count, int(policy.quota.period.total_seconds())],
            "all_invites": policy.all_invites,
            "header_only": policy.header_only,
        }
    )


@functools.lru_cache(maxsize=1024)
def policy_from_json(text: str) -> KeyPolicy:
    """Read what `policy_to_json` wrote.

    A field that is missing has its default. One that is not known is refused: it may be a bound, and to overlook a
    bound would give the key more than it was granted.

    Raises:
        CorruptRecord: It is something else.
    """
    try:
        fields: dict[str, Any] = json.loads(text)
        policy = KeyPolicy(
            scopes=_texts(fields.pop("scopes", list(DEFAULT_POLICY.scopes))),
            kinds=_texts(fields.pop("kinds", list(DEFAULT_POLICY.kinds))),
            groups=_texts(fields.pop("groups", [])),
            roles=_texts(fields.pop("roles", [])),
            allow_username=fields.pop("allow_username", False) is True,
            max_expiry=_expiry_from_json(fields.pop("max_expiry", None)),
            max_uses=_int_or_none(fields.pop("max_uses", 1)),
            quota=_quota_from_json(fields.pop("quota", None)),
            all_invites=fields.pop("all_invites", False) is True,
            header_only=fields.pop("header_only", False) is not False,
        )
    except (ValueError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise CorruptRecord("a stored policy cannot be read") from error
    if fields:
        raise CorruptRecord("a stored policy holds a field that this version does not know")
    return policy


def _texts(values: object) -> frozenset[str]:
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise ValueError
    return frozenset(values)


def _int_or_none(value: object) -> int | None:
    if value is None or (isinstance(value, int) and not isinstance(value, bool) and value > 0):
        return value
    raise ValueError


def _expiry_from_json(value: object) -> timedelta | None:
    if value == "never":
        return NEVER
    seconds = _int_or_none(value)
    return None if seconds is None else timedelta(seconds=seconds)


def _quota_from_json(value: object) -> Quota | None:
    if value is None:
        return None
    if not isinstance(value, list) or len(value) != 2:
        raise ValueError
    count, seconds = (_int_or_none(part) for part in value)
    if count is None or seconds is None:
        raise ValueError
    return Quota(count, timedelta(seconds=seconds))
