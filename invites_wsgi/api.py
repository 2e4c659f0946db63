"""What answers on ``/invites_api`` and below: parse the request, call the library, write the answer."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Final, cast

from werkzeug.wrappers import Request

from invites_core import ApiKey, ApiKeys, InvalidRequest, Invite, Invites
from invites_core.clock import Clock, read_clock
from invites_core.invites import InviteState
from invites_wsgi.bodies import CREATION_FIELDS, parse_invite_fields, read_json_object
from invites_wsgi.http import Answer, Exchange, Problem, json_response, read_credentials, wants_json
from invites_wsgi.representation import format_time, invite_details_to_json, invite_to_json, key_to_json

__all__ = ["InvitesApi"]

_NO: Final = frozenset({"false", "0", "no", "off"})
_WHOLE: Final = re.compile(r"[0-9]{1,9}", re.ASCII)


class InvitesApi:
    """The resources of the API."""

    def __init__(self, keys: ApiKeys, invites: Invites, clock: Clock) -> None:
        self._keys = keys
        self._invites = invites
        self._clock = clock

    def create(self, exchange: Exchange) -> Answer:
        """``GET``, ``POST /invites_api``: make an invite, or several alike."""
        request = exchange.request
        _refuse_prefetch(exchange)
        key = self._verify(exchange)
        # A GET has no body that means anything (RFC 9110, section 9.3.1), so none is read.
        content = read_json_object(request, CREATION_FIELDS) if request.method == "POST" else {}
        fields, count = parse_invite_fields(content)
        made = self._invites.create_many(
            key, 1 if count is None else count, idempotency_key=request.headers.get("Idempotency-Key"), **fields
        )
        return _created(request, made[0]) if count is None else _created_many(made)

    def show_key(self, exchange: Exchange) -> Answer:
        """``GET /invites_api/key``: what this key is and may."""
        key = self._verify(exchange)
        left = self._keys.find_quota_left(key)
        shown = None if left is None else {"count": left[0], "resets_at": format_time(left[1])}
        return json_response({**key_to_json(key), "quota_left": shown})

    def list(self, exchange: Exchange) -> Answer:
        """``GET /invites_api/invites``: the key's own invites, or its host's where it may see them."""
        key = self._verify(exchange, scope="read")
        args = exchange.request.args
        limit = args.get("limit", "100")
        if not _WHOLE.fullmatch(limit):
            raise InvalidRequest("limit", "must be a whole number from 1 to 1000")
        page = self._invites.list(
            key.host,
            state=cast(InviteState | None, args.get("state")),
            source=key.listed_source,
            limit=int(limit),
            cursor=args.get("cursor"),
        )
        now = read_clock(self._clock)
        return json_response({"invites": [invite_to_json(invite, now) for invite in page.invites], "next": page.next})

    def show(self, exchange: Exchange, token: str) -> Answer:
        """``GET /invites_api/invites/TOKEN``: one invite with its history."""
        key = self._verify(exchange, scope="read")
        invite = self._invites.get(token, host=key.host)
        redemptions = self._invites.list_redemptions(token, host=key.host)
        return json_response(invite_details_to_json(invite, redemptions, read_clock(self._clock)))

    def revoke(self, exchange: Exchange, token: str) -> Answer:
        """``DELETE /invites_api/invites/TOKEN``: take it back."""
        key = self._verify(exchange, scope="revoke")
        self._invites.revoke(token, by=key.source, host=key.host)
        return _empty(204)

    def redeem(self, exchange: Exchange, token: str) -> Answer:
        """``POST /invites_api/invites/TOKEN/redeem``: use it once."""
        key = self._verify(exchange, scope="redeem")
        content = read_json_object(exchange.request, ("redeemer", "redemption_id"))
        redeemed = self._invites.redeem(
            token, redeemer=content.get("redeemer"), redemption_id=content.get("redemption_id"), host=key.host
        )
        return self._redemption(redeemed.redemption_id, redeemed.invite)

    def release(self, exchange: Exchange, token: str) -> Answer:
        """``POST /invites_api/invites/TOKEN/release``: give a use back."""
        key = self._verify(exchange, scope="redeem")
        content = read_json_object(exchange.request, ("redemption_id",))
        if "redemption_id" not in content:
            raise InvalidRequest("redemption_id", "is missing")
        identity = content["redemption_id"]
        return self._redemption(identity, self._invites.release(token, redemption_id=identity, host=key.host))

    def _redemption(self, redemption_id: str, invite: Invite) -> Answer:
        shown = invite_to_json(invite, read_clock(self._clock))
        return json_response({"redemption_id": redemption_id, "invite": shown})

    def _verify(self, exchange: Exchange, *, scope: str | None = None) -> ApiKey:
        combined, in_header = read_credentials(exchange.request)
        key = self._keys.verify(combined)
        exchange.key_id = key.id
        self._keys.check_use(key, scope=scope, in_header=in_header)
        return key


def _created(request: Request, invite: Invite) -> Answer:
    if _asks_redirect(request):
        response = _empty(303)
    elif wants_json(request):
        response = json_response(invite_to_json(invite, invite.created_at), 201)
    else:
        response = _empty(201)
    response.headers["Location"] = invite.landing_page
    return response


def _created_many(invites: Sequence[Invite]) -> Answer:
    shown: list[dict[str, Any]] = [invite_to_json(invite, invite.created_at) for invite in invites]
    return json_response({"invites": shown}, 201)


def _empty(status: int) -> Answer:
    return Answer(status=status, headers=None if status == 204 else {"Content-Length": "0"})


def _asks_redirect(request: Request) -> bool:
    value = request.args.get("redirect")
    return value is not None and value.lower() not in _NO


def _refuse_prefetch(exchange: Exchange) -> None:
    """Refuse to make an invite for a page that nobody has asked to see yet."""
    for name in ("HTTP_SEC_PURPOSE", "HTTP_PURPOSE", "HTTP_X_MOZ"):
        if "prefetch" in exchange.request.environ.get(name, "").lower():
            exchange.reason = "prefetch"
            raise Problem(403, "Nothing is created for a prefetch.")
