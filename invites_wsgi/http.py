"""Requests and responses as this app knows them: credentials in, problems and headers out."""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from werkzeug.datastructures import Headers
from werkzeug.http import HTTP_STATUS_CODES
from werkzeug.wrappers import Request, Response

from invites_core.errors import InvalidKey, InvalidRequest, InvitesError
from invites_wsgi.errors import get_error_kind

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

__all__ = [
    "Answer",
    "Exchange",
    "Problem",
    "QuietRequest",
    "json_response",
    "problem_response",
    "read_credentials",
    "wants_json",
]

SECURITY_HEADERS: Final = (
    ("Cache-Control", "no-store"),
    ("Referrer-Policy", "no-referrer"),
    ("X-Content-Type-Options", "nosniff"),
)
CHALLENGE: Final = 'Bearer realm="invites"'
_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,64}", re.ASCII)


class QuietRequest(Request):
    """A request that does not show what it asks for, as Werkzeug's does: its address may hold a key or a token.

    Tools that watch for errors keep the representation of every variable of a traceback.
    """

    def __repr__(self) -> str:
        return f"<{type(self).__name__}>"


@dataclass(slots=True)
class Exchange:
    """One request on its way through the app, with what its line in the log needs.

    Attributes:
        request: The request.
        request_id: Names the request in the log and in its answer.
        route: The template of the route, never the path, which may hold a token.
        key_id: The id of the key, once it is known to be a stored one.
        reason: Why it was refused, for the log alone.
    """

    request: Request = field(repr=False)
    request_id: str = field(default_factory=lambda: secrets.token_hex(8))
    route: str = "-"
    key_id: str | None = None
    reason: str | None = None


class Answer(Response):
    """A response whose headers go out as they were set.

    Werkzeug would go through them once more, to make a URI of ``Location`` and to count the bytes of the body. Here
    ``Location`` is a URI already, and a body that is given as a text is counted when it is given; whoever gives none
    names its length, 0, where there must be one.
    """

    default_mimetype = None

    def get_wsgi_headers(self, environ: WSGIEnvironment) -> Headers:
        """Return the headers as they are."""
        return self.headers


class Problem(Exception):
    """An answer that HTTP alone knows, such as a method that is not allowed.

    Attributes:
        status: The HTTP status.
        headers: Further headers of the answer.
    """

    def __init__(self, status: int, detail: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(detail)
        self.status = status
        self.headers = dict(headers or {})


def read_request_id(request: Request, *, trusted: bool) -> str | None:
    """Return the request id that a trusted proxy has given, or None."""
    given = request.headers.get("X-Request-Id", "") if trusted else ""
    return given if _REQUEST_ID.fullmatch(given) else None


def read_credentials(request: Request) -> tuple[str, bool]:
    """Return the ``ID/SECRET`` that a request carries, and whether it stood in the header.

    The header wins, and one of another scheme hides the query, as Prosody does it. The scheme's name is
    case-insensitive (RFC 9110, section 11.1).

    Raises:
        InvalidKey: It carries none.
        InvalidRequest: The parameter is repeated (RFC 6750, section 3.1).
    """
    header = request.headers.get("Authorization")
    given = request.args.getlist("key")
    if len(given) > 1:
        raise InvalidRequest("key", "is given more than once")
    if header is not None:
        scheme, _, credentials = header.partition(" ")
        if scheme.lower() != "bearer":
            raise InvalidKey("other scheme")
        return credentials.strip(" "), True
    if not given:
        raise InvalidKey("missing")
    return given[0], False


def wants_json(request: Request) -> bool:
    """Tell whether a request names ``application/json`` in Accept; a wildcard does not."""
    return _accepts(request, "application/json")


def _is_browser(request: Request) -> bool:
    """Tell whether a person reads the answer: whoever names ``text/html`` in Accept."""
    return _accepts(request, "text/html")


def _accepts(request: Request, mimetype: str) -> bool:
    """Tell whether Accept names a type, with whatever parameters."""
    return any(
        value.partition(";")[0].strip().lower() == mimetype and quality > 0
        for value, quality in request.accept_mimetypes
    )


def json_response(content: object, status: int = 200, *, mimetype: str = "application/json") -> Answer:
    """Return a JSON document (RFC 8259) as the answer, in ASCII, whatever texts are in it."""
    return Answer(json.dumps(content) + "\n", status, mimetype=mimetype)


def problem_response(
    exchange: Exchange, error: Exception, *, status: int | None = None, as_json: bool = False
) -> Answer:
    """Return what an error looks like from outside: a problem document (RFC 9457), or one sentence for a browser.

    Args:
        exchange: The request that failed.
        error: One of the library's errors, a `Problem`, or anything else for a fault of our own.
        status: The status instead of the table's.
        as_json: Whether it is a problem document whoever asks.
    """
    headers: dict[str, str] = {}
    extra: dict[str, object] = {}
    if isinstance(error, InvitesError):
        problem_type, kind = get_error_kind(error)
        status, title = status or kind.status, kind.title
        message = str(error)
        # A message that begins with a field's name keeps it as it is written in a request.
        sentence = message if hasattr(error, "field") else message[:1].upper() + message[1:]
        detail = kind.public_detail or f"{sentence}."
        if isinstance(error, InvalidKey):
            headers["WWW-Authenticate"] = CHALLENGE
        for name in ("field", "scope", "redemption_id"):
            if getattr(error, name, None) is not None:
                extra[name] = getattr(error, name)
        if hasattr(error, "retry_after"):
            headers["Retry-After"] = str(error.retry_after)
    else:
        problem = error if isinstance(error, Problem) else Problem(500, "Something went wrong here; it is in the log.")
        problem_type, status, headers = "about:blank", problem.status, problem.headers
        title, detail = HTTP_STATUS_CODES[status], str(problem)
    if _is_browser(exchange.request) and not as_json:
        response = Answer(detail + "\n", status, mimetype="text/plain")
    else:
        document = {"type": problem_type, "title": title, "status": status, "detail": detail, **extra}
        document["request_id"] = exchange.request_id
        response = json_response(document, status, mimetype="application/problem+json")
    response.headers.extend(headers)
    return response
