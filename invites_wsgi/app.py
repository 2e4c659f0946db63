"""The WSGI app: the URL map and the one point where every request is dispatched."""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Final

from werkzeug.exceptions import HTTPException, NotFound
from werkzeug.middleware.proxy_fix import ProxyFix
from werkzeug.routing import Map, Rule
from werkzeug.wrappers import Request, Response

from invites_core import (
    ApiKeys,
    InvalidKey,
    Invites,
    InvitesError,
    SecretHasher,
    StorageError,
    open_invite_store,
    open_store,
)
from invites_core.clock import Clock, system_clock
from invites_core.store import InviteStore, KeyStore
from invites_wsgi.api import InvitesApi
from invites_wsgi.config import Settings, load_settings
from invites_wsgi.housekeeping import Housekeeping
from invites_wsgi.http import SECURITY_HEADERS, Exchange, Problem, problem_response, read_request_id
from invites_wsgi.landing import LandingResource
from invites_wsgi.logs import configure_logging, is_configured
from invites_wsgi.openapi import OpenApiResource

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

__all__ = ["App", "create_app"]

HEALTH_SECONDS: Final = 1.0
MAX_UNKNOWN_ID: Final = 15
"""The longest unknown id that is logged: ids of ours have 8 characters, Prosody's 12; a token has 16 or more."""

_NOT_ASCII: Final = re.compile(rb"[\x80-\xff]")
_ADDRESS: Final = re.compile(r"[0-9A-Fa-f:.\[\]]{2,60}", re.ASCII)

_log = logging.getLogger("invites_wsgi.app")
_request_log = logging.getLogger("invites_wsgi.request")

Handler = Callable[..., Response]


class HealthResource:
    """``/healthz``: whether the service can do its work at this moment."""

    def __init__(self, stores: Iterable[KeyStore | InviteStore]) -> None:
        self._stores = list(stores)
        self._lock = threading.Lock()
        self._checked_at = float("-inf")
        self._error: StorageError | None = None

    def get(self, exchange: Exchange) -> Response:
        """Ask the stores, at most once a second however often this is asked."""
        with self._lock:
            if time.monotonic() - self._checked_at >= HEALTH_SECONDS:
                self._error = self._find_error()
                self._checked_at = time.monotonic()
            error = self._error
        if error is not None:
            exchange.reason = str(error)
            raise type(error)(str(error), retry_after=error.retry_after) from error
        return Response("ok\n", mimetype="text/plain")

    def _find_error(self) -> StorageError | None:
        try:
            for store in self._stores:
                store.ping()
        except StorageError as error:
            return error
        return None


class App:
    """The app, safe to call from many threads and from every process that is forked from the one that made it."""

    def __init__(
        self,
        settings: Settings,
        *,
        key_store: KeyStore,
        invite_store: InviteStore,
        hasher: SecretHasher | None = None,
        clock: Clock = system_clock,
    ) -> None:
        """Put the app together.

        Args:
            settings: What it is set to; `create_app` reads them.
            key_store: Where the keys are.
            invite_store: Where the invites are; may be the same.
            hasher: How secrets are checked; None: as fits ``settings.threads``.
            clock: Where the time comes from.
        """
        self._settings = settings
        keys = ApiKeys(
            key_store, hasher=hasher or SecretHasher(threads=settings.threads), hosts=settings.hosts, clock=clock
        )
        invites = Invites(invite_store, keys=key_store, hosts=settings.hosts, clock=clock)
        api = InvitesApi(keys, invites, clock)
        openapi = OpenApiResource(settings.path)
        landing = LandingResource(invites, settings.hosts, clock)
        health = HealthResource({id(store): store for store in (key_store, invite_store)}.values())
        # Methods are dispatched here and not by Werkzeug, which adds HEAD to every rule for GET and runs the handler:
        # a HEAD of /invites_api would create an invite.
        self._resources: dict[str, dict[str, Handler]] = {
            settings.path: {"GET": api.create, "POST": api.create},
            f"{settings.path}/key": {"GET": api.show_key},
            f"{settings.path}/invites": {"GET": api.list},
            f"{settings.path}/invites/<token>": {"GET": api.show, "DELETE": api.revoke},
            f"{settings.path}/invites/<token>/redeem": {"POST": api.redeem},
            f"{settings.path}/invites/<token>/release": {"POST": api.release},
            f"{settings.path}/openapi.json": {"GET": openapi.get, "HEAD": openapi.get},
            settings.landing_path: {"GET": landing.get, "HEAD": landing.get},
            "/healthz": {"GET": health.get, "HEAD": health.get},
        }
        # No rule ends with a slash, so nothing is ever redirected to one: Werkzeug's redirects would repeat the
        # query, key included, to whatever Host the client named.
        rules = Map([Rule(path, endpoint=path) for path in self._resources], strict_slashes=True, merge_slashes=False)
        # Bound once and to no host: neither the Host header nor an Upgrade has a say in what is answered.
        self._routes = rules.bind("localhost")
        self._housekeeping = Housekeeping(invites, settings.purge_after)
        self._cors = {
            "Access-Control-Allow-Methods": "GET, POST, DELETE, OPTIONS",
            "Access-Control-Allow-Headers": "Authorization, Content-Type, Idempotency-Key",
            "Access-Control-Max-Age": "7200",
            "Access-Control-Expose-Headers": "Location",
        }

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Answer one request (PEP 3333)."""
        started = time.perf_counter()
        self._housekeeping.ensure_running()
        request = Request(environ)
        # Some servers pass on bytes that a client ought to have percent-encoded, and Werkzeug cannot read them.
        request.query_string = _NOT_ASCII.sub(lambda found: b"%%%02X" % found[0][0], request.query_string)
        exchange = Exchange(request)
        exchange.request_id = (
            read_request_id(request, trusted=self._settings.trusted_proxies > 0) or exchange.request_id
        )
        response = self._answer(exchange)
        for name, value in SECURITY_HEADERS:
            response.headers.setdefault(name, value)
        response.headers["X-Request-Id"] = exchange.request_id
        if request.path == self._settings.path or request.path.startswith(f"{self._settings.path}/"):
            self._add_cors(request, response)
        _request_log.info(
            "%s %s %d",
            request.method if request.method.isalpha() and len(request.method) < 12 else "-",
            exchange.route,
            response.status_code,
            extra={
                "key": exchange.key_id,
                "reason": exchange.reason,
                "ms": round((time.perf_counter() - started) * 1000, 1),
                "client": _find_address(request),
                "request_id": exchange.request_id,
            },
        )
        return response(environ, start_response)

    def _answer(self, exchange: Exchange) -> Response:
        """Run the handler, and turn whatever it raises into an answer: the one place that does."""
        try:
            return self._dispatch(exchange)
        except Problem as problem:
            return problem_response(exchange, problem)
        except InvitesError as error:
            exchange.reason = exchange.reason or type(error).__name__
            if isinstance(error, InvalidKey):
                exchange.key_id, exchange.reason = _find_loggable_id(error), error.reason
            elif isinstance(error, StorageError):
                _log.error("%s", error, extra={"request_id": exchange.request_id})
            # Where Prosody's module answers, a refusal is 403 as its is; below that, 401 as RFC 9110 has it.
            below = isinstance(error, InvalidKey) and exchange.route != self._settings.path
            return problem_response(exchange, error, status=401 if below else None)
        except HTTPException as error:
            return problem_response(exchange, Problem(error.code or 500, f"{error.name}."))
        except Exception as error:  # noqa: BLE001 (it is logged, and whoever asked gets an answer)
            _log.exception("an error that should not be", extra={"request_id": exchange.request_id})
            return problem_response(exchange, error)

    def _dispatch(self, exchange: Exchange) -> Response:
        request = exchange.request
        try:
            route, arguments = self._routes.match(request.path)
        except NotFound:
            raise Problem(404, "There is nothing here.") from None
        exchange.route = route
        handlers = self._resources[route]
        allow = ", ".join([*handlers, "OPTIONS"])
        if request.method == "OPTIONS":
            return Response(status=200, headers={"Allow": allow})
        handler = handlers.get(request.method)
        if handler is None:
            raise Problem(405, f"Allowed here: {allow}.", {"Allow": allow})
        return handler(exchange, **arguments)

    def _add_cors(self, request: Request, response: Response) -> None:
        """Let pages of other origins call the API; no cookie and no ambient credential is ever taken."""
        allowed = self._settings.cors_origins
        if allowed == ("*",):
            response.headers["Access-Control-Allow-Origin"] = "*"
        else:
            response.headers.add("Vary", "Origin")
            origin = request.headers.get("Origin")
            if origin not in allowed:
                return
            response.headers["Access-Control-Allow-Origin"] = origin
        response.headers.update(self._cors)


def _find_address(request: Request) -> str | None:
    """Return the client's address, or None where there is none (a Unix socket) or a proxy passed on something else."""
    address = request.remote_addr or ""
    return address if _ADDRESS.fullmatch(address) else None


def _find_loggable_id(error: InvalidKey) -> str | None:
    """Return the id of a refused key, unless it may be a secret or a token that somebody took for an id."""
    key_id = error.key_id or ""
    return None if not key_id or (error.reason == "unknown" and len(key_id) > MAX_UNKNOWN_ID) else key_id


def create_app(settings: Settings | None = None) -> App | ProxyFix:
    """Make the app from settings.

    Args:
        settings: None: read from the file that ``INVITES_CONFIG`` names and from the environment.

    Returns:
        A WSGI app: for ``gunicorn 'invites_wsgi:create_app()'``, or to mount under a prefix of another app.

    Raises:
        SettingsError: A mistake in the settings.
        StorageError: The database is not there or cannot be used.
    """
    settings = settings or load_settings()
    if not is_configured():
        configure_logging(settings.log_format, settings.log_level)
    key_store = open_store(settings.database, create=False)
    invite_store: InviteStore = key_store
    if settings.invites is not None:
        invite_store = open_invite_store(settings.invites, create=False)
    app = App(settings, key_store=key_store, invite_store=invite_store)
    if not settings.trusted_proxies:
        return app
    return ProxyFix(app, x_for=settings.trusted_proxies, x_proto=0, x_host=0, x_port=0, x_prefix=0)
