"""The SQLite store: several processes on one file, and forks in the middle of everything."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Final

import apsw
import pytest

from invites_core.errors import KeyExists, StorageBusy, StorageError
from invites_core.stores.sqlite import SqliteStore
from invites_core.stores.sqlite_database import SqliteDatabase
from invites_core.stores.sqlite_turns import FileTurn
from tests.helpers import NOON, PATIENCE, make_key, run_at_once
from tests.processes import Fork, NewSignal, StartPython
from tests.stores.sqlite_files import FILES, FILES_WHILE_OPEN, add_mark, list_names, list_soundly, open_database

# Adds keys whose ids begin with its second argument, as many as its third says; prints how many it could not add.
ADDER: Final = """
import sys
from datetime import UTC, datetime
from pathlib import Path
from invites_core.errors import KeyExists
from invites_core.keys import ApiKey
from invites_core.stores.sqlite import SqliteStore

path, prefix, count = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
print("ready", flush=True)
sys.stdin.readline()
store, refused = SqliteStore(path, timeout=30), 0
for number in range(count):
    key = ApiKey(id=f"{prefix}{number}", host="example.com", name=str(number), secret_hash="h", tag=b"t",
                 created_at=datetime(2026, 3, 1, 12, tzinfo=UTC))
    try:
        store.add_key(key)
    except KeyExists:
        refused += 1
store.close()
print(refused)
"""


class TestProcesses:
    """Several processes on one file."""

    def test_processes_add_without_loss(self, path: Path, start_python: StartPython) -> None:
        """Keys that fresh interpreters add at once, the first of them making the database, are all there."""
        processes = [start_python(ADDER, path, f"{name}-", 40) for name in "abcd"]
        for process in processes:
            process.wait_for_line("ready")
        for process in processes:
            process.go()
        assert [process.finish().strip() for process in processes] == ["0"] * 4
        assert {key.id for key in list_soundly(path)} == {f"{name}-{n}" for name in "abcd" for n in range(40)}
        assert list_names(path.parent) == FILES

    def test_one_process_wins_an_id(self, path: Path, start_python: StartPython) -> None:
        """Of fresh interpreters that add the same ids each id is added by one, and refused to the others."""
        processes = [start_python(ADDER, path, "same-", 30) for _ in range(4)]
        for process in processes:
            process.wait_for_line("ready")
        for process in processes:
            process.go()
        assert sum(int(process.finish()) for process in processes) == 30 * 3
        assert len(list_soundly(path)) == 30

    def test_children_and_their_threads_add_without_loss(self, store: SqliteStore, path: Path, fork: Fork) -> None:
        """Forked children with threads write beside their parent, which has the store open: nothing is lost."""
        store.add_key(make_key(id="before"))

        def add(name: str) -> list[Any]:
            def add_share(share: int) -> None:
                for number in range(10):
                    store.add_key(make_key(id=f"{name}-{share}-{number}"))

            return run_at_once([partial(add_share, share) for share in range(3)])

        children = [fork(partial(add, name)) for name in "abc"]
        assert add("parent") == [None] * 3
        for child in children:
            assert child.result() == [None] * 3
        store.close()
        expected = {f"{name}-{s}-{n}" for name in ("a", "b", "c", "parent") for s in range(3) for n in range(10)}
        assert {key.id for key in list_soundly(path)} == expected | {"before"}

    def test_one_child_wins_an_id(self, store: SqliteStore, fork: Fork, new_signal: NewSignal) -> None:
        """Of forked children that add a key of the same id one succeeds."""
        start = new_signal()

        def add(name: str) -> bool:
            start.wait()
            try:
                store.add_key(make_key(id="HTwALnKL", name=name))
            except KeyExists:
                return False
            return True

        names = ["a", "b", "c", "d"]
        children = [fork(partial(add, name)) for name in names]
        start.tell(len(names))
        won = [name for name, child in zip(names, children, strict=True) if child.result()]
        [key] = store.list_keys()
        assert won == [key.name]

    def test_many_first_users_make_one_database(self, path: Path, fork: Fork, new_signal: NewSignal) -> None:
        """Processes that make the database at the same moment end up with the same one."""
        start = new_signal()

        def make(name: str) -> int:
            start.wait()
            store = SqliteStore(path)
            store.add_key(make_key(id=name))
            inode = path.stat().st_ino
            store.close()
            return inode

        names = {"a", "b", "c", "d", "e", "f"}
        children = [fork(partial(make, name)) for name in names]
        start.tell(len(names))
        assert {child.result() for child in children} == {path.stat().st_ino}
        assert list_names(path.parent) == FILES
        assert {key.id for key in list_soundly(path)} == names

    def test_deletion_is_seen_by_other_processes_at_once(
        self, store: SqliteStore, fork: Fork, new_signal: NewSignal
    ) -> None:
        """A key whose deletion has returned is found by no process that has the store open."""
        keys = [make_key() for _ in range(20)]
        for key in keys:
            store.add_key(key)
        deleted, looked = new_signal(), new_signal()

        def look() -> list[bool]:
            before = all(store.find_key(key.id) == key for key in keys)
            looked.tell()
            found_late = False
            for key in keys:
                deleted.wait()
                found_late |= store.find_key(key.id) is not None
                looked.tell()
            return [before, found_late]

        child = fork(look)
        looked.wait()
        for key in keys:
            store.delete_key(key.id, host=key.host, now=NOON)
            deleted.tell()
            looked.wait()
        assert child.result() == [True, False]


class TestForkGuard:
    """A fork in the middle of everything: a child has what is its own, and nothing is lost on either side."""

    def test_child_has_a_connection_of_its_own(self, database: SqliteDatabase, fork: Fork) -> None:
        """The connection that was inherited is not used in the child, and the parent goes on working."""
        inherited = database._connection()

        def look() -> tuple[bool, list[Any]]:
            return database._connection() is inherited, database.read("SELECT id FROM deleted_keys")

        add_mark(database, "before")
        assert fork(look).result() == (False, [("before",)])
        add_mark(database, "after")
        assert database.read("SELECT id FROM deleted_keys ORDER BY id") == [("after",), ("before",)]

    @pytest.mark.parametrize("is_new", [False, True], ids=["inherited-store", "new-store"])
    def test_child_outlives_the_connections_of_its_parent(
        self, store: SqliteStore, path: Path, fork: Fork, new_signal: NewSignal, is_new: bool
    ) -> None:
        """When the parent closes its store the log stays for the child that uses it: what that commits is not lost."""
        written, closed = new_signal(), new_signal()
        store.add_key(make_key(id="parent"))

        def add() -> set[str]:
            own = SqliteStore(path) if is_new else store
            own.add_key(make_key(id="child-before"))
            written.tell()
            closed.wait()
            own.add_key(make_key(id="child-after"))
            return list_names(path.parent)

        child = fork(add)
        written.wait()
        store.close()
        closed.tell()
        assert child.result() == FILES_WHILE_OPEN
        assert {key.id for key in list_soundly(path)} == {"parent", "child-before", "child-after"}

    def test_parent_outlives_the_connections_of_its_child(self, store: SqliteStore, path: Path, fork: Fork) -> None:
        """Children that write, close and end leave the parent's locks and log where they are."""
        for number in range(5):
            store.add_key(make_key(id=f"parent-{number}"))
            fork(partial(store.add_key, make_key(id=f"child-{number}"))).result()
            assert store.find_key(f"child-{number}") is not None
            fork(store.close).result()
            store.ping()
            assert list_names(path.parent) == FILES_WHILE_OPEN
        expected = {f"{who}-{number}" for who in ("parent", "child") for number in range(5)}
        assert {key.id for key in store.list_keys()} == expected
        store.close()
        assert {key.id for key in list_soundly(path)} == expected

    def test_child_holds_locks_of_its_own(
        self, store: SqliteStore, path: Path, fork: Fork, new_signal: NewSignal
    ) -> None:
        """A third process that comes and goes does not take the log away from a child that was forked from a user."""
        opened, gone = new_signal(), new_signal()
        store.add_key(make_key(id="parent"))

        def add() -> None:
            store.add_key(make_key(id="child-before"))
            opened.tell()
            gone.wait()
            store.add_key(make_key(id="child-after"))

        child = fork(add)
        opened.wait()
        store.close()
        for number in range(3):
            third = SqliteStore(path)
            third.add_key(make_key(id=f"third-{number}"))
            third.close()
        gone.tell()
        child.result()
        expected = {"parent", "child-before", "child-after", "third-0", "third-1", "third-2"}
        assert {key.id for key in list_soundly(path)} == expected

    def test_connections_of_other_threads_do_no_harm(
        self, store: SqliteStore, path: Path, fork: Fork, new_signal: NewSignal
    ) -> None:
        """It holds as well where threads have connections open that do not live on in the child."""
        used, go_on = threading.Barrier(4), threading.Event()
        written, closed = new_signal(), new_signal()

        def use(number: int) -> None:
            store.add_key(make_key(id=f"thread-{number}-before"))
            used.wait(PATIENCE)
            assert go_on.wait(PATIENCE)
            store.add_key(make_key(id=f"thread-{number}-after"))

        threads = [threading.Thread(target=use, args=(number,), daemon=True) for number in range(3)]
        for thread in threads:
            thread.start()
        used.wait(PATIENCE)

        def add() -> None:
            store.add_key(make_key(id="child-before"))
            gc.collect()
            written.tell()
            closed.wait()
            store.add_key(make_key(id="child-after"))

        child = fork(add)
        written.wait()
        go_on.set()
        for thread in threads:
            thread.join(PATIENCE)
        store.close()
        closed.tell()
        child.result()
        expected = {f"thread-{number}-{when}" for number in range(3) for when in ("before", "after")}
        assert {key.id for key in list_soundly(path)} == expected | {"child-before", "child-after"}

    def test_forks_under_load_lose_nothing(self, store: SqliteStore, path: Path, fork: Fork) -> None:
        """While threads of the parent read and write without a pause, children are forked that write: all is there."""
        enough = threading.Event()
        added: list[list[str]] = [[] for _ in range(3)]
        first = make_key(id="first")
        store.add_key(first)

        def write(mine: list[str]) -> None:
            while not enough.is_set():
                key = make_key()
                store.add_key(key)
                mine.append(key.id)
                assert store.find_key(key.id) == key

        def read() -> None:
            while not enough.is_set():
                assert store.find_key("first") == first
                store.ping()

        loads: list[Callable[[], None]] = [*(partial(write, mine) for mine in added), read, read]
        outcomes: list[list[Any]] = []
        runner = threading.Thread(target=lambda: outcomes.append(run_at_once(loads)), daemon=True)
        runner.start()
        began = time.monotonic()
        children = [fork(partial(store.add_key, make_key(id=f"child-{number}"))) for number in range(8)]
        # A fork does not have to wait for a moment in which nobody happens to be at work.
        assert time.monotonic() - began < PATIENCE / 3
        for child in children:
            child.result()
        enough.set()
        runner.join(PATIENCE)
        assert outcomes == [[None] * 5]
        store.close()
        expected = {key_id for mine in added for key_id in mine} | {f"child-{number}" for number in range(8)}
        assert {key.id for key in list_soundly(path)} == expected | {"first"}

    def test_child_of_a_change_is_refused(self, path: Path, fork: Fork) -> None:
        """A child that was forked in the middle of a transaction could not be safe, and is told so at once."""
        database = open_database(path, create=True, timeout=0.2)

        def use() -> list[str]:
            errors: list[str] = []
            for call in (lambda: database.read("SELECT 1"), lambda: add_mark(database, "child"), database.ping):
                with pytest.raises(StorageError) as caught:
                    call()
                errors.append(str(caught.value))
            return errors

        def change(connection: apsw.Connection) -> list[str]:
            connection.execute("INSERT INTO deleted_keys VALUES ('parent', 1)").fetchall()
            errors: list[str] = fork(use).result()
            return errors

        message = f"the database {path} was in use while this process was forked"
        assert database.write(change) == [message] * 3
        add_mark(database, "later")
        assert database.read("SELECT id FROM deleted_keys ORDER BY id") == [("later",), ("parent",)]
        assert fork(lambda: database.read("SELECT count(*) FROM deleted_keys")).result() == [(2,)]
        database.close()

    def test_change_that_does_not_end_does_not_stop_a_fork(self, path: Path, fork: Fork) -> None:
        """A fork waits for the writing thread no longer than the time limit; then the child is refused, and lives."""
        database = open_database(path, create=True, timeout=0.2)
        writing, go_on = threading.Event(), threading.Event()

        def change(connection: apsw.Connection) -> None:
            connection.execute("INSERT INTO deleted_keys VALUES ('parent', 1)").fetchall()
            writing.set()
            assert go_on.wait(PATIENCE)

        thread = threading.Thread(target=database.write, args=(change,), daemon=True)
        thread.start()
        assert writing.wait(PATIENCE)

        def use() -> str:
            with pytest.raises(StorageError) as caught:
                add_mark(database, "child")
            return str(caught.value)

        assert "in use while this process was forked" in fork(use).result()
        go_on.set()
        thread.join(PATIENCE)
        assert database.read("SELECT id FROM deleted_keys") == [("parent",)]
        database.close()


def test_turn_that_was_given_up_is_passed_on(tmp_path: Path) -> None:
    """Whoever waits for its turn for too long is told so, and the turn that comes to it later goes to the next."""
    path = tmp_path / "invites.db"
    path.touch()
    first, second, third = FileTurn(path), FileTurn(path), FileTurn(path)
    with first.take(time.monotonic() + PATIENCE):
        for _ in range(3):
            with pytest.raises(StorageBusy), second.take(time.monotonic() + 0.05):
                pytest.fail("two have the turn at the same time")
        assert sum(thread.name == "invites-turn" for thread in threading.enumerate()) <= 1
    for turn in (third, second, third, first):
        with turn.take(time.monotonic() + PATIENCE):
            pass
    for turn in (first, second, third):
        turn.close()
