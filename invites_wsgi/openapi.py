"""The OpenAPI 3.1 description of the API, the same that is served at ``/invites_api/openapi.json``."""

from __future__ import annotations

import json
from typing import Any

from invites_core import __version__
from invites_core.invites import KINDS
from invites_core.keys import SCOPES
from invites_wsgi.errors import ERRORS, name_problem_type
from invites_wsgi.http import Answer, Exchange

__all__ = ["OpenApiResource", "build_openapi"]

Schema = dict[str, Any]

_TEXT: Schema = {"type": "string"}
_TEXT_OR_NULL: Schema = {"type": ["string", "null"]}
_TIME: Schema = {"type": "string", "format": "date-time"}
_TIME_OR_NULL: Schema = {"type": ["string", "null"], "format": "date-time"}
_TEXTS: Schema = {"type": "array", "items": _TEXT}
_LABELS: Schema = {
    "type": "array",
    "items": {"type": "string", "minLength": 1, "maxLength": 255},
    "maxItems": 100,
    "uniqueItems": True,
}
_USES: Schema = {"type": ["integer", "null"], "minimum": 1, "maximum": 2**31 - 1}
_STATES = ["pending", "used", "revoked", "expired"]
_DURATION: Schema = {"type": "string", "pattern": "^[0-9]{1,12}(s|min|h|d|w)$", "examples": ["7d"]}
_IDENTITY: Schema = {"type": "string", "pattern": "^[!-~]{1,255}$"}


class OpenApiResource:
    """``/invites_api/openapi.json``, for whoever asks."""

    def __init__(self, path: str) -> None:
        self._document = json.dumps(build_openapi(path)) + "\n"

    def get(self, exchange: Exchange) -> Answer:
        """Return the description."""
        return Answer(self._document, mimetype="application/json")


def build_openapi(path: str = "/invites_api") -> Schema:
    """Return the description of an API that is served at a path."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "invites-api",
            "version": __version__,
            "summary": "Creates invite links",
            "license": {"name": "MIT", "identifier": "MIT"},
        },
        "paths": {
            path: {
                "get": _operation("create", "Make an invite", _created(), query=True, idempotent=True),
                "post": {
                    **_operation("createWithFields", "Make an invite", _created(), query=True, idempotent=True),
                    "requestBody": _body("CreationRequest", required=False),
                },
            },
            f"{path}/key": {"get": _operation("showKey", "What this key is and may", _ok("Key"))},
            f"{path}/invites": {
                "get": {
                    **_operation("listInvites", "List invites, newest first (scope read)", _ok("InvitePage")),
                    "parameters": [
                        _query("state", {"type": "string", "enum": _STATES}),
                        _query("limit", {"type": "integer", "minimum": 1, "maximum": 1000, "default": 100}),
                        _query("cursor", {"type": "string", "pattern": "^[0-9]{1,18}$"}),
                    ],
                }
            },
            f"{path}/invites/{{token}}": {
                "parameters": [_token()],
                "get": _operation("showInvite", "One invite with its history (scope read)", _ok("InviteDetails")),
                "delete": _operation("revokeInvite", "Take an invite back (scope revoke)", {"204": _answer("Done")}),
            },
            f"{path}/invites/{{token}}/redeem": {
                "parameters": [_token()],
                "post": {
                    **_operation("redeemInvite", "Use an invite once (scope redeem)", _ok("Redemption")),
                    "requestBody": _body("RedeemRequest", required=False),
                },
            },
            f"{path}/invites/{{token}}/release": {
                "parameters": [_token()],
                "post": {
                    **_operation("releaseRedemption", "Give a use back (scope redeem)", _ok("Redemption")),
                    "requestBody": _body("ReleaseRequest", required=True),
                },
            },
            f"{path}/openapi.json": {
                "get": {
                    "operationId": "describe",
                    "summary": "This document",
                    "security": [],
                    "responses": {"200": _answer("This document", {"application/json": {"schema": {}}})},
                }
            },
        },
        "components": {
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer", "bearerFormat": "ID/SECRET"},
                "query": {"type": "apiKey", "in": "query", "name": "key"},
            },
            "schemas": _schemas(),
        },
        "security": [{"bearer": []}, {"query": []}],
    }


def _operation(
    operation_id: str, summary: str, answers: Schema, *, query: bool = False, idempotent: bool = False
) -> Schema:
    problem = {"application/problem+json": {"schema": _ref("Problem")}, "text/plain": {"schema": _TEXT}}
    operation: Schema = {
        "operationId": operation_id,
        "summary": summary,
        "responses": {**answers, "4XX": _answer("Refused", problem), "5XX": _answer("Not done", problem)},
    }
    parameters = []
    if query:
        parameters.append(_query("redirect", _TEXT))
    if idempotent:
        parameters.append({"name": "Idempotency-Key", "in": "header", "schema": _IDENTITY})
    if parameters:
        operation["parameters"] = parameters
    return operation


def _created() -> Schema:
    location = {"Location": {"schema": {"type": "string", "format": "uri"}, "description": "The invite's link"}}
    schema = {"anyOf": [_ref("Invite"), _ref("Invites")]}
    return {
        "201": {**_answer("Made", {"application/json": {"schema": schema}}), "headers": location},
        "303": {**_answer("Made; see the link"), "headers": location},
    }


def _ok(name: str) -> Schema:
    return {"200": _answer("Done", {"application/json": {"schema": _ref(name)}})}


def _answer(description: str, content: Schema | None = None) -> Schema:
    return {"description": description} if content is None else {"description": description, "content": content}


def _body(name: str, *, required: bool) -> Schema:
    return {"required": required, "content": {"application/json": {"schema": _ref(name)}}}


def _query(name: str, schema: Schema) -> Schema:
    return {"name": name, "in": "query", "schema": schema}


def _token() -> Schema:
    return {
        "name": "token",
        "in": "path",
        "required": True,
        "schema": {"type": "string", "pattern": "^[A-Za-z0-9_-]{16,255}$"},
    }


def _ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def _object(properties: Schema, *, required: list[str] | None = None, closed: bool = False) -> Schema:
    schema: Schema = {
        "type": "object",
        "properties": properties,
        "required": list(properties) if required is None else required,
    }
    if closed:
        schema["additionalProperties"] = False
    return schema


def _schemas() -> Schema:
    invite: Schema = {
        "token": _TEXT,
        "kind": {"type": "string", "enum": sorted(KINDS)},
        "host": _TEXT,
        "jid": _TEXT,
        "username": _TEXT_OR_NULL,
        "registration": {"type": "boolean"},
        "uri": _TEXT,
        "landing_page": _TEXT,
        "created_at": _TIME,
        "expires_at": _TIME_OR_NULL,
        "max_uses": _USES,
        "uses": {"type": "integer", "minimum": 0},
        "state": {"type": "string", "enum": _STATES},
        "source": _TEXT,
        "groups": _TEXTS,
        "roles": _TEXTS,
        "note": _TEXT_OR_NULL,
    }
    redemption = {
        "redemption_id": _TEXT,
        "redeemer": _TEXT_OR_NULL,
        "redeemed_at": _TIME_OR_NULL,
        "released_at": _TIME_OR_NULL,
    }
    policy = {
        "scopes": {"type": "array", "items": {"type": "string", "enum": sorted(SCOPES)}},
        "kinds": {"type": "array", "items": {"type": "string", "enum": sorted(KINDS)}},
        "groups": _TEXTS,
        "roles": _TEXTS,
        "allow_username": {"type": "boolean"},
        "max_expiry": {**_TEXT_OR_NULL, "description": "null: the host's default; never: no bound"},
        "max_uses": {**_USES, "description": "null: no bound"},
        "quota": {**_TEXT_OR_NULL, "examples": ["100/1d"]},
        "all_invites": {"type": "boolean"},
        "header_only": {"type": "boolean"},
    }
    quota_left = _object({"count": {"type": "integer", "minimum": 0}, "resets_at": _TIME})
    key = {
        "id": _TEXT,
        "host": _TEXT,
        "name": _TEXT_OR_NULL,
        "created_at": _TIME,
        "expires_at": _TIME_OR_NULL,
        "last_used_at": _TIME_OR_NULL,
        "policy": _object(policy),
        "quota_left": {"anyOf": [quota_left, {"type": "null"}]},
    }
    return {
        "CreationRequest": _object(
            {
                "kind": {"type": "string", "enum": sorted(KINDS), "default": "register"},
                "username": {"type": ["string", "null"], "minLength": 1, "maxLength": 1023},
                "registration": {"type": "boolean"},
                "expires_in": {**_DURATION, "type": ["string", "null"], "description": "null: it never expires"},
                "max_uses": {**_USES, "default": 1},
                "groups": _LABELS,
                "roles": _LABELS,
                "note": {"type": ["string", "null"], "maxLength": 1000},
                "count": {"type": "integer", "minimum": 1, "maximum": 1000},
            },
            required=[],
            closed=True,
        ),
        "RedeemRequest": _object(
            {"redeemer": {"type": ["string", "null"], "maxLength": 1023}, "redemption_id": _IDENTITY},
            required=[],
            closed=True,
        ),
        "ReleaseRequest": _object({"redemption_id": _IDENTITY}, closed=True),
        "Invite": _object(invite),
        "Invites": _object({"invites": {"type": "array", "items": _ref("Invite")}}),
        "InvitePage": _object({"invites": {"type": "array", "items": _ref("Invite")}, "next": _TEXT_OR_NULL}),
        "InviteDetails": _object(
            {
                **invite,
                "state_since": _TIME,
                "revoked_by": _TEXT_OR_NULL,
                "redemptions": {"type": "array", "items": _object(redemption)},
            }
        ),
        "Redemption": _object({"redemption_id": _TEXT, "invite": _ref("Invite")}),
        "Key": _object(key),
        "Problem": _object(
            {
                "type": {"type": "string", "enum": ["about:blank", *map(name_problem_type, ERRORS)]},
                "title": _TEXT,
                "status": {"type": "integer"},
                "detail": _TEXT,
                "request_id": _TEXT,
            }
        ),
    }
