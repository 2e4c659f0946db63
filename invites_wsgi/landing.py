"""The page behind an invite's link. Looking at it creates nothing and uses nothing."""

from __future__ import annotations

import base64
import hashlib
from importlib.resources import files
from typing import Final
from urllib.parse import unquote

import jinja2
from werkzeug.wrappers import Response

from invites_core import Hosts, Invite, Invites
from invites_core.clock import Clock, read_clock
from invites_wsgi.http import Exchange

__all__ = ["LandingResource"]

_STATUS: Final = {"pending": 200, "used": 410, "revoked": 410, "expired": 410, "unknown": 404}


class LandingResource:
    """``/invite?TOKEN``."""

    def __init__(self, invites: Invites, hosts: Hosts, clock: Clock) -> None:
        self._invites = invites
        self._hosts = hosts
        self._clock = clock
        environment = jinja2.Environment(
            loader=jinja2.PackageLoader("invites_wsgi"), autoescape=True, undefined=jinja2.StrictUndefined
        )
        self._template = environment.get_template("invite.html")
        self._style = files("invites_wsgi").joinpath("static/invite.css").read_text("utf-8")
        # The style stands in the page, so that the page is one request; the policy admits exactly this text.
        digest = base64.b64encode(hashlib.sha256(self._style.encode()).digest()).decode("ascii")
        self._policy = (
            f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none';"
            " frame-ancestors 'none'"
        )

    def get(self, exchange: Exchange) -> Response:
        """Show what the invite is for, or that it cannot be used and in one word why."""
        invite = self._invites.find(_read_token(exchange.request.query_string.decode("latin-1")))
        state = "unknown" if invite is None else invite.state_at(read_clock(self._clock))
        exchange.reason = None if state == "pending" else state
        page = self._template.render(
            state=state, invite=invite, site_name=self._get_site_name(invite), style=self._style
        )
        response = Response(page, _STATUS[state], mimetype="text/html")
        response.headers["Content-Security-Policy"] = self._policy
        response.headers["X-Robots-Tag"] = "noindex"
        return response

    def _get_site_name(self, invite: Invite | None) -> str | None:
        return None if invite is None else self._hosts.get(invite.host).site_name or invite.host


def _read_token(query: str) -> str:
    """Return the token in a query: what messengers append after an ``&``, or as an empty value, is not part of it."""
    return unquote(query.partition("&")[0]).removesuffix("=")
