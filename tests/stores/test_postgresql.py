"""The PostgreSQL store: what it asks of the server, how it shares it, and what each of its errors means."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest

from invites_core.errors import (
    CorruptRecord,
    InvalidRequest,
    InvitesError,
    KeyExists,
    KeyUnknown,
    OutcomeUnknown,
    StorageBusy,
    StorageError,
)
from invites_core.hashing import SecretHasher
from invites_core.service import ApiKeys, Invites
from invites_core.stores import open_store, postgresql_grants
from invites_core.stores.postgresql import PostgresqlStore
from invites_core.stores.postgresql_connection import Connection
from invites_core.stores.postgresql_database import PostgresqlDatabase
from invites_core.stores.postgresql_errors import Duplicate, translate
from invites_core.stores.postgresql_positions import make_positions
from invites_core.stores.postgresql_schema import MIGRATIONS
from invites_core.stores.postgresql_url import parse_postgresql_url
from tests.helpers import NOON, PATIENCE, make_grant, make_invite, make_key
from tests.processes import Fork

pytestmark = pytest.mark.real_server

SHORT = 0.5
"""A time limit in seconds for what is to run into it."""


@pytest.fixture
def store(postgresql_url: str) -> Iterator[PostgresqlStore]:
    """A store with empty tables."""
    opened = PostgresqlStore(postgresql_url, timeout=PATIENCE)
    yield opened
    opened.close()


@pytest.fixture
def other(postgresql_url: str) -> Iterator[psycopg.Connection[Any]]:
    """Another program's connection to the same database, in autocommit mode."""
    with psycopg.connect(postgresql_url, autocommit=True, application_name="tests") as connection:
        yield connection


@pytest.fixture
def open_with(postgresql_url: str) -> Iterator[Callable[..., PostgresqlStore]]:
    """Opens stores on the database with parameters added to its URL, closed in the end."""
    opened = []

    def open_one(parameters: str = "", **options: Any) -> PostgresqlStore:
        mark = "&" if "?" in postgresql_url else "?"
        opened.append(
            PostgresqlStore(f"{postgresql_url}{mark}{parameters}" if parameters else postgresql_url, **options)
        )
        return opened[-1]

    yield open_one
    for one in opened:
        one.close()


def find_settings(store: PostgresqlStore, *names: str) -> list[str]:
    """Return what the server says of some settings on a connection of the store."""
    columns = ", ".join(f"current_setting('{name}')" for name in names)
    [row] = store._database.read(f"SELECT {columns}", {})
    return list(row)


def count_connections(other: psycopg.Connection[Any]) -> int:
    """Return how many connections of the product there are to the database."""
    query = (
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'invites-api'"
    )
    [(count,)] = other.execute(query).fetchall()
    return int(count)


def end_connections(other: psycopg.Connection[Any]) -> None:
    """End the product's connections, as a server does that is restarted."""
    other.execute(
        "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
        " WHERE datname = current_database() AND application_name = 'invites-api'"
    ).fetchall()


def wait_for_a_lock(other: psycopg.Connection[Any]) -> None:
    """Return as soon as a connection of the product waits for a lock."""
    deadline = time.monotonic() + PATIENCE
    query = (
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
        " AND application_name = 'invites-api' AND wait_event_type = 'Lock'"
    )
    while other.execute(query).fetchall() == [(0,)]:
        assert time.monotonic() < deadline, "nobody waits for a lock"
        time.sleep(0.005)


class TestUrls:
    """What is read of a URL, and what is shown of it."""

    @pytest.mark.parametrize(
        ("url", "location", "max_connections"),
        [
            pytest.param("postgresql://", "postgresql:///", 10, id="empty"),
            pytest.param("postgresql:///invites", "postgresql:///invites", 10, id="socket"),
            pytest.param("postgresql://me:secret@h:5433/db", "postgresql://h:5433/db", 10, id="password"),
            pytest.param("postgresql://h/db?password=secret", "postgresql://h/db", 10, id="password-parameter"),
            pytest.param("postgresql://h/db?max_connections=3", "postgresql://h/db", 3, id="bound"),
            pytest.param(
                "postgresql://h/db?max_connections=1&sslmode=require", "postgresql://h/db", 1, id="bound-and-more"
            ),
            pytest.param("postgresql://[::1]:5433/db", "postgresql://[::1]:5433/db", 10, id="ipv6"),
            pytest.param("postgresql://a:1,b:2/db", "postgresql://a,b/db", 10, id="several"),
            pytest.param("postgresql://me:p%40ss@h/db", "postgresql://h/db", 10, id="encoded"),
        ],
    )
    def test_location_shows_no_password(self, url: str, location: str, max_connections: int) -> None:
        """A URL is shown with host, port and database alone."""
        parsed = parse_postgresql_url(url)
        assert (parsed.location, parsed.max_connections) == (location, max_connections)

    def test_parameters_are_the_librarys(self) -> None:
        """What is not ours goes to PostgreSQL's client library, and what is ours does not."""
        parsed = parse_postgresql_url("postgresql://me:p%40ss@h/db?sslmode=verify-full&max_connections=2")
        assert parsed.conninfo == {
            "user": "me", "password": "p@ss", "host": "h", "dbname": "db", "sslmode": "verify-full"
        }  # fmt: skip
        assert "p@ss" not in repr(parsed)

    @pytest.mark.parametrize(
        "url",
        [
            "postgresql://me:se:cret@h:x/db",
            "postgresql://me:se/cret@h/db",
            "postgresql://me:12/secret@h/db",
            "postgresql://me:secret@ret@h/db",
            "postgresql://me:secret@h/db?nonsense=secret",
            "postgresql://me:secret@h/db?secret",
            "postgresql://me:secret@h/db?max_connections=0",
            "postgresql://me:secret@h/db?max_connections=secret",
            "postgresql://me:secret@h/db?max_connections=99999999999999999999",
            "postgresql://me:secret@h:port/db",
            "postgresql://me:%zz@h/db",
        ],
    )
    def test_url_that_cannot_be_read_is_not_repeated(self, url: str) -> None:
        """A URL with a mistake is refused in a line that shows nothing of it."""
        with pytest.raises(InvalidRequest) as caught:
            parse_postgresql_url(url)
        assert caught.value.field == "database"
        assert "ret" not in str(caught.value)


class TestErrors:
    """What the server's codes mean."""

    @pytest.mark.parametrize(
        ("code", "kind"),
        [
            pytest.param("23505", Duplicate, id="unique"),
            pytest.param("40001", StorageBusy, id="serialization-failure-at-last"),
            pytest.param("40P01", StorageBusy, id="deadlock-at-last"),
            pytest.param("57014", StorageBusy, id="statement-timeout"),
            pytest.param("55P03", StorageBusy, id="lock-timeout"),
            pytest.param("25006", StorageError, id="read-only"),
            pytest.param("53100", StorageError, id="disk-full"),
            pytest.param("53300", StorageError, id="too-many-connections"),
            pytest.param("57P01", StorageError, id="shutdown"),
            pytest.param("57P03", StorageError, id="starting"),
            pytest.param("08006", StorageError, id="connection-failure"),
            pytest.param("08007", OutcomeUnknown, id="resolution-unknown"),
            pytest.param("40003", OutcomeUnknown, id="completion-unknown"),
            pytest.param("XX001", CorruptRecord, id="damaged"),
            pytest.param("42P01", StorageError, id="no-table"),
            pytest.param("22P05", StorageError, id="another"),
        ],
    )
    def test_codes(self, code: str, kind: type[InvitesError]) -> None:
        """Each code has one meaning for the caller, and the line names the database."""
        told = translate(psycopg.errors.lookup(code)("so it is"), location="HERE", committing=False)
        assert type(told) is kind
        assert kind is Duplicate or "HERE" in str(told)

    @pytest.mark.parametrize("code", ["57P01", "57P02", "08006", "08003", None])
    def test_lost_connection_leaves_a_commit_unknown(self, code: str | None) -> None:
        """Whoever loses the connection while a commit is under way does not know what became of it."""
        error = psycopg.OperationalError("gone") if code is None else psycopg.errors.lookup(code)("gone")
        assert type(translate(error, location="HERE", committing=True)) is OutcomeUnknown
        assert type(translate(error, location="HERE", committing=False)) is StorageError

    @pytest.mark.parametrize("code", ["53100", "25006", "57014", "XX001"])
    def test_commit_that_was_refused_is_no_riddle(self, code: str) -> None:
        """A server that answers with an error has undone the transaction, also at its commit."""
        told = translate(psycopg.errors.lookup(code)("no"), location="HERE", committing=True)
        assert not isinstance(told, OutcomeUnknown)

    def test_only_the_first_line_is_told(self) -> None:
        """What follows the first line of an error can quote a row, and is left out."""
        error = psycopg.errors.lookup("22P05")("bad\nDETAIL: row (secret)")
        assert "secret" not in str(translate(error, location="HERE", committing=False))


def test_positions_follow_each_other() -> None:
    """Places are in the order in which they were made, within a batch and after it, and are UUIDs of version 7."""
    places = [*make_positions(1000), *(place for _ in range(100) for place in make_positions(1))]
    assert places[:1000] == sorted(places[:1000])
    assert places[1000:] == sorted(places[1000:])
    assert len(set(places)) == len(places)
    assert {(place.version, place.variant) for place in places} == {(7, "specified in RFC 4122")}


class TestMigrations:
    """How the tables come to be, and are brought up to date."""

    STEPS = (*MIGRATIONS, "ALTER TABLE keys ADD COLUMN one integer", "ALTER TABLE keys ADD COLUMN two integer")

    def open(self, url: str, **options: Any) -> PostgresqlDatabase:
        return PostgresqlDatabase(url, **{"create": False, "migrations": self.STEPS, "timeout": PATIENCE, **options})

    @pytest.mark.parametrize("error", ["UniqueViolation", "DuplicateTable", "DuplicateObject"])
    def test_a_table_that_another_has_just_made_is_found(
        self, postgresql_url: str, error: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Whichever error the server has for two that make a table of one name at the same time."""
        execute = Connection.execute
        errors = [getattr(psycopg.errors, error)("made by another")]

        def execute_late(self: Connection, query: Any, *arguments: Any, **options: Any) -> Any:
            done = execute(self, query, *arguments, **options)
            if str(query).startswith("CREATE TABLE IF NOT EXISTS invites_schema") and errors:
                raise errors.pop()
            return done

        monkeypatch.setattr(Connection, "execute", execute_late)
        database = self.open(postgresql_url, create=True)
        assert not errors
        assert database.schema.present == len(self.STEPS)
        database.close()

    @pytest.mark.parametrize("is_old", [False, True])
    def test_nodes_that_start_at_once_make_each_step_once(self, postgresql_url: str, is_old: bool) -> None:
        """However many nodes start at once on an empty database or an old one, all find the newest version."""
        if is_old:
            PostgresqlStore(postgresql_url).close()
        barrier = threading.Barrier(8)

        def start() -> int:
            barrier.wait()
            database = self.open(postgresql_url, create=not is_old)
            try:
                database.read("SELECT one, two FROM keys", {})
                return database.schema.present
            finally:
                database.close()

        with ThreadPoolExecutor(8) as nodes:
            assert [started.result() for started in [nodes.submit(start) for _ in range(8)]] == [3] * 8

    def test_step_that_fails_leaves_the_version_before(self, postgresql_url: str) -> None:
        """A step is made whole or not at all, and made again at the next start."""
        steps = (*MIGRATIONS, "ALTER TABLE keys ADD COLUMN one integer;\nALTER TABLE nothing ADD COLUMN two integer")
        with pytest.raises(StorageError):
            self.open(postgresql_url, create=True, migrations=steps)
        database = self.open(postgresql_url)
        assert database.read("SELECT one FROM keys", {}) == []
        database.close()

    def test_older_tables_are_left_alone_when_asked(self, postgresql_url: str) -> None:
        """Who only looks sees what is there and what is to come."""
        PostgresqlStore(postgresql_url).close()
        database = self.open(postgresql_url, migrate=False)
        assert (database.schema.present, database.schema.newest) == (1, 3)
        database.close()

    def test_newer_tables_are_refused(self, postgresql_url: str) -> None:
        """A program that is older than the tables does not touch them."""
        self.open(postgresql_url, create=True).close()
        with pytest.raises(StorageError, match="has schema version 3; this program knows version 1"):
            PostgresqlStore(postgresql_url)

    def test_tables_are_made_only_when_asked_for(self, postgresql_url: str) -> None:
        """Without tables there is no database, unless it is to be made."""
        with pytest.raises(StorageError, match="no database at postgresql://.*: it has no tables of invites-api"):
            open_store(postgresql_url, create=False)
        made = PostgresqlStore(postgresql_url)
        assert made.schema.is_new
        made.close()
        found = PostgresqlStore(postgresql_url, create=False)
        assert not found.schema.is_new
        found.close()


class TestConnections:
    """What a process holds open, and what the server is told."""

    def test_server_knows_who_asks_and_for_how_long(self, open_with: Callable[..., PostgresqlStore]) -> None:
        """Connections carry the product's name, and no statement or lock is waited for without end."""
        store = open_with(timeout=5.0)
        found = find_settings(store, "application_name", "statement_timeout", "lock_timeout")
        assert found == ["invites-api", "5s", "5s"]

    def test_names_of_the_url_win(self, open_with: Callable[..., PostgresqlStore]) -> None:
        """A name in the URL is the one that the server shows."""
        store = open_with("application_name=mine")
        assert find_settings(store, "application_name") == ["mine"]

    @pytest.mark.parametrize(("given", "used"), [("off", "on"), ("local", "local"), ("remote_apply", "remote_apply")])
    def test_commits_wait_for_the_disk(self, open_with: Callable[..., PostgresqlStore], given: str, used: str) -> None:
        """A server that does not wait for its disk does so here; one that waits for more is left to it."""
        store = open_with(f"options=-c%20synchronous_commit%3D{given}")
        assert find_settings(store, "synchronous_commit") == [used]

    def test_process_opens_no_more_than_it_may(
        self, open_with: Callable[..., PostgresqlStore], other: psycopg.Connection[Any]
    ) -> None:
        """However many threads ask, they share as many connections as the URL allows, and all are served."""
        store = open_with("max_connections=2", timeout=PATIENCE)
        with ThreadPoolExecutor(12) as threads:
            done = [threads.submit(lambda: store._database.read("SELECT 1, pg_sleep(0.01)", {})) for _ in range(60)]
            most = 0
            while not all(one.done() for one in done):
                most = max(most, count_connections(other))
            assert [one.result()[0][0] for one in done] == [1] * 60
        assert most == 2

    def test_who_finds_no_connection_free_is_told(self, open_with: Callable[..., PostgresqlStore]) -> None:
        """Waiting for a connection has an end."""
        store = open_with("max_connections=1", timeout=SHORT)
        with (
            store._database._pool.borrow(time.monotonic() + 1),
            pytest.raises(StorageBusy, match="no connection is free"),
        ):
            store.ping()
        store.ping()

    def test_nothing_is_open_after_close(self, store: PostgresqlStore, other: psycopg.Connection[Any]) -> None:
        """A store that was closed has left the server, and refuses calls."""
        store.ping()
        store.close()
        store.close()
        deadline = time.monotonic() + PATIENCE
        while count_connections(other):
            assert time.monotonic() < deadline
        with pytest.raises(StorageError, match="the store is closed"):
            store.ping()

    def test_child_has_connections_of_its_own(self, store: PostgresqlStore, fork: Fork) -> None:
        """After a fork parent and child both go on, on different connections."""
        query = "SELECT pg_backend_pid()"
        mine = store._database.read(query, {})

        def ask_and_leave() -> list[tuple[Any, ...]]:
            rows = store._database.read(query, {})
            store.close()
            return rows

        assert fork(ask_and_leave).result() != mine
        assert store._database.read(query, {}) == mine

    def test_connection_that_was_ended_is_replaced(
        self, store: PostgresqlStore, other: psycopg.Connection[Any]
    ) -> None:
        """After the server has ended all connections the next call works, reading or writing."""
        store.add_invites([make_invite()])
        for _ in range(3):
            end_connections(other)
            store.ping()
            end_connections(other)
            store.add_invites([make_invite()])

    def test_absent_server_is_told_and_found_again(self, postgresql_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """A store opened while its server was away works when that is there."""
        PostgresqlStore(postgresql_url).close()
        real = Connection.connect

        def refuse(*_: Any, **__: Any) -> Connection:
            raise psycopg.OperationalError("Connection refused")

        monkeypatch.setattr(Connection, "connect", refuse)
        store = PostgresqlStore(postgresql_url, create=False)
        with pytest.raises(StorageError, match="cannot reach the database .*: Connection refused"):
            store.ping()
        monkeypatch.setattr(Connection, "connect", real)
        store.ping()
        store.close()

    def test_opening_has_an_end(
        self, postgresql_url: str, store: PostgresqlStore, other: psycopg.Connection[Any]
    ) -> None:
        """A database whose tables somebody holds locked is told as busy within the time limit, also at the start."""
        assert store.schema.present == 1
        with other.transaction():
            other.execute("LOCK TABLE invites_schema")
            with pytest.raises(StorageBusy):
                PostgresqlStore(postgresql_url, create=False, timeout=SHORT)
        PostgresqlStore(postgresql_url, create=False).close()

    def test_transaction_that_gets_no_answer_is_not_run_again(
        self, open_with: Callable[..., PostgresqlStore], other: psycopg.Connection[Any]
    ) -> None:
        """A server that falls silent in a transaction is told as busy in time, and the change was tried once."""
        store = open_with(timeout=SHORT)
        calls = []

        def change(connection: Connection) -> None:
            calls.append(1)
            pid = connection.info.backend_pid
            os.kill(pid, signal.SIGSTOP)
            stopped.append(pid)
            connection.run("SELECT 1")

        stopped: list[int] = []
        with store._database._pool.borrow(time.monotonic() + 1):
            store.ping()
        began = time.monotonic()
        try:
            with pytest.raises(StorageBusy, match="did not answer in time"):
                store._database.write(change)
        finally:
            for pid in stopped:
                os.kill(pid, signal.SIGCONT)
        assert calls == [1]
        assert time.monotonic() - began < PATIENCE
        store.ping()

    def test_idle_connections_that_do_not_answer_are_not_asked_one_by_one(
        self, open_with: Callable[..., PostgresqlStore], other: psycopg.Connection[Any]
    ) -> None:
        """Once an idle connection does not answer, the others that were idle with it are replaced unasked."""
        store = open_with("max_connections=8", timeout=PATIENCE)
        with contextlib.ExitStack() as borrowed:
            for _ in range(8):
                connection = borrowed.enter_context(store._database._pool.borrow(time.monotonic() + PATIENCE))
                connection.run("SELECT 1")
        asked = []
        works = Connection.works

        def ask(connection: Connection) -> bool:
            asked.append(connection)
            return len(asked) > 1 and works(connection)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Connection, "works", ask)
            store.ping()
        assert len(asked) == 2

    def test_read_only_server_is_told(self, open_with: Callable[..., PostgresqlStore]) -> None:
        """A server that takes no writes answers readers, and is not ready."""
        open_with()
        standby = open_with("options=-c%20default_transaction_read_only%3Don", create=False)
        assert standby.find_key("HTwALnKL") is None
        for call in (standby.ping, lambda: standby.add_invites([make_invite()])):
            with pytest.raises(StorageError, match="is read-only"):
                call()


class TestWaiting:
    """What happens where two meet."""

    def test_lock_that_is_held_too_long_is_told(
        self, open_with: Callable[..., PostgresqlStore], other: psycopg.Connection[Any]
    ) -> None:
        """Whoever waits in vain for another's lock is told so, and nothing was changed."""
        store = open_with(timeout=SHORT)
        invite = make_invite()
        store.add_invites([invite])
        with other.transaction():
            other.execute("SELECT 1 FROM invites FOR UPDATE")
            with pytest.raises(StorageBusy):
                store.revoke_invite(invite.token, by="admin", host=None, now=NOON)
        assert store.find_invite(invite.token) == invite

    @pytest.mark.parametrize("level", ["read committed", "repeatable read", "serializable"])
    def test_one_redeemer_wins_whatever_the_server_is_set_to(
        self, open_with: Callable[..., PostgresqlStore], level: str
    ) -> None:
        """Whatever isolation is usual there, transactions run at the one meant here, and uses are exact."""
        isolation = level.replace(" ", "%5C%20")
        store = open_with(f"options=-c%20default_transaction_isolation%3D{isolation}", timeout=PATIENCE)
        assert find_settings(store, "transaction_isolation") == ["read committed"]
        invite = make_invite(max_uses=5)
        store.add_invites([invite])

        def redeem(number: int) -> str:
            return store.redeem_invite(
                invite.token, redemption_id=f"r{number % 16}", redeemer="x", username="x", host=None, now=NOON
            ).outcome

        with ThreadPoolExecutor(10) as threads:
            outcomes = list(threads.map(redeem, range(48)))
        assert outcomes.count("redeemed") == 5
        assert len(store.list_redemptions(invite.token)) == 5
        assert store.find_problems() == []

    def test_deletion_waits_for_the_creation_that_was_first(
        self, store: PostgresqlStore, other: psycopg.Connection[Any]
    ) -> None:
        """A key is deleted after the creations that hold it; later ones find it gone."""
        key = make_key()
        store.add_key(key)
        with ThreadPoolExecutor(1) as thread:
            with other.transaction():
                other.execute("SELECT id FROM keys FOR KEY SHARE")
                deletion = thread.submit(lambda: store.delete_key(key.id, host=key.host, now=NOON))
                wait_for_a_lock(other)
                assert not deletion.done()
            assert deletion.result() is True
        invite = make_invite()
        with pytest.raises(KeyUnknown):
            store.add_granted(make_grant(key, tokens=(invite.token,)), [invite])
        assert store.find_invite(invite.token) is None

    def test_creation_waits_for_the_deletion_that_was_first(
        self, store: PostgresqlStore, other: psycopg.Connection[Any]
    ) -> None:
        """A creation that meets a deletion of its key finds the key gone, and adds nothing."""
        key, invite = make_key(), make_invite()
        store.add_key(key)
        with ThreadPoolExecutor(1) as thread:
            with other.transaction():
                other.execute("DELETE FROM keys")
                grant = make_grant(key, tokens=(invite.token,))
                creation = thread.submit(lambda: store.add_granted(grant, [invite]))
                wait_for_a_lock(other)
            with pytest.raises(KeyUnknown):
                creation.result()
        assert store.find_invite(invite.token) is None

    def test_deleted_key_does_not_come_back_through_a_gap(
        self, store: PostgresqlStore, other: psycopg.Connection[Any]
    ) -> None:
        """Adding a key while its deletion is under way is refused: the mark decides that comes with the deletion."""
        key = make_key()
        store.add_key(key)
        with ThreadPoolExecutor(1) as thread:
            with other.transaction():
                other.execute("DELETE FROM keys")
                other.execute("INSERT INTO deleted_keys VALUES (%s, 1)", [key.id])
                addition = thread.submit(lambda: store.add_key(key))
                wait_for_a_lock(other)
            with pytest.raises(KeyExists):
                addition.result()
        assert store.find_key(key.id) is None

    def test_release_that_comes_first_wins(self, store: PostgresqlStore, other: psycopg.Connection[Any]) -> None:
        """A redemption that waits for a release of its own identity finds it released, and takes no use."""
        invite = make_invite(max_uses=3)
        store.add_invites([invite])
        with ThreadPoolExecutor(1) as thread:
            with other.transaction():
                other.execute("SELECT 1 FROM invites FOR NO KEY UPDATE")
                other.execute(
                    "INSERT INTO redemptions (token, redemption_id, released_at) VALUES (%s, 'r', 1)", [invite.token]
                )
                redemption = thread.submit(
                    lambda: store.redeem_invite(
                        invite.token, redemption_id="r", redeemer=None, username=None, host=None, now=NOON
                    )
                )
                wait_for_a_lock(other)
            assert redemption.result().outcome == "released"
        assert store.find_invite(invite.token) == invite

    def test_deadlock_is_run_again(self, store: PostgresqlStore, other: psycopg.Connection[Any]) -> None:
        """Two that wait for each other's locks: the server undoes one, and the store runs its part again."""
        other.execute("SET deadlock_timeout = '10s'")
        first, second = make_key(id="aaaaaaaa"), make_key(id="bbbbbbbb")
        store.add_key(first)
        store.add_key(second)
        calls = []

        def lock_both(connection: Connection) -> None:
            calls.append(1)
            connection.run("SELECT 1 FROM keys WHERE id = 'aaaaaaaa' FOR UPDATE")
            connection.run("SELECT 1 FROM keys WHERE id = 'bbbbbbbb' FOR UPDATE")

        with ThreadPoolExecutor(1) as thread:
            with other.transaction():
                other.execute("SELECT 1 FROM keys WHERE id = 'bbbbbbbb' FOR UPDATE")
                mine = thread.submit(lambda: store._database.write(lock_both))
                wait_for_a_lock(other)
                # The server undoes the store's transaction, whose deadlock_timeout is shorter, and this one goes on.
                other.execute("SELECT 1 FROM keys WHERE id = 'aaaaaaaa' FOR UPDATE")
            mine.result()
        assert len(calls) == 2

    def test_same_idempotency_key_takes_once(self, store: PostgresqlStore, other: psycopg.Connection[Any]) -> None:
        """Of many that come at once with one idempotency key one takes, and all get its tokens."""
        key = make_key()
        store.add_key(key)
        barrier = threading.Barrier(8)

        def create(number: int) -> tuple[str, tuple[str, ...]]:
            invite = make_invite()
            grant = make_grant(key, tokens=(invite.token,), name="once", limit=3)
            barrier.wait()
            taken = store.add_granted(grant, [invite])
            return taken.outcome, taken.tokens

        with ThreadPoolExecutor(8) as threads:
            outcomes = list(threads.map(create, range(8)))
        assert sorted(outcome for outcome, _ in outcomes) == ["repeated"] * 7 + ["taken"]
        assert len({tokens for _, tokens in outcomes}) == 1
        assert other.execute("SELECT taken FROM quotas").fetchall() == [(1,)]
        assert other.execute("SELECT count(*) FROM invites").fetchall() == [(1,)]

    def test_digest_of_long_ago_is_taken_again(self, store: PostgresqlStore, other: psycopg.Connection[Any]) -> None:
        """An idempotency row that no longer counts does not stand in the way, and the quota is taken once."""
        key = make_key()
        store.add_key(key)
        old, new = make_invite(), make_invite()
        store.add_granted(make_grant(key, tokens=(old.token,), name="once", limit=5), [old])
        later = make_grant(key, tokens=(new.token,), name="once", limit=5, expired_before=NOON + timedelta(seconds=1))
        assert store.add_granted(later, [new]).outcome == "taken"
        assert other.execute("SELECT taken FROM quotas").fetchall() == [(2,)]


def test_creating_takes_two_round_trips(
    store: PostgresqlStore, hasher: SecretHasher, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A key that is known costs one question to the server, and its invite one more, with quota and repetition too."""
    keys = ApiKeys(store, hasher=hasher)
    invites = Invites(store, keys=store)
    issued = keys.create("example.com")
    keys.verify(issued.combined)
    sent = []
    execute = Connection.execute

    def count(connection: Connection, statement: Any, *args: Any, **options: Any) -> Any:
        sent.append(statement)
        return execute(connection, statement, *args, **options)

    monkeypatch.setattr(Connection, "execute", count)
    invites.create(keys.verify(issued.combined), idempotency_key="once")
    assert len(sent) <= 2


def test_text_that_cannot_be_stored_is_refused(store: PostgresqlStore) -> None:
    """A NUL, which PostgreSQL's texts cannot hold, finds nothing and is refused where it would be kept."""
    assert store.find_key("a\0b") is None
    assert store.list_keys("a\0b") == []
    with pytest.raises(StorageError):
        store.add_invites([make_invite(note="a\0b")])
    with pytest.raises(StorageError):
        store.add_key(make_key(name="a\0b"))
    store.ping()


def test_many_repeatable_creations_are_purged(
    store: PostgresqlStore, other: psycopg.Connection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many idempotency rows there are, those before a time are deleted, in steps, and counted."""
    monkeypatch.setattr(postgresql_grants, "PURGED_AT_ONCE", 10)
    monkeypatch.setattr(postgresql_grants, "_PURGE", postgresql_grants._PURGE.replace("LIMIT 10000", "LIMIT 10"))
    other.execute(
        "INSERT INTO creations SELECT 'k', number::text::bytea, '', '[]', number, NULL"
        " FROM generate_series(1, 1100) AS number"
    )
    assert store.purge_grants(before=datetime.fromtimestamp(1001, UTC)) == 1000
    assert other.execute("SELECT count(*) FROM creations").fetchall() == [(100,)]


def test_unfinished_copy_is_found(store: PostgresqlStore, other: psycopg.Connection[Any]) -> None:
    """A database that a copy was not finished into is a problem that is told."""
    other.execute("INSERT INTO deleted_keys VALUES ('unfinished copy', 0)")
    [problem] = store.find_problems()
    assert "holds an unfinished copy" in problem


def test_miscounted_uses_are_found(store: PostgresqlStore, other: psycopg.Connection[Any]) -> None:
    """An invite whose uses are not those of its redemptions is a problem that is told."""
    store.add_invites([make_invite()])
    assert store.find_problems() == []
    other.execute("UPDATE invites SET uses = 1")
    [problem] = store.find_problems()
    assert problem.startswith("1 invites in postgresql://")
