"""Redeemers in several processes race for invites, and the race would show a store that lets two of them win."""

from __future__ import annotations

from pathlib import Path

import psycopg
import pytest

from invites_core import open_store
from invites_core.stores import postgresql_invites, sqlite, sqlite_invites
from invites_core.stores.sqlite_schema import SCHEMA
from invites_wsgi import create_app
from tests.proofs import redeem_race
from tests.proofs.redeem_race import Outcome, run_race

GUARD = "(max_uses IS NULL OR uses < max_uses) AND "


def drop_guard() -> None:
    """Take the guard out of the statement, in a child of the race."""
    assert sqlite_invites._REDEEM.count(GUARD) == 1
    unguarded = sqlite_invites._REDEEM.replace(GUARD, "")
    sqlite_invites._REDEEM = unguarded  # type: ignore[misc]  # what must never be done


def drop_postgresql_guard() -> None:
    """Take the guard out of the statement for PostgreSQL, in a child of the race."""
    assert postgresql_invites._REDEEM.count(GUARD) == 1
    unguarded = postgresql_invites._REDEEM.replace(GUARD, "")
    postgresql_invites._REDEEM = unguarded  # type: ignore[misc]  # what must never be done


def make_unguarded_app() -> object:
    """Serve a PostgreSQL store without its guard; for gunicorn, in a worker."""
    drop_postgresql_guard()
    return create_app()


def drop_postgresql_constraint(url: str) -> None:
    """Make the tables, and take the constraint out that asks for a use that is left."""
    open_store(url).close()
    find = (
        b"SELECT conname FROM pg_constraint WHERE conrelid = 'invites'::regclass AND contype = 'c'"
        b" AND pg_get_constraintdef(oid) LIKE '%(uses <= max_uses)%'"
    )
    with psycopg.connect(url, autocommit=True, application_name="tests") as connection:
        [(name,)] = connection.execute(find).fetchall()
        connection.execute(f"ALTER TABLE invites DROP CONSTRAINT {name}".encode())


def test_every_invite_has_one_winner(tmp_path: Path) -> None:
    """Of 8 redeemers in 4 processes exactly one gets each of 100 invites."""
    outcome = run_race(f"sqlite:///{tmp_path}/race.db", invites=100, redeemers=8, processes=4)
    assert outcome.holds
    assert (outcome.successes, outcome.refused) == (100, 700)


def fail() -> None:
    """End a child of the race before its time."""
    raise SystemExit(1)


def test_race_shows_a_store_without_its_guard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where neither the statement nor the table asks for a use that is left, several win, and the race says so."""
    check = " AND (max_uses IS NULL OR uses <= max_uses)"
    assert SCHEMA.count(check) == 1
    monkeypatch.setattr(sqlite, "SCHEMA", SCHEMA.replace(check, ""))
    outcome = run_race(f"sqlite:///{tmp_path}/race.db", invites=5, redeemers=4, processes=2, prepare=drop_guard)
    assert not outcome.holds
    assert (outcome.successes, outcome.doubled, outcome.refused) == (20, 5, 0)


def test_table_has_a_guard_of_its_own(tmp_path: Path) -> None:
    """Without the guard in the statement the table's constraint lets nobody win twice, and the race shows it."""
    outcome = run_race(f"sqlite:///{tmp_path}/race.db", invites=5, redeemers=4, processes=2, prepare=drop_guard)
    assert not outcome.holds
    assert (outcome.successes, outcome.doubled, outcome.refused) == (5, 0, 0)
    assert sum(outcome.unexpected.values()) == 15


@pytest.mark.real_server
def test_every_invite_in_postgresql_has_one_winner(postgresql_url: str) -> None:
    """Of 8 redeemers in 4 processes exactly one gets each of 100 invites of a PostgreSQL database."""
    outcome = run_race(postgresql_url, invites=100, redeemers=8, processes=4)
    assert outcome.holds, outcome
    assert (outcome.successes, outcome.refused) == (100, 700)


@pytest.mark.real_server
def test_race_shows_a_postgresql_store_without_its_guard(postgresql_url: str) -> None:
    """Where neither the statement nor the table asks for a use that is left, several win, and the race says so."""
    drop_postgresql_constraint(postgresql_url)
    outcome = run_race(postgresql_url, invites=5, redeemers=4, processes=2, prepare=drop_postgresql_guard)
    assert not outcome.holds
    assert (outcome.successes, outcome.doubled, outcome.refused) == (20, 5, 0)


@pytest.mark.real_server
def test_race_over_nodes_shows_a_store_without_its_guard(postgresql_url: str) -> None:
    """The race over HTTP shows the same of nodes that serve such a store."""
    drop_postgresql_constraint(postgresql_url)
    app = "tests.test_races:make_unguarded_app()"
    outcome = run_race(postgresql_url, invites=5, redeemers=4, processes=2, nodes=2, app=app)
    assert not outcome.holds
    assert (outcome.successes, outcome.doubled, outcome.refused) == (20, 5, 0)


@pytest.mark.real_server
def test_postgresql_table_has_a_guard_of_its_own(postgresql_url: str) -> None:
    """Without the guard in the statement the table's constraint lets nobody win twice, and the race shows it."""
    outcome = run_race(postgresql_url, invites=5, redeemers=4, processes=2, prepare=drop_postgresql_guard)
    assert not outcome.holds
    assert (outcome.successes, outcome.doubled, outcome.refused) == (5, 0, 0)
    assert sum(outcome.unexpected.values()) == 15


def test_race_ends_where_a_process_fails(tmp_path: Path) -> None:
    """A process that dies before the race is an error, and nobody waits for it."""
    with pytest.raises(RuntimeError, match="a process of the race has failed"):
        run_race(f"sqlite:///{tmp_path}/race.db", invites=1, redeemers=2, processes=2, prepare=fail)


def make_outcome(**fields: object) -> Outcome:
    plain = {"successes": 3, "doubled": 0, "refused": 9, "miscounted": 0, "unexpected": {}, "seconds": 1.0}
    return Outcome(invites=3, **{**plain, **fields})  # type: ignore[arg-type]  # a table of fields


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param({"successes": 2}, id="one-had-no-winner"),
        pytest.param({"successes": 4}, id="one-had-two"),
        pytest.param({"doubled": 1}, id="two-for-one-and-none-for-another"),
        pytest.param({"miscounted": 1}, id="the-store-says-otherwise"),
        pytest.param({"unexpected": {"StorageError": 1}}, id="another-error"),
    ],
)
def test_outcome_that_does_not_hold(fields: dict[str, object]) -> None:
    """One winner for each invite, the same in the store, and nothing unforeseen: less does not hold."""
    assert make_outcome().holds
    assert not make_outcome(**fields).holds


def test_command_tells_the_outcome(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command exits with 0 where every invite had one winner, and with 1 where not."""
    url = f"sqlite:///{tmp_path}/race.db"
    arguments = ["redeem-race", "--invites", "3", "--redeemers", "2", "--processes", "1", "--database", url]
    monkeypatch.setattr("sys.argv", arguments)
    assert redeem_race.main() == 0
    assert capsys.readouterr().out.endswith("\nevery invite had exactly one winner\n")
    monkeypatch.setattr(redeem_race, "run_race", lambda _, **__: make_outcome(doubled=1))
    assert redeem_race.main() == 1
