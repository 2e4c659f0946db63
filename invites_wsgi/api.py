"""What answers on ``/invites_api``: parse the request, call the library, write the answer."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, Final

from werkzeug.wrappers import Request, Response

from invites_core import ApiKey, ApiKeys, InvalidKey, InvalidRequest, Invite, Invites
from invites_wsgi.http import Exchange, Problem, json_response, read_credentials, wants_json

__all__ = ["CreationResource", "invite_to_json"]

_NO: Final = frozenset({"false", "0", "no", "off"})


def invite_to_json(invite: Invite, now: datetime) -> dict[str, Any]:
    """Return an invite as the JSON object that the API answers with; times are RFC 3339 in UTC."""
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
        "expires_at": None if invite.expires_at is None else format_time(invite.expires_at),
        "max_uses": invite.max_uses,
        "uses": invite.uses,
        "state": invite.state_at(now),
        "source": invite.source,
        "groups": list(invite.groups),
        "roles": list(invite.roles),
        "note": invite.note,
    }


def format_time(time: datetime) -> str:
    """Return a time as RFC 3339 in UTC, in whole seconds."""
    return time.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


class CreationResource:
    """``/invites_api`` itself: makes an invite."""

    def __init__(self, keys: ApiKeys, invites: Invites) -> None:
        self._keys = keys
        self._invites = invites

    def get(self, exchange: Exchange) -> Response:
        """Make an invite within the key's policy, with the defaults for all that can be said."""
        request = exchange.request
        _refuse_prefetch(request)
        key = self._verify(exchange)
        invite = self._invites.create(key)
        return _created(request, invite)

    def post(self, exchange: Exchange) -> Response:
        """Do the same: POST is the safe method for programs, which no cache and no prefetch repeats."""
        if exchange.request.content_length or exchange.request.headers.get("Transfer-Encoding"):
            raise InvalidRequest("body", "must be empty")
        return self.get(exchange)

    def _verify(self, exchange: Exchange) -> ApiKey:
        combined, in_header = read_credentials(exchange.request)
        key = self._keys.verify(combined)
        exchange.key_id = key.id
        if key.policy.header_only and not in_header:
            raise InvalidKey("not in the header", key.id)
        return key


def _created(request: Request, invite: Invite) -> Response:
    if _asks_redirect(request):
        response = Response(status=303)
    elif wants_json(request):
        response = json_response(invite_to_json(invite, invite.created_at), 201)
    else:
        response = Response(status=201)
    # Werkzeug would make it absolute with the Host header's help; it is a full URL or xmpp: URI as it is.
    response.autocorrect_location_header = False
    response.headers["Location"] = invite.landing_page
    if not response.response:
        del response.headers["Content-Type"]
        response.headers["Content-Length"] = "0"
    return response


def _asks_redirect(request: Request) -> bool:
    value = request.args.get("redirect")
    return value is not None and value.lower() not in _NO


def _refuse_prefetch(request: Request) -> None:
    """Refuse to make an invite for a page that nobody has asked to see yet."""
    for name in ("Sec-Purpose", "Purpose", "X-Moz"):
        if "prefetch" in request.headers.get(name, "").lower():
            raise Problem(403, "Nothing is created for a prefetch.")
