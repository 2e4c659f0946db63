"""Fixtures for the tests of HTTP: an app over real stores, and what it logs."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import pytest

from invites_core import ApiKeys, SecretHasher
from invites_core.stores.memory import MemoryStore
from invites_core.stores.sqlite import SqliteStore
from invites_wsgi import App, Settings
from tests.helpers import FakeClock
from tests.wsgi.support import LogBook, Service, restored_logger


class MakeService(Protocol):
    """The fixture ``make_service``: makes a service from a store and fields of the settings."""

    def __call__(self, store: MemoryStore | SqliteStore | None = None, **settings: Any) -> Service: ...


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What the developer has set has no say, and no test leaves a log behind that others write to."""
    for name in ("INVITES_CONFIG", "INVITES_DATABASE"):
        monkeypatch.delenv(name, raising=False)
    with restored_logger():
        yield


@pytest.fixture
def log() -> Iterator[LogBook]:
    """What this package logs, down to debug."""
    book = LogBook()
    with restored_logger() as logger:
        logger.handlers[:] = book.handlers
        logger.setLevel(logging.DEBUG)
        logger.propagate = False
        yield book


@pytest.fixture
def make_service(hasher: SecretHasher, clock: FakeClock) -> MakeService:
    """Makes services with a cheap hasher and the standing clock."""

    def make(store: MemoryStore | SqliteStore | None = None, **fields: Any) -> Service:
        store = store or MemoryStore()
        settings = Settings(**{"database": "memory:", **fields})
        app = App(settings, key_store=store, invite_store=store, hasher=hasher, clock=clock)
        keys = ApiKeys(store, hasher=hasher, hosts=settings.hosts, clock=clock)
        return Service(app, store, clock, keys, keys.create("example.com", name="My test key"))

    return make


@pytest.fixture
def service(make_service: MakeService) -> Service:
    """A service as it is without any settings, in memory."""
    return make_service()


@pytest.fixture
def database(tmp_path: Path) -> Path:
    """The path of an empty database."""
    path = tmp_path / "data" / "invites.db"
    path.parent.mkdir(mode=0o700)
    SqliteStore(path).close()
    return path
