"""The rules on using invites: exactly once for each identity of a redemption."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from invites_core.clock import read_clock
from invites_core.errors import (
    IdempotencyConflict,
    InvalidRequest,
    InvitesError,
    InviteUnknown,
    OutcomeUnknown,
    RedemptionReleased,
    WrongRedeemer,
)
from invites_core.events import send_event
from invites_core.hosts import normalize_host, normalize_username
from invites_core.invites import Invite, generate_redemption_id, is_token
from invites_core.service.base import InvitesBase, refuse_closed
from invites_core.text import check_text

__all__ = ["InviteRedeeming", "Redeemed"]

MAX_REDEEMER_LENGTH: Final = 1023
_REDEMPTION_ID: Final = re.compile(r"[!-~]{1,255}", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class Redeemed:
    """A redemption that holds.

    Attributes:
        redemption_id: Its identity; give it again to repeat or to release it.
        invite: The invite, as it is now.
        repeated: Whether an earlier call had made it.
    """

    redemption_id: str
    invite: Invite
    repeated: bool


class InviteRedeeming(InvitesBase):
    """The part of `Invites` that uses them."""

    def redeem(
        self,
        token: str,
        *,
        redeemer: str | None = None,
        redemption_id: str | None = None,
        host: str | None = None,
    ) -> Redeemed:
        """Use an invite once; exactly one of many who try to take the last use gets it.

        Args:
            token: The invite's token.
            redeemer: Who redeems it, at most 1,023 characters; None: not told. An invite that names the account to
                create or to reset admits this user name only, in any spelling.
            redemption_id: The identity of this redemption, 1 to 255 printable ASCII characters: repeating it gives
                the same success and takes no second use. None: one is made.
            host: Only an invite of this host, in any spelling.

        Returns:
            The redemption, durable, with its id.

        Raises:
            InviteUnknown: There is no such invite, or it is another host's.
            InviteUsed: It has no use left.
            InviteExpired: Its time is over.
            InviteRevoked: It was taken back.
            WrongRedeemer: It names another account.
            IdempotencyConflict: The id was used by another redeemer.
            RedemptionReleased: The redemption was released, which is final.
            InvalidRequest: The redeemer or the id has not the right form.
            OutcomeUnknown: It may or may not have happened; its ``redemption_id`` is the one to repeat.
            StorageError: It did not happen.
        """
        redeemer = check_text("redeemer", redeemer, max_length=MAX_REDEEMER_LENGTH) or None
        identity = generate_redemption_id() if redemption_id is None else _check_redemption_id(redemption_id)
        normal_host = None if host is None else normalize_host(host)
        if not is_token(token) or not self._serves_invite(token, normal_host):
            raise InviteUnknown
        now = read_clock(self._clock)
        try:
            result = self._store.redeem_invite(
                token,
                redemption_id=identity,
                redeemer=redeemer,
                username=_find_username(redeemer),
                host=normal_host,
                now=now,
            )
        except OutcomeUnknown as error:
            error.redemption_id = identity
            raise
        invite = result.invite
        if invite is None:
            raise InviteUnknown
        if result.outcome == "conflict":
            raise IdempotencyConflict("this redemption_id was used by another redeemer")
        if result.outcome == "released":
            raise RedemptionReleased
        if result.outcome == "refused":
            refuse_closed(invite, now, otherwise=WrongRedeemer())
        repeated = result.outcome == "repeated"
        if not repeated:
            send_event(self._on_event, "invite.redeemed", now, host=invite.host, kind=invite.kind, count=1)
        return Redeemed(redemption_id=identity, invite=self._with_landing_page(invite), repeated=repeated)

    def _serves_invite(self, token: str, host: str | None) -> bool:
        """Tell whether an invite's host is served; an invite's host never changes, so this can be read before."""
        if host is None and self._hosts.listed:
            invite = self._store.find_invite(token)
            host = None if invite is None else invite.host
        return host is None or self._hosts.serves(host)

    def release(self, token: str, *, redemption_id: str, host: str | None = None) -> Invite:
        """Give a use back; final, and twice is once. An id that is not known is recorded, so that it can never redeem.

        Returns:
            The invite as it is now.

        Raises:
            InviteUnknown: There is no such invite, or it is another host's.
            InvalidRequest: The id has not the right form.
            StorageError: It did not happen.
        """
        identity = _check_redemption_id(redemption_id)
        normal_host = None if host is None else normalize_host(host)
        invite, now = None, read_clock(self._clock)
        if is_token(token):
            invite = self._store.release_redemption(token, redemption_id=identity, host=normal_host, now=now)
        if invite is None:
            raise InviteUnknown
        send_event(self._on_event, "invite.released", now, host=invite.host, kind=invite.kind, count=1)
        return self._with_landing_page(invite)

    @contextlib.contextmanager
    def redeeming(
        self,
        token: str,
        *,
        redeemer: str | None = None,
        redemption_id: str | None = None,
        host: str | None = None,
    ) -> Iterator[Redeemed]:
        """Use an invite for what is done inside; an exception there gives the use back.

        A crash inside keeps the use, and the same ``redemption_id`` finishes it. A run that finds the redemption made
        already does not release it when it fails: the run that made it may have let somebody in, and the use would
        then be there a second time. `release` does it, where the caller knows better.

        Raises:
            InvitesError: As `redeem` does.
        """
        redeemed = self.redeem(token, redeemer=redeemer, redemption_id=redemption_id, host=host)
        try:
            yield redeemed
        except BaseException as error:
            if not redeemed.repeated:
                try:
                    self.release(token, redemption_id=redeemed.redemption_id, host=host)
                except InvitesError as failure:
                    error.add_note(f"the redemption {redeemed.redemption_id} was not released: {failure}")
            raise


def _check_redemption_id(text: str) -> str:
    if not isinstance(text, str) or not _REDEMPTION_ID.fullmatch(text):
        raise InvalidRequest("redemption_id", "must be 1 to 255 printable ASCII characters without spaces")
    return text


def _find_username(redeemer: str | None) -> str | None:
    """Return the redeemer as a normalised user name, or None where it cannot be one."""
    if redeemer is None:
        return None
    try:
        return normalize_username(redeemer)
    except InvalidRequest:
        return None
