"""What the service counts and measures, for Prometheus; needs prometheus-client, so import it only where it is wanted.

No label holds what a client has chosen: every one has a set of values that is known beforehand.
"""

from __future__ import annotations

import contextlib
import os
import platform
import threading
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, make_wsgi_app

from invites_core import Event, SecretHasher, __version__
from invites_core.hashing import HasherStats
from invites_core.process import PerProcess
from invites_core.stores.pool_stats import HasPool, PoolStats
from invites_wsgi.errors import ERRORS
from invites_wsgi.metrics_folder import FOLDER_VARIABLE, FolderCollector

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication

__all__ = ["REASONS", "Metrics", "make_metrics_app"]

SAMPLE_SECONDS: Final = 2.0
SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
METHODS: Final = frozenset({"GET", "POST", "DELETE", "HEAD", "OPTIONS", "PUT", "PATCH"})
REASONS: Final = frozenset(
    {
        "missing",
        "other scheme",
        "malformed",
        "unknown",
        "expired",
        "host not served",
        "wrong secret",
        "not in the header",
        "prefetch",
        *(error.__name__ for error in ERRORS),
    }
)
"""What a refusal is counted under; anything else is ``other``."""


class _Sampled:
    """How far the counters of one process were brought up to what was looked at."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self._totals: dict[Counter, float] = {}

    def bring_up(self, counter: Counter, total: float) -> None:
        """Add to a counter what has come since the last time; the lock is held."""
        counter.inc(total - self._totals.get(counter, 0))
        self._totals[counter] = total


class Metrics:
    """All that is counted. Safe to share among threads; after a fork each process counts for itself."""

    def __init__(self) -> None:
        """Begin at zero; where ``PROMETHEUS_MULTIPROC_DIR`` is set, in files of this process there."""
        self.registry = registry = CollectorRegistry()
        self._requests = Counter(
            "invites_api_requests",
            "Requests that were answered.",
            ["route", "method", "status"],
            registry=registry,
        )
        self._seconds = Histogram(
            "invites_api_request_seconds",
            "How long requests took, in seconds.",
            ["route"],
            buckets=SECONDS,
            registry=registry,
        )
        self._refusals = Counter(
            "invites_api_refusals", "Requests that were refused, by reason.", ["reason"], registry=registry
        )
        self._events = Counter("invites_api_events", "Events, by name.", ["event"], registry=registry)
        self._invites = Counter(
            "invites_api_invites", "Invites that were changed, by what was done.", ["change"], registry=registry
        )
        self._storage_errors = Counter(
            "invites_api_storage_errors", "Errors of the databases, by class.", ["error"], registry=registry
        )
        self._hits = Counter("invites_api_key_cache_hits", "Secrets that the cache knew.", registry=registry)
        self._misses = Counter("invites_api_key_cache_misses", "Secrets that it did not know.", registry=registry)
        self._checks = Counter("invites_api_argon2_checks", "Secrets that argon2 checked.", registry=registry)
        self._check_seconds = Counter("invites_api_argon2_seconds", "How long that took.", registry=registry)
        self._retries = Counter("invites_api_storage_retries", "Transactions that were run again.", registry=registry)
        self._computing = self._gauge("invites_api_argon2_computing", "Checks of argon2 that run now.")
        self._waiting = self._gauge("invites_api_argon2_waiting", "Requests that wait for one.")
        self._pool_size = self._gauge("invites_api_pool_connections", "Connections to PostgreSQL.")
        self._pool_idle = self._gauge("invites_api_pool_idle", "Those of them that nobody uses.")
        self._pool_waiting = self._gauge("invites_api_pool_waiting", "Calls that wait for a connection.")
        build = Gauge(
            "invites_api_build_info",
            "Which program this is; always 1.",
            ["version", "python"],
            multiprocess_mode="livemax",
            registry=registry,
        )
        build.labels(__version__, platform.python_version()).set(1)
        self._children: dict[tuple[str, str, int], Callable[[float], None]] = {}
        self._watched: Callable[[], tuple[HasherStats | None, list[PoolStats]]] = lambda: (None, [])
        self._sampled = PerProcess(_Sampled)
        self._thread = PerProcess(self._start)

    def _gauge(self, name: str, text: str) -> Gauge:
        return Gauge(name, text, multiprocess_mode="livesum", registry=self.registry)

    def watch(self, hasher: SecretHasher, stores: Iterable[object]) -> None:
        """Take what is looked at every other second, by a thread that each process starts at its first request."""
        pools = [store for store in stores if isinstance(store, HasPool)]

        def look() -> tuple[HasherStats | None, list[PoolStats]]:
            found = [pool.find_pool_stats() for pool in pools]
            return hasher.get_stats(), [stats for stats in found if stats is not None]

        self._watched = look

    def count_request(self, route: str, method: str, status: int, seconds: float, reason: str | None) -> None:
        """Count a request that was answered.

        Args:
            route: The template of its route, or ``-``.
            method: Its method, whatever it is.
            status: The status of the answer.
            seconds: How long it took.
            reason: Why it was refused, or None.
        """
        with contextlib.suppress(RuntimeError):
            # Where no thread can be had at the moment the next request tries again.
            self._thread.get()
        known = (route, method if method in METHODS else "other", status)
        count = self._children.get(known)
        if count is None:
            count = self._children[known] = self._make_child(*known)
        count(seconds)
        if reason is not None and 400 <= status < 600:
            self._refusals.labels(reason if reason in REASONS else "other").inc()

    def _make_child(self, route: str, method: str, status: int) -> Callable[[float], None]:
        count, measure = self._requests.labels(route, method, str(status)).inc, self._seconds.labels(route).observe

        def both(seconds: float) -> None:
            count()
            measure(seconds)

        return both

    def count_event(self, event: Event) -> None:
        """Count an event of the library; it can be its hook."""
        self._events.labels(event.name).inc()
        subject, _, change = event.name.partition(".")
        if subject == "invite":
            self._invites.labels(change).inc(event.count or 1)

    def count_storage_error(self, error: Exception) -> None:
        """Count an error of a store."""
        name = type(error).__name__
        self._storage_errors.labels(name if name in REASONS else "StorageError").inc()

    def sample(self) -> None:
        """Look at what is watched, now."""
        sampled = self._sampled.get()
        with sampled.lock:
            hasher, pools = self._watched()
            if hasher is not None:
                for counter, total in (
                    (self._hits, hasher.hits),
                    (self._misses, hasher.misses),
                    (self._checks, hasher.checks),
                    (self._check_seconds, hasher.seconds),
                ):
                    sampled.bring_up(counter, total)
                self._computing.set(hasher.computing)
                self._waiting.set(hasher.waiting)
            sampled.bring_up(self._retries, sum(pool.retries for pool in pools))
            self._pool_size.set(sum(pool.size for pool in pools))
            self._pool_idle.set(sum(pool.idle for pool in pools))
            self._pool_waiting.set(sum(pool.waiting for pool in pools))

    def _start(self) -> threading.Thread:
        thread = threading.Thread(target=self._run, name="metrics", daemon=True)
        thread.start()
        return thread

    def _run(self) -> None:
        while True:
            self.sample()
            time.sleep(SAMPLE_SECONDS)


def make_metrics_app(metrics: Metrics | None = None) -> WSGIApplication:
    """Return a WSGI app that shows metrics at whatever path; put it where only your Prometheus reaches it.

    Args:
        metrics: Those of this process; None: those of all processes that share ``PROMETHEUS_MULTIPROC_DIR``.

    Raises:
        ValueError: Neither is there.
    """
    if metrics is not None:
        return make_wsgi_app(metrics.registry)
    registry = CollectorRegistry()
    registry.register(FolderCollector(os.environ.get(FOLDER_VARIABLE, "")))
    return make_wsgi_app(registry)
