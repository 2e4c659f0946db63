"""A Werkzeug app that stores nothing: what the HTTP server and the library alone can do."""

from __future__ import annotations

from werkzeug.wrappers import Request, Response

__all__ = ["application"]

LOCATION = "https://example.com/invite?" + "t" * 24


@Request.application
def application(request: Request) -> Response:
    """Answer as if an invite had been created.

    The key is read, so that the query is parsed here as it is in the service.
    """
    if "key" not in request.args:
        return Response(status=403)
    return Response(status=201, headers={"Location": LOCATION})
