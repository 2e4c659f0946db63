"""Redeemers of ours and clients of Prosody race for invites, and Prosody is killed meanwhile."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from invites_core import open_invite_store
from invites_core.stores import prosody_prelude, prosody_socket
from invites_core.stores.prosody import ProsodyStore
from tests.helpers import PATIENCE
from tests.proofs.prosody_race import run_race
from tests.proofs.prosody_restart import run_restarts
from tests.proofs.prosody_values import send_values
from tests.prosody import ConsoleProsody, running_on
from tests.stores.agents import serving
from tests.xmpp.conftest import SETTINGS

pytestmark = pytest.mark.real_server

GUARD = 'if get_state(row, call.now) ~= "pending" or'


@pytest.fixture
def own_prosody(request: pytest.FixtureRequest) -> Iterator[ConsoleProsody]:
    """A Prosody for one test, on SQLite unless told otherwise."""
    with running_on(getattr(request, "param", "sqlite"), request, hosts=["example.com"], extra=SETTINGS) as running:
        yield running


@pytest.fixture
def url(own_prosody: ConsoleProsody, tmp_path: Path) -> Iterator[str]:
    """Its invites behind an agent."""
    store = ProsodyStore(own_prosody.socket, timeout=PATIENCE)
    with contextlib.closing(store), serving(store, tmp_path / "agent.sock"):
        yield f"agent://{tmp_path / 'agent.sock'}"


def test_every_invite_has_one_winner_among_ours(own_prosody: ConsoleProsody, url: str) -> None:
    """Of 8 redeemers in 2 processes exactly one gets each of 20 invites, while clients register with others."""
    outcome = run_race(own_prosody, url, invites=20, redeemers=8, processes=2, clients=2, contested=5, sessions=5)
    assert outcome.holds
    assert (outcome.race.successes, outcome.race.refused) == (20, 140)
    assert outcome.clients["registered"] >= 2
    assert outcome.contested.total() == 5
    # What Prosody 0.12 and 13 let through.
    assert outcome.window_accounts == outcome.window_offers == 5


def test_race_shows_a_store_without_its_guard(
    own_prosody: ConsoleProsody, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    """Where the operation in Prosody does not ask whether the invite is pending, several win, and the race says so."""
    prelude = prosody_prelude.PRELUDE
    assert prelude.count(GUARD) == 1
    monkeypatch.setattr(prosody_socket, "PRELUDE", prelude.replace(GUARD, "if"))
    url = request.getfixturevalue("url")
    outcome = run_race(own_prosody, url, invites=3, redeemers=4, processes=1, clients=1, contested=1, sessions=1)
    assert not outcome.holds
    assert (outcome.race.successes, outcome.race.doubled) == (12, 3)


@pytest.mark.parametrize("own_prosody", ["sqlite", "postgresql"], indirect=True)
def test_killed_prosody_loses_nothing_that_was_acknowledged(own_prosody: ConsoleProsody, tmp_path: Path) -> None:
    """Prosody killed and started under 16 connections over HTTP and agent: 503 between, then service, all is there."""
    outcome = run_restarts(own_prosody, tmp_path)
    assert outcome.missing == []
    assert outcome.while_away.keys() == {503}
    assert outcome.holds, outcome.statuses
    assert len(set(outcome.acknowledged)) == len(outcome.acknowledged) >= 300


def test_hostile_values_are_data(own_prosody: ConsoleProsody, url: str) -> None:
    """What goes through agent and socket comes back as it was; none of it runs, and Prosody complains of nothing."""
    store = open_invite_store(url)
    outcome = send_values(own_prosody, store, values=1_500, seed=1)
    store.close()
    assert outcome.holds, outcome
    assert outcome.values >= 1_500


def test_values_that_run_are_found(own_prosody: ConsoleProsody, url: str) -> None:
    """A value that was run as Lua would be found out."""
    own_prosody.console.run("> rawset(_G, 'PWNED', true)", changes=True)
    store = open_invite_store(url)
    assert send_values(own_prosody, store, values=1, seed=1).ran
    store.close()
