"""The WSGI app: the URL map and the one point where every request is dispatched."""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final

from werkzeug.exceptions import HTTPException, NotFound
from werkzeug.middleware.proxy_fix import ProxyFix
from werkzeug.routing import Map, Rule
from werkzeug.wrappers import Request

from invites_core import (
    ApiKeys,
    Busy,
    Event,
    EventHook,
    InvalidKey,
    Invites,
    InvitesError,
    SecretHasher,
    StorageBusy,
    StorageError,
    open_invite_store,
    open_store,
)
from invites_core.clock import Clock, system_clock
from invites_core.events import find_shown_key_id
from invites_core.store import InviteStore, KeyStore
from invites_wsgi.api import InvitesApi
from invites_wsgi.config import Settings, SettingsError, load_settings
from invites_wsgi.events import current_exchange, log_event
from invites_wsgi.housekeeping import Housekeeping
from invites_wsgi.http import (
    SECURITY_HEADERS,
    Answer,
    Exchange,
    Problem,
    QuietRequest,
    problem_response,
    read_request_id,
)
from invites_wsgi.landing import LandingResource
from invites_wsgi.logs import configure_logging, is_configured, log_line
from invites_wsgi.openapi import OpenApiResource

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

    from invites_wsgi.metrics import Metrics

__all__ = ["App", "create_app"]

HEALTH_SECONDS: Final = 1.0
HANGS_SECONDS: Final = 2.0
"""A look at the stores that takes longer is taken for a failure by those who ask meanwhile."""
NO_METRICS: Final = "http.metrics_listen needs prometheus-client: pip install 'invites-api[metrics]'"

_NOT_ASCII: Final = re.compile(rb"[\x80-\xff]")
_ADDRESS: Final = re.compile(r"[0-9A-Fa-f:.\[\]]{2,60}", re.ASCII)

_log = logging.getLogger("invites_wsgi.app")
_request_log = logging.getLogger("invites_wsgi.request")

Handler = Callable[..., Answer]


class HealthResource:
    """``/healthz``: whether the service can do its work at this moment."""

    def __init__(self, stores: Iterable[KeyStore | InviteStore]) -> None:
        self._stores = list(stores)
        self._lock = threading.Lock()
        self._checked_at = float("-inf")
        self._has_looked = False
        self._looking_since: float | None = None
        self._error: StorageError | None = None

    def get(self, exchange: Exchange) -> Answer:
        """Ask the stores, at most once a second however often this is asked."""
        with self._lock:
            now = time.monotonic()
            is_due = now - self._checked_at >= HEALTH_SECONDS
            # Who asks meanwhile is told what was found before, if there was anything, unless it takes too long.
            looks = is_due and (self._looking_since is None or not self._has_looked)
            hangs = self._looking_since is not None and now - self._looking_since > HANGS_SECONDS
            if looks:
                self._looking_since = now
        # Not under the lock, which could be asked for again in this thread while a store is waited for.
        if looks:
            self._look()
        error = StorageBusy("a database has not answered yet") if hangs and not looks else self._error
        if error is not None:
            exchange.reason = str(error)
            raise type(error)(str(error), retry_after=error.retry_after) from error
        return Answer("ok\n", mimetype="text/plain")

    def _look(self) -> None:
        try:
            self._error = self._find_error()
            self._checked_at, self._has_looked = time.monotonic(), True
        finally:
            self._looking_since = None

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
        metrics: Metrics | None = None,
    ) -> None:
        """Put the app together.

        Args:
            settings: What it is set to; `create_app` reads them.
            key_store: Where the keys are.
            invite_store: Where the invites are; may be the same.
            hasher: How secrets are checked; None: as fits ``settings.threads``.
            clock: Where the time comes from.
            metrics: What counts; None: nothing does.
        """
        self._settings = settings
        self._metrics = metrics
        stores = {id(store): store for store in (key_store, invite_store)}.values()
        hasher = hasher or SecretHasher(threads=settings.threads)
        on_event: EventHook = log_event
        if metrics is not None:
            metrics.watch(hasher, stores)
            on_event = _call_both(log_event, metrics.count_event)
        keys = ApiKeys(key_store, hasher=hasher, hosts=settings.hosts, clock=clock, on_event=on_event)
        invites = Invites(invite_store, keys=key_store, hosts=settings.hosts, clock=clock, on_event=on_event)
        api = InvitesApi(keys, invites, clock)
        openapi = OpenApiResource(settings.path)
        landing = LandingResource(invites, settings.hosts, clock, settings.page)
        health = HealthResource(stores)
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
        # Most paths are themselves the template of a route, and need no search.
        self._fixed = frozenset(path for path in self._resources if "<" not in path)
        # Bound once and to no host: neither the Host header nor an Upgrade has a say in what is answered.
        self._routes = rules.bind("localhost")
        self._housekeeping = Housekeeping(invites, settings.purge_after)
        self._cors = (
            ("Access-Control-Allow-Methods", "GET, POST, DELETE, OPTIONS"),
            ("Access-Control-Allow-Headers", "Authorization, Content-Type, Idempotency-Key"),
            ("Access-Control-Max-Age", "7200"),
            ("Access-Control-Expose-Headers", "Location"),
        )

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Answer one request (PEP 3333)."""
        started = time.perf_counter()
        self._housekeeping.ensure_running()
        request = QuietRequest(environ)
        # Some servers pass on bytes that a client ought to have percent-encoded, and Werkzeug cannot read them.
        if not request.query_string.isascii():
            request.query_string = _NOT_ASCII.sub(lambda found: b"%%%02X" % found[0][0], request.query_string)
        exchange = Exchange(request)
        exchange.request_id = (
            read_request_id(request, trusted=self._settings.trusted_proxies > 0) or exchange.request_id
        )
        outer = current_exchange.set(exchange)
        try:
            response = self._answer(exchange)
        finally:
            current_exchange.reset(outer)
        own = [*SECURITY_HEADERS, ("X-Request-Id", exchange.request_id)]
        if request.path == self._settings.path or request.path.startswith(f"{self._settings.path}/"):
            own += self._list_cors(request)
        seconds = time.perf_counter() - started
        if self._metrics is not None:
            # What a visitor of the invite page is told is no refusal of a key.
            reason = exchange.reason if exchange.route.startswith(self._settings.path) else None
            self._metrics.count_request(exchange.route, request.method, response.status_code, seconds, reason)
        method = request.method if request.method.isalpha() and len(request.method) < 12 else "-"
        log_line(
            _request_log,
            f"{method} {exchange.route} {response.status_code}",
            {
                "key": exchange.key_id,
                "reason": exchange.reason,
                "ms": round(seconds * 1000, 1),
                "client": _find_address(request),
                "request_id": exchange.request_id,
            },
        )
        # Added at the end: Werkzeug looks anew at each header that it is given, and these are known to be sound.
        chunks, status, headers = response.get_wsgi_response(environ)
        start_response(status, [*headers, *own])
        return chunks

    def _answer(self, exchange: Exchange) -> Answer:
        """Run the handler, and turn whatever it raises into an answer: the one place that does."""
        try:
            return self._dispatch(exchange)
        except Problem as problem:
            return problem_response(exchange, problem)
        except InvitesError as error:
            exchange.reason = exchange.reason or type(error).__name__
            if isinstance(error, InvalidKey | Busy):
                exchange.key_id = find_shown_key_id(error)
            if isinstance(error, InvalidKey):
                exchange.reason = error.reason
            elif isinstance(error, StorageError):
                if self._metrics is not None:
                    self._metrics.count_storage_error(error)
                _log.error("%s", error, extra={"request_id": exchange.request_id})
            # Where Prosody's module answers, a refusal is 403 as its is; below that, 401 as RFC 9110 has it.
            below = isinstance(error, InvalidKey) and exchange.route != self._settings.path
            return problem_response(exchange, error, status=401 if below else None)
        except HTTPException as error:
            return problem_response(exchange, Problem(error.code or 500, f"{error.name}."))
        except Exception as error:  # noqa: BLE001 (it is logged, and whoever asked gets an answer)
            _log.exception("an error that should not be", extra={"request_id": exchange.request_id})
            return problem_response(exchange, error)

    def _dispatch(self, exchange: Exchange) -> Answer:
        request = exchange.request
        route: str = request.path
        arguments: Mapping[str, Any] = {}
        if route not in self._fixed:
            try:
                route, arguments = self._routes.match(route)
            except NotFound:
                raise Problem(404, "There is nothing here.") from None
        exchange.route = route
        handlers = self._resources[route]
        allow = ", ".join([*handlers, "OPTIONS"])
        if request.method == "OPTIONS":
            return Answer(status=200, headers={"Allow": allow, "Content-Length": "0"})
        handler = handlers.get(request.method)
        if handler is None:
            raise Problem(405, f"Allowed here: {allow}.", {"Allow": allow})
        return handler(exchange, **arguments)

    def _list_cors(self, request: Request) -> Iterable[tuple[str, str]]:
        """Let pages of other origins call the API; no cookie and no ambient credential is ever taken."""
        allowed = self._settings.cors_origins
        if allowed == ("*",):
            return [("Access-Control-Allow-Origin", "*"), *self._cors]
        origin = request.headers.get("Origin")
        if origin is None or origin not in allowed:
            return [("Vary", "Origin")]
        return [("Vary", "Origin"), ("Access-Control-Allow-Origin", origin), *self._cors]


def _find_address(request: Request) -> str | None:
    """Return the client's address, or None where there is none (a Unix socket) or a proxy passed on something else."""
    address = request.remote_addr or ""
    return address if _ADDRESS.fullmatch(address) else None


def _call_both(first: EventHook, second: EventHook) -> EventHook:
    def call(event: Event) -> None:
        first(event)
        second(event)

    return call


def _make_metrics(settings: Settings) -> Metrics | None:
    if settings.metrics_listen is None:
        return None
    try:
        from invites_wsgi.metrics import Metrics
    except ModuleNotFoundError as error:
        if error.name != "prometheus_client":
            raise
        raise SettingsError(NO_METRICS) from error
    return Metrics()


def create_app(settings: Settings | None = None, *, metrics: Metrics | None = None) -> App | ProxyFix:
    """Make the app from settings.

    Args:
        settings: None: read from the file that ``INVITES_CONFIG`` names and from the environment.
        metrics: What counts; None: nothing does, unless the settings have a ``metrics_listen``.

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
    metrics = metrics or _make_metrics(settings)
    app = App(settings, key_store=key_store, invite_store=invite_store, metrics=metrics)
    if not settings.trusted_proxies:
        return app
    return ProxyFix(app, x_for=settings.trusted_proxies, x_proto=0, x_host=0, x_port=0, x_prefix=0)
