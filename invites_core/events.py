"""What has happened, as records for whoever wants to know: a log, a counter, an own audit trail.

No event names an invite or a redemption: a token is a credential, and a redemption_id is any text of a caller's, which
may be one. Nothing of what is left leads back to either.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, TypeAlias

from invites_core.errors import Busy, InvalidKey, InvitesError

__all__ = ["EVENT_NAMES", "Event", "EventHook", "find_shown_key_id", "send_event", "tell_refusal"]

EVENT_NAMES: Final = (
    "key.created",
    "key.updated",
    "key.rotated",
    "key.deleted",
    "key.imported",
    "key.refused",
    "invite.created",
    "invite.redeemed",
    "invite.released",
    "invite.revoked",
    "invite.purged",
)
"""All that an event may be called."""

MAX_UNKNOWN_ID: Final = 15
"""The longest unknown id that is shown: ids of ours have 8 characters, Prosody's 12; a token has 16 or more."""

_log = logging.getLogger("invites_core.events")


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One thing that has happened. None stands where a field has no meaning for it, or is not known.

    Attributes:
        name: What happened, of `EVENT_NAMES`.
        at: When, in whole seconds.
        key_id: The key that it happened to, or that made the invites.
        host: The host of the key or of the invites.
        kind: The kind of the invites.
        count: How many invites.
        source: Who did it, as it is kept with the invites: for a creation their ``source``, for a revocation ``by``.
        reason: Why a key was refused: the ``reason`` of `InvalidKey`, or the name of another error.
    """

    name: str
    at: datetime
    key_id: str | None = None
    host: str | None = None
    kind: str | None = None
    count: int | None = None
    source: str | None = None
    reason: str | None = None


EventHook: TypeAlias = Callable[[Event], object]
"""What is called with each event, in the thread of the call that made it happen, after the change is committed."""


def send_event(hook: EventHook | None, name: str, at: datetime, **facts: Any) -> None:
    """Call a hook, if there is one. What it raises is logged and goes no further: what is done is done."""
    if hook is None:
        return
    try:
        hook(Event(name=name, at=at, **facts))
    except Exception:  # noqa: BLE001 (it is logged, and what is done is done)
        _log.exception("the hook for events failed at %s", name)


def tell_refusal(
    hook: EventHook | None, error: InvitesError, at: datetime, *, key_id: str | None = None, host: str | None = None
) -> None:
    """Send the event of a key that was refused.

    Args:
        hook: What to call.
        error: What is raised.
        at: When.
        key_id: The key, where it is known better than the error does.
        host: The key's host, if it is known.
    """
    if hook is None:
        return
    if key_id is None and isinstance(error, InvalidKey | Busy):
        key_id = find_shown_key_id(error)
    reason = error.reason if isinstance(error, InvalidKey) else type(error).__name__
    send_event(hook, "key.refused", at, key_id=key_id, host=host, reason=reason)


def find_shown_key_id(error: InvalidKey | Busy) -> str | None:
    """Return the id of a refused key, unless it may be a secret or a token that somebody took for an id."""
    key_id = error.key_id or ""
    is_unknown = isinstance(error, InvalidKey) and error.reason == "unknown"
    return None if not key_id or (is_unknown and len(key_id) > MAX_UNKNOWN_ID) else key_id
