"""The PostgreSQL store where the network or the server fails: at every message, once and for good.

After each fault: what was acknowledged is there, what was refused is not, what is unknown is settled by the same call
again, the next call works, and the tables agree with each other.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import psycopg
import pytest

from invites_core.errors import InvitesError, KeyExists, OutcomeUnknown, StorageBusy, StorageError
from invites_core.invites import Invite
from invites_core.keys import ApiKey
from invites_core.stores import postgresql_database
from invites_core.stores.postgresql import PostgresqlStore
from invites_core.stores.postgresql_connection import Connection
from tests.conftest import StartPostgresql
from tests.helpers import NOON, PATIENCE, make_grant, make_invite, make_key
from tests.postgresql import new_database
from tests.postgresql_proxy import Fault, Message, PostgresqlProxy

pytestmark = pytest.mark.real_server

SHORT = 0.5
MOST_MESSAGES = 80
"""More than any operation has; what needs more does not end."""


@dataclass
class World:
    """A store behind a proxy, the same database without one, and what is in it."""

    store: PostgresqlStore
    direct: PostgresqlStore
    proxy: PostgresqlProxy
    sql: psycopg.Connection[Any]
    key: ApiKey
    invite: Invite

    def renew(self) -> None:
        """Empty the tables, and add a key and an invite."""
        self.sql.execute("TRUNCATE keys, deleted_keys, quotas, creations, invites, redemptions")
        self.key, self.invite = make_key(), make_invite()
        self.direct.add_key(self.key)
        self.direct.add_invites([self.invite])

    def dump(self) -> list[Any]:
        """Return all that is stored, without places in lists."""
        tables = ("keys", "deleted_keys", "quotas", "creations", "redemptions")
        rows = [self.sql.execute(f"SELECT * FROM {table} ORDER BY 1, 2".encode()).fetchall() for table in tables]
        invites = self.sql.execute("SELECT token FROM invites ORDER BY token").fetchall()
        return [*rows, [self.direct.find_invite(token) for (token,) in invites]]


@pytest.fixture
def world(postgresql_server: str) -> Iterator[World]:
    """A store behind a proxy."""
    with new_database(postgresql_server) as url:
        mark = "&" if "?" in url else "?"
        with PostgresqlProxy(f"{url}{mark}sslmode=disable&gssencmode=disable") as proxy:
            direct = PostgresqlStore(url, timeout=PATIENCE)
            store = PostgresqlStore(proxy.url, timeout=PATIENCE)
            with psycopg.connect(url, autocommit=True, application_name="tests") as sql:
                made = World(store, direct, proxy, sql, make_key(), make_invite())
                made.renew()
                store.ping()
                yield made
            proxy.heal()
            store.close()
            direct.close()


Operation = Callable[[World, PostgresqlStore], object]
Options = dict[str, Any]


def add_key(world: World, store: PostgresqlStore) -> object:
    with contextlib.suppress(KeyExists):
        store.add_key(replace(world.key, id="another1"))
    return None


def add_granted(world: World, store: PostgresqlStore) -> object:
    token = "t" * 24
    grant = make_grant(world.key, tokens=(token,), limit=5, name="once")
    return store.add_granted(grant, [make_invite(token=token)]).outcome in ("taken", "repeated")


def add_invites(world: World, store: PostgresqlStore) -> object:
    store.add_invites([make_invite(token=f"{number:024}") for number in range(3)], if_absent=True)
    return None


def redeem(world: World, store: PostgresqlStore) -> object:
    options: Options = {"redemption_id": "r", "redeemer": "x", "username": "x", "host": None, "now": NOON}
    return store.redeem_invite(world.invite.token, **options).outcome in ("redeemed", "repeated")


def release(world: World, store: PostgresqlStore) -> object:
    return store.release_redemption(world.invite.token, redemption_id="r", host=None, now=NOON)


def revoke(world: World, store: PostgresqlStore) -> object:
    _, invite = store.revoke_invite(world.invite.token, by="admin", host=None, now=NOON)
    return invite


def delete_key(world: World, store: PostgresqlStore) -> object:
    store.delete_key(world.key.id, host=world.key.host, now=NOON)
    return store.find_deletion(world.key.id)


def update_key(world: World, store: PostgresqlStore) -> object:
    # A repeat finds the key as it is to be, and changes nothing.
    return store.update_key(world.key, replace(world.key, name="new")) or store.find_key(world.key.id)


def rotate_key(world: World, store: PostgresqlStore) -> object:
    options: Options = {"host": world.key.host, "secret_hash": "new", "tag": b"12345678", "previous_until": NOON}
    return store.rotate_key(world.key.id, **options)


def purge(world: World, store: PostgresqlStore) -> object:
    store.purge_invites(before=world.invite.created_at.replace(year=9000), limit=10)
    return None


ALL: list[Operation] = [
    add_key, add_granted, add_invites, redeem, release, revoke, delete_key, update_key, rotate_key, purge
]  # fmt: skip


# The share of every run; bin/postgresql-faults takes all.
IS_LONG = os.environ.get("INVITES_TEST_FAULTS") == "all"
SOME = ALL if IS_LONG else [add_granted, redeem, release]
FEW = ALL if IS_LONG else [add_granted, release]


def name(value: object) -> str:
    return getattr(value, "__name__", str(value))


def find_states(world: World, operation: Operation) -> tuple[list[Any], list[Any]]:
    """Return all that is stored before and after an operation; the rows that `renew` makes differ each time."""
    before = world.dump()
    operation(world, world.direct)
    return before, world.dump()


@pytest.mark.parametrize("operation", SOME, ids=name)
@pytest.mark.parametrize(("how", "side"), [("cut", None), ("reset", "server"), ("error", "server")], ids=name)
def test_fault_at_every_message(world: World, operation: Operation, how: Any, side: Any) -> None:
    """Wherever the connection ends, the call tells the truth, and the same call again settles what is unknown."""
    told = set()
    for number in range(1, MOST_MESSAGES):
        world.renew()
        before, after = find_states(world, operation)
        restore(world, before)
        fault = world.proxy.fail_at(how, number, side=side)
        try:
            operation(world, world.store)
            outcome = "success"
        except OutcomeUnknown:
            outcome = "unknown"
        except StorageError:
            outcome = "error"
        world.proxy.heal()
        told.add(outcome)
        stored = world.dump()
        assert {"success": stored == after, "error": stored == before, "unknown": stored in (before, after)}[outcome], (
            number,
            outcome,
        )
        if not fault.reached:
            break
        operation(world, world.store)
        assert world.dump() == after, number
        assert world.direct.find_problems() == []
    else:
        pytest.fail("the operation does not end")
    assert "success" in told
    # The last answer is always one whose loss leaves a change unknown.
    assert "unknown" in told


def restore(world: World, before: list[Any]) -> None:
    """Take an operation back, by way of the tables."""
    world.sql.execute("TRUNCATE keys, deleted_keys, quotas, creations, invites, redemptions")
    world.direct.add_key(world.key)
    world.direct.add_invites([world.invite])
    assert world.dump() == before


@pytest.mark.parametrize("operation", FEW, ids=name)
def test_server_that_stays_away(world: World, operation: Operation) -> None:
    """A server that goes in the middle and does not come back is an error, and nothing is wrong when it is back."""
    for number in range(1, MOST_MESSAGES):
        world.renew()
        before, after = find_states(world, operation)
        restore(world, before)
        fault = world.proxy.fail_at("cut", number, for_good=True)
        if not fails(lambda: operation(world, world.store)):
            assert not fault.reached
            break
        stored = world.dump()
        with pytest.raises(StorageError, match="cannot reach the database"):
            world.store.ping()
        assert stored in (before, after)
        world.proxy.heal()
        operation(world, world.store)
        assert world.dump() == after
    else:
        pytest.fail("the operation does not end")
    assert world.direct.find_problems() == []


def fails(call: Callable[[], object]) -> bool:
    try:
        call()
    except InvitesError:
        return True
    return False


def is_commit(message: Message) -> bool:
    return message.side == "client" and b"COMMIT" in message.body


def after_commit(message: Message) -> bool:
    return message.side == "server" and message.kind == "C" and message.body.startswith(b"COMMIT")


@pytest.mark.parametrize(
    ("at", "is_kept"),
    [pytest.param(is_commit, False, id="before-the-server"), pytest.param(after_commit, True, id="before-the-client")],
)
@pytest.mark.parametrize("how", ["cut", "reset", "swallow"])
def test_commit_that_is_lost_is_unknown(world: World, at: Callable[[Message], bool], is_kept: bool, how: Any) -> None:
    """Whether a COMMIT or its answer is lost, the caller cannot know, is told so, and settles it by the same call."""
    store = PostgresqlStore(world.proxy.url, timeout=SHORT)
    options: Options = {"redemption_id": "late", "host": None, "now": NOON}
    fault = Fault(how, at)
    world.proxy.fail(fault)
    with pytest.raises(OutcomeUnknown):
        store.release_redemption(world.invite.token, **options)
    assert fault.reached
    world.proxy.heal()
    if how == "swallow":
        # The server undoes a transaction whose client is silent.
        wait_until_idle(world)
    kept = world.direct.list_redemptions(world.invite.token)
    assert bool(kept) is is_kept
    store.release_redemption(world.invite.token, **options)
    assert len(world.direct.list_redemptions(world.invite.token)) == 1
    store.close()


def wait_until_idle(world: World) -> None:
    """Return when no transaction of the product is open."""
    deadline = time.monotonic() + PATIENCE
    query = (
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
        " AND application_name = 'invites-api' AND state LIKE 'idle in%'"
    )
    while world.sql.execute(query).fetchall() != [(0,)]:
        assert time.monotonic() < deadline, "a transaction stays open"
        time.sleep(0.02)


def test_swallowed_answer_to_a_reader_is_told_in_time(world: World) -> None:
    """A server that takes a question and never answers does not hold a thread for ever."""
    store = PostgresqlStore(world.proxy.url, timeout=SHORT)
    store.ping()
    world.proxy.fail(Fault("swallow", lambda message: message.side == "server"))
    with pytest.raises(StorageBusy, match="did not answer in time"):
        store.find_key(world.key.id)
    world.proxy.heal()
    assert store.find_key(world.key.id) == world.key
    store.close()


@pytest.mark.parametrize("code", ["25006", "53100", "53300", "57P01", "57P03"])
def test_server_that_refuses_is_told(world: World, code: str) -> None:
    """A server that ends a statement with an error of its state changes nothing, and is asked anew the next time."""

    def at(message: Message) -> bool:
        return message.side == "client" and message.kind in "PB" and b"invites" in message.body

    world.proxy.fail(Fault("error", at, code=code))
    with pytest.raises(StorageError):
        world.store.add_invites([make_invite(token="x" * 24)])
    world.proxy.heal()
    assert world.direct.find_invite("x" * 24) is None
    world.store.add_invites([make_invite(token="x" * 24)])
    assert world.direct.find_invite("x" * 24) is not None


class FailingNow:
    """Lets statements of the product fail with a code, a number of times, after the server has done them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, code: str, times: int, *, matching: bytes) -> None:
        self.left = times
        execute = Connection.execute
        lock = threading.Lock()

        def fail_sometimes(connection: Connection, statement: Any, *args: Any, **options: Any) -> Any:
            with lock:
                fails = matching in bytes(statement) and self.left > 0
                self.left -= fails
            if not fails:
                return execute(connection, statement, *args, **options)
            # The server itself raises it, so that the transaction is undone as it would be.
            raised = f"DO $$ BEGIN RAISE EXCEPTION 'injected' USING ERRCODE = '{code}'; END $$"
            return execute(connection, raised.encode())

        monkeypatch.setattr(Connection, "execute", fail_sometimes)


@pytest.mark.parametrize("code", ["40001", "40P01"])
@pytest.mark.parametrize("operation", ALL, ids=name)
def test_undone_transaction_is_run_again(
    world: World, monkeypatch: pytest.MonkeyPatch, operation: Operation, code: str
) -> None:
    """What the server has undone because two met is run again whole, and done once."""
    before, after = find_states(world, operation)
    restore(world, before)
    failing = FailingNow(monkeypatch, code, 3, matching=b" ")
    operation(world, world.store)
    assert failing.left == 0
    monkeypatch.undo()
    assert world.dump() == after


def test_server_that_undoes_for_ever_is_busy(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Running again has an end."""
    FailingNow(monkeypatch, "40001", 1_000, matching=b"INSERT")
    with pytest.raises(StorageBusy):
        world.store.add_invites([make_invite(token="x" * 24)])
    monkeypatch.undo()
    assert world.direct.find_invite("x" * 24) is None


def test_exactly_once_with_conflicts(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """With every third statement undone by the server each invite still has exactly one winner."""
    count = itertools.count()
    execute = Connection.execute

    def fail_every_third(connection: Connection, statement: Any, *args: Any, **options: Any) -> Any:
        if b"UPDATE invites" in bytes(statement) and next(count) % 3 == 0:
            statement, args = b"DO $$ BEGIN RAISE EXCEPTION 'x' USING ERRCODE = '40001'; END $$", ()
        return execute(connection, statement, *args, **options)

    monkeypatch.setattr(Connection, "execute", fail_every_third)
    invites = [make_invite() for _ in range(20)]
    world.store.add_invites(invites)

    def try_it(number: int) -> str:
        options: Options = {"redemption_id": f"r{number}", "redeemer": "x", "username": "x", "host": None, "now": NOON}
        return world.store.redeem_invite(invites[number % 20].token, **options).outcome

    with ThreadPoolExecutor(10) as threads:
        outcomes = list(threads.map(try_it, range(160)))
    assert (outcomes.count("redeemed"), outcomes.count("refused")) == (20, 140)
    assert world.direct.find_problems() == []


def test_restart_under_load(start_postgresql: StartPostgresql) -> None:
    """A server that is killed and started again under load keeps all that was acknowledged, and is used again."""
    server = start_postgresql()
    with new_database(server.url) as url:
        store = PostgresqlStore(url, timeout=2.0)
        acknowledged: list[str] = []
        refused: list[str] = []
        stop = threading.Event()

        def add() -> None:
            while not stop.is_set():
                invite = make_invite()
                try:
                    store.add_invites([invite], if_absent=True)
                    acknowledged.append(invite.token)
                except OutcomeUnknown:
                    refused.append("unknown")
                except StorageError as error:
                    refused.append(str(error))

        with ThreadPoolExecutor(6) as threads:
            done = [threads.submit(add) for _ in range(6)]
            for end in (server.stop, server.kill, server.stop):
                seen = len(acknowledged)
                deadline = time.monotonic() + PATIENCE
                while len(acknowledged) < seen + 100:
                    assert time.monotonic() < deadline, "the store does not come back"
                    time.sleep(0.01)
                end()
                server.start()
            seen = len(acknowledged)
            while len(acknowledged) < seen + 100:
                assert time.monotonic() < deadline + PATIENCE
                time.sleep(0.01)
            stop.set()
            assert [one.result() for one in done] == [None] * 6
        assert refused
        assert [token for token in acknowledged if store.find_invite(token) is None] == []
        assert store.find_problems() == []
        store.close()


def test_faults_show_a_store_that_retries_too_much(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store that took a lost answer for a lost question would use an invite twice, and the tables would show it."""
    monkeypatch.setattr(postgresql_database, "translate", lambda *_, **__: StorageError("nothing was changed"))
    with pytest.raises(AssertionError):
        test_fault_at_every_message(world, redeem, "cut", None)
