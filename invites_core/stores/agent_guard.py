"""What an agent lets its clients do: the verbs of an invite store, on the hosts that it serves, and no more."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Final, Protocol, runtime_checkable

from invites_core.clock import Clock, read_clock
from invites_core.errors import InvalidHost, InvalidRequest, Unsupported
from invites_core.invites import Invite, InviteState, Redemption, is_token
from invites_core.store import InvitePage, InviteStore, RedeemResult, Sweep

__all__ = ["GuardedInvites"]

MOST_LABELS: Final = 100
"""Groups, and roles, of one invite: what the rules take, and no more."""
LONGEST_LABEL: Final = 255
LONGEST_NOTE: Final = 1000


@runtime_checkable
class TellsProblemsOfHosts(Protocol):
    """A store whose problems are those of hosts, and name them."""

    def find_problems_of(self, serves: Callable[[str], bool]) -> Sequence[str]:
        """Return what ``find_problems`` does, of those hosts alone for which this is true."""


class GuardedInvites:
    """An invite store behind which only some hosts are.

    An invite of another host is neither given out nor changed: to who asks by token, there is none. To name another
    host is `InvalidHost`.
    """

    def __init__(
        self,
        store: InviteStore,
        *,
        serves: Callable[[str], bool],
        clock: Clock,
        kinds: frozenset[str] | None = None,
        roles: frozenset[str] | None = None,
    ) -> None:
        """Guard a store.

        Args:
            store: Where the invites are.
            serves: Tells whether a host, as a client names it, is served; anything may be asked.
            clock: Where the time comes from.
            kinds: The kinds of invites that may be made; None: all. One of kind ``reset`` can take an account over.
            roles: The roles that new accounts may get; None: any. One can make an account an administrator's.
        """
        self._kinds = kinds
        self._roles = roles
        self._store = store
        self._serves = serves
        self._clock = clock

    @property
    def features(self) -> frozenset[str]:
        """What the store can."""
        return self._store.features

    @property
    def location(self) -> str:
        """Where the store's data is."""
        return self._store.location

    def ping(self) -> None:  # noqa: D102 (the protocol says it, as for all that follow)
        self._store.ping()

    def find_problems(self) -> Sequence[str]:
        """Look the store over: one that has hosts that others must not know of is asked for those served alone."""
        if isinstance(self._store, TellsProblemsOfHosts):
            return self._store.find_problems_of(self._serves)
        return self._store.find_problems()

    def close(self) -> None:  # noqa: D102
        self._store.close()

    def add_invites(self, invites: Sequence[Invite], *, if_absent: bool = False) -> None:  # noqa: D102
        for invite in invites:
            self._check_host(invite.host)
            _check_new(invite)
            if self._kinds is not None and invite.kind not in self._kinds:
                raise Unsupported(f"the agent makes no invites of kind {invite.kind}: its option --kind allows them")
            if self._roles is not None and not self._roles.issuperset(invite.roles):
                raise Unsupported("the agent gives no such role: its option --role allows one")
        self._store.add_invites(invites, if_absent=if_absent)

    def find_invite(self, token: str) -> Invite | None:  # noqa: D102
        return self._served(self._store.find_invite(token))

    def list_invites(  # noqa: D102
        self,
        host: str,
        *,
        now: datetime,
        state: InviteState | None = None,
        source: str | None = None,
        limit: int,
        cursor: str | None = None,
    ) -> InvitePage:
        self._check_host(host)
        page = self._store.list_invites(host, now=now, state=state, source=source, limit=limit, cursor=cursor)
        return replace(page, invites=tuple(invite for invite in page.invites if invite.host == host))

    def redeem_invite(  # noqa: D102
        self,
        token: str,
        *,
        redemption_id: str,
        redeemer: str | None,
        username: str | None,
        host: str | None,
        now: datetime,
    ) -> RedeemResult:
        host = self._find_host(token, host)
        if host is None:
            return RedeemResult(outcome="refused", invite=None)
        return self._store.redeem_invite(
            token, redemption_id=redemption_id, redeemer=redeemer, username=username, host=host, now=now
        )

    def release_redemption(  # noqa: D102
        self, token: str, *, redemption_id: str, host: str | None, now: datetime
    ) -> Invite | None:
        host = self._find_host(token, host)
        if host is None:
            return None
        return self._store.release_redemption(token, redemption_id=redemption_id, host=host, now=now)

    def list_redemptions(self, token: str) -> Sequence[Redemption]:  # noqa: D102
        invite = self._store.find_invite(token)
        return self._store.list_redemptions(token) if invite is None or self._serves(invite.host) else ()

    def revoke_invite(  # noqa: D102
        self, token: str, *, by: str, host: str | None, now: datetime
    ) -> tuple[bool, Invite | None]:
        host = self._find_host(token, host)
        if host is None:
            return False, None
        return self._store.revoke_invite(token, by=by, host=host, now=now)

    def revoke_invites_from(  # noqa: D102
        self, source: str, *, by: str, host: str, now: datetime, limit: int, cursor: str | None = None
    ) -> Sweep:
        self._check_host(host)
        return self._store.revoke_invites_from(source, by=by, host=host, now=now, limit=limit, cursor=cursor)

    def purge_invites(self, *, before: datetime, limit: int, cursor: str | None = None) -> Sweep:
        """Delete what was over before a time, which must have come: of a later one, what is pending would go too.

        A purge is of the whole store, and names no host. What it deletes is over, whichever host it was of.
        """
        if before > read_clock(self._clock):
            raise InvalidRequest("before", "must not be a time to come")
        return self._store.purge_invites(before=before, limit=limit, cursor=cursor)

    def _served(self, invite: Invite | None) -> Invite | None:
        return invite if invite is not None and self._serves(invite.host) else None

    def _check_host(self, host: str) -> None:
        if not self._serves(host):
            raise InvalidHost("the agent does not serve this host")

    def _find_host(self, token: str, host: str | None) -> str | None:
        """Return the host whose invite may be changed, or None where there is no invite that may.

        An invite's host never changes, so it can be read before: the change itself asks for it again.
        """
        if host is not None:
            self._check_host(host)
            return host
        invite = self.find_invite(token)
        return None if invite is None else invite.host


def _check_new(invite: Invite) -> None:
    """Refuse what the rules would never make, and what not every store could keep.

    Raises:
        InvalidRequest: A field is not as it should be.
    """
    if not is_token(invite.token):
        raise InvalidRequest("token", "must be 16 to 255 characters of base64url")
    texts = (invite.username, invite.source, invite.note, invite.revoked_by, *invite.groups, *invite.roles)
    if any("\0" in text for text in texts if text):
        raise InvalidRequest("invites", "must hold no NUL")
    labels = (*invite.groups, *invite.roles)
    if (
        len(invite.groups) > MOST_LABELS
        or len(invite.roles) > MOST_LABELS
        or any(len(label) > LONGEST_LABEL for label in labels)
    ):
        raise InvalidRequest("groups", f"and roles must be at most {MOST_LABELS}, of {LONGEST_LABEL} characters")
    if len(invite.note or "") > LONGEST_NOTE:
        raise InvalidRequest("note", f"must have at most {LONGEST_NOTE} characters")
