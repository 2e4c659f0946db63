"""What a refused key costs: no refusal of one that is not right, of whatever kind and however often, reaches argon2."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Final

import pytest
from werkzeug.test import Client

from invites_core import ApiKeys, IssuedKey, SecretHasher
from invites_core.clock import system_clock
from invites_core.keys import generate_key_id, generate_secret
from invites_core.stores.memory import MemoryStore
from invites_core.stores.sqlite import SqliteStore
from invites_wsgi import App, Settings
from invites_wsgi.metrics import Metrics, make_metrics_app
from tests.helpers import count_argon2, wait_until
from tests.servers import free_port
from tests.wsgi.support import ask, ask_server, make_serve
from tests.wsgi.test_metrics import get, parse, scrape

REFUSALS: Final = 1000


class Refused:
    """Keys that are refused, each for another reason, and without end."""

    def __init__(self, keys: ApiKeys, keys_of_yesterday: ApiKeys) -> None:
        """Make the keys that there must be for it."""
        self.valid = keys.create("example.com")
        self._expired = keys_of_yesterday.create("example.com", expires_in=timedelta(hours=1))
        self._deleted = keys.create("example.com")
        keys.delete("example.com", self._deleted.key.id)
        rotated = keys.create("example.com")
        keys.rotate("example.com", rotated.key.id, grace=timedelta(0))
        self._rotated = rotated

    def make(self) -> Iterator[tuple[str, str]]:
        """Give a key and the reason for which it is refused; every wrong secret and unknown id is a new one."""
        kinds: list[Callable[[], tuple[str, str]]] = [
            lambda: (f"{self.valid.key.id}/{generate_secret()}", "wrong secret"),
            lambda: (f"{self.valid.key.id}/{self.valid.secret[:-1]}", "wrong secret"),
            lambda: (f"{self.valid.key.id}/{self._rotated.secret}", "wrong secret"),
            lambda: (self._rotated.combined, "wrong secret"),
            lambda: (f"{generate_key_id()}/{generate_secret()}", "unknown"),
            lambda: (f"{generate_key_id()}/{self.valid.secret}", "unknown"),
            lambda: (self._deleted.combined, "unknown"),
            lambda: (self._expired.combined, "expired"),
            lambda: (generate_secret(), "malformed"),
            lambda: (f"{self.valid.combined}/x", "malformed"),
            lambda: (f"{self.valid.combined}=", "malformed"),
            lambda: ("x" * 300, "malformed"),
        ]
        return (kind() for kind in itertools.cycle(kinds))


def make_refused(store: MemoryStore | SqliteStore, hasher: SecretHasher | None = None) -> Refused:
    """Make the keys in a store."""
    before = system_clock() - timedelta(days=1)
    return Refused(ApiKeys(store, hasher=hasher), ApiKeys(store, hasher=hasher, clock=lambda: before))


def ask_for_refusals(
    refused: Refused, send: Callable[[str, dict[str, str]], int], *, count: int = REFUSALS
) -> Counter[str]:
    """Send keys that are refused, in turn in the query and in the header, and return the reasons with how often."""
    reasons: Counter[str] = Counter()
    for number, (key, reason) in enumerate(itertools.islice(refused.make(), count)):
        if number % 2:
            status = send("/invites_api", {"Authorization": f"Bearer {key}"})
        else:
            status = send(f"/invites_api?key={key}", {})
        assert status == 403
        reasons[reason] += 1
    return reasons


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
def test_no_refusal_reaches_argon2(kind: str, database: Path, hasher: SecretHasher) -> None:
    """1,000 refusals of every kind compute no argon2, take no place in the cache, and are counted by reason."""
    store = MemoryStore() if kind == "memory" else SqliteStore(database)
    refused = make_refused(store, hasher)
    metrics, counted = Metrics(), count_argon2(hasher)
    app = App(Settings(database="memory:"), key_store=store, invite_store=store, hasher=hasher, metrics=metrics)

    reasons = ask_for_refusals(refused, lambda target, headers: ask(app, target, headers=headers).status)

    stats = hasher.get_stats()
    assert (counted.calls, stats.checks, stats.seconds, stats.hits, stats.misses) == (0, 0, 0, 0, 0)
    metrics.sample()
    samples = parse(Client(make_metrics_app(metrics)).get("/metrics").get_data(as_text=True))
    assert get(samples, "invites_api_argon2_checks_total") == 0
    assert {reason: get(samples, "invites_api_refusals_total", reason=reason) for reason in reasons} == reasons
    # So far as it is right one key is checked, which shows that they are counted here.
    assert ask(app, f"/invites_api?key={refused.valid.combined}").status == 201
    assert (counted.calls, hasher.get_stats().checks) == (1, 1)
    store.close()


@pytest.mark.real_server
def test_no_refusal_reaches_argon2_in_a_server(tmp_path: Path, database: Path) -> None:
    """Nor does one in a real server: after 1,000 of them its first check is that of the one key that is right."""
    store = SqliteStore(database)
    refused = make_refused(store)
    store.close()
    port = free_port()
    with make_serve(tmp_path / "serve", database, f'[http]\nmetrics_listen = "127.0.0.1:{port}"\n') as server:
        reasons = ask_for_refusals(
            refused, lambda target, headers: ask_server(server.port, target, headers=headers).status
        )
        assert create(server.port, refused.valid) == 201
        wait_until(lambda: get(scrape(port), "invites_api_argon2_checks_total") > 0)
        samples = scrape(port)
    assert get(samples, "invites_api_argon2_checks_total") == 1
    assert get(samples, "invites_api_key_cache_misses_total") == 1
    assert {reason: get(samples, "invites_api_refusals_total", reason=reason) for reason in reasons} == reasons


def create(port: int, issued: IssuedKey) -> int:
    """Make an invite, and return the status."""
    return ask_server(port, f"/invites_api?key={issued.combined}").status
