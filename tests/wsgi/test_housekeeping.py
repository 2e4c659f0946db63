"""What a running service does beside its requests."""

from __future__ import annotations

import threading
from datetime import timedelta

import pytest

from invites_core import Invites, StorageError
from invites_core.stores.memory import MemoryStore
from invites_core.testing import FakeClock
from invites_wsgi import housekeeping
from invites_wsgi.housekeeping import Housekeeping
from tests.helpers import wait_until

HOST = "example.com"
DAY = timedelta(days=1)


@pytest.fixture
def invites(memory_store: MemoryStore, fake_clock: FakeClock) -> Invites:
    """Invites of which one has expired ten days ago and one is pending."""
    invites = Invites(memory_store, clock=fake_clock)
    invites.create_for(HOST, source="command", expires_in=DAY)
    fake_clock.advance(11 * DAY)
    invites.create_for(HOST, source="command")
    return invites


def count(invites: Invites) -> int:
    return len(invites.list(HOST).invites)


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "housekeeping"]


def test_what_is_over_for_longer_than_the_age_is_deleted(invites: Invites) -> None:
    """One round deletes what is older than the age, and nothing else."""
    Housekeeping(invites, 30 * DAY).purge(30 * DAY, pause=0)
    assert count(invites) == 2
    Housekeeping(invites, 5 * DAY).purge(5 * DAY, pause=0)
    assert count(invites) == 1


def test_a_store_that_is_away_ends_the_round_and_nothing_else(
    memory_store: MemoryStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A round that fails is told in the log; the next one comes."""

    def fail(**options: object) -> None:
        raise StorageError("the database is away")

    monkeypatch.setattr(memory_store, "purge_invites", fail)
    Housekeeping(Invites(memory_store), DAY).purge(DAY, pause=0)
    assert "the database is away" in caplog.text


def test_a_service_that_is_told_to_purges_by_itself(invites: Invites, monkeypatch: pytest.MonkeyPatch) -> None:
    """With an age the service deletes in one thread of its own, started by its first request."""
    monkeypatch.setattr(housekeeping, "PURGE_EVERY_SECONDS", 0.001)
    service = Housekeeping(invites, 5 * DAY)
    before = len(threads())
    for _ in range(3):
        service.ensure_running()
    assert len(threads()) == before + 1
    wait_until(lambda: count(invites) == 1)
    # It sleeps from now on, as it would in a service; the thread ends with the process.
    monkeypatch.setattr(housekeeping, "PURGE_EVERY_SECONDS", 3600.0)


def test_a_service_that_is_not_told_to_purges_nothing(invites: Invites) -> None:
    """Without an age there is no thread, and nothing is ever deleted."""
    before = len(threads())
    Housekeeping(invites, None).ensure_running()
    assert len(threads()) == before
    assert count(invites) == 2
