"""The rules on invites: finding, listing, revoking and purging them; making and using them stand beside this."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Final

from invites_core.clock import read_clock
from invites_core.durations import MAX_DURATION, format_duration
from invites_core.errors import InvalidRequest, InviteUnknown
from invites_core.events import send_event
from invites_core.hosts import normalize_host
from invites_core.invites import Invite, InviteState, Redemption, is_token
from invites_core.keys import format_source, is_key_id
from invites_core.service.base import check_actor, refuse_closed
from invites_core.service.making import IDEMPOTENCY_AGE, InviteMaking
from invites_core.service.redeeming import InviteRedeeming
from invites_core.store import InvitePage

__all__ = ["Invites"]

MAX_PAGE: Final = 1000
STEP: Final = 500


class Invites(InviteMaking, InviteRedeeming):
    """The invites of a store. Safe to share among threads; from async code, call it in a thread."""

    def find(self, token: str, *, host: str | None = None) -> Invite | None:
        """Return the invite of this token, in whatever state, or None.

        Args:
            token: The invite's token.
            host: Find only an invite of this host, in any spelling; None: of any host that is served.
        """
        if not is_token(token):
            return None
        invite = self._store.find_invite(token)
        if invite is None or not self._hosts.serves(invite.host):
            return None
        if host is not None and invite.host != normalize_host(host):
            return None
        return self._with_landing_page(invite)

    def get(self, token: str, *, host: str | None = None) -> Invite:
        """Return the invite of this token, in whatever state.

        Raises:
            InviteUnknown: There is none, or it is another host's.
        """
        invite = self.find(token, host=host)
        if invite is None:
            raise InviteUnknown
        return invite

    def list_redemptions(self, token: str, *, host: str | None = None) -> Sequence[Redemption]:
        """Return who used an invite and when, oldest first.

        Raises:
            InviteUnknown: There is no such invite, or it is another host's.
        """
        self.get(token, host=host)
        return self._store.list_redemptions(token)

    def list(
        self,
        host: str,
        *,
        state: InviteState | None = None,
        source: str | None = None,
        limit: int = 100,
        cursor: str | None = None,
    ) -> InvitePage:
        """Return invites of a host, newest first.

        Args:
            host: The host, in any spelling.
            state: Only those that are in this state now.
            source: Only those of this source.
            limit: At most so many, from 1 to 1,000; there may be fewer, even none, and still more to come.
            cursor: ``next`` of the page before this one; it holds no token.

        Raises:
            InvalidHost: Not a host name.
            InvalidRequest: A value is out of range, or not a cursor.
        """
        if state not in (None, "pending", "used", "revoked", "expired"):
            raise InvalidRequest("state", "must be one of pending, used, revoked, expired")
        if not isinstance(limit, int) or isinstance(limit, bool) or not 1 <= limit <= MAX_PAGE:
            raise InvalidRequest("limit", f"must be a whole number from 1 to {MAX_PAGE}")
        if source is not None:
            check_actor("source", source)
        page = self._store.list_invites(
            normalize_host(host),
            now=read_clock(self._clock),
            state=state,
            source=source,
            limit=limit,
            cursor=cursor,
        )
        return replace(page, invites=tuple(self._with_landing_page(invite) for invite in page.invites))

    def revoke(self, token: str, *, by: str, host: str | None = None) -> Invite:
        """Take a pending invite back.

        Args:
            token: The invite's token.
            by: Who takes it back, to be kept with it; at most 1,023 characters.
            host: Only an invite of this host, in any spelling.

        Returns:
            The invite as it is now.

        Raises:
            InviteUnknown: There is no such invite, or it is another host's.
            InviteUsed: It has no use left.
            InviteExpired: Its time is over.
            InviteRevoked: It was taken back before.
            InvalidRequest: Who takes it back cannot be kept.
            StorageError: It did not happen.
        """
        normal_host = None if host is None else normalize_host(host)
        check_actor("by", by)
        if not is_token(token):
            raise InviteUnknown
        now = read_clock(self._clock)
        revoked, invite = self._store.revoke_invite(token, by=by, host=normal_host, now=now)
        if invite is None:
            raise InviteUnknown
        if not revoked:
            refuse_closed(invite, now, otherwise=InviteUnknown())
        send_event(self._on_event, "invite.revoked", now, host=invite.host, kind=invite.kind, count=1, source=by)
        return self._with_landing_page(invite)

    def revoke_from(self, host: str, key_id: str, *, by: str) -> int:
        """Take back every pending invite that a key has made, in small steps.

        Returns:
            How many this call took back.

        Raises:
            InvalidHost: Not a host name.
            InvalidRequest: Who takes them back cannot be kept.
            StorageError: It ended halfway; the same call again goes on.
        """
        host, now = normalize_host(host), read_clock(self._clock)
        check_actor("by", by)
        if not is_key_id(key_id):
            return 0
        revoked, cursor = 0, None
        try:
            while True:
                step = self._store.revoke_invites_from(
                    format_source(key_id), by=by, host=host, now=now, limit=STEP, cursor=cursor
                )
                revoked, cursor = revoked + step.changed, step.next
                if cursor is None:
                    return revoked
        finally:
            # What was done before an error is done.
            if revoked:
                facts = {"key_id": key_id, "host": host, "count": revoked, "source": by}
                send_event(self._on_event, "invite.revoked", now, **facts)

    def purge(self, *, older_than: timedelta, after_step: Callable[[int], None] | None = None) -> int:
        """Delete what is over for longer than an age, in small steps that block nobody.

        An invite's age counts from when it was used up or revoked, or else from when it expired; what is pending, or
        can never expire, stays. The redemptions of a purged invite go with it, and a repeat of one is then
        `InviteUnknown`. What is kept of idempotent creations goes after 7 days.

        Args:
            older_than: The age.
            after_step: Called after each step with the number of invites deleted so far, so that it can pause.

        Returns:
            How many invites were deleted.

        Raises:
            InvalidRequest: The age is negative, or over a century.
            StorageError: It ended halfway; the same call again goes on.
        """
        if not timedelta(0) <= older_than <= MAX_DURATION:
            raise InvalidRequest("older_than", f"must be from 0s to {format_duration(MAX_DURATION)}")
        now = read_clock(self._clock)
        removed, cursor = 0, None
        try:
            while True:
                step = self._store.purge_invites(before=now - older_than, limit=STEP, cursor=cursor)
                removed, cursor = removed + step.changed, step.next
                if after_step is not None:
                    after_step(removed)
                if cursor is None:
                    break
        finally:
            if removed:
                send_event(self._on_event, "invite.purged", now, count=removed)
        self._keys.purge_grants(before=now - IDEMPOTENCY_AGE)
        return removed
