"""How writers share commits and take turns: one commit for all who wait, each with an outcome of its own."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, cast

import apsw
import pytest

from invites_core.errors import KeyExists, OutcomeUnknown, StorageBusy, StorageError
from invites_core.stores.sqlite import SqliteStore
from invites_core.stores.sqlite_turns import FileTurn
from invites_core.stores.sqlite_writers import LARGEST_BATCH, WriteQueue, _Waiter
from tests.helpers import PATIENCE, make_invite, run_at_once, wait_until
from tests.privileges import without_power_over_files
from tests.processes import Fork

Change = Callable[[apsw.Connection], object]


class CountedConnection:
    """Stands before a connection: counts its commits, and makes them fail."""

    def __init__(self) -> None:
        self._connection = apsw.Connection(":memory:")
        self._connection.execute("CREATE TABLE t (c UNIQUE)")
        self.commits = 0
        self.failures: dict[int, Exception] = {}
        """What the commits of these numbers raise, counted from 1."""

    def execute(self, statement: str, bindings: tuple[object, ...] = ()) -> apsw.Cursor:
        if statement == "COMMIT":
            self.commits += 1
            if self.commits in self.failures:
                raise self.failures[self.commits]
        return self._connection.execute(statement, bindings)

    @property
    def in_transaction(self) -> bool:
        return self._connection.in_transaction

    def close(self) -> None:
        self._connection.close()


class Bench:
    """A queue of writers before a database in memory."""

    def __init__(self) -> None:
        self.connection = CountedConnection()
        self.turn_failure: Exception | None = None
        self.queue = WriteQueue(turn=self._turn, translate=self._translate)
        self.outcomes: dict[str, Any] = {}
        self._threads: list[threading.Thread] = []
        self._release = threading.Event()

    @contextlib.contextmanager
    def _turn(self, deadline: float) -> Iterator[apsw.Connection]:
        if self.turn_failure is not None:
            raise self.turn_failure
        self.connection.execute("BEGIN IMMEDIATE")
        try:
            yield cast(apsw.Connection, self.connection)
        finally:
            if self.connection.in_transaction:
                self.connection.execute("ROLLBACK")

    @staticmethod
    def _translate(error: apsw.Error) -> StorageError:
        return StorageBusy() if isinstance(error, apsw.BusyError) else StorageError(type(error).__name__)

    def _start(self, name: str, change: Change, timeout: float) -> None:
        def write() -> None:
            try:
                self.outcomes[name] = self.queue.write(change, timeout=timeout)
            except BaseException as error:
                self.outcomes[name] = error

        self._threads.append(threading.Thread(target=write, daemon=True))
        self._threads[-1].start()

    def hold(self) -> None:
        """Let a first writer lead a batch of its own, and stay in it until it is released."""
        leading = threading.Event()

        def change(connection: apsw.Connection) -> None:
            leading.set()
            assert self._release.wait(PATIENCE)

        self._start("holder", change, PATIENCE)
        assert leading.wait(PATIENCE)

    def queue_up(self, name: str, change: Change, *, timeout: float = PATIENCE) -> None:
        """Let another writer wait behind those who wait already."""
        waiting = len(self.queue._waiting)
        self._start(name, change, timeout)
        wait_until(lambda: len(self.queue._waiting) == waiting + 1)

    def release(self) -> None:
        self._release.set()

    def finish(self) -> dict[str, Any]:
        """Release the first writer, and return what came of the others."""
        self.release()
        for thread in self._threads:
            thread.join(PATIENCE)
            assert not thread.is_alive(), "a writer was never answered"
        assert self.outcomes.pop("holder", None) is None
        return self.outcomes

    def list_values(self) -> list[str]:
        return [str(value) for (value,) in self.connection.execute("SELECT c FROM t ORDER BY rowid").fetchall()]


@pytest.fixture
def bench() -> Iterator[Bench]:
    """A queue before an empty table."""
    made = Bench()
    yield made
    made.release()
    made.connection.close()


def insert(value: str, *, then: BaseException | None = None) -> Change:
    """Return a change that adds a value, and raises something then."""

    def change(connection: apsw.Connection) -> str:
        connection.execute("INSERT INTO t VALUES (?)", (value,)).fetchall()
        if then is not None:
            raise then
        return value.upper()

    return change


class TestSharedCommits:
    """WriteQueue."""

    def test_writer_alone_commits_for_itself(self, bench: Bench) -> None:
        """A change that meets no other is committed at once, and its result comes back."""
        assert bench.queue.write(insert("a"), timeout=PATIENCE) == "A"
        assert bench.queue.write(insert("b"), timeout=PATIENCE) == "B"
        assert bench.connection.commits == 2
        assert bench.list_values() == ["a", "b"]

    def test_those_who_wait_share_a_commit(self, bench: Bench) -> None:
        """What comes while a commit is under way is committed together next, in the order that it came in."""
        bench.hold()
        for name in "abcde":
            bench.queue_up(name, insert(name))
        assert bench.finish() == {name: name.upper() for name in "abcde"}
        assert bench.connection.commits == 2, "the holder's, and one for all the others"
        assert bench.list_values() == list("abcde")

    def test_failure_is_its_own(self, bench: Bench) -> None:
        """A change that fails is undone and told why, and those that share its commit are none the worse."""
        bench.hold()
        bench.queue_up("a", insert("a"))
        bench.queue_up("twice", insert("a"))
        bench.queue_up("late", insert("half", then=KeyExists()))
        bench.queue_up("z", insert("z"))
        outcomes = bench.finish()
        assert (outcomes["a"], outcomes["z"]) == ("A", "Z")
        assert isinstance(outcomes["late"], KeyExists)
        assert isinstance(outcomes["twice"], StorageError)
        assert str(outcomes["twice"]) == "ConstraintError"
        assert isinstance(outcomes["twice"].__cause__, apsw.ConstraintError)
        assert bench.list_values() == ["a", "z"]

    def test_nothing_is_committed_where_all_failed(self, bench: Bench) -> None:
        """A batch of which nothing is left is not committed."""
        with pytest.raises(KeyExists):
            bench.queue.write(insert("alone", then=KeyExists()), timeout=PATIENCE)
        assert bench.connection.commits == 0
        bench.hold()
        bench.queue_up("a", insert("a", then=KeyExists()))
        bench.queue_up("b", insert("b", then=KeyExists()))
        assert [type(outcome) for outcome in bench.finish().values()] == [KeyExists, KeyExists]
        assert bench.connection.commits == 1, "the holder's alone"
        assert bench.list_values() == []

    def test_failed_commit_is_unknown_to_all_of_its_batch(self, bench: Bench) -> None:
        """Where the commit fails each of those who share it is told OutcomeUnknown, and who had failed before, why."""
        bench.hold()
        bench.queue_up("a", insert("a"))
        bench.queue_up("own", insert("own", then=KeyExists()))
        bench.queue_up("b", insert("b"))
        bench.connection.failures[2] = apsw.IOError("disk I/O error")
        outcomes = bench.finish()
        assert isinstance(outcomes["a"], OutcomeUnknown)
        assert isinstance(outcomes["b"], OutcomeUnknown)
        assert outcomes["a"] is not outcomes["b"], "each raises an error of its own"
        assert isinstance(outcomes["a"].__cause__, apsw.IOError)
        assert isinstance(outcomes["own"], KeyExists)
        assert bench.list_values() == []

    def test_busy_commit_changed_nothing(self, bench: Bench) -> None:
        """A commit that only had to wait too long is StorageBusy, and undone."""
        bench.connection.failures[1] = apsw.BusyError("database is locked")
        with pytest.raises(StorageBusy):
            bench.queue.write(insert("a"), timeout=PATIENCE)
        assert bench.list_values() == []
        assert bench.queue.write(insert("a"), timeout=PATIENCE) == "A"

    def test_turn_that_never_comes_is_told_to_the_one_who_leads(self, bench: Bench) -> None:
        """Where no transaction can begin the one who leads is told, and the next tries for itself."""
        bench.turn_failure = StorageBusy()
        for _ in range(2):
            with pytest.raises(StorageBusy):
                bench.queue.write(insert("a"), timeout=PATIENCE)
        bench.turn_failure = None
        assert bench.queue.write(insert("a"), timeout=PATIENCE) == "A"

    def test_who_waits_too_long_withdraws(self, bench: Bench) -> None:
        """A writer whose turn does not come in time is told StorageBusy, and its change never happens."""
        bench.hold()
        bench.queue_up("a", insert("a"))
        bench.queue_up("late", insert("late"), timeout=0.01)
        wait_until(lambda: "late" in bench.outcomes)
        bench.queue_up("z", insert("z"))
        outcomes = bench.finish()
        assert isinstance(outcomes["late"], StorageBusy)
        assert (outcomes["a"], outcomes["z"]) == ("A", "Z")
        assert bench.list_values() == ["a", "z"]

    def test_who_was_taken_waits_for_the_result(self, bench: Bench) -> None:
        """A writer whose change is in a commit under way is told what became of it, however long that takes."""
        over = time.monotonic() + 1.0

        def outlast(connection: apsw.Connection) -> None:
            wait_until(lambda: time.monotonic() > over + 0.05)

        bench.hold()
        bench.queue_up("slow", outlast)
        bench.queue_up("taken", insert("taken"), timeout=over - time.monotonic())
        assert bench.finish() == {"slow": None, "taken": "TAKEN"}
        assert bench.list_values() == ["taken"]

    def test_interrupted_leader_leaves_nobody_waiting(self, bench: Bench) -> None:
        """Where a keyboard interrupt ends the one who leads, those who share its commit are told so."""
        bench.hold()
        bench.queue_up("leader", insert("leader", then=KeyboardInterrupt()))
        bench.queue_up("other", insert("other"))
        outcomes = bench.finish()
        assert isinstance(outcomes["leader"], KeyboardInterrupt)
        assert isinstance(outcomes["other"], StorageError)
        assert not isinstance(outcomes["other"], OutcomeUnknown)
        assert bench.list_values() == []
        assert bench.queue.write(insert("later"), timeout=PATIENCE) == "LATER"

    @pytest.mark.parametrize("moment", ["queued", "leading", "taken"])
    def test_interrupted_waiter_does_not_stop_the_queue(
        self, bench: Bench, monkeypatch: pytest.MonkeyPatch, moment: str
    ) -> None:
        """Whenever a keyboard interrupt ends one who waits, those before and behind it are written, and later ones."""
        lost = insert("lost")
        go_on = threading.Event()
        wait = bench.queue._wait

        def is_time(waiter: _Waiter) -> bool:
            return go_on.is_set() and {"queued": True, "leading": waiter.leads, "taken": waiter.taken}[moment]

        def interrupted(waiter: _Waiter, deadline: float) -> None:
            if waiter.change is not lost:
                wait(waiter, deadline)
                return
            wait_until(lambda: is_time(waiter))
            raise KeyboardInterrupt

        monkeypatch.setattr(bench.queue, "_wait", interrupted)
        bench.hold()
        if moment == "taken":
            bench.queue_up("before", insert("before"))
        bench.queue_up("lost", lost)
        bench.queue_up("behind", insert("behind"))
        go_on.set()
        if moment == "queued":
            wait_until(lambda: "lost" in bench.outcomes)
        outcomes = bench.finish()
        assert isinstance(outcomes.pop("lost"), KeyboardInterrupt)
        assert outcomes == {name: name.upper() for name in outcomes}
        # What was in a batch already is kept; what was not is never done.
        assert bench.list_values() == (["before", "lost", "behind"] if moment == "taken" else ["behind"])
        assert bench.queue.write(insert("later"), timeout=PATIENCE) == "LATER"
        assert not bench.queue._waiting
        assert not bench.queue._led

    @pytest.mark.parametrize("failure", ["rolled-back", "commit"])
    def test_failure_that_cannot_be_explained_is_no_success(
        self, bench: Bench, monkeypatch: pytest.MonkeyPatch, failure: str
    ) -> None:
        """Where the leader fails at telling why the batch failed, all are answered, and nobody with a success."""

        def translate(error: apsw.Error) -> StorageError:
            raise PermissionError("nothing can be found out")

        def fail(connection: apsw.Connection) -> None:
            if failure == "rolled-back":
                connection.execute("ROLLBACK")
                raise apsw.CantOpenError("unable to open database file")

        bench.hold()
        bench.queue_up("leader", insert("leader"))
        bench.queue_up("fail", fail)
        bench.queue_up("behind", insert("behind"))
        if failure == "commit":
            bench.connection.failures[2] = apsw.IOError("disk I/O error")
        with monkeypatch.context() as patched:
            patched.setattr(bench.queue, "_translate", translate)
            outcomes = bench.finish()
        assert set(outcomes) == {"leader", "fail", "behind"}
        assert all(isinstance(outcome, Exception) for outcome in outcomes.values()), outcomes
        assert isinstance(outcomes["behind"], OutcomeUnknown)
        assert bench.list_values() == []
        assert bench.queue.write(insert("later"), timeout=PATIENCE) == "LATER"

    def test_database_that_rolls_back_takes_all_with_it(self, bench: Bench) -> None:
        """Where SQLite itself ends the transaction, as on a full disk, nobody's change is there, and all are told."""

        def fill(connection: apsw.Connection) -> None:
            connection.execute("ROLLBACK")
            raise apsw.FullError("database or disk is full")

        bench.hold()
        bench.queue_up("before", insert("before"))
        bench.queue_up("full", fill)
        bench.queue_up("after", insert("after"))
        outcomes = bench.finish()
        assert {name: str(outcome) for name, outcome in outcomes.items()} == dict.fromkeys(outcomes, "FullError")
        assert not any(isinstance(outcome, OutcomeUnknown) for outcome in outcomes.values())
        assert bench.list_values() == []
        assert bench.queue.write(insert("later"), timeout=PATIENCE) == "LATER"

    def test_batch_is_bounded(self, bench: Bench) -> None:
        """However many wait, no transaction holds more changes than it may."""
        bench.hold()
        names = [str(number) for number in range(LARGEST_BATCH + 3)]
        for name in names:
            bench.queue_up(name, insert(name))
        assert bench.finish() == {name: name for name in names}
        assert bench.connection.commits == 3
        assert bench.list_values() == names

    def test_each_gets_its_own_result(self, bench: Bench) -> None:
        """Of many threads with many changes, some of which fail, each is told what became of its own."""

        def write_all(prefix: int) -> None:
            for number in range(50):
                value = f"{prefix}-{number}"
                if number % 5 == 4:
                    with pytest.raises(KeyExists, match=value):
                        bench.queue.write(insert(value, then=KeyExists(value)), timeout=PATIENCE)
                else:
                    assert bench.queue.write(insert(value), timeout=PATIENCE) == value.upper()

        assert run_at_once([partial(write_all, prefix) for prefix in range(8)]) == [None] * 8
        expected = {f"{prefix}-{number}" for prefix in range(8) for number in range(50) if number % 5 != 4}
        assert sorted(bench.list_values()) == sorted(expected)
        assert not bench.queue._waiting
        assert not bench.queue._led


class TestTurns:
    """FileTurn: a lock that orders the writing processes."""

    @pytest.fixture
    def database_file(self, tmp_path: Path) -> Path:
        """A file in the place of a database."""
        path = tmp_path / "invites.db"
        path.touch()
        return path

    def test_processes_exclude_each_other(self, database_file: Path, fork: Fork) -> None:
        """What several processes do in their turns, they do one after the other."""
        counter = database_file.with_name("counter")
        counter.write_text("0")

        def count() -> None:
            turn = FileTurn(database_file)
            for _ in range(50):
                with turn.take(time.monotonic() + PATIENCE):
                    counter.write_text(str(int(counter.read_text()) + 1))
            turn.close()

        for child in [fork(count) for _ in range(4)]:
            child.result()
        assert counter.read_text() == "200"

    def test_turn_that_does_not_come_is_told(self, database_file: Path) -> None:
        """Who does not get the lock by the deadline is told StorageBusy, and gets it when it is free."""
        one, other = FileTurn(database_file), FileTurn(database_file)
        with one.take(time.monotonic()), pytest.raises(StorageBusy), other.take(time.monotonic() + 0.01):
            pass
        with other.take(time.monotonic()):
            pass
        one.close()
        other.close()

    def test_error_inside_gives_the_turn_back(self, database_file: Path) -> None:
        """Whatever happens in a turn, the next one gets it."""
        one, other = FileTurn(database_file), FileTurn(database_file)
        with pytest.raises(ZeroDivisionError), one.take(time.monotonic()):
            raise ZeroDivisionError
        with other.take(time.monotonic()):
            pass
        one.close()
        other.close()

    def test_file_is_private_and_of_the_owner_of_the_database(self, database_file: Path) -> None:
        """The lock file has the owner of the database, who could not open it otherwise, and is nobody else's."""
        if os.geteuid() == 0:
            os.chown(database_file, 12_345, 23_456)
        turn = FileTurn(database_file)
        with turn.take(time.monotonic()):
            made = database_file.with_name("invites.db-lock").stat()
        turn.close()
        owner = database_file.stat()
        assert (made.st_uid, made.st_gid) == (owner.st_uid, owner.st_gid)
        assert stat.S_IMODE(made.st_mode) == 0o600

    def test_link_in_its_place_is_not_followed(self, database_file: Path) -> None:
        """Where somebody has put a link in its place there is no lock file, and what the link names is left alone."""
        target = database_file.with_name("target")
        database_file.with_name("invites.db-lock").symlink_to(target)
        turn = FileTurn(database_file)
        with turn.take(time.monotonic()):
            pass
        turn.close()
        assert not target.exists()

    def test_nothing_depends_on_it(self, database_file: Path) -> None:
        """Where no lock file can be made the turn is taken at once: SQLite's own lock decides."""
        database_file.parent.chmod(0o500)
        turn = FileTurn(database_file)
        with without_power_over_files(), turn.take(time.monotonic()), turn.take(time.monotonic()):
            pass
        turn.close()
        database_file.parent.chmod(0o700)
        assert not database_file.with_name("invites.db-lock").exists()

    def test_file_system_without_locks_is_written(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Where the file system has no such locks SQLite's own lock decides, and everything is written."""

        def refuse(descriptor: int, operation: int) -> None:
            raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

        monkeypatch.setattr(fcntl, "flock", refuse)
        store = SqliteStore(path, timeout=PATIENCE)
        invites = [make_invite() for _ in range(3)]
        for invite in invites:
            store.add_invites([invite])
        assert [store.find_invite(invite.token) for invite in invites] == invites
        store.close()

    def test_can_be_closed_twice(self, database_file: Path) -> None:
        """Closing what is closed does nothing, and frees the lock."""
        one, other = FileTurn(database_file), FileTurn(database_file)
        with one.take(time.monotonic()):
            pass
        one.close()
        one.close()
        with other.take(time.monotonic()):
            pass
        other.close()
