"""Fixtures for the tests of stores."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from invites_core.stores.prosody import ProsodyStore
from invites_core.stores.sqlite import SqliteStore
from invites_core.stores.sqlite_database import SqliteDatabase
from tests.helpers import PATIENCE
from tests.prosody import STORAGES, ConsoleProsody, running_on


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the database is, or will be."""
    return tmp_path / "invites.db"


@pytest.fixture
def socket_path(tmp_path: Path) -> Path:
    """Where an agent listens."""
    return tmp_path / "agent.sock"


@pytest.fixture
def store(path: Path) -> Iterator[SqliteStore]:
    """An empty SQLite store."""
    opened = SqliteStore(path, timeout=PATIENCE)
    yield opened
    opened.close()


@pytest.fixture
def database(store: SqliteStore) -> SqliteDatabase:
    """The database under the store."""
    return store._database


@pytest.fixture(scope="session", params=STORAGES)
def running_prosody(request: pytest.FixtureRequest) -> Iterator[ConsoleProsody]:
    """A running Prosody, on each storage in turn."""
    with running_on(request.param, request) as prosody:
        yield prosody


@pytest.fixture
def prosody(running_prosody: ConsoleProsody) -> ConsoleProsody:
    """The running Prosody, without invites."""
    running_prosody.empty()
    return running_prosody


@pytest.fixture
def prosody_store(prosody: ConsoleProsody) -> Iterator[ProsodyStore]:
    """A store in a Prosody without invites."""
    opened = ProsodyStore(prosody.socket, timeout=PATIENCE)
    yield opened
    opened.close()
