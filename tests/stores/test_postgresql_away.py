"""A PostgreSQL that does not answer: nobody waits for what others have just found out. No server is needed for that."""

from __future__ import annotations

import threading
import time
from typing import Any

import psycopg
import pytest

from invites_core.errors import StorageBusy, StorageError
from invites_core.process import PerProcess
from invites_core.stores import postgresql_pool
from invites_core.stores.postgresql_connection import GRACE_SECONDS
from invites_core.stores.postgresql_database import PostgresqlDatabase
from invites_core.stores.schema import SchemaVersion
from invites_wsgi import app as app_module
from invites_wsgi.app import HealthResource
from tests.helpers import PATIENCE, run_at_once, wait_until


@pytest.fixture
def database(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A database that was away when it was opened; ``looks`` has the outcomes of looks at it."""
    made: Any = PostgresqlDatabase.__new__(PostgresqlDatabase)
    made._schema = None
    made._timeout = PATIENCE
    made._preparing = PerProcess(threading.Lock)
    made._failure = (0.0, None)
    made._url = type("Url", (), {"location": "postgresql://db/x"})()
    made.looked = 0

    def prepare(self: Any, *, create: bool) -> SchemaVersion:
        assert not create
        self.looked += 1
        time.sleep(0.3)
        if self.looked < 3:
            raise StorageError("cannot reach the database")
        return SchemaVersion(present=1, newest=1, is_new=False)

    monkeypatch.setattr(PostgresqlDatabase, "_prepare", prepare)
    return made


def test_a_look_that_fails_fails_for_all_who_wait_for_it(database: Any) -> None:
    """Who asks later looks anew, and what is found in the end holds for good."""
    outcomes = run_at_once([lambda: database.schema] * 8)
    assert [type(outcome) for outcome in outcomes] == [StorageError] * 8
    assert database.looked == 1
    with pytest.raises(StorageError, match="cannot reach"):
        _ = database.schema
    assert database.looked == 2
    assert database.schema.present == 1
    assert database.schema.present == 1
    assert database.looked == 3


def test_who_has_waited_long_enough_for_a_look_is_told(database: Any) -> None:
    """The time in a queue counts."""
    database._timeout = 0.1
    with database._preparing.get(), pytest.raises(StorageBusy, match="did not answer in time"):
        database._look(time.monotonic())
    with database._preparing.get(), pytest.raises(StorageBusy):
        database._look(time.monotonic() - 1)


def test_a_server_that_hangs_is_not_asked_in_vain_by_everybody() -> None:
    """One who asks it to stop what it does, and gets no answer, has asked for all others of that second."""
    process: Any = type("Process", (), {"hung_at": float("-inf")})()
    asked: list[float] = []

    class Hanging:
        def cancel_safe(self, *, timeout: float) -> None:
            asked.append(timeout)
            raise psycopg.OperationalError("timed out")

    class Answering:
        def cancel_safe(self, *, timeout: float) -> None:
            asked.append(timeout)

    connections: list[Any] = [Answering(), Answering(), Hanging(), Hanging(), Answering()]
    for connection in connections:
        postgresql_pool._cancel(process, connection)
    assert len(asked) == 3
    process.hung_at -= GRACE_SECONDS
    postgresql_pool._cancel(process, connections[0])
    assert len(asked) == 4


def test_the_health_of_a_store_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    """One looks. The others hear what was so before, and after a while that there is no answer."""
    monkeypatch.setattr(app_module, "HEALTH_SECONDS", 0.0)
    monkeypatch.setattr(app_module, "HANGS_SECONDS", 0.2)
    may_answer = threading.Event()
    may_answer.set()
    pings: list[float] = []

    class Store:
        def ping(self) -> None:
            pings.append(time.monotonic())
            assert may_answer.wait(PATIENCE)

    store: Any = Store()
    exchange: Any = type("Exchange", (), {"reason": None})()
    health = HealthResource([store])
    assert health.get(exchange).status_code == 200
    may_answer.clear()
    looking = threading.Thread(target=health.get, args=(exchange,))
    looking.start()
    wait_until(lambda: len(pings) == 2)
    assert health.get(exchange).status_code == 200
    time.sleep(0.25)
    with pytest.raises(StorageBusy, match="has not answered yet"):
        health.get(exchange)
    assert len(pings) == 2
    may_answer.set()
    looking.join(PATIENCE)
    assert health.get(exchange).status_code == 200
    assert len(pings) == 3
