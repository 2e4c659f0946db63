"""The SQLite store: what its file looks like, and the one seam that all writes pass."""

from __future__ import annotations

import gc
import os
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Final

import apsw
import pytest

from invites_core.errors import KeyUnknown, StorageBusy, StorageError
from invites_core.stores.sqlite import SqliteStore
from invites_core.stores.sqlite_database import SqliteDatabase
from tests.helpers import NOON, PATIENCE, make_grant, make_invite, make_key, run_at_once, wait_until
from tests.processes import Fork
from tests.stores.sqlite_files import (
    FILES,
    FILES_WHILE_OPEN,
    change_database,
    get_mode,
    list_names,
    list_soundly,
    make_database,
    open_database,
)


class TestFile:
    """What is on the disk."""

    @pytest.mark.parametrize("umask", [0, 0o022, 0o077, 0o777], ids=oct)
    def test_files_are_private_under_any_umask(self, tmp_path: Path, fork: Fork, umask: int) -> None:
        """Database, log and index are 0600 from the moment that they have a name, and nothing else is left."""
        folder = tmp_path / "data"
        folder.mkdir()

        def make() -> tuple[dict[str, int], set[str]]:
            os.umask(umask)
            store = SqliteStore(folder / "invites.db")
            store.add_key(make_key())
            while_open = {entry.name: get_mode(entry) for entry in folder.iterdir()}
            store.close()
            return while_open, list_names(folder)

        while_open, after = fork(make).result()
        assert while_open == dict.fromkeys(FILES_WHILE_OPEN, 0o600)
        assert after == FILES

    def test_every_connection_syncs_every_commit(self, database: SqliteDatabase, fork: Fork) -> None:
        """WAL and synchronous=FULL are read back on the connection of each thread and each process."""

        def read_modes() -> list[Any]:
            return [
                database.read(f"PRAGMA {name}")[0][0]
                for name in ("journal_mode", "synchronous", "foreign_keys", "trusted_schema")
            ]

        as_set = ["wal", 2, 1, 0]
        assert read_modes() == as_set
        assert run_at_once([read_modes] * 3) == [as_set] * 3
        assert fork(read_modes).result() == as_set

    def test_file_says_whose_it_is(self, database: SqliteDatabase) -> None:
        """Application id and schema version stand in the file's header."""
        assert database.read("PRAGMA application_id") == [(0x696E7674,)]
        assert database.read("PRAGMA user_version") == [(1,)]

    def test_opening_again_changes_nothing(self, path: Path) -> None:
        """A database that is there is opened, never made anew."""
        made = make_database(path)
        before = path.read_bytes()
        SqliteStore(path).close()
        assert path.read_bytes() == before
        assert {key.id for key in list_soundly(path)} == {key.id for key in made}

    @pytest.mark.parametrize("mode", ["DELETE", "TRUNCATE", "PERSIST"])
    def test_log_is_used_again(self, path: Path, mode: str) -> None:
        """A database that came back from a copy or a tool in another journal mode is in WAL mode once it is opened."""
        change_database(path, f"PRAGMA journal_mode = {mode}")
        store = SqliteStore(path, create=False)
        assert store._database.read("PRAGMA journal_mode") == [("wal",)]
        store.add_key(make_key())
        store.close()
        assert len(list_soundly(path)) == 4

    def test_schema_is_frozen(self, database: SqliteDatabase) -> None:
        """The tables are what the databases of version 1 hold: whoever changes a line here changes a stored format."""
        dump: list[str] = []
        tables = database.read("SELECT name FROM sqlite_schema WHERE type = 'table' ORDER BY name")
        for (table,) in tables:
            [flags] = database.read("SELECT strict, wr FROM pragma_table_list WHERE name = ?", (table,))
            dump.append(f"{table}: strict={flags[0]} without_rowid={flags[1]}")
            columns = database.read(
                'SELECT name, type, "notnull", pk, hidden FROM pragma_table_xinfo(?) ORDER BY cid', (table,)
            )
            dump.extend("  " + " ".join(map(str, column)) for column in columns)
            indexes = database.read(
                'SELECT l.origin, l."unique", group_concat(i.name ORDER BY i.seqno) FROM pragma_index_list(?) l,'
                " pragma_index_info(l.name) i GROUP BY l.name ORDER BY 1, 3",
                (table,),
            )
            dump.extend("  index " + " ".join(map(str, index)) for index in indexes)
        assert "\n".join(dump) == FROZEN_SCHEMA.strip()

    @pytest.mark.parametrize(
        "statement",
        [
            pytest.param("INSERT INTO deleted_keys VALUES ('a', 'yesterday')", id="text-for-a-time"),
            pytest.param("INSERT INTO quotas VALUES ('a', 0, -1)", id="negative-quota"),
            pytest.param("INSERT INTO redemptions VALUES ('t', 'r', NULL, NULL, NULL)", id="neither-of-both"),
            pytest.param("UPDATE invites SET kind = 'other'", id="unknown-kind"),
            pytest.param("UPDATE invites SET uses = 2", id="more-uses-than-allowed"),
            pytest.param("UPDATE invites SET uses = -1", id="fewer-uses-than-none"),
            pytest.param("UPDATE invites SET max_uses = 0", id="no-use-allowed"),
            pytest.param("UPDATE invites SET registration = 2", id="neither-true-nor-false"),
            pytest.param("UPDATE keys SET previous_hash = 'x'", id="half-of-a-previous-secret"),
        ],
    )
    def test_tables_refuse_what_cannot_be(self, store: SqliteStore, database: SqliteDatabase, statement: str) -> None:
        """What no rule allows is refused by the tables themselves, and comes out as StorageError."""
        key, invite = make_key(), make_invite()
        store.add_key(key)
        store.add_invites([invite])
        with pytest.raises(StorageError):
            database.write(lambda connection: connection.execute(statement).fetchall())
        assert store.find_key(key.id) == key
        assert store.find_invite(invite.token) == invite


FROZEN_SCHEMA: Final = """
creations: strict=1 without_rowid=1
  key_id TEXT 1 1 0
  digest BLOB 1 2 0
  fingerprint BLOB 1 0 0
  tokens TEXT 1 0 0
  created_at INTEGER 1 0 0
  done_at INTEGER 0 0 0
  index pk 1 key_id,digest
deleted_keys: strict=1 without_rowid=1
  id TEXT 1 1 0
  deleted_at INTEGER 1 0 0
  index pk 1 id
invites: strict=1 without_rowid=0
  position INTEGER 0 1 0
  token TEXT 1 0 0
  host TEXT 1 0 0
  kind TEXT 1 0 0
  username TEXT 0 0 0
  registration INTEGER 1 0 0
  created_at INTEGER 1 0 0
  expires_at INTEGER 0 0 0
  max_uses INTEGER 0 0 0
  uses INTEGER 1 0 0
  source TEXT 1 0 0
  groups TEXT 1 0 0
  roles TEXT 1 0 0
  note TEXT 0 0 0
  closed_at INTEGER 0 0 0
  revoked_by TEXT 0 0 0
  closed INTEGER 0 0 2
  index c 0 host,closed,position
  index c 0 source,host,closed,position
  index u 1 token
keys: strict=1 without_rowid=1
  id TEXT 1 1 0
  host TEXT 1 0 0
  name TEXT 0 0 0
  secret_hash TEXT 1 0 0
  tag BLOB 1 0 0
  previous_hash TEXT 0 0 0
  previous_tag BLOB 0 0 0
  previous_until INTEGER 0 0 0
  policy TEXT 1 0 0
  created_at INTEGER 1 0 0
  expires_at INTEGER 0 0 0
  last_used_at INTEGER 0 0 0
  index pk 1 id
quotas: strict=1 without_rowid=1
  key_id TEXT 1 1 0
  window_start INTEGER 1 0 0
  taken INTEGER 1 0 0
  index pk 1 key_id
redemptions: strict=1 without_rowid=1
  token TEXT 1 1 0
  redemption_id TEXT 1 2 0
  redeemer TEXT 0 0 0
  redeemed_at INTEGER 0 0 0
  released_at INTEGER 0 0 0
  index pk 1 token,redemption_id
"""


class TestPositions:
    """The order that lists of invites go by."""

    def test_positions_grow(self, store: SqliteStore, database: SqliteDatabase) -> None:
        """Each invite has a higher position than those before it, also where the clock went back."""
        invites = [make_invite(created_at=NOON), make_invite(created_at=NOON.replace(year=2025)), make_invite()]
        store.add_invites(invites[:2])
        store.add_invites(invites[2:])
        rows = database.read("SELECT token FROM invites ORDER BY position")
        assert [token for (token,) in rows] == [invite.token for invite in invites]

    def test_position_of_a_second_that_is_over_is_not_given_again(
        self, store: SqliteStore, database: SqliteDatabase
    ) -> None:
        """Where the newest invites are gone, later ones stand after them all the same."""
        store.add_invites([make_invite(), make_invite()])
        [(last,)] = database.read("SELECT max(position) FROM invites")
        database.write(lambda connection: connection.execute("DELETE FROM invites").fetchall())
        store.add_invites([make_invite(created_at=NOON.replace(second=1))])
        [(position,)] = database.read("SELECT position FROM invites")
        assert position > last


class TestWrite:
    """The one seam that all writes pass."""

    def test_error_undoes_the_change(self, store: SqliteStore, database: SqliteDatabase) -> None:
        """What a change raises is raised again, and nothing of the change is left."""

        def change(connection: apsw.Connection) -> None:
            connection.execute("INSERT INTO deleted_keys VALUES ('a', 1)").fetchall()
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            database.write(change)
        assert database.read("SELECT * FROM deleted_keys") == []
        key = make_key()
        store.add_key(key)
        assert store.find_key(key.id) == key

    def test_interrupted_change_is_undone(self, database: SqliteDatabase) -> None:
        """A keyboard interrupt in the middle leaves no transaction open."""

        def change(connection: apsw.Connection) -> None:
            connection.execute("INSERT INTO deleted_keys VALUES ('a', 1)").fetchall()
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            database.write(change)
        assert not database._connection().in_transaction
        assert database.read("SELECT * FROM deleted_keys") == []

    def test_driver_error_is_ours(self, database: SqliteDatabase) -> None:
        """No error of the driver comes out as it is, from writes and from reads."""
        with pytest.raises(StorageError) as caught:
            database.write(lambda connection: connection.execute("INSERT INTO nowhere VALUES (1)"))
        assert isinstance(caught.value.__cause__, apsw.Error)
        with pytest.raises(StorageError) as caught:
            database.read("SELECT * FROM nowhere")
        assert isinstance(caught.value.__cause__, apsw.Error)

    def test_writer_that_read_first_is_not_overtaken(self, database: SqliteDatabase, path: Path, fork: Fork) -> None:
        """A change that reads and then writes holds the write lock from its beginning, against other processes too."""

        def increase(times: int) -> None:
            for _ in range(times):
                database.write(change)

        def change(connection: apsw.Connection) -> None:
            taken = connection.execute("SELECT taken FROM quotas").get
            assert isinstance(taken, int)
            connection.execute("UPDATE quotas SET taken = ?", (taken + 1,)).fetchall()

        database.write(lambda connection: connection.execute("INSERT INTO quotas VALUES ('k', 0, 0)").fetchall())
        children = [fork(lambda: increase(40)) for _ in range(3)]
        increase(40)
        for child in children:
            child.result()
        assert database.read("SELECT taken FROM quotas") == [(160,)]

    def test_writers_of_one_process_wait_for_each_other(self, path: Path) -> None:
        """A thread whose turn does not come within the time limit is told StorageBusy, and nothing was changed."""
        database = open_database(path, create=True, timeout=0.1)
        writing, go_on = threading.Event(), threading.Event()

        def change(connection: apsw.Connection) -> None:
            connection.execute("INSERT INTO deleted_keys VALUES ('slow', 1)").fetchall()
            writing.set()
            assert go_on.wait(PATIENCE)

        slow = threading.Thread(target=database.write, args=(change,), daemon=True)
        slow.start()
        assert writing.wait(PATIENCE)
        with pytest.raises(StorageBusy, match=str(path)):
            database.write(lambda connection: connection.execute("INSERT INTO deleted_keys VALUES ('late', 1)"))
        assert database.read("SELECT * FROM deleted_keys") == [], "readers wait for nobody, and see what is committed"
        go_on.set()
        slow.join(PATIENCE)
        assert database.read("SELECT id FROM deleted_keys") == [("slow",)]
        database.close()

    def test_key_is_looked_for_where_its_invites_are_added(self, store: SqliteStore, database: SqliteDatabase) -> None:
        """An invite whose key is deleted while it waits for its turn is not added."""
        key, invite = make_key(), make_invite()
        store.add_key(key)
        deleting, go_on = threading.Event(), threading.Event()

        def delete(connection: apsw.Connection) -> None:
            connection.execute("DELETE FROM keys").fetchall()
            deleting.set()
            assert go_on.wait(PATIENCE)

        def add() -> None:
            with pytest.raises(KeyUnknown):
                store.add_granted(make_grant(key, tokens=(invite.token,)), [invite])

        deleter = threading.Thread(target=database.write, args=(delete,), daemon=True)
        deleter.start()
        assert deleting.wait(PATIENCE)
        adder = threading.Thread(target=lambda: outcomes.extend(run_at_once([add])), daemon=True)
        outcomes: list[object] = []
        adder.start()
        waiting = database._process.get().writers._waiting
        wait_until(lambda: len(waiting) == 1)
        go_on.set()
        for thread in (deleter, adder):
            thread.join(PATIENCE)
        assert outcomes == [None]
        assert store.find_invite(invite.token) is None

    def test_closed_store_is_an_error(self, store: SqliteStore) -> None:
        """Whoever uses a store after it was closed is told so, in this thread and in others."""
        key = make_key()
        store.add_key(key)
        store.close()

        def get_errors() -> list[str]:
            errors: list[str] = []
            uses: list[Callable[[], object]] = [
                store.ping,
                partial(store.find_key, key.id),
                partial(store.add_key, make_key()),
            ]
            for use in uses:
                with pytest.raises(StorageError) as caught:
                    use()
                errors.append(type(caught.value).__name__)
            return errors

        assert get_errors() == ["StorageError"] * 3
        assert run_at_once([get_errors]) == [["StorageError"] * 3]

    def test_close_ends_the_connections_of_all_threads(self, store: SqliteStore, path: Path) -> None:
        """After closing nothing is open, also where threads that used the store live on: only the file is left."""
        used, go_on = threading.Barrier(4), threading.Event()

        def use() -> None:
            store.add_key(make_key())
            used.wait(PATIENCE)
            assert go_on.wait(PATIENCE)

        threads = [threading.Thread(target=use, daemon=True) for _ in range(3)]
        for thread in threads:
            thread.start()
        used.wait(PATIENCE)
        store.close()
        assert list_names(path.parent) == FILES
        go_on.set()
        for thread in threads:
            thread.join(PATIENCE)

    def test_connection_of_a_thread_ends_with_it(self, database: SqliteDatabase) -> None:
        """Threads that come and go leave no descriptor open."""
        database.read("SELECT 1")
        open_before = len(os.listdir("/dev/fd"))
        for _ in range(20):
            assert run_at_once([lambda: database.read("SELECT 1")]) == [[(1,)]]
        gc.collect()
        assert len(os.listdir("/dev/fd")) <= open_before + 3
