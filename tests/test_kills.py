"""Processes of a real service are killed under load, and the race would show a store that forgets or takes twice."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

import pytest

from invites_core import ApiKeys, Invites, IssuedKey, KeyPolicy, Quota, SecretHasher
from invites_core.stores import sqlite, sqlite_invites
from invites_core.stores.memory import MemoryStore
from invites_core.stores.sqlite_database import SqliteDatabase
from invites_core.stores.sqlite_schema import SCHEMA
from invites_wsgi import create_app
from tests.proofs import kill_race
from tests.proofs.kill_audit import Fault, check_next_calls, find_faults
from tests.proofs.kill_journal import Creation, Journal, KeyLife, Revocation, Use
from tests.proofs.kill_race import Outcome, run_race

HOST: Final = "example.com"
GUARD: Final = "(max_uses IS NULL OR uses < max_uses) AND "
TABLE_GUARD: Final = " AND (max_uses IS NULL OR uses <= max_uses)"
LATE_SECONDS: Final = 0.3


def make_forgetful_app() -> object:
    """Serve a store that acknowledges a write before it has committed; for gunicorn, in a worker."""
    pool = ThreadPoolExecutor(1)
    write = SqliteDatabase.write

    class Undo(Exception):
        """Carries a result out of a change that is undone."""

    def write_later(self: SqliteDatabase, change: Callable[[Any], Any], due: float) -> None:
        time.sleep(max(0.0, due - time.monotonic()))
        write(self, change)

    def acknowledge_early(self: SqliteDatabase, change: Callable[[Any], Any]) -> Any:
        def preview(connection: Any) -> None:
            raise Undo(change(connection))

        try:
            write(self, preview)
        except Undo as undo:
            pool.submit(write_later, self, change, time.monotonic() + LATE_SECONDS)
            return undo.args[0]
        raise AssertionError("a change was not undone")

    SqliteDatabase.write = acknowledge_early  # type: ignore[method-assign]  # what must never be done
    return create_app()


def make_unguarded_app() -> object:
    """Serve a store whose redemption does not ask for a use that is left; for gunicorn, in a worker."""
    assert sqlite_invites._REDEEM.count(GUARD) == 1
    unguarded = sqlite_invites._REDEEM.replace(GUARD, "")
    sqlite_invites._REDEEM = unguarded  # type: ignore[misc]  # what must never be done
    return create_app()


def kill_some(folder: Path, *, kills: int, app: str = kill_race.APP, every: int = 100) -> Outcome:
    url = f"sqlite:///{folder}/race.db"
    return run_race(url, folder, kills=kills, workers=2, clients=8, app=app, every=every)


@pytest.mark.real_server
def test_all_that_was_acknowledged_outlives_kills(tmp_path: Path) -> None:
    """After kills of every kind under load, all that was acknowledged is in the database, once."""
    outcome = kill_some(tmp_path, kills=10, every=6)
    assert outcome.holds, kill_race.format_table(outcome)
    assert outcome.kills.total() == 10
    # A group of six and one of four, each with one of every kind.
    assert outcome.kills["whole server"] == 2
    assert all(outcome.acknowledged.values()), outcome.acknowledged
    assert outcome.checks == 3


@pytest.mark.real_server
def test_race_shows_a_store_that_acknowledges_too_early(tmp_path: Path) -> None:
    """Where a write is acknowledged before its commit, some are lost by the kills, and the race says so."""
    outcome = kill_some(tmp_path, kills=4, app="tests.test_kills:make_forgetful_app()")
    assert not outcome.holds
    assert outcome.count_faults("lost") > 0


@pytest.mark.real_server
def test_race_shows_a_store_without_its_guard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where neither the statement nor the table asks for a use that is left, invites are used twice, and it says so."""
    assert SCHEMA.count(TABLE_GUARD) == 1
    monkeypatch.setattr(sqlite, "SCHEMA", SCHEMA.replace(TABLE_GUARD, ""))
    outcome = kill_some(tmp_path, kills=3, app="tests.test_kills:make_unguarded_app()")
    assert not outcome.holds
    assert outcome.count_faults("doubled") > 0


@dataclass(frozen=True, slots=True)
class World:
    """A database and a journal that agree, to be made to disagree."""

    store: MemoryStore
    keys: ApiKeys
    invites: Invites
    issued: IssuedKey
    journal: Journal
    use: Use

    def forget_invite(self, token: str) -> None:
        """Take a row out, as a store would that has lost it."""
        del self.store._invites[token]
        [position] = [number for number, listed in self.store._positions.items() if listed == token]
        del self.store._positions[position]

    def find_kinds(self) -> set[str]:
        faults = find_faults(self.store, self.journal, host=HOST, issued=[self.issued.key])
        return {fault.kind for fault in faults}


@pytest.fixture
def world(memory_store: MemoryStore, hasher: SecretHasher) -> World:
    """One of everything that a race does, acknowledged and done."""
    keys, invites = ApiKeys(memory_store, hasher=hasher), Invites(memory_store, keys=memory_store)
    issued = keys.create(HOST, policy=KeyPolicy(quota=Quota(9, timedelta(days=36_500))))
    source = issued.key.source
    journal, tokens = Journal(), {}
    for note, count in (("one", 1), ("two", 2), ("revoked", 1)):
        tokens[note] = tuple(made.token for made in invites.create_many(issued.key, count, note=note))
        journal.creations.append(Creation(source, note, count, answer="acknowledged", tokens=tokens[note]))
    bare = invites.create(issued.key).token
    journal.creations.append(Creation(source, None, 1, answer="acknowledged", tokens=(bare,)))
    invites.redeem(tokens["one"][0], redemption_id="use")
    use = Use(tokens["one"][0], "use", 1.0, answer="acknowledged")
    journal.uses += [use, Use(tokens["one"][0], "late", 2.0, answer="refused")]
    invites.revoke(tokens["revoked"][0], by="test")
    journal.revocations.append(Revocation(tokens["revoked"][0], "acknowledged", 3.0))
    made = keys.create(HOST, name="life")
    journal.keys.append(KeyLife("life", made.combined))
    return World(memory_store, keys, invites, issued, journal, use)


def test_a_database_that_says_what_was_told_has_no_faults(world: World) -> None:
    """Where all that was acknowledged is there, once, nothing is found, and the next calls work."""
    assert world.find_kinds() == set()
    assert check_next_calls(world.store, host=HOST) == []


def lose_creation(world: World) -> None:
    world.forget_invite(world.journal.creations[1].tokens[0])


def lose_bare_creation(world: World) -> None:
    world.forget_invite(world.journal.creations[3].tokens[0])


def lose_redemption(world: World) -> None:
    world.invites.release(world.use.token, redemption_id="use")


def lose_release(world: World) -> None:
    world.use.release = "acknowledged"


def lose_revocation(world: World) -> None:
    world.journal.revocations.append(Revocation(world.journal.creations[1].tokens[0], "acknowledged"))


def lose_key(world: World) -> None:
    world.keys.delete(HOST, world.journal.keys[0].id)


def lose_deletion(world: World) -> None:
    world.journal.keys[0].deletion = "acknowledged"


def lose_revocation_with_key(world: World) -> None:
    life = world.journal.keys[0]
    life.invites.append(world.journal.creations[1].tokens[0])
    life.with_invites, life.deletion = True, "acknowledged"
    world.keys.delete(HOST, life.id)


def double_creation(world: World) -> None:
    world.invites.create(world.issued.key, note="one")


def double_bare_creation(world: World) -> None:
    world.invites.create(world.issued.key)


def double_redemption(world: World) -> None:
    world.journal.uses.append(Use(world.use.token, "other", 1.0, answer="acknowledged"))


def double_key(world: World) -> None:
    world.keys.create(HOST, name="life")


def exceed_quota(world: World) -> None:
    quota = Quota(4, timedelta(days=36_500))
    object.__setattr__(world.issued.key.policy, "quota", quota)


def tear_creation(world: World) -> None:
    world.journal.creations[1].answer, world.journal.creations[1].tokens = "unknown", ()
    [token] = [made.token for made in world.invites.list(HOST).invites if made.note == "two"][:1]
    world.forget_invite(token)


def make_uncalled_for(world: World) -> None:
    world.invites.create(world.issued.key, note="nobody's")


def win_after_refusal(world: World) -> None:
    world.use.answer = "refused"


def win_after_revocation(world: World) -> None:
    world.journal.revocations.append(Revocation(world.use.token, "acknowledged", 0.5))


def spend_too_early(world: World) -> None:
    world.journal.note_spent(world.issued.key.source, 1)


def leak_quota(world: World) -> None:
    token = world.invites.create(world.issued.key, note="gone").token
    world.forget_invite(token)


@pytest.mark.parametrize(
    ("disagree", "kind"),
    [
        *[
            pytest.param(disagree, "lost", id=disagree.__name__)
            for disagree in (
                lose_creation,
                lose_bare_creation,
                lose_redemption,
                lose_release,
                lose_revocation,
                lose_key,
                lose_deletion,
                lose_revocation_with_key,
            )
        ],
        *[
            pytest.param(disagree, "doubled", id=disagree.__name__)
            for disagree in (double_creation, double_bare_creation, double_redemption, double_key, exceed_quota)
        ],
        *[
            pytest.param(disagree, "wrong", id=disagree.__name__)
            for disagree in (
                tear_creation,
                make_uncalled_for,
                win_after_refusal,
                win_after_revocation,
                spend_too_early,
                leak_quota,
            )
        ],
    ],
)
def test_a_database_that_says_otherwise_has_faults(world: World, disagree: Callable[[World], None], kind: str) -> None:
    """Whatever the database says otherwise than its callers were told is found, and called by its kind."""
    disagree(world)
    assert kind in world.find_kinds()


def test_an_unanswered_request_may_be_there_or_not(world: World) -> None:
    """What nobody was told of is no fault in either case, at most once."""
    source = world.issued.key.source
    for note in ("there", "not there"):
        world.journal.creations.append(Creation(source, note, 1))
    world.invites.create(world.issued.key, note="there")
    world.journal.creations.append(Creation(source, None, 1))
    world.journal.uses.append(Use(world.journal.creations[1].tokens[0], "unheard", 1.0))
    assert world.find_kinds() == set()
    world.invites.create(world.issued.key)
    assert world.find_kinds() == set()
    world.invites.create(world.issued.key)
    assert world.find_kinds() == {"doubled"}


PLAIN: Final = Outcome(kills=Counter({"worker": 2}), acknowledged=Counter({"creations": 3}), checks=1)


@pytest.mark.parametrize(
    "outcome",
    [
        pytest.param(replace(PLAIN, faults={Fault("lost", "an invite")}), id="lost"),
        pytest.param(replace(PLAIN, faults={Fault("doubled", "an invite")}), id="doubled"),
        pytest.param(replace(PLAIN, unexpected=Counter({"creation: 500": 1})), id="another-answer"),
        pytest.param(replace(PLAIN, kills=Counter()), id="nothing-was-killed"),
        pytest.param(replace(PLAIN, acknowledged=Counter()), id="nothing-was-done"),
        pytest.param(replace(PLAIN, checks=0), id="nothing-was-compared"),
    ],
)
def test_an_outcome_that_does_not_hold(
    outcome: Outcome, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command exits with 0 where all that was acknowledged under kills is there once, and with 1 where not."""
    monkeypatch.setattr("sys.argv", ["kill-race"])
    for shown, code in ((PLAIN, 0), (outcome, 1)):
        monkeypatch.setattr(kill_race, "run_race", lambda *_, shown=shown, **__: shown)
        assert kill_race.main() == code
        assert capsys.readouterr().out.splitlines()[-1].startswith("NOT" if code else "all")
