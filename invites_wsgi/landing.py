"""The page behind an invite's link. Looking at it creates nothing and uses nothing."""

from __future__ import annotations

from typing import Final
from urllib.parse import unquote

from werkzeug.wrappers import Request

from invites_core import (
    Hosts,
    Invite,
    InviteExpired,
    InviteRevoked,
    Invites,
    InvitesError,
    InviteUnknown,
    InviteUsed,
)
from invites_core.clock import Clock, read_clock
from invites_wsgi.errors import ERRORS
from invites_wsgi.http import Answer, Exchange, json_response, problem_response, wants_json
from invites_wsgi.page.languages import choose_language
from invites_wsgi.page.platforms import find_platform
from invites_wsgi.page.settings import PageSettings
from invites_wsgi.page.view import PageView
from invites_wsgi.representation import landing_to_json

__all__ = ["LandingResource"]

_ERRORS: Final[dict[str, type[InvitesError]]] = {
    "used": InviteUsed,
    "revoked": InviteRevoked,
    "expired": InviteExpired,
    "unknown": InviteUnknown,
}
_STATUS: Final = {"pending": 200, **{state: ERRORS[error].status for state, error in _ERRORS.items()}}
_VARY: Final = "Accept, Accept-Language, User-Agent, Sec-CH-UA-Platform"


class LandingResource:
    """``/invite?TOKEN``."""

    def __init__(self, invites: Invites, hosts: Hosts, clock: Clock, settings: PageSettings) -> None:
        self._invites = invites
        self._clock = clock
        self._settings = settings
        self._view = PageView(settings, hosts)

    def get(self, exchange: Exchange) -> Answer:
        """Show what the invite is for, or that it cannot be used and in one word why."""
        request = exchange.request
        invite = self._invites.find(_read_token(request.query_string.decode("latin-1")))
        state = "unknown" if invite is None else invite.state_at(read_clock(self._clock))
        exchange.reason = None if state == "pending" else state
        if wants_json(request):
            response = self._answer_json(exchange, invite, state)
        else:
            response = self._answer_html(request, invite, state)
        if invite is not None and state == "pending":
            # RFC 8288. It is in ASCII, and holds neither < nor >.
            link = self._settings.get_host(invite.host).get_link(invite)
            response.headers["Link"] = f'<{link}>; rel="alternate"'
        response.headers["Vary"] = _VARY
        response.headers["X-Robots-Tag"] = "noindex"
        return response

    def _answer_html(self, request: Request, invite: Invite | None, state: str) -> Answer:
        page, headers = self._view.render(
            invite,
            state,
            language=choose_language(request.accept_languages, self._view.languages, self._settings.language),
            platform=find_platform(request.headers),
        )
        response = Answer(page, _STATUS[state], mimetype="text/html")
        response.headers.update(headers)
        return response

    def _answer_json(self, exchange: Exchange, invite: Invite | None, state: str) -> Answer:
        if invite is None or state != "pending":
            return problem_response(exchange, _ERRORS[state](), as_json=True)
        return json_response(landing_to_json(invite, self._settings.get_host(invite.host).get_link(invite)))


def _read_token(query: str) -> str:
    """Return the token in a query: what messengers append after an ``&``, or as an empty value, is not part of it."""
    return unquote(query.partition("&")[0]).removesuffix("=")
