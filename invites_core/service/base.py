"""What all rules on invites share: the stores, the hosts, the clock, and an invite's link."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from typing import Final, NoReturn, cast

from invites_core.clock import Clock, system_clock
from invites_core.errors import InvalidRequest, InviteExpired, InviteRevoked, InvitesError, InviteUsed
from invites_core.events import EventHook
from invites_core.hosts import Hosts
from invites_core.invites import Invite, format_landing_page
from invites_core.store import InviteStore, KeyStore
from invites_core.text import check_text

__all__ = ["InvitesBase", "check_actor", "refuse_closed"]

MAX_ACTOR_LENGTH: Final = 1023

_CLOSED: Final = {"used": InviteUsed, "revoked": InviteRevoked, "expired": InviteExpired}


class InvitesBase:
    """The constructor of `Invites` and what its parts share."""

    def __init__(
        self,
        invite_store: InviteStore,
        *,
        keys: KeyStore | None = None,
        hosts: Hosts | None = None,
        clock: Clock = system_clock,
        on_event: EventHook | None = None,
    ) -> None:
        """Work on a store.

        Args:
            invite_store: Where the invites are.
            keys: Where the keys are that make invites; None: in the same store.
            hosts: The hosts that are served and what they are set to; the default serves every valid one.
            clock: Where the time comes from.
            on_event: Called with each `Event` after it has happened; None: nobody is told.
        """
        self._store = invite_store
        self._keys = keys if keys is not None else cast(KeyStore, invite_store)
        self._hosts = hosts or Hosts()
        self._clock = clock
        self._on_event = on_event

    @property
    def share_store_with_keys(self) -> bool:
        """Whether keys and invites lie in one store, so that one transaction can hold both."""
        return cast(object, self._keys) is self._store

    def _with_landing_page(self, invite: Invite) -> Invite:
        template = self._hosts.get_landing_template(invite.host)
        return replace(invite, landing_page=format_landing_page(template, invite))


def check_actor(field: str, actor: str) -> str:
    """Return who made or revoked invites, as it is kept with them.

    Raises:
        InvalidRequest: It is empty, longer than 1,023 characters, or cannot be stored everywhere.
    """
    if not check_text(field, actor, max_length=MAX_ACTOR_LENGTH):
        raise InvalidRequest(field, "must not be empty")
    return actor


def refuse_closed(invite: Invite, now: datetime, *, otherwise: InvitesError) -> NoReturn:
    """Raise the error of an invite's state, or another one where it is pending."""
    closed = _CLOSED.get(invite.state_at(now))
    raise otherwise if closed is None else closed()
