"""Invites: the record, its kinds and states, its token, its ``xmpp:`` URI and its link."""

from __future__ import annotations

import re
import secrets
from base64 import urlsafe_b64encode
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final, Literal
from urllib.parse import quote

from invites_core.errors import InvalidRequest

__all__ = [
    "KINDS",
    "Invite",
    "InviteState",
    "Redemption",
    "check_landing_template",
    "format_landing_page",
    "generate_redemption_id",
    "generate_token",
    "is_token",
]

KINDS: Final = frozenset({"register", "roster", "reset"})
"""register: make an account; roster: add a contact; reset: set an account's password anew."""

InviteState = Literal["pending", "used", "revoked", "expired"]

_TOKEN: Final = re.compile(r"[A-Za-z0-9_-]{16,255}", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class Invite:
    """An invite. Whoever knows its token can use it, so no repr shows the token.

    Attributes:
        token: 24 characters of base64url; imported ones from 16.
        host: The host that it is for, normalised.
        kind: ``register``, ``roster`` or ``reset``.
        username: The account to create (register), to reset (reset), or that invites (roster); None: any.
        registration: Whether an account may be registered with it.
        created_at: When it was made (aware UTC, whole seconds, as all times here).
        expires_at: The last second in which it is valid; None: it never expires.
        max_uses: How often it can be used; None: without limit.
        uses: How often it is used.
        source: Who made it, such as ``api/token/ID`` or ``command``.
        groups: The groups that a new account is put in.
        roles: The roles that a new account gets, the first one primary.
        note: A free text for admins, or None.
        closed_at: When it was used up or revoked; None while neither.
        revoked_by: Who revoked it; None while nobody has.
        landing_page: Its link, filled in by the service from the host's settings; never stored.
    """

    token: str = field(repr=False)
    host: str
    kind: str = "register"
    username: str | None = None
    registration: bool = True
    created_at: datetime
    expires_at: datetime | None
    max_uses: int | None = 1
    uses: int = 0
    source: str
    groups: tuple[str, ...] = ()
    roles: tuple[str, ...] = ()
    note: str | None = None
    closed_at: datetime | None = None
    revoked_by: str | None = None
    landing_page: str = field(default="", repr=False)

    @property
    def jid(self) -> str:
        """The address that the invite is about: the host, or ``USER@HOST``."""
        return self.host if self.username is None else f"{self.username}@{self.host}"

    @property
    def uri(self) -> str:
        """The ``xmpp:`` URI (RFC 5122; XEP-0401 and XEP-0445 for its query)."""
        address = quote(self.host, safe="")
        if self.username is not None:
            address = f"{quote(self.username, safe='')}@{address}"
        # As mod_invites writes it: only a roster invite has to say that it also registers.
        action = "roster" if self.kind == "roster" else "register"
        tail = ";ibr=y" if self.kind == "roster" and self.registration else ""
        return f"xmpp:{address}?{action};preauth={self.token}{tail}"

    def admits(self, username: str | None) -> bool:
        """Tell whether an account of this normalised name may redeem it; None: a redeemer who is no account's name.

        The name in a roster invite is the inviter's, so it is not compared.
        """
        return self.username is None or self.kind == "roster" or self.username == username

    def state_at(self, now: datetime) -> InviteState:
        """Return the state: used, else revoked, else expired (after the second ``expires_at``), else pending."""
        if self.max_uses is not None and self.uses >= self.max_uses:
            return "used"
        if self.revoked_by is not None:
            return "revoked"
        if self.expires_at is not None and now > self.expires_at:
            return "expired"
        return "pending"

    def state_since(self, now: datetime) -> datetime:
        """Return since when it is in its present state; an expired one since the last second in which it was valid."""
        state = self.state_at(now)
        if state == "expired" and self.expires_at is not None:
            return self.expires_at
        return self.created_at if self.closed_at is None else self.closed_at


@dataclass(frozen=True, slots=True, kw_only=True)
class Redemption:
    """One use of an invite.

    Attributes:
        token: The invite's token.
        redemption_id: Its identity, unique for the invite.
        redeemer: Who redeemed it; None: not told.
        redeemed_at: When; None where only its release is known.
        released_at: When the use was given back; None while it is active.
    """

    token: str = field(repr=False)
    redemption_id: str
    redeemer: str | None
    redeemed_at: datetime | None
    released_at: datetime | None = None

    @property
    def happened_at(self) -> datetime:
        """When it was first heard of: redeemed, or released before it was."""
        happened_at = self.redeemed_at or self.released_at
        if happened_at is None:
            raise ValueError("a redemption was neither redeemed nor released")
        return happened_at


def generate_token() -> str:
    """Return a new random token: 18 bytes as 24 characters of base64url, as mod_invites makes them today."""
    return urlsafe_b64encode(secrets.token_bytes(18)).decode("ascii")


def generate_redemption_id() -> str:
    """Return a new random identity of a redemption: 18 bytes as 24 characters of base64url."""
    return generate_token()


def is_token(text: str) -> bool:
    """Tell whether a text has a token's form (16 to 255 characters of base64url)."""
    return _TOKEN.fullmatch(text) is not None


def check_landing_template(template: str, *, field: str = "landing_page") -> None:
    """Check the template of a landing page's URL.

    Raises:
        InvalidRequest: It is neither "" nor an ``http:`` or ``https:`` URL with ``{token}`` in it, or it holds another
            placeholder, or a character that no URI may hold (RFC 3986, appendix A).
    """
    if not template:
        return
    if not re.fullmatch(r"https?://[!-~]+", template, re.ASCII | re.IGNORECASE):
        raise InvalidRequest(field, "must be an http: or https: URL in ASCII without spaces")
    if (found := re.search(r"[\"<>\\^`|]", template)) is not None:
        raise InvalidRequest(field, f"must have {found[0]} percent-encoded")
    rest = template.replace("{token}", "")
    if rest == template:
        raise InvalidRequest(field, "must hold {token}, where the invite's token goes")
    if "{" in rest or "}" in rest:
        raise InvalidRequest(field, "may hold no other placeholder than {token}")


def format_landing_page(template: str, invite: Invite) -> str:
    """Return the invite's link: the template with its token in place, or its ``xmpp:`` URI where there is none."""
    return template.replace("{token}", invite.token) if template else invite.uri
