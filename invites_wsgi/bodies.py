"""JSON bodies: read within bounds, and taken apart field by field, so that each mistake is named."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from datetime import timedelta
from typing import Any, Final, NoReturn

from werkzeug.exceptions import HTTPException, RequestEntityTooLarge
from werkzeug.wrappers import Request

from invites_core import NEVER, InvalidRequest, InviteFields
from invites_core.durations import parse_duration
from invites_wsgi.http import Problem

__all__ = ["CREATION_FIELDS", "MAX_BODY", "parse_invite_fields", "read_json_object"]

MAX_BODY: Final = 64 * 1024

CREATION_FIELDS: Final = (
    "kind",
    "username",
    "registration",
    "expires_in",
    "max_uses",
    "groups",
    "roles",
    "note",
    "count",
)


def read_json_object(request: Request, known: Collection[str]) -> dict[str, Any]:
    """Return the JSON object in a request's body, empty where there is no body.

    Args:
        request: The request.
        known: The fields that it may have.

    Raises:
        Problem: The body is not declared as JSON (415) or is longer than 64 KiB (413).
        InvalidRequest: It is not a JSON object, or has a field that is not known or given twice.
    """
    if not request.content_length:
        if "Transfer-Encoding" not in request.headers:
            return {}
        if not request.environ.get("wsgi.input_terminated"):
            raise Problem(411, "This server takes bodies with a Content-Length only.")
    # Werkzeug ends a body of unknown length silently where the limit is: whether there was more is seen one byte later.
    request.max_content_length = MAX_BODY + 1
    try:
        body = request.get_data(cache=False)
    except HTTPException:
        raise
    except Exception as error:
        raise Problem(400, "The body could not be read.") from error
    if len(body) > MAX_BODY:
        raise RequestEntityTooLarge
    if len(body) < (request.content_length or 0):
        # Whoever hung up meant something else than the defaults that an empty body stands for.
        raise Problem(400, "The body is shorter than its Content-Length.")
    if not body:
        return {}
    if request.mimetype != "application/json":
        raise Problem(415, "A body must be application/json.", {"Accept-Post": "application/json"})
    try:
        content = json.loads(body.decode("utf-8"), object_pairs_hook=_make_object, parse_constant=_refuse_constant)
    except InvalidRequest:
        raise
    except RecursionError as error:
        raise InvalidRequest("body", "is nested too deeply") from error
    except ValueError as error:
        raise InvalidRequest("body", "is not valid JSON in UTF-8") from error
    if not isinstance(content, dict):
        raise InvalidRequest("body", "must be a JSON object")
    for name in content:
        if name not in known:
            raise InvalidRequest(_show_name(name), f"is not a field here; known are {', '.join(known)}")
    return content


def parse_invite_fields(content: Mapping[str, Any]) -> tuple[InviteFields, int | None]:
    """Return what a body asks to be made, and its ``count`` or None where it has none.

    Only what JSON writes otherwise than the library is translated here; the library checks the values.

    Raises:
        InvalidRequest: ``expires_in`` is not a duration, or a field is null that must not be.
    """
    fields: dict[str, Any] = {}
    for name, value in content.items():
        if value is None and name not in _NULLABLE:
            raise InvalidRequest(name, "must not be null")
        fields[name] = _TRANSLATED.get(name, _as_it_is)(value)
    count = fields.pop("count", None)
    return InviteFields(**fields), count  # type: ignore[typeddict-item]  # the names were checked against the list


def _as_it_is(value: Any) -> Any:
    return value


def _parse_expiry(value: Any) -> timedelta:
    if value is None:
        return NEVER
    if not isinstance(value, str):
        raise InvalidRequest("expires_in", 'must be a duration such as "7d", or null for never')
    return parse_duration(value, field="expires_in")


_NULLABLE: Final = frozenset({"username", "expires_in", "max_uses", "note"})
_TRANSLATED: Final[Mapping[str, Callable[[Any], Any]]] = {"expires_in": _parse_expiry}


def _make_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Refuse a name that is given twice (RFC 8259, section 4: what readers make of it differs)."""
    made = dict(pairs)
    if len(made) < len(pairs):
        counted = Counter(name for name, _ in pairs)
        twice = next(name for name, count in counted.items() if count > 1)
        raise InvalidRequest(_show_name(twice), "is given more than once")
    return made


def _refuse_constant(name: str) -> NoReturn:
    raise InvalidRequest("body", f"{name} is not JSON")


def _show_name(name: str) -> str:
    """Return a field's name as it can be shown: whatever somebody sent, in printable ASCII and short."""
    return name if re.fullmatch(r"[A-Za-z0-9_.-]{1,40}", name, re.ASCII) else ascii(name[:40])
